"""Charts as SVG that takes its colours, lines and fonts from the page's style sheet.

No element has a style of its own, which the page's Content-Security-Policy forbids: lines and
points have classes, so that one chart serves the light page, the dark page and the printer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from pipeline.console import format_number
from pipeline.model.decision import Floats
from pipeline.model.saved import History

SERIES_COLORS = 8  # as many as the page's style sheet has
# The frame in units of the drawing, about a pixel each; page.js computes in the same ones.
WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 350, 10, 228
_TICKS = 5
_STRIP_HEIGHT = 30
_LARGEST_HISTORY = 400  # epochs that a line shows


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    :param title: its name; empty for none.
    :param low: the number at its start.
    :param high: the number at its end, above ``low``.
    :param ticks: the numbers that are marked, ascending.
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def share(cls, title: str) -> Axis:
        """An axis from 0 to 1.

        :param title: its name.
        """
        return cls(title, 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))

    @classmethod
    def fit(cls, title: str, values: Iterable[float], *, from_zero: bool = False) -> Axis:
        """An axis that holds some numbers, its ticks at round ones.

        :param title: its name.
        :param values: the numbers, at least one.
        :param from_zero: whether it starts at 0, of numbers that are not negative.
        """
        known = list(values)
        low, high = 0.0 if from_zero else min(known), max(known)
        if high <= low:
            high = low + max(abs(low), 1.0)
        return cls(title, low, high, list_ticks(low, high))

    def place(self, values: Floats, start: float, end: float) -> Floats:
        """Where numbers lie between two coordinates.

        :param values: the numbers, [N].
        :param start: the coordinate of the axis's start.
        :param end: the coordinate of its end.
        """
        placed: Floats = start + (values - self.low) / (self.high - self.low) * (end - start)
        return placed


@dataclass(frozen=True)
class Line:
    """One line, or a row of points.

    :param x: the coordinates along the first axis, [N].
    :param y: the coordinates along the second axis, [N].
    :param style: classes of the style sheet, such as ``s0`` for the first series colour.
    """

    x: Floats
    y: Floats
    style: str


def list_ticks(low: float, high: float) -> tuple[float, ...]:
    """At most six round numbers in a range: 1, 2 or 5 times a power of 10 apart.

    :param low: the start of the range.
    :param high: its end, above the start.
    """
    rough = (high - low) / _TICKS
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return tuple(float(f"{step * number:.12g}") for number in np.arange(first, last + 1))


def draw_chart(
    x: Axis,
    y: Axis,
    lines: Sequence[Line] = (),
    points: Sequence[Line] = (),
    uprights: Sequence[tuple[float, str]] = (),
    below: str = "",
) -> str:
    """Draw lines and points in a frame.

    :param x: the first axis.
    :param y: the second axis.
    :param lines: lines, the last one on top.
    :param points: points, on top of the lines.
    :param uprights: upright lines from the bottom to the top: where, and their classes.
    :param below: elements of SVG that stand below lines and points.
    :returns: an ``svg`` element.
    """
    pieces = [_draw_frame(x, y), below]
    for at, style in uprights:
        across = x.place(np.array([at]), LEFT, RIGHT)[0]
        pieces.append(
            f'<line class="{style}" x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{BOTTOM}"/>'
        )
    for line in lines:
        path = trace_path(x.place(line.x, LEFT, RIGHT), y.place(line.y, BOTTOM, TOP))
        pieces.append(f'<path class="line {line.style}" d="{path}"/>')
    for of in points:
        across, down = x.place(of.x, LEFT, RIGHT), y.place(of.y, BOTTOM, TOP)
        pieces += [
            f'<circle class="point {of.style}" cx="{cx:.1f}" cy="{cy:.1f}" r="4"/>'
            for cx, cy in zip(across.tolist(), down.tolist(), strict=True)
        ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart">{"".join(pieces)}</svg>'


def trace_path(x: Floats, y: Floats) -> str:
    """Points as the data of a path, in tenths of a unit.

    :param x: coordinates, [N].
    :param y: coordinates, [N].
    """
    steps = [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return "M" + "L".join(steps) if steps else ""


def _draw_frame(x: Axis, y: Axis) -> str:
    """Grid, numbers and names of both axes."""
    pieces = []
    for tick, across in zip(x.ticks, x.place(np.array(x.ticks), LEFT, RIGHT).tolist(), strict=True):
        pieces += [
            f'<line class="grid" x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{BOTTOM}"/>',
            f'<text class="tick" x="{across:.1f}" y="{BOTTOM + 16}" text-anchor="middle">'
            f"{_format_tick(tick)}</text>",
        ]
    for tick, down in zip(y.ticks, y.place(np.array(y.ticks), BOTTOM, TOP).tolist(), strict=True):
        pieces += [
            f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>',
            f'<text class="tick" x="{LEFT - 7}" y="{down + 4:.1f}" text-anchor="end">'
            f"{_format_tick(tick)}</text>",
        ]
    middle_x, middle_y = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    pieces.append(
        f'<text class="axis" x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x.title)}</text>"
        f'<text class="axis" transform="translate(10 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.title)}</text>"
    )
    return "".join(pieces)


def _format_tick(value: float) -> str:
    return f"{value + 0.0:.6g}".replace("e+0", "e").replace("-", "−")


def draw_curves(
    curves: Sequence[tuple[Floats, Floats]],
    labels: tuple[str, str],
    *,
    diagonal: bool = False,
    mark: tuple[float, float] | None = None,
) -> str:
    """Draw curves in the unit square; the n-th has the page's n-th series colour.

    :param curves: coordinates along both axes, of at most ``SERIES_COLORS`` curves.
    :param labels: the names of the x and the y axis.
    :param diagonal: whether to draw the line of a head that guesses.
    :param mark: a point to mark: where the head's threshold stands.
    :returns: an ``svg`` element.
    """
    ends = np.array([0.0, 1.0])
    guess = [Line(ends, ends, "guess")] if diagonal else []
    lines = [Line(x, y, f"s{index}") for index, (x, y) in enumerate(curves)]
    marks = [] if mark is None else [Line(np.array(mark[:1]), np.array(mark[1:]), "ink")]
    return draw_chart(Axis.share(labels[0]), Axis.share(labels[1]), guess + lines, marks)


def draw_history(history: History, kept_epoch: int) -> str:
    """Draw training and validation loss by epoch, and a line at the epoch that was kept.

    :param history: the losses, of one epoch at least.
    :param kept_epoch: the number of the epoch.
    :returns: an ``svg`` element.
    """
    step = max(1, len(history.epochs) // _LARGEST_HISTORY)
    epochs = np.array(history.epochs[::step], float)
    losses = [
        np.array(values[::step], float) for values in (history.train_loss, history.validation_loss)
    ]
    finite = [value for of in losses for value in of[np.isfinite(of)].tolist()] or [1.0]
    lines = [Line(epochs, of, f"s{index}") for index, of in enumerate(losses)]
    return draw_chart(
        Axis.fit("epoch", epochs.tolist()),
        Axis.fit("loss", finite, from_zero=min(finite) >= 0),
        lines,
        lines if len(epochs) == 1 else [],  # one epoch alone makes no line
        [(float(kept_epoch), "kept")],
    )


def draw_strip(
    axis: Axis, value: float, interval: tuple[float, float] | None, floors: Sequence[float]
) -> str:
    """Draw one score on a line, its interval, and the floors that it stands on.

    :param axis: the range of the score.
    :param value: the score.
    :param interval: the ends of its interval.
    :param floors: the scores of the baselines; the n-th has the n-th tick's style.
    :returns: an ``svg`` element.
    """

    def locate(score: float) -> float:
        at: float = axis.place(np.array([score]), 6, WIDTH - 6)[0]
        return min(max(at, 6.0), WIDTH - 6.0)

    middle = _STRIP_HEIGHT / 2
    pieces = [f'<line class="track" x1="6" x2="{WIDTH - 6}" y1="{middle}" y2="{middle}"/>']
    pieces += [
        f'<line class="floor floor-{index}" x1="{locate(floor):.1f}" x2="{locate(floor):.1f}" '
        f'y1="{middle - 8}" y2="{middle + 8}"/>'
        for index, floor in enumerate(floors)
    ]
    if interval is not None:
        low, high = locate(interval[0]), locate(interval[1])
        pieces.append(
            f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        )
    pieces.append(f'<circle class="score" cx="{locate(value):.1f}" cy="{middle}" r="6"/>')
    return f'<svg viewBox="0 0 {WIDTH} {_STRIP_HEIGHT}" class="strip">{"".join(pieces)}</svg>'


def draw_bars(rows: Sequence[tuple[str, float, str]], axis: Axis) -> str:
    """Draw a bar for each of some names, its number behind it.

    :param rows: name, number and classes of each bar.
    :param axis: the range of the numbers; bars start where it does.
    :returns: an ``svg`` element.
    """
    step, name_width = 24, 92
    pieces = []
    for index, (name, value, style) in enumerate(rows):
        top = index * step
        end = float(axis.place(np.array([value]), name_width, WIDTH - 46)[0])
        pieces.append(
            f'<text class="tick" x="{name_width - 8}" y="{top + 16}" text-anchor="end">'
            f"{escape(name)}</text>"
            f'<rect class="bar {style}" x="{name_width}" y="{top + 4}" '
            f'width="{max(end - name_width, 1):.1f}" height="{step - 8}" rx="2"/>'
            f'<text class="number" x="{max(end, name_width) + 6:.1f}" y="{top + 16}">'
            f"{format_number(value, 3)}</text>"
        )
    height = max(len(rows) * step, 1)
    return f'<svg viewBox="0 0 {WIDTH} {height}" class="bars">{"".join(pieces)}</svg>'
