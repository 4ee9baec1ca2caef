"""A split covers every row once, whatever the corpus, and can be told never to part duplicates."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DrawnSplit
from pipeline.errors import DataError
from pipeline.prepare.labelers.base import Labels
from pipeline.prepare.run import split_rows

shares = st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=120),
    shares=shares,
    seed=st.integers(0, 2**32 - 1),
    stratified=st.booleans(),
    together=st.booleans(),
)
def test_a_split_is_whole_repeatable_and_keeps_duplicates_together(
    texts: list[tuple[int, int]],
    shares: tuple[int, int, int],
    seed: int,
    stratified: bool,
    together: bool,
) -> None:
    keys = np.array([number for number, _ in texts])
    labels = {"t": Labels(("a", "b", "c"), np.array([label for _, label in texts], np.int32))}
    train, validation, test = (share / sum(shares) for share in shares)
    chosen = DrawnSplit(
        train=train,
        validation=validation,
        test=test,
        seed=seed,
        stratify_by=("t",) if stratified else (),
        keep_duplicates_together=together,
    )
    units = len(set(keys.tolist())) if together else len(keys)
    try:
        split = split_rows(keys, labels, chosen)
    except DataError as error:
        # Refused only where it could not be done: some part would be empty, or lack a stratum.
        assert stratified or units < sum(shares) * 2
        assert error.hint  # noqa: PT017
        return
    assert set(split.tolist()) == {0, 1, 2}
    assert split.tolist() == split_rows(keys, labels, chosen).tolist()
    parts_of_key: dict[int, set[int]] = {}
    for key, part in zip(keys.tolist(), split.tolist(), strict=True):
        parts_of_key.setdefault(key, set()).add(part)
    if together:
        assert all(len(parts) == 1 for parts in parts_of_key.values())
    sizes = [
        sum(parts == {part} for parts in parts_of_key.values()) if together else count
        for part, count in enumerate(np.bincount(split).tolist())
    ]
    for size, share in zip(sizes, (train, validation, test), strict=True):
        assert abs(size - share * units) < 2
