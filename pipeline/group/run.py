"""Vectors and labels → ``groups.parquet``: parts drawn anew, near-duplicates together.

``prepare`` draws parts without vectors, so that it need not wait for them. Where settings ask for
it, this stage draws them again, after ``embed``, and what reads labels takes its parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.config import GivenSplit, GroupSettings, Settings, SplitSettings
from pipeline.console import count, say, show_table, warn
from pipeline.corpus.draw import TRAIN, Parts, draw_parts
from pipeline.corpus.groups import Groups, save_no_groups
from pipeline.corpus.tables import PARTS, LabelledRows, read_prepared_rows
from pipeline.errors import SettingsError
from pipeline.neighbours import Vectors, find_nearest, find_threshold, group_near
from pipeline.project import Project
from pipeline.recipe import check_store
from pipeline.store import read_manifest, read_vectors

_SAMPLE_TEXTS = 2000  # drawn at random, by which the threshold is found
_LARGE_SHARE = 0.05  # of all rows in one group: then shares of parts may be far off

Ints = npt.NDArray[np.int64]


def run_group(project: Project, settings: Settings) -> dict[str, object] | None:
    """Write the project's ``groups.parquet``; one without rows if settings ask for no groups.

    :param project: the project whose vectors and labels are read.
    :param settings: all settings.
    :returns: details for the timing file; ``None`` if there is nothing to do.
    :raises SettingsError: if nothing is drawn that groups could be kept together in.
    :raises StageError: if a file is missing or damaged, or the store is of other settings.
    :raises DataError: if there are too few groups for the parts.
    """
    path = project.groups_file
    if not settings.group.split:
        save_no_groups(path)
        # What an earlier run took is no cost of parts that are not drawn.
        (project.timings / "group.json").unlink(missing_ok=True)
        return None
    _check_draw(settings.prepare.split)
    manifest = read_manifest(project.store)
    check_store(project, settings.embed, manifest)
    rows, numbers = read_prepared_rows(project)
    coded = rows.keys.dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    vectors = read_vectors(project.store, coded.dictionary, [max(manifest.layers)])[:, 0]
    threshold = choose_threshold(vectors, settings.group)
    groups = group_near(vectors, threshold)[codes]
    parts = draw_groups(rows, groups, settings.prepare.split)
    made = Groups(groups, parts, threshold)
    made.save(path, numbers, rows.identity)
    _show_summary(made, codes)
    return {"rows": len(codes), "groups": int(groups.max()) + 1, "threshold": threshold}


def _check_draw(settings: SplitSettings) -> None:
    if not settings.drawn_shares:
        raise SettingsError(
            "group.split: prepare.split.column gives every part, and nothing is drawn",
            hint="set group.split to false, or let prepare.split draw the validation part",
        )


def choose_threshold(vectors: Vectors, settings: GroupSettings) -> float:
    """The cosine above which texts are near-duplicates, as settings give it or the corpus has it.

    :param vectors: the vectors of the N distinct texts, float32, [N, D].
    :param settings: the settings of the stage.
    """
    if settings.threshold != "auto":
        return settings.threshold
    N = len(vectors)
    sample = np.random.default_rng(0).permutation(N)[:_SAMPLE_TEXTS]
    nearest = find_nearest(vectors[sample], [(np.arange(N), vectors)], sample, others=N)
    return find_threshold(nearest.cosines[np.isfinite(nearest.cosines)], N)


def draw_groups(rows: LabelledRows, groups: Ints, settings: SplitSettings) -> Parts:
    """Draw the parts as ``prepare`` does, all rows of a group together.

    Of a split by a column of the source, rows stay where the column puts them; only validation rows
    are drawn, out of those that are not in another part.

    :param rows: the rows in the parts that ``prepare`` gave them.
    :param groups: the number of each row's group, int64, [B].
    :param settings: the shares of the parts and how they are drawn.
    :returns: the part of each row, [B].
    :raises DataError: if there are too few groups for the parts, or too few of a stratum.
    """
    drawn = np.arange(len(groups))
    if isinstance(settings, GivenSplit):
        drawn = rows.select("train", "validation")
    parts = rows.parts.copy()
    parts[drawn] = TRAIN
    parts[drawn] = draw_parts(
        drawn, groups[drawn], rows.tasks, settings, "group of near-duplicates"
    )
    return parts


def _show_summary(made: Groups, codes: Ints) -> None:
    """Print the size of the parts and what the groups are."""
    texts_in_group = np.bincount(made.groups[np.unique(codes, return_index=True)[1]])
    rows_in_group = np.bincount(made.groups)
    near = int(texts_in_group[texts_in_group > 1].sum())
    show_table(
        ("part", "rows", "groups"),
        [
            (name, int(in_part.sum()), len(np.unique(made.groups[in_part])))
            for index, name in enumerate(PARTS)
            for in_part in [made.parts == index]
            if in_part.any()
        ],
    )
    say(
        f"near-duplicates: {count(near, 'text')} in "
        f"{count(int((texts_in_group > 1).sum()), 'group')}, at a cosine above "
        f"{made.threshold:.3f}"
    )
    largest = int(rows_in_group.max())
    if largest > _LARGE_SHARE * len(codes):
        warn(
            f"one group has {largest:,} of {len(codes):,} rows, so parts may not have the shares "
            "that settings ask for; a higher group.threshold makes smaller groups"
        )
