"""Curves as data, as CSV for ``dvc plots``, and as SVG that follows the page's colours."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Ints
from pipeline.model.evaluation import PartScores
from pipeline.model.metrics import Ranking, sweep_thresholds
from pipeline.model.saved import Heads, History

if TYPE_CHECKING:
    from collections.abc import Iterator

SERIES_COLORS = 8  # as many as the page's style sheet has
_MAX_POINTS = 400  # in one curve
# Colours that stand in for the page's own: the SVG gets `var(--…)` in their place, so that one
# picture serves the light and the dark page.
_INK, _MUTED, _GRID = "#0000b0", "#0000b1", "#0000b2"
_SERIES = [f"#0000a{index}" for index in range(SERIES_COLORS)]
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "grid"} | {
    color: f"series-{index}" for index, color in enumerate(_SERIES)
}


@dataclass(frozen=True)
class Curve:
    """Points of one class's curve, in drawing order.

    :param index: the index of the class.
    :param x: the coordinates along the first axis: float64, [N], in 0 to 1, never falling.
    :param y: the coordinates along the second axis: float64, [N], in 0 to 1.
    """

    index: int
    x: Floats
    y: Floats


@dataclass(frozen=True)
class TaskCurves:
    """Curves of one task, of each class that its head ranks rows by; none if it ranks nothing.

    :param roc: receiver operating characteristics.
    :param precision_recall: precision over recall.
    """

    roc: list[Curve]
    precision_recall: list[Curve]


def trace_roc(rankings: Sequence[Ranking]) -> list[Curve]:
    """Receiver operating characteristic: false positive rate → true positive rate.

    :param rankings: the rows ranked by each class against the rest.
    :returns: a curve for each class that has rows and lacks some.
    """
    curves = []
    for ranking in rankings:
        if ranking.is_class.any() and not ranking.is_class.all():
            sweep = sweep_thresholds(ranking)
            # Points on a straight line between their neighbours add nothing.
            kept = _keep_corners(
                (np.diff(sweep.hits, 2) != 0) | (np.diff(sweep.false_alarms, 2) != 0)
            )
            curve = Curve(ranking.index, sweep.false_positive_rate[kept], sweep.recall[kept])
            curves.append(_thin_curve(curve))
    return curves


def trace_precision_recall(rankings: Sequence[Ranking]) -> list[Curve]:
    """Recall → precision.

    :param rankings: the rows ranked by each class against the rest.
    :returns: a curve for each class that has rows.
    """
    curves = []
    for ranking in rankings:
        if ranking.is_class.any():
            sweep = sweep_thresholds(ranking)
            # Where only false alarms are added, recall stands still: a line straight down.
            moves = np.diff(sweep.hits) != 0
            kept = _keep_corners(moves[1:] | moves[:-1])
            curves.append(
                _thin_curve(Curve(ranking.index, sweep.recall[kept], sweep.precision[kept]))
            )
    return curves


def _keep_corners(bends: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The first point, the last one, and those between at which the curve bends."""
    return np.concatenate([[True], bends, [True]])


def _thin_curve(curve: Curve) -> Curve:
    """Keep points at even distances along a long curve: the eye and the file size ask no more."""
    if len(curve.x) <= _MAX_POINTS:
        return curve
    steps = np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y))
    length = np.concatenate([[0.0], np.cumsum(steps)])
    kept = np.searchsorted(length, np.linspace(0, length[-1], _MAX_POINTS))
    kept = np.unique(np.concatenate([[0], kept, [len(length) - 1]]))
    return Curve(curve.index, curve.x[kept], curve.y[kept])


def write_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """CSV as UTF-8 bytes; floats with six significant digits.

    :param header: the names of the columns.
    :param rows: one cell for each column.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    return buffer.getvalue().encode("utf-8")


def list_files(
    heads: Heads,
    scores: Mapping[str, PartScores],
    curves: Mapping[str, TaskCurves],
) -> dict[str, bytes]:
    """The data behind the plots, one CSV file for each kind and task.

    :param heads: the heads.
    :param scores: task → scores on the part that the curves are of.
    :param curves: task → curves.
    :returns: name below ``plots/`` → content. A table without rows, at which ``dvc plots`` would
        stop, is left out.
    """
    files = {}
    for head in heads.heads:
        history, traced = head.history, curves[head.name]
        losses = zip(history.epochs, history.train_loss, history.validation_loss, strict=True)
        confusion = _list_confusion(scores[head.name].confusion, head.classes)
        roc = list_points(traced.roc, head.classes)
        precision_recall = list_points(traced.precision_recall, head.classes)
        tables: dict[str, tuple[Sequence[str], list[Any]]] = {
            "training": (("epoch", "train_loss", "validation_loss"), list(losses)),
            "confusion": (("actual", "predicted"), confusion),
            "roc": (("class", "false_positive_rate", "true_positive_rate"), list(roc)),
            "precision_recall": (("class", "recall", "precision"), list(precision_recall)),
        }
        for kind, (header, rows) in tables.items():
            if rows:
                files[f"{kind}/{head.name}.csv"] = write_csv(header, rows)
    return files


def _list_confusion(confusion: Ints, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Names of actual and predicted class, once for each row of the part, cell by cell."""
    return [
        (classes[actual], classes[predicted])
        for actual, predicted in zip(*np.nonzero(confusion), strict=True)
        for _ in range(confusion[actual, predicted])
    ]


def list_points(
    curves: Sequence[Curve], classes: Sequence[str]
) -> Iterator[tuple[str, float, float]]:
    """Class name and point of all curves, one after the other.

    :param curves: the curves of one task.
    :param classes: its class names.
    """
    for curve in curves:
        for x, y in zip(curve.x, curve.y, strict=True):
            yield classes[curve.index], float(x), float(y)


def draw_curves(
    curves: Sequence[Curve],
    labels: tuple[str, str],
    *,
    diagonal: bool = False,
    mark: tuple[float, float] | None = None,
) -> str:
    """Draw curves in the unit square; the n-th has the page's n-th series colour.

    :param curves: the curves, at most ``SERIES_COLORS`` of them.
    :param labels: the names of the x and the y axis.
    :param diagonal: whether to draw the line of a head that guesses.
    :param mark: a point to mark: where the head's threshold stands.
    :returns: an ``svg`` element.
    """
    with _drawing(labels) as (axes, finished):
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        for curve, color in zip(curves, _SERIES, strict=False):
            axes.plot(curve.x, curve.y, color=color, linewidth=1.7, clip_on=False)
        if mark is not None:
            axes.plot(*mark, "o", color=_INK, markersize=5, clip_on=False, zorder=5)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    return finished[0]


def draw_history(history: History, kept_epoch: int) -> str:
    """Draw training and validation loss by epoch, and a line at the epoch that was kept.

    :param history: the losses, of one epoch at least.
    :param kept_epoch: the number of the epoch.
    :returns: an ``svg`` element.
    """
    from matplotlib.ticker import MaxNLocator

    with _drawing(("epoch", "loss")) as (axes, finished):
        axes.axvline(kept_epoch, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        # One epoch alone makes no line.
        marker = "o" if len(history.epochs) == 1 else None
        for losses, color in zip(
            (history.train_loss, history.validation_loss), _SERIES, strict=False
        ):
            axes.plot(
                history.epochs, losses, color=color, linewidth=1.7, marker=marker, markersize=4
            )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylim(bottom=0)
        axes.margins(x=0.03)
    return finished[0]


@contextmanager
def _drawing(labels: tuple[str, str]) -> Iterator[tuple[Any, list[str]]]:
    """Axes in the page's style; at the end the picture is put into the list as one ``svg``.

    :param labels: the names of the x and the y axis.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    finished: list[str] = []
    with mpl.rc_context():
        mpl.rcdefaults()  # the user's own style must not change the page
        # Text stays text; a fixed salt makes the ids, and so the file, the same in every run.
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 8.5})
        figure = Figure(figsize=(3.6, 2.9), facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.15, 0.16, 0.81, 0.79), facecolor="none")
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(color=_GRID, labelcolor=_MUTED, length=0, pad=5)
        axes.set_xlabel(labels[0], color=_MUTED)
        axes.set_ylabel(labels[1], color=_MUTED)
        yield axes, finished
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    finished.append(_adapt_svg(buffer.getvalue()))


def _adapt_svg(text: str) -> str:
    """Make matplotlib's file an element of the page.

    The page's colours and font take the place of the drawing's; what only a file of its own needs
    goes: the prolog, metadata, the style for every element, ids that nothing refers to.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style .*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r' clip-path="[^"]*"', "", text)
    text = re.sub(r"<clipPath .*?</clipPath>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;]*;", "", text)
    text = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", text)
    text = _mend_ids(text)
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r"(?:<defs>\s*</defs>|\s)+", " ", text).strip()


def _mend_ids(text: str) -> str:
    """Keep only the ids that something refers to, and make them this picture's own."""
    own = hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]
    used = set(re.findall(r'href="#([^"]+)"', text))
    text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)
    return re.sub(r'( id="|href="#)([^"]+)"', rf'\1\2-{own}"', text)
