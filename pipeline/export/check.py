"""Whether an exported graph answers as the pipeline does, on texts of the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ExportError
from pipeline.export.labels import INPUTS, name_outputs
from pipeline.model.decision import Logits
from pipeline.model.saved import Heads, SavedHead

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Outputs = Mapping[str, npt.NDArray[Any]]  # name of an output of the graph → its values

CHECKED_TEXTS = 200
# A probability, or a number in standard deviations of its labels, may differ by so much.
TOLERANCE = 1e-4
# A label may differ where the probability is so close to a boundary between two labels.
_MARGIN = 1e-3
_BATCH_TEXTS = 16


@dataclass(frozen=True)
class Agreement:
    """How one task's outputs of a graph agree with what a head answers.

    :param task: the task.
    :param rows: the number of texts.
    :param difference: the largest difference of a probability, or of a number in standard
        deviations of its labels.
    :param others: texts whose label differs.
    :param wrong: those of them that are not close to a boundary between two labels.
    """

    task: str
    rows: int
    difference: float
    others: int
    wrong: int

    @property
    def is_close(self) -> bool:
        """Whether all differences are such as rounding makes."""
        return self.difference <= TOLERANCE and not self.wrong

    def describe(self) -> str:
        """Both differences, for a cell of a table."""
        return f"{self.difference:.1e}, {self.others} of {self.rows}"


def run_graph(path: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> Outputs:
    """The outputs of a graph by ONNX Runtime on the CPU.

    :param path: the graph.
    :param tokenizer: the tokenizer, which cuts and pads.
    :param texts: [B], at least one.
    :returns: name of an output → its values for the B texts.
    :raises ExportError: if ONNX Runtime cannot run the graph.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        pieces = [session.run(names, fed) for fed in _encode(tokenizer, texts)]
    except Exception as error:  # what ONNX Runtime raises derives from RuntimeError and Exception
        if isinstance(error, MemoryError):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"ONNX Runtime cannot run the exported graph: {reason}",
            hint="choose another backbone in fetch.backbones",
        ) from error
    return {
        name: np.concatenate(of_batches)
        for name, of_batches in zip(names, zip(*pieces, strict=True), strict=True)
    }


def _encode(
    tokenizer: Tokenizer, texts: Sequence[str]
) -> Iterator[dict[str, npt.NDArray[np.int64]]]:
    """The inputs of a graph, a batch at a time."""
    for start in range(0, len(texts), _BATCH_TEXTS):
        encodings = tokenizer.encode_batch(list(texts[start : start + _BATCH_TEXTS]))
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        yield dict(zip(INPUTS, (ids, mask), strict=True))


def compare_outputs(
    heads: Heads, logits: Mapping[str, Logits], outputs: Outputs
) -> list[Agreement]:
    """Compare a graph's outputs with what the heads answer.

    :param heads: the heads.
    :param logits: task → logits of B texts by the pipeline, [B, O].
    :param outputs: the outputs of the graph for the same texts.
    """
    return [_compare(head, logits[head.name], outputs) for head in heads.heads]


def _compare(head: SavedHead, logits: Logits, outputs: Outputs) -> Agreement:
    *probabilities_name, label_name = name_outputs(head)
    expected = head.type.predict(logits, head.decision)
    found = outputs[label_name]
    if not probabilities_name:
        difference = np.abs(found - expected) / head.spread
        return Agreement(head.name, len(found), float(difference.max()), 0, 0)
    wanted = head.type.compute_probabilities(logits, head.decision)
    difference = np.abs(outputs[probabilities_name[0]] - wanted)
    is_other = found != expected
    is_wrong = is_other & (head.type.measure_margins(logits, head.decision) > _MARGIN)
    rows = len(found)
    return Agreement(
        head.name,
        rows,
        float(difference.max()),
        int(is_other.reshape(rows, -1).any(axis=1).sum()),
        int(is_wrong.reshape(rows, -1).any(axis=1).sum()),
    )


def demand_agreement(agreements: Sequence[Agreement]) -> None:
    """Make sure that a graph answers as the heads do.

    :param agreements: what ``compare_outputs`` found.
    :raises ExportError: if it does not, naming each task that differs.
    """
    odd = [of_task for of_task in agreements if not of_task.is_close]
    if odd:
        listed = "; ".join(
            f"{of_task.task}: differences up to {of_task.difference:.1e} (allowed: {TOLERANCE:g}), "
            f"{of_task.wrong} of {of_task.rows} labels differ"
            for of_task in odd
        )
        raise ExportError(
            f"the exported graph does not answer as the pipeline does: {listed}",
            hint="nothing was written; try a newer torch, onnxscript or onnxruntime",
        )
