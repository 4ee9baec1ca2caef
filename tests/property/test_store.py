"""Any sequence of corpora and interruptions ends in the store that one clean run would make."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import manifest as layout
from tests.unit.test_store import make_recipe, make_rows, read, update

corpora = st.lists(
    st.tuples(
        st.lists(st.integers(0, 25), min_size=1, max_size=26, unique=True),
        st.one_of(st.none(), st.integers(0, 4)),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(history=corpora)
def test_the_path_to_a_corpus_does_not_matter(
    history: list[tuple[list[int], int | None, bool]],
) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(layout, "SHARD_ROWS", 4),
        mock.patch.object(layout, "GROUP_ROWS", 3),
    ):
        folder, clean = Path(name) / "s", Path(name) / "clean"
        for texts, stop_after, keep_parts in history:
            update(folder, make_recipe(), texts, stop_after, keep_parts)
        final = history[-1][0]
        update(folder, make_recipe(), final)
        update(clean, make_recipe(), final)
        np.testing.assert_array_equal(read(folder, final), make_rows(final, make_recipe()).vectors)
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == {
            f.name: f.read_bytes() for f in clean.iterdir()
        }
        assert sorted(f.name for f in Path(name).iterdir()) == ["clean", "s"]
