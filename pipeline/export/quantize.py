"""A graph with weights of 8 bits: a quarter of the size, and answers that differ a little."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path


def quantize_graph(path: Path, made: Path, kept: Sequence[str], *, is_large: bool) -> None:
    """Write a graph anew with weights that are int8.

    Activations are quantized while the graph runs, by the range that they have then.

    :param path: the graph.
    :param made: the file to write.
    :param kept: names of the nodes that stay as they are.
    :param is_large: whether the weights stand in a file beside the graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends a step that graphs of torch do not need
    try:
        quantize_dynamic(
            path,
            made,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(kept),
            use_external_data_format=is_large,
        )
    finally:
        logging.root.setLevel(level)
