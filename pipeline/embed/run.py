"""Embed every distinct text of the corpus that the store does not hold yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.architecture import Architecture
from pipeline.assets import Asset, check_files, read_assets
from pipeline.config import RuntimeSettings, Settings
from pipeline.console import count, format_bytes, say, show_progress, warn
from pipeline.corpus.tables import TextReader, read_distinct_keys
from pipeline.declaration import (
    LENGTH_CONFIG,
    MODULES,
    Declaration,
    read_default_prompt,
    read_prompts,
    wants_lower_case,
)
from pipeline.embed.lengths import count_by_tokenizer, count_uncounted
from pipeline.errors import StoreError
from pipeline.files import add_hash, write_json
from pipeline.processes import count_cores
from pipeline.project import Project
from pipeline.recipe import (
    Precision,
    TextRecipe,
    list_possible_recipes,
    resolve_precision,
)
from pipeline.store import (
    CutTexts,
    Manifest,
    Recipe,
    StoreUpdate,
    Update,
    finish_commit,
    holds_exactly,
    read_kept,
    read_manifest,
)
from pipeline.store.digest import find_left_behind, write_digest
from pipeline.store.known import find_whole_shards
from pipeline.store.sharing import refuse_another_corpus, say_dropped
from pipeline.store.slices import (
    drop_slices,
    gather_lengths,
    hold_slices,
    sum_fidelity,
    verify_slices,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from pipeline.embed.shards import ShardPlan, ShardRunner

_NAMED_ROWS = 5  # in a warning
_LARGE_STORE_BYTES = 2_000_000_000
# A further GPU takes some seconds to start, which this many shards repay.
_SHARDS_A_DEVICE = 8
# A GPU computes as fast as two to three cores tokenize.
_TOKENIZERS_A_GPU = 3
# Hashing and flushing keep a core busy, and shards of many layers come faster than one is written.
_WRITERS_A_GPU = 3


def run_embed(project: Project, settings: Settings) -> dict[str, object] | None:
    """Bring the project's store up to date with its texts.

    :param project: the project to embed.
    :param settings: all settings.
    :returns: details for the timing file, or ``None`` if there was nothing to do.
    :raises StageError: if what ``fetch`` or ``prepare`` writes is missing or damaged.
    :raises StoreError: if the vectors are not those of the backbone, or cannot be stored.
    """
    asset = read_assets(project.assets)["backbone"]
    folder = asset.locate(project)
    recipes = list(list_possible_recipes(asset, folder, settings))
    architecture = Architecture.read(folder)
    say_text_recipe(settings, folder, recipes[0])
    keys, first_rows = read_distinct_keys(project.texts_file)
    finish_commit(project.store)
    for recipe in recipes:
        if _is_complete(project.store, recipe, keys):
            say(f"{project.store}: holds all {len(keys):,} distinct texts of {asset.id}")
            _count_cut(project, asset, recipe, keys, first_rows)
            write_digest(project.local_store, project.store)
            _say_cut(read_manifest(project.store), architecture)
            _record_run(project, len(keys), 0)
            return None
    return _embed_missing(project, settings, asset, recipes, keys, first_rows)


def say_text_recipe(settings: Settings, folder: Path, recipe: Recipe) -> None:
    """Say how a vector is made of a text, and what of it the backbone declares.

    :param settings: all settings.
    :param folder: the backbone's folder.
    :param recipe: what the settings mean.
    """
    why = ""
    if settings.embed.pooling == "auto":
        is_declared = Declaration.read(folder).is_declared
        why = ", as the backbone declares" if is_declared else f"; the backbone has no {MODULES}"
    say(f"pooling   {TextRecipe.from_contents(recipe.contents).describe()}{why}")
    name = read_default_prompt(folder) if settings.embed.prompt == "none" else None
    if name is not None:
        say(
            f"          the backbone's default prompt is left out: `embed.prompt: {name}` puts "
            f"{read_prompts(folder)[name]!r} before each text"
        )
    if wants_lower_case(folder):
        warn(
            f"{folder / LENGTH_CONFIG} wants texts in lower case, which neither its tokenizer nor "
            "this program puts them into: lower them in the source"
        )


def choose_recipe(
    stores: Sequence[Path],
    recipes: Sequence[Recipe],
    setting: Precision | Literal["auto"],
    device: str,
) -> Recipe:
    """The recipe to embed by: that of a store that is there already, else what suits the device.

    So no text is embedded again because a machine, or a version of this program, would compute in
    another precision.

    :param stores: the store, and where vectors may stand that are moved to it.
    :param recipes: the recipes that the settings may mean, which differ in their precision.
    :param setting: the setting of the precision.
    :param device: type of the device.
    """
    held: list[str] = []
    for store in stores:
        try:
            held.append(read_manifest(store).fingerprint)
        except StoreError:  # there is none, or its manifest is lost, which its shards make up for
            held += {shard.manifest.fingerprint for shard in find_whole_shards(store)}
        kept = (earlier.manifest for earlier in read_kept(store))
        held += (manifest.fingerprint for manifest in kept if manifest is not None)
    by_fingerprint = {recipe.fingerprint: recipe for recipe in recipes}
    suited = resolve_precision(setting, device)
    for fingerprint in held:
        if fingerprint in by_fingerprint:
            chosen = by_fingerprint[fingerprint]
            if chosen.contents["precision"] != suited:
                say(
                    f"precision {chosen.contents['precision']}, as that of the vectors that are "
                    f"here; for a new store this machine would choose {suited}"
                )
            return chosen
    (recipe,) = (each for each in recipes if each.contents["precision"] == suited)
    return recipe


def _is_complete(folder: Path, recipe: Recipe, keys: pa.Array) -> bool:
    try:
        manifest = read_manifest(folder)
    except StoreError:
        return False  # there is no store, or its manifest is lost, which the update makes up for
    return manifest.fingerprint == recipe.fingerprint and holds_exactly(folder, manifest, keys)


@dataclass(frozen=True)
class EmbedPlan:
    """What a run embeds, and on which devices.

    :param shards: the shards that the store lacks, in their order.
    :param devices: the devices to compute on.
    :param tokenizer_processes: number of processes to tokenize in; 0 for none beside this one.
    :param writers: number of shards to write at once.
    """

    shards: tuple[ShardPlan, ...]
    devices: tuple[torch.device, ...]
    tokenizer_processes: int
    writers: int


def plan_run(
    recipe: Recipe,
    missing: Sequence[tuple[int, int]],
    devices: Sequence[torch.device],
    threads: int | None = None,
) -> EmbedPlan:
    """Plan the work that the store lacks.

    :param recipe: recipe of the vectors.
    :param missing: the ranges of the shards to write among the distinct texts of the corpus.
    :param devices: all devices that the settings allow.
    :param threads: the number of cores that the settings allow; ``None`` for all.
    """
    from pipeline.embed.shards import ShardPlan

    used = tuple(devices[: max(1, len(missing) // _SHARDS_A_DEVICE)])
    processes, writers = 0, 1
    if used[0].type == "cuda":
        cores = min(count_cores(), threads or count_cores())
        cores_left = cores - len(used) - 1  # for this process, and that of each further GPU
        # Processes start within some seconds, in which one device finishes a few shards.
        processes = min(_TOKENIZERS_A_GPU * len(used), cores_left, len(missing) // 4)
        writers = _WRITERS_A_GPU * len(used)
    return EmbedPlan(
        shards=tuple(ShardPlan(start, stop, recipe) for start, stop in missing),
        devices=used,
        tokenizer_processes=max(processes, 0),
        writers=writers,
    )


@dataclass(frozen=True)
class Machine:
    """What a run embeds with.

    :param recipe: recipe of the vectors, as this machine's devices make them.
    :param folder: the folder of the backbone.
    :param devices: all devices that the settings allow.
    :param runtime: settings that change the speed alone.
    """

    recipe: Recipe
    folder: Path
    devices: Sequence[torch.device]
    runtime: RuntimeSettings

    @classmethod
    def find(
        cls, project: Project, settings: Settings, asset: Asset, recipes: Sequence[Recipe]
    ) -> Machine:
        """The devices of this machine, and the backbone, which must be as it was fetched.

        :param project: the project.
        :param settings: all settings.
        :param asset: the fetched backbone.
        :param recipes: the recipes that the settings may mean, which differ in their precision.
        """
        folder = asset.locate(project)
        with ThreadPoolExecutor(
            1
        ) as beside:  # hashing the weights takes no longer than this import
            checked = beside.submit(check_files, asset, "backbone", folder)
            from pipeline.device import choose_devices  # imports torch

            checked.result()
        devices = choose_devices(settings.runtime.devices)
        precision = settings.embed.precision
        stores = list(dict.fromkeys([project.store, project.local_store]))
        recipe = choose_recipe(stores, recipes, precision, devices[0].type)
        return cls(recipe, folder, devices, settings.runtime)


def embed_shards(
    update: Update, machine: Machine, texts_file: Path, first_rows: npt.NDArray[np.int64]
) -> tuple[ShardRunner, dict[str, Any]]:
    """Embed what an update lacks, and write its shards aside.

    :param update: the shards to write.
    :param machine: the devices and the backbone.
    :param texts_file: the project's ``texts.parquet``.
    :param first_rows: the row of the corpus in which each distinct text stands first: int64, [N].
    :returns: what has run, and details for the timing file.
    :raises StoreError: if the vectors are not those of the backbone, or cannot be stored.
    """
    from pipeline.device import describe_devices
    from pipeline.embed.embedder import Embedder
    from pipeline.embed.shards import ShardReader, ShardRunner

    threads = machine.runtime.threads
    plan = plan_run(machine.recipe, update.list_missing(), machine.devices, threads)
    embedder = Embedder.from_recipe(
        machine.recipe,
        machine.folder,
        devices=plan.devices,
        token_budget=machine.runtime.token_budget,
        threads=threads,
        tokenizer_processes=plan.tokenizer_processes,
    )
    reader = ShardReader(update, TextReader(texts_file), first_rows, embedder)
    started = time.perf_counter()
    with embedder, show_progress("embedding", update.rows, "texts") as advance:
        runner = ShardRunner(update, reader, embedder, advance)
        runner.run(
            plan.shards,
            at_once=2 * len(plan.devices),
            readers=max(plan.tokenizer_processes, 1),
            writers=plan.writers,
        )
        count_uncounted(
            update,
            TextReader(texts_file),
            first_rows,
            lambda texts: embedder.tokenize(texts).whole_lengths,
        )
        device = describe_devices(plan.devices)
    seconds = time.perf_counter() - started
    precision = str(machine.recipe.contents["precision"])
    return runner, _describe_run(runner, device, precision, update.rows, seconds)


def _embed_missing(
    project: Project,
    settings: Settings,
    asset: Asset,
    recipes: Sequence[Recipe],
    keys: pa.Array,
    first_rows: npt.NDArray[np.int64],
) -> dict[str, object]:
    machine = Machine.find(project, settings, asset, recipes)
    recipe = machine.recipe
    with hold_slices(project.slices) as states:
        own = [state for state in states if state.is_of(recipe.fingerprint)]
        strange = refuse_another_corpus(
            project.store, keys, [s.folder for s in own], [recipe.fingerprint]
        )
        found = verify_slices(own, recipe.fingerprint)
        left = find_left_behind(project.local_store, project.store, recipe.fingerprint)
        update = StoreUpdate(project.store, recipe, keys, first_rows, [*found, *left])
        update.note_counted(gather_lengths(own))
        moved = left if update.is_first else []
        _say_taken_up(update, project if moved else None, is_sliced=bool(found))
        say_dropped(project.store, strange)
        _say_size(recipe, len(keys))
        runner, details = embed_shards(update, machine, project.texts_file, first_rows)
        measures = [(s.manifest.fidelity, s.is_measured) for s in own if s.manifest is not None]
        measures += [(snapshot.manifest.fidelity, True) for snapshot in moved[:1]]
        fidelity, is_measured = sum_fidelity(
            [*measures, (runner.fidelity_record, runner.is_gauged)]
        )
        manifest = update.commit(fidelity, is_measured=is_measured)
        write_digest(project.local_store, project.store)
        drop_slices(project.slices, own)
    _record_run(project, manifest.rows - runner.embedded, runner.embedded)
    _say_summary(details, TextReader(project.texts_file).rows)
    _say_cut(manifest, Architecture.read(machine.folder))
    warn_of_hollow(project, runner, first_rows)
    return details


def _say_taken_up(update: StoreUpdate, moves: Project | None, *, is_sliced: bool) -> None:
    """Say what need not be embedded, as it was embedded elsewhere.

    :param moves: the project, if the vectors of its folder move to an object store.
    :param is_sliced: whether there are slices with vectors of the recipe.
    """
    if update.resumed_rows:
        say(f"resuming an interrupted run: {count(update.resumed_rows, 'text')} already embedded")
    if moves is not None:
        say(f"{moves.local_store}: what it holds goes to {moves.store}, nothing embedded again")
    elif is_sliced and update.sliced_rows:
        say(f"{count(update.sliced_rows, 'text')} already embedded in slices")
    if update.kept_rows:
        say(f"{count(update.kept_rows, 'text')} kept from when these settings were in use before")


def _describe_run(
    runner: ShardRunner, device: str, precision: str, rows: int, seconds: float
) -> dict[str, Any]:
    """What goes into the timing file.

    :param rows: number of texts in the store.
    """
    fidelity = runner.fidelity_record or {}
    return {
        "device": device,
        "precision": precision,
        "texts": runner.embedded,
        "kept": rows - runner.embedded,
        "tokens": runner.n_tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(runner.n_tokens / seconds, 1),
        **{f"fidelity_{name}": value for name, value in fidelity.items()},
    }


def _say_summary(details: dict[str, Any], texts: int) -> None:
    """Say in one line what goes into the timing file.

    :param texts: number of texts of the corpus, duplicates counted.
    """
    cosine = details.get("fidelity_lowest_cosine")
    say(
        f"{count(texts, 'text')}, {details['texts'] + details['kept']:,} distinct: "
        f"{details['texts']:,} embedded, {details['kept']:,} kept; {details['tokens']:,} tokens in "
        f"{details['seconds']:.1f} s, {details['tokens_per_second']:,.0f} tokens/s on "
        f"{details['device']}, {details['precision']}"
        + (f", cosine to float32 {cosine:.8f}" if cosine is not None else "")
    )


def _count_cut(
    project: Project,
    asset: Asset,
    recipe: Recipe,
    keys: pa.Array,
    first_rows: npt.NDArray[np.int64],
) -> None:
    """Count the texts that were cut of a store that has all vectors, if no run has done so."""
    if not CutTexts.read(read_manifest(project.store)).uncounted:
        return
    update = StoreUpdate(project.store, recipe, keys, first_rows)
    count_by_tokenizer(update, project.texts_file, first_rows, asset.locate(project))
    update.commit()


def _say_cut(manifest: Manifest, architecture: Architecture) -> None:
    """Say how many texts were cut, and what to do if those are most."""
    cut = CutTexts.read(manifest)
    if cut.are_most:
        warn(f"{cut.describe()}\n  {cut.suggest(architecture.max_tokens)}")
    elif cut.cut:
        say(cut.describe())


def warn_of_hollow(
    project: Project, runner: ShardRunner, first_rows: npt.NDArray[np.int64]
) -> None:
    """Warn of texts that are nothing to the backbone.

    :param project: the project.
    :param runner: the run that has embedded them.
    :param first_rows: the row of the corpus in which each distinct text stands first: int64, [N].
    """
    rows = first_rows[np.concatenate([np.empty(0, np.int64), *runner.hollow])]
    if len(rows):
        named = ", ".join(f"{row:,}" for row in rows[:_NAMED_ROWS].tolist())
        more = f" and {len(rows) - _NAMED_ROWS:,} more" if len(rows) > _NAMED_ROWS else ""
        warn(
            f"{count(len(rows), 'text')} without any piece that the backbone knows, so that the "
            f"vectors tell nothing of them: rows {named}{more} of "
            f"{project.texts_file} (the first is 0)"
        )


def _record_run(project: Project, kept: int, embedded: int) -> None:
    """Note what the run found in the store, for `pipeline cache info`."""
    write_json(project.last_embed, add_hash({"kept": kept, "embedded": embedded}))


def _say_size(recipe: Recipe, texts: int) -> None:
    layers = count(len(recipe.layers), "layer")
    total = recipe.text_bytes * texts
    say(
        f"store     {layers} × {recipe.width} × {recipe.dtype} = {recipe.text_bytes:,} bytes "
        f"a text, {format_bytes(total)} in all"
    )
    if total > _LARGE_STORE_BYTES and len(recipe.layers) > 1:
        one = recipe.text_bytes // len(recipe.layers)
        say(
            f"          `embed.layers: last` would take {one:,} bytes a text and save "
            f"{format_bytes((recipe.text_bytes - one) * texts)}"
        )
