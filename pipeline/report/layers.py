"""What each layer is worth, as ``train-heads`` measured it, and where a search ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.model.metrics import METRICS
from pipeline.model.saved import SavedHead

_BOUNDS = ("strongest", "weakest")


@dataclass(frozen=True)
class LayerWorth:
    """The scores of quick heads on single layers, which compare with each other alone.

    :param metric: the metric that they are scored by.
    :param rows: the number of validation rows that they are scored on.
    :param layers: the number of each layer → the score of a head on it alone, in their order.
    :param joined: the score of a head on all these layers.
    :param best: the number of the layer with the best score.
    """

    metric: str
    rows: int
    layers: Mapping[int, float]
    joined: float
    best: int


def read_layer_worth(head: SavedHead) -> LayerWorth | None:
    """What ``heads.json`` tells of the layers.

    :param head: the head.
    :returns: ``None`` if it tells nothing, as of heads on one layer, of more than 200 classes, or
        trained with ``heads.layer_scores: false`` or by an earlier version.
    :raises ValueError: if it is of another form; ``KeyError``, ``TypeError`` and
        ``AttributeError`` likewise.
    """
    record: Any = head.about.get("layer_scores")
    if record is None:
        return None
    layers = {int(layer): float(value) for layer, value in record["layers"].items()}
    lower_is_better = METRICS[record["metric"]].lower_is_better
    choose = min if lower_is_better else max
    return LayerWorth(
        metric=record["metric"],
        rows=int(record["rows"]),
        layers=dict(sorted(layers.items())),
        joined=float(record["joined"]),
        best=choose(layers, key=lambda layer: layers[layer]),
    )


def read_path_bound(head: SavedHead) -> str | None:
    """Which end of the path of weight decays was the best, so that others may be better still.

    :param head: the head.
    :returns: ``strongest`` or ``weakest``; ``None`` if the best lies between, as it should.
    :raises ValueError: if ``heads.json`` says something else.
    """
    bound: Any = head.about.get("path_bound")
    if bound is not None and bound not in _BOUNDS:
        raise ValueError(f"path_bound is {bound!r:.40}")
    return str(bound) if bound is not None else None
