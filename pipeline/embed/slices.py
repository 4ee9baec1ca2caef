"""Embedding one slice of what the store lacks, while other machines embed the others."""

from __future__ import annotations

import socket
from pathlib import Path

from pipeline.assets import read_assets
from pipeline.config import Settings
from pipeline.console import count, say
from pipeline.corpus.tables import read_distinct_keys
from pipeline.embed.run import Machine, embed_shards, say_text_recipe, warn_of_hollow
from pipeline.project import Project
from pipeline.recipe import list_possible_recipes
from pipeline.store.sharing import refuse_another_corpus
from pipeline.store.slices import (
    Slice,
    SliceUpdate,
    drop_slices,
    hold_slice,
    list_slices,
    read_slice,
)


def run_slice(project: Project, settings: Settings, part: Slice) -> bool:
    """Embed a slice into the project's folder of slices; nothing else of the project is written.

    :param project: the project, whose folder several machines may share.
    :param settings: all settings.
    :param part: the slice.
    :returns: whether there was anything to do.
    :raises LockedError: if another run is at work on the same slice.
    :raises StageError: if what ``fetch`` or ``prepare`` writes is missing or damaged.
    :raises StoreError: if other slices are of other settings, or an object store holds another
        corpus, or the vectors are not those of the backbone.
    """
    asset = read_assets(project.assets)["backbone"]
    recipes = list(list_possible_recipes(asset, asset.locate(project), settings))
    say_text_recipe(settings, asset.locate(project), recipes[0])
    keys, first_rows = read_distinct_keys(project.texts_file)
    machine = Machine.find(project, settings, asset, recipes)
    with hold_slice(project.slices, part) as folder:
        folders = [state.folder for state in list_slices(project.slices)]
        refuse_another_corpus(project.store, keys, folders, [])
        update = SliceUpdate(project.slices, project.store, part, machine.recipe, keys, first_rows)
        if update.is_finished:
            _say_nothing_to_do(project, part, folder)
            return False
        say(f"slice     {part}: {update.rows:,} of {count(len(keys), 'distinct text')}")
        if update.resumed_rows:
            resumed = count(update.resumed_rows, "text")
            say(f"resuming an interrupted run: {resumed} already embedded")
        update.begin()
        runner, details = embed_shards(update, machine, project.texts_file, first_rows)
        update.finish(
            runner.fidelity_record,
            details | {"host": socket.gethostname()},
            is_measured=runner.is_gauged,
        )
    say(
        f"{folder}: {count(details['texts'] + details['kept'], 'text')}, "
        f"{details['texts']:,} embedded; {details['tokens']:,} tokens in "
        f"{details['seconds']:.1f} s on {details['device']}, {details['precision']}"
    )
    warn_of_hollow(project, runner, first_rows)
    return True


def _say_nothing_to_do(project: Project, part: Slice, folder: Path) -> None:
    if folder.is_dir():
        say(f"{folder}: is finished; `pipeline cache merge` takes all slices into the store")
        return
    say(f"slice {part}: the store lacks none of it")
    drop_slices(project.slices, [read_slice(folder, part)])  # nothing but its lock
