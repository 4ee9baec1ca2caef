"""The commands of `pipeline cache`: what the store holds, whether it is whole, getting it out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.console import count, format_bytes, say, show_table, warn
from pipeline.corpus.tables import (
    LabelledRows,
    encode_labels,
    read_distinct_keys,
    read_labelled_rows,
    read_text_column,
)
from pipeline.errors import PipelineError, StoreError
from pipeline.files import add_hash, write_json
from pipeline.layers import resolve_layers
from pipeline.predict.remembered import lock_remembered
from pipeline.project import Project
from pipeline.store import (
    CutTexts,
    Manifest,
    Recipe,
    StoreUpdate,
    aside_folder,
    finish_commit,
    holds_exactly,
    read_hits,
    read_kept,
    read_manifest,
    read_snapshot,
    staging_folder,
)
from pipeline.store.digest import write_digest
from pipeline.store.folders import clear_folder, list_staging
from pipeline.store.sharing import measure_overlap, refuse_another_corpus, say_dropped
from pipeline.store.slices import (
    Slice,
    SliceState,
    check_alike,
    drop_slices,
    gather_lengths,
    hold_slices,
    list_slices,
    sum_fidelity,
    verify_slices,
)
from pipeline.store.upkeep import (
    drop_earlier_stores,
    drop_store,
    export_vectors,
    prune_store,
    rebuild_manifest,
    repair_store,
    verify_store,
)

_NAMED_SLICES = 5  # in an error
# Of a recipe, for people: what each has, and what only some have.
_DECISIVE = ("max_tokens", "pooling", "precision", "algorithm")
_RARE = ("normalize", "prompt", "long_texts")


def show_info(project: Project) -> None:
    """Print what the store holds, and how much of the last run it served."""
    try:
        snapshot = read_snapshot(project.store)
    except StoreError:
        _show_slices(project)
        raise
    manifest = snapshot.manifest
    layers = ", ".join(map(str, manifest.layers))
    rows: list[tuple[object, ...]] = [
        ("backbone", manifest.backbone),
        ("distinct texts", manifest.rows),
        ("shards", len(manifest.shards)),
        ("size", format_bytes(manifest.bytes)),
        ("layers", f"{layers} of width {manifest.width}"),
        ("dtype", manifest.dtype),
        ("fingerprint", manifest.fingerprint),
        *(
            (f"sha256 of {name}", sha256)
            for name, sha256 in manifest.recipe.get("files", {}).items()
        ),
        *_list_decisive(manifest),
    ]
    rows.append(("texts cut", CutTexts.read(manifest).describe()))
    hits = read_hits(project.last_embed)
    if hits is not None:
        total = max(hits.kept + hits.embedded, 1)
        share = f"{hits.kept:,} of {total:,} texts ({hits.kept / total:.1%})"
        rows.append(("served in the last run", share))
    if manifest.fidelity is not None:
        cosine, error = (manifest.fidelity[k] for k in ("lowest_cosine", "largest_error"))
        found = f"cosine {cosine:.8f}, error {error:.1e}, {manifest.fidelity['texts']} texts"
        rows.append(("worst fidelity to float32", found))
    show_table(("store", str(project.store)), rows)
    _show_kept(project)
    _show_remembered(project)
    _show_slices(project)
    if snapshot.staged:
        say(
            "a run was cut short while it moved what it had finished into the store; nothing is "
            "lost: `pipeline embed` moves the rest"
        )
    elif any(staging_folder(project.store).glob("*.parquet")):
        say("an interrupted run has left work to take up: run `pipeline embed`")


def _list_decisive(manifest: Manifest) -> list[tuple[str, object]]:
    """What tells a store's recipe from others, beside backbone and layers: names and values."""
    recipe = manifest.recipe
    values = {name: recipe.get(name) for name in _DECISIVE}
    values |= {name: recipe[name] for name in _RARE if name in recipe}
    values["pooling"] = " + ".join(manifest.poolings)
    return list(values.items())


def _show_remembered(project: Project) -> None:
    """Say what is kept of labelled texts, and how to be rid of it."""
    try:
        manifest = read_manifest(project.predictions)
    except StoreError:
        return
    say(
        f"remembered from predictions: {count(manifest.rows, 'text')}, "
        f"{format_bytes(manifest.bytes)}, in {project.predictions}; "
        "`pipeline cache prune --predictions` drops them"
    )


def _show_slices(project: Project) -> None:
    """Say which slices wait for the store to take them, or are under way."""
    states = list_slices(project.slices)
    if states:
        finished = sum(state.is_finished for state in states)
        parts = ", ".join(f"{s.part}{'' if s.is_finished else ' (not finished)'}" for s in states)
        say(
            f"{project.slices}: {count(len(states), 'slice')}, {finished:,} finished: {parts}; "
            "`pipeline cache merge` takes them into the store once all are"
        )


def _show_kept(project: Project) -> None:
    """Say which stores of earlier settings there are, and how to be rid of them."""
    kept = read_kept(project.store)
    for store in kept:
        if store.manifest is None:
            what = "what an interrupted run has left"
        else:
            decisive = _list_decisive(store.manifest)
            settings = ", ".join(f"{name} {value}" for name, value in decisive)
            what = f"{count(store.manifest.rows, 'text')} of {store.manifest.backbone}, {settings}"
        say(f"kept from earlier settings: {what}, {format_bytes(store.bytes)}, in {store.folder}")
    if kept:
        say("going back to those settings embeds none of it again; `pipeline cache prune` drops it")


def verify(project: Project, params: Path, *, repair: bool, is_locked: bool = True) -> None:
    """Check every byte of the store; with ``repair``, drop what is damaged.

    :param project: the project.
    :param params: the settings file; it tells which of several stores is meant, where the manifest
        is lost and there are shards of more than one.
    :param repair: whether to drop what is damaged.
    :param is_locked: whether this run holds the lock, without which it changes nothing.
    :raises StoreError: if something is damaged and not repaired.
    """
    folder = project.store
    if is_locked:
        finish_commit(folder)
    try:
        manifest = read_manifest(folder)
    except StoreError:
        wanted = [recipe.fingerprint for recipe in _try_recipes(project, params)] if repair else []
        if not repair or rebuild_manifest(folder, wanted) is None:
            raise
        manifest = read_manifest(folder)
        warn(
            f"{folder}/manifest.json: made anew from the shards of {manifest.backbone} that are "
            f"whole: {count(manifest.rows, 'text')}"
        )
        write_digest(project.local_store, project.store)
    damages = verify_store(folder)
    for damage in damages:
        warn(f"{damage.file}: {damage.what}")
    if not damages:
        say(
            f"{folder}: {count(len(manifest.shards), 'shard')}, "
            f"{count(manifest.rows, 'text')}, {format_bytes(manifest.bytes)}: every byte is right"
        )
        return
    if not repair:
        raise StoreError(
            f"{folder}: {count(len(damages), 'file')} damaged, or not of this store",
            hint="run `pipeline cache verify --repair`, then `pipeline embed`",
        )
    moved = repair_store(folder, damages)
    write_digest(project.local_store, project.store)
    if moved:
        say(f"moved to {aside_folder(folder)}: {', '.join(moved)}")
    dropped = len(damages) - len(moved)
    say(f"dropped {count(dropped, 'file')}; {_describe_lack(project, params)}")


def _describe_lack(project: Project, params: Path) -> str:
    """How many texts of the corpus the settings' next run embeds, in words."""
    recipes = _try_recipes(project, params)
    held = read_manifest(project.store)
    recipe = next((r for r in recipes if r.fingerprint == held.fingerprint), (*recipes, None)[0])
    try:
        keys, _ = read_distinct_keys(project.texts_file)
    except PipelineError:
        recipe = None
    if recipe is None:
        return f"the store holds {count(held.rows, 'text')}; `pipeline embed` adds what it lacks"
    known = StoreUpdate(project.store, recipe, keys).has_vectors()
    return f"`pipeline embed` embeds {count(len(known) - int(known.sum()), 'text')} again"


def _try_recipes(project: Project, params: Path) -> list[Recipe]:
    """The recipes that assets and settings may mean; none where those cannot be had."""
    try:
        return list_recipes(project, params)
    except PipelineError:
        return []


def list_recipes(project: Project, params: Path) -> list[Recipe]:
    """The recipes that assets and settings may mean, as ``auto`` means several.

    :param project: the project.
    :param params: the settings file.
    :raises PipelineError: if assets, settings or the backbone's configuration cannot be had.
    """
    from pipeline.assets import read_assets
    from pipeline.config import load_settings
    from pipeline.recipe import list_possible_recipes

    settings = load_settings(params)
    asset = read_assets(project.assets)["backbone"]
    return list(list_possible_recipes(asset, asset.locate(project), settings))


def export(
    project: Project,
    target: Path,
    layers: str,
    method: Literal["pca", "umap"] | None = None,
    neighbours: int = 0,
) -> None:
    """Write the vectors of all rows of the corpus, in their order, to one file.

    :param project: the project.
    :param target: the file, whose ending tells its format.
    :param layers: ``all``, ``last``, or numbers, separated by commas.
    :param method: how the coordinates of a map are made, ``pca`` or ``umap``; ``None`` for none.
    :param neighbours: the number of nearest neighbours of each row.
    :raises StoreError: if the layers or the format cannot be, or a label has the name of a column
        that is asked for.
    """
    manifest = read_manifest(project.store)
    wanted: Any = layers
    if layers not in ("all", "last"):
        try:
            wanted = tuple(int(number) for number in layers.split(","))
        except ValueError:
            raise StoreError(f"--layers {layers}: must be all, last, or numbers as 0,5,6") from None
    chosen = resolve_layers(wanted, manifest.layers, "--layers")
    rows = read_labelled_rows(project)
    extra: dict[str, Any] = {}
    if target.suffix == ".parquet":
        import pyarrow as pa

        extra = {"text": read_text_column(project.texts_file), "split": pa.array(rows.split)}
        extra |= {name: encode_labels(task.values, task.kind) for name, task in rows.tasks.items()}
    if method is not None or neighbours:
        extra |= _make_map_columns(project, target, rows, method, neighbours, set(extra))
    shape = export_vectors(project.store, rows.keys, chosen, target, extra)
    size = format_bytes(target.stat().st_size)
    say(f"{target}: {shape[0]:,} rows × {shape[1]} layers × {shape[2]}, {manifest.dtype}, {size}")


def _make_map_columns(
    project: Project,
    target: Path,
    rows: LabelledRows,
    method: Literal["pca", "umap"] | None,
    neighbours: int,
    taken: set[str],
) -> Mapping[str, Any]:
    """Columns for tools that draw maps.

    :param taken: the names of the columns that the file has already.
    :raises StoreError: if the file can hold none, or one would have the name of a label.
    """
    from pipeline.map_columns import make_map_columns

    if target.suffix != ".parquet":
        raise StoreError(
            f"{target}: --map and --neighbours add columns, which only .parquet can hold",
            hint="give a name that ends in .parquet",
        )
    names = {"x": method is not None, "y": method is not None, "neighbours": neighbours > 0}
    twice = sorted(name for name, is_wanted in names.items() if is_wanted and name in taken)
    if twice:
        raise StoreError(
            f"{target}: the label {twice[0]!r} has the name of a column that was asked for",
            hint="call the label otherwise in prepare.labels, and run `pipeline prepare`",
        )
    layer = read_manifest(project.store).layers[-1]
    made, exact = make_map_columns(project.store, rows.keys, layer, method, neighbours)
    if not exact:
        say("texts are many: neighbours were looked for among those in the nearest cells alone")
    return made


def prune(
    project: Project, params: Path, *, predictions: bool = False, is_most: bool = False
) -> None:
    """Drop what the corpus no longer has, stores and slices of earlier settings, and leftovers.

    :param project: the project.
    :param params: the settings file: a store kept for the settings that hold now stays.
    :param predictions: whether all vectors that were remembered of labelled texts go, too; what is
        kept of those that earlier heads remembered goes in any case.
    :param is_most: whether most texts of an object store may go, which others may share.
    :raises StoreError: if they would have to go and may not.
    """
    keys, _ = read_distinct_keys(project.texts_file)
    wanted = frozenset(recipe.fingerprint for recipe in _try_recipes(project, params))
    with hold_slices(project.slices) as states:
        others = [s for s in states if not any(map(s.is_of, wanted))] if wanted else []
        kept = {store.folder.name: store.folder for store in read_kept(project.store)}
        if is_most:
            others += [s for s in states if s not in others and _is_of_another(s.folder, keys)]
            wanted -= {name for name, folder in kept.items() if _is_of_another(folder, keys)}
            for folder in filter(lambda f: _is_of_another(f, keys), list_staging(project.store)):
                clear_folder(folder)
        else:
            folders = [state.folder for state in others]
            refuse_another_corpus(project.store, keys, folders, set(kept) - wanted)
        _prune_slices(project, others)
    if is_most and not project.store.exists():
        say(f"{project.store}: holds no texts")
        return
    dropped = prune_store(project.store, keys, wanted)
    write_digest(project.local_store, project.store)
    manifest = read_manifest(project.store)
    say(
        f"{project.store}: dropped {count(dropped.texts, 'text')}; "
        f"holds {count(manifest.rows, 'text')}, {format_bytes(manifest.bytes)}"
    )
    if dropped.bytes:
        say(f"dropped {format_bytes(dropped.bytes)} kept from earlier settings")
    with lock_remembered(project.predictions):
        drop = drop_store if predictions else drop_earlier_stores
        freed = drop(project.predictions)
    if freed:
        what = "" if predictions else ", remembered for earlier heads"
        say(f"{project.predictions}: dropped {format_bytes(freed)}{what}")


def _is_of_another(folder: Path, keys: Any) -> bool:
    return measure_overlap(folder, keys).is_of_another


def _prune_slices(project: Project, others: Sequence[SliceState]) -> None:
    """Drop slices of other settings, or of another corpus, whose locks are held."""
    if others:
        freed = drop_slices(project.slices, others)
        slices = count(len(others), "slice")
        say(f"{project.slices}: dropped {slices} of other settings or texts, {format_bytes(freed)}")


def merge(project: Project, params: Path) -> dict[str, Any] | None:
    """Take all slices into the store, or none.

    :param project: the project, whose lock is held.
    :param params: the settings file.
    :returns: details for the timing file of `embed`; ``None`` if there was nothing to do.
    :raises StoreError: if texts of the corpus have no vectors yet, slices are of other settings, or
        an object store holds another corpus.
    :raises LockedError: if a slice is being embedded.
    """
    keys, first_rows = read_distinct_keys(project.texts_file)
    recipes = list_recipes(project, params)
    finish_commit(project.store)
    with hold_slices(project.slices) as states:
        recipe = _choose_recipe(project, recipes, states)
        check_alike(states, recipe)
        folders = [state.folder for state in states]
        strange = refuse_another_corpus(project.store, keys, folders, [recipe.fingerprint])
        if _holds_all(project, recipe, keys):
            write_digest(project.local_store, project.store)
            drop_slices(project.slices, states)
            say(f"{project.store}: holds all {len(keys):,} distinct texts; nothing to merge")
            return None
        update = StoreUpdate(
            project.store, recipe, keys, first_rows, verify_slices(states, recipe.fingerprint)
        )
        absent = update.list_absent()
        lacking = update.join_known()
        if lacking:
            raise _refuse_to_merge(project, states, absent, lacking)
        say_dropped(project.store, strange)
        sliced = update.sliced_rows
        update.note_counted(gather_lengths(states))
        _count_cut(project, update, first_rows)
        fidelity, is_measured = sum_fidelity(
            [(s.manifest.fidelity, s.is_measured) for s in states if s.manifest is not None]
        )
        manifest = update.commit(fidelity, is_measured=is_measured)
        write_digest(project.local_store, project.store)
        drop_slices(project.slices, states)
    write_json(project.last_embed, add_hash({"kept": manifest.rows - sliced, "embedded": sliced}))
    say(
        f"{project.store}: {count(sliced, 'text')} taken from {count(len(states), 'slice')}; holds "
        f"{count(manifest.rows, 'text')}, {format_bytes(manifest.bytes)}"
    )
    cut = CutTexts.read(manifest)
    if cut.cut:
        say(cut.describe())
    return _sum_runs(states, manifest.rows)


def _count_cut(project: Project, update: StoreUpdate, first_rows: npt.NDArray[np.int64]) -> None:
    """Count the texts that were cut of shards of which no slice has, if the tokenizer is here."""
    from pipeline.assets import read_assets
    from pipeline.embed.lengths import count_by_tokenizer

    if update.list_uncounted():
        backbone = read_assets(project.assets)["backbone"].locate(project)
        with contextlib.suppress(PipelineError):
            count_by_tokenizer(update, project.texts_file, first_rows, backbone)


def is_complete(project: Project, recipes: Sequence[Recipe], keys: Any) -> bool:
    """Whether the store holds all texts of the corpus.

    :param project: the project.
    :param recipes: recipes that the settings may mean.
    :param keys: keys of the distinct texts: fixed-size binary of 16.
    """
    return any(_holds_all(project, recipe, keys) for recipe in recipes)


def _holds_all(project: Project, recipe: Recipe, keys: Any) -> bool:
    try:
        manifest = read_manifest(project.store)
    except StoreError:
        return False
    is_alike = manifest.fingerprint == recipe.fingerprint
    return is_alike and holds_exactly(project.store, manifest, keys)


def _choose_recipe(
    project: Project, recipes: Sequence[Recipe], states: Sequence[SliceState]
) -> Recipe:
    """Which of the recipes that the settings may mean the slices have; else the store's.

    A precision of ``auto`` means one thing on a GPU and another on a CPU.
    """
    found = [state.manifest.fingerprint for state in states if state.manifest is not None]
    with contextlib.suppress(StoreError):
        found.append(read_manifest(project.store).fingerprint)
    return next((r for f in found for r in recipes if r.fingerprint == f), recipes[0])


def _refuse_to_merge(
    project: Project,
    states: Sequence[SliceState],
    absent: Sequence[int],
    lacking: Mapping[int, int],
) -> StoreError:
    """The error that names the slices that have to be embedded yet.

    :param absent: the numbers of the shards that the store lacks.
    :param lacking: number of a shard → number of its texts without vectors.
    """
    texts = count(sum(lacking.values()), "text")
    if not states:
        return StoreError(
            f"{project.slices}: there are no slices, and {texts} of the corpus have no vectors",
            hint="run `pipeline embed --slice 1/N` to `--slice N/N` first, or `pipeline embed`",
        )
    of = states[-1].part.of
    parts = [Slice(of, number) for number in range(1, of + 1)]
    wanted = [part for part in parts if set(part.choose(absent)) & set(lacking)]
    there = {state.part: state.is_finished for state in states}
    named = [
        f"{part} {'lacks some' if there.get(part) else 'is not finished'}"
        if part in there
        else f"{part} is missing"
        for part in wanted[:_NAMED_SLICES]
    ]
    more = f" and {len(wanted) - _NAMED_SLICES:,} more" if len(wanted) > _NAMED_SLICES else ""
    return StoreError(
        f"{project.slices}: {texts} of the corpus have no vectors yet; of the slices "
        f"{', '.join(named)}{more}; nothing was merged",
        hint=f"run `pipeline embed --slice {wanted[0]}`"
        + (", and so on," if wanted[1:] else "")
        + " then `pipeline cache merge` again",
    )


def _sum_runs(states: Sequence[SliceState], rows: int) -> dict[str, Any]:
    """What the runs of all slices took together, for the timing file.

    :param rows: number of texts in the store.
    """
    runs = [state.run for state in states if state.run]
    total = {key: sum(run.get(key, 0) for run in runs) for key in ("texts", "tokens", "seconds")}
    return {
        "device": ", ".join(sorted({str(run.get("device")) for run in runs})),
        "precision": ", ".join(sorted({str(run.get("precision")) for run in runs})),
        "texts": total["texts"],
        "kept": rows - total["texts"],
        "tokens": total["tokens"],
        "seconds": round(total["seconds"], 2),
        "tokens_per_second": round(total["tokens"] / max(total["seconds"], 0.01), 1),
        "slices": len(states),
    }
