"""Numbers, settings and details as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.console import format_number

_STEPS = 20  # of shares that the style sheet has a class for


def format_score(value: float | None) -> str:
    """A score with three decimals, a huge or tiny one with three digits; a dash for ``None``.

    :param value: the score.
    """
    return "–" if value is None else format_number(value, 3)


def format_value(value: object) -> str:
    """A setting or a detail as a person would write it.

    :param value: a value of JSON.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    return str(value)


def name_step(share: float | None) -> str:
    """The class of the style sheet that shades a cell by a share; of 0 for ``None``.

    :param share: a number from 0 to 1.
    """
    return f"k{round(_STEPS * min(max(share or 0.0, 0.0), 1.0))}"


def format_cost(value: float, unit: str) -> str:
    """A figure of what a run has cost.

    :param value: the figure.
    :param unit: its unit, as in ``costs.Cost``.
    """
    if unit == "s":
        return _format_seconds(value)
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB" if value < 1e9 else f"{value / 1e9:,.2f} GB"
    if unit == "cosine":
        return f"{value:.7f}"
    if unit == "relative":
        return f"{value:.2g}"
    return f"{value:,.0f} {unit}"


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
