"""What a run has cost, and what it would have cost without a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.model.decision import Ints
from pipeline.report.inputs import ScoredRows
from pipeline.store import Hits, Manifest

# The epochs of the notebook that this project replaces.
NOTEBOOK_EPOCHS = 5


@dataclass(frozen=True)
class Cost:
    """One figure of what a run has cost.

    :param what: what was measured, in words.
    :param value: the figure.
    :param unit: its unit: ``s``, ``tokens/s``, ``share``, ``bytes``, ``cosine`` or ``relative``.
    :param note: what it was computed from, in words; may be empty.
    """

    what: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Costs:
    """What a run has cost.

    :param rows: the figures, in the order in which they are to be read.
    """

    rows: tuple[Cost, ...]

    def find(self, what: str) -> Cost | None:
        """One figure by its name; ``None`` if it is not known of this run."""
        return next((cost for cost in self.rows if cost.what == what), None)


def measure_costs(
    timings: Sequence[Mapping[str, Any]],
    manifest: Manifest,
    rows: ScoredRows,
    n_tokens: Ints,
    hits: Hits | None = None,
) -> Costs:
    """Gather what is known of a run; what is not known is left out.

    :param timings: the records of the stages, as ``read_timings`` gives them.
    :param manifest: what the store holds.
    :param rows: the rows of the corpus.
    :param n_tokens: the number of tokens of each of the N distinct texts, [N].
    :param hits: how many texts the last run of ``embed`` kept and embedded.
    """
    details = {timing["stage"]: timing["details"] for timing in timings}
    embedded = details.get("embed", {})
    costs = [
        Cost(timing["stage"], float(timing["wall_seconds"]), "s", "as of its last run")
        for timing in timings
    ]
    if len(costs) > 1:
        total = sum(cost.value for cost in costs)
        costs.append(Cost("all stages", total, "s", "each as of its last run"))
    rate = _take_number(embedded, "tokens_per_second")
    if rate:
        costs.append(Cost("embedding", rate, "tokens/s", str(embedded.get("device", ""))))
    costs += _measure_savings(manifest, rows, n_tokens, hits)
    costs += _measure_notebook(manifest, rows, details, rate)
    return Costs(tuple(costs))


def _measure_savings(
    manifest: Manifest, rows: ScoredRows, n_tokens: Ints, hits: Hits | None
) -> list[Cost]:
    """What was not computed, and what it is worth on disk."""
    costs = []
    longest = int(manifest.recipe.get("max_tokens", 0))
    B, N, tokens = len(rows.codes), len(n_tokens), int(n_tokens.sum())
    if longest and N:
        note = f"{tokens:,} tokens in {N:,} texts, which padded to {longest:,} would be "
        costs.append(
            Cost("padding avoided", 1 - tokens / (N * longest), "share", f"{note}{N * longest:,}")
        )
    if B:
        note = f"{B:,} rows hold {N:,} distinct texts"
        costs.append(Cost("duplicates avoided", 1 - N / B, "share", note))
    total = 0 if hits is None else hits.kept + hits.embedded
    if hits is not None and total:
        note = f"{hits.kept:,} of {total:,} texts in the last run of embed"
        costs.append(Cost("texts from the cache", hits.kept / total, "share", note))
    layers = f"{len(manifest.layers)} layers × {manifest.width} in {manifest.dtype}"
    costs.append(Cost("vectors on disk", float(manifest.bytes), "bytes", layers))
    if manifest.fidelity is not None:
        note = f"the worst of {manifest.fidelity['texts']:,} texts embedded again in float32"
        lowest, largest = (manifest.fidelity[key] for key in ("lowest_cosine", "largest_error"))
        costs.append(Cost("fidelity, cosine", float(lowest), "cosine", note))
        costs.append(Cost("fidelity, error", float(largest), "relative", note))
    return costs


def _measure_notebook(
    manifest: Manifest,
    rows: ScoredRows,
    details: Mapping[str, Mapping[str, Any]],
    rate: float | None,
) -> list[Cost]:
    """What the notebook's way would have taken on the same machine, at this run's own rate.

    It ran the backbone on every training and validation row in each of five epochs, and once on the
    test rows, each padded to the longest length, for one configuration of its heads. The rate is
    that of this run's engine, which is faster on such batches than the notebook's was, so that the
    figure is a lower bound.
    """
    longest = int(manifest.recipe.get("max_tokens", 0))
    if not rate or not longest:
        return []
    sizes = {part: len(rows.parts.get(part, ())) for part in ("train", "validation", "test")}
    passes = NOTEBOOK_EPOCHS * (sizes["train"] + sizes["validation"]) + sizes["test"]
    seconds = passes * longest / rate
    note = (
        f"{passes:,} texts through the backbone, {longest:,} tokens each, at {rate:,.0f} tokens/s: "
        f"{NOTEBOOK_EPOCHS} epochs, one configuration"
    )
    costs = [Cost("the notebook's way", seconds, "s", note)]
    tried = _take_number(details.get("train-heads", {}), "configurations")
    if tried and tried > 1:
        note = f"the same for the {tried:,.0f} configurations that this run tried"
        costs.append(Cost("the notebook's way, with the search", seconds * tried, "s", note))
    return costs


def _take_number(details: Mapping[str, Any], key: str) -> float | None:
    """A number above 0 of a record that a user may have edited; ``None`` if it is none."""
    value = details.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value > 0 else None
