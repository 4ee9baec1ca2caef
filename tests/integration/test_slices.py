"""`pipeline embed --slice` on several machines that share a folder, then `pipeline cache merge`.

Whatever happens to a slice or to the merge, the store in the end is the one that a single machine
makes, byte for byte, or it is what it was before and one message says what to do.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.files import hold_lock
from pipeline.project import Project
from pipeline.store import manifest as layout
from pipeline.store import read_manifest
from pipeline.store.slices import Slice, hold_slice, list_slices
from tests.conftest import Cli, edit_params, name_spam, read_store, run_stages
from tests.disk import Disk

SHARD_ROWS = 16
TEXTS = 300
KILLS = int(os.environ.get("KILLS", "6"))

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pipeline.embed.slices", "pipeline.embed.shards", "pipeline.cache_commands",
     "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert",
     "pyarrow.parquet", __name__]
)  # fmt: skip


def write_texts(path: Path, numbers: list[int]) -> None:
    """Texts of which each tenth is longer than the 32 tokens that vectors are made of."""
    lines = [
        f"{('ham', 'spam')[n % 3 == 0]}\tmessage {n} of a corpus{' and more' * (n % 10 == 0) * 5}"
        for n in numbers
    ]
    path.write_text("label\tmessage\n" + "\n".join(lines) + "\n")


@pytest.fixture
def corpus(project: Path, tiny_backbone: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of 300 texts, which are 19 shards, prepared and not embedded."""
    monkeypatch.setattr(layout, "SHARD_ROWS", SHARD_ROWS)
    write_texts(project / "texts.tsv", list(range(TEXTS)))
    edit_params(name_spam(tiny_backbone))
    run_stages(cli, "fetch", "prepare")
    return project


def make_alone(folder: Path, cli: Cli) -> dict[str, object]:
    """The store that one machine makes; it is removed again."""
    run_stages(cli, "embed")
    store = read_store(folder)
    for name in ("embeddings", "embeddings.old", "timings"):
        shutil.rmtree(Project(folder).cache / name, ignore_errors=True)
    return store


def embed_slices(cli: Cli, of: int, *numbers: int) -> None:
    for number in numbers or range(1, of + 1):
        result = cli("embed", "--slice", f"{number}/{of}")
        assert result.returncode == 0, result.stdout + result.stderr


def merge(cli: Cli) -> str:
    result = cli("cache", "merge")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def refuse(cli: Cli, *arguments: str) -> str:
    """Run a command that ends in one message, with what to do next."""
    result = cli(*arguments)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert "next: " in result.stderr
    return result.stderr


def list_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("given", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/10000", "1/2/3"])
def test_a_slice_that_is_none_is_one_message(given: str) -> None:
    with pytest.raises(SettingsError, match="--slice") as caught:
        Slice.parse(given)
    assert "must be I/N" in caught.value.message


@pytest.mark.parametrize(("work", "of"), [(0, 3), (1, 4), (19, 4), (100, 7), (2441, 8), (50, 50)])
def test_slices_share_the_work_out_and_each_keeps_its_share(work: int, of: int) -> None:
    shares = [Slice(of, number).choose(range(work)) for number in range(1, of + 1)]
    assert sorted(item for share in shares for item in share) == list(range(work))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= max(1, min(16, work // (4 * of)))
    assert all(share == sorted(share) for share in shares)


@pytest.mark.parametrize("of", [1, 4, 40])
def test_merged_slices_are_the_store_of_one_machine(corpus: Path, cli: Cli, of: int) -> None:
    alone = make_alone(corpus, cli)
    cache = Project(corpus).cache
    before = {path.name for path in cache.iterdir()}
    embed_slices(cli, of)
    assert {path.name for path in cache.iterdir()} == {*before, "slices"}
    said = merge(cli)
    assert f"{TEXTS} texts taken from {min(of, 19)} slice" in said
    assert read_store(corpus) == alone
    assert not Project(corpus).slices.exists()
    hits = json.loads(Project(corpus).last_embed.read_text())
    assert (hits["kept"], hits["embedded"]) == (0, TEXTS)
    assert cli("cache", "verify").returncode == 0
    assert "nothing to do" in cli("embed").stdout
    timing = json.loads((Project(corpus).timings / "embed.json").read_text())
    assert timing["details"]["texts"] == TEXTS
    assert timing["details"]["slices"] == min(of, 19)
    run_stages(cli, "train-heads", "report")


def test_slices_of_a_corpus_that_has_grown_embed_what_is_new(corpus: Path, cli: Cli) -> None:
    write_texts(corpus / "texts.tsv", list(range(100)))
    run_stages(cli, "fetch", "prepare", "embed")
    first = list_files(Project(corpus).store)
    numbers = [n for n in range(TEXTS) if n != 40]  # all shards but the first two are others
    write_texts(corpus / "texts.tsv", numbers)
    run_stages(cli, "fetch", "prepare")
    embed_slices(cli, 3)
    assert list_files(Project(corpus).store) == first
    embedded = [
        json.loads(path.read_text())["slice"]["run"]["texts"]
        for path in Project(corpus).slices.glob("*/manifest.json")
    ]
    assert sum(embedded) == 200
    merge(cli)
    store = read_store(corpus)
    assert cli("cache", "verify").returncode == 0
    shutil.rmtree(Project(corpus).store)
    run_stages(cli, "embed")
    assert read_store(corpus)["manifest.json"].keys() == store["manifest.json"].keys()  # type: ignore[attr-defined]
    for name, content in read_store(corpus).items():
        assert store[name] == content, name


def test_a_slice_run_twice_and_a_merge_run_twice_change_nothing(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    embed_slices(cli, 3)
    before = list_files(Project(corpus).slices)
    again = cli("embed", "--slice", "2/3")
    assert "is finished; `pipeline cache merge`" in again.stdout
    assert "nothing to do" in again.stdout
    assert list_files(Project(corpus).slices) == before
    merge(cli)
    assert "nothing to merge" in merge(cli)
    assert read_store(corpus) == alone
    late = cli("embed", "--slice", "2/3")
    assert "the store lacks none of it" in late.stdout
    assert not Project(corpus).slices.exists()


def test_a_slice_that_is_missing_is_named_and_nothing_is_merged(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    assert "there are no slices" in refuse(cli, "cache", "merge")
    embed_slices(cli, 4, 1, 4)
    before = list_files(Project(corpus).slices)
    said = refuse(cli, "cache", "merge")
    assert "of the slices 2/4 is missing, 3/4 is missing; nothing was merged" in said
    assert "pipeline embed --slice 2/4" in said
    assert list_files(Project(corpus).slices) == before
    assert not Project(corpus).store.exists()
    info = cli("cache", "info")
    assert "2 slices, 2 finished: 1/4, 4/4" in info.stdout
    embed_slices(cli, 4, 2, 3)
    merge(cli)
    assert read_store(corpus) == alone


def test_embed_takes_up_what_slices_have(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    embed_slices(cli, 4, 1, 4)
    held = json.loads((Project(corpus).slices / "slice-0001-of-0004/manifest.json").read_text())
    rows = sum(shard["rows"] for shard in held["shards"])
    held = json.loads((Project(corpus).slices / "slice-0004-of-0004/manifest.json").read_text())
    rows += sum(shard["rows"] for shard in held["shards"])
    said = cli("embed").stdout
    assert f"{rows} texts already embedded in slices" in said
    assert json.loads(Project(corpus).last_embed.read_text())["embedded"] == TEXTS - rows
    assert read_store(corpus) == alone
    assert not Project(corpus).slices.exists()


def test_another_number_of_slices_embeds_nothing_again(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    embed_slices(cli, 4, 1)
    embed_slices(cli, 3)
    runs = [json.loads(p.read_text()) for p in Project(corpus).slices.glob("*/manifest.json")]
    assert sum(run["slice"]["run"]["texts"] for run in runs) == TEXTS
    merge(cli)
    assert read_store(corpus) == alone


def test_slices_of_other_settings_are_refused(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    embed_slices(cli, 2, 1)
    edit_params({"embed.max_tokens": 12})
    said = refuse(cli, "embed", "--slice", "2/2")
    assert "slice-0001-of-0002: holds vectors of other settings (max_tokens 32, not 12)" in said
    assert not (Project(corpus).slices / "slice-0002-of-0002").exists()
    moved = Project(corpus).slices.rename(corpus / "moved")
    embed_slices(cli, 2, 2)
    shutil.copytree(moved, Project(corpus).slices, dirs_exist_ok=True)  # of two machines at once
    before = list_files(Project(corpus).slices)
    assert "max_tokens 32, not 12" in refuse(cli, "cache", "merge")
    assert list_files(Project(corpus).slices) == before
    edit_params({"embed.max_tokens": 32})
    assert "dropped 1 slice of other settings" in cli("cache", "prune").stdout
    embed_slices(cli, 2, 2)
    merge(cli)
    assert read_store(corpus) == alone


def test_a_damaged_slice_is_embedded_again_where_it_is_damaged(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    embed_slices(cli, 2)
    part = sorted((Project(corpus).slices / "slice-0002-of-0002").glob("part-*"))[1]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    said = refuse(cli, "cache", "merge")
    assert "16 texts of the corpus have no vectors yet; of the slices 2/2 lacks some" in said
    embed_slices(cli, 2, 2)
    record = json.loads((part.parent / "manifest.json").read_text())
    assert record["slice"]["run"]["texts"] == 16
    merge(cli)
    assert read_store(corpus) == alone


@pytest.mark.parametrize("content", [None, b"{"])
def test_a_lost_manifest_costs_no_vector(corpus: Path, cli: Cli, content: bytes | None) -> None:
    alone = make_alone(corpus, cli)
    embed_slices(cli, 2)
    manifest = Project(corpus).slices / "slice-0002-of-0002/manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_bytes(content)
    embed_slices(cli, 2, 2)
    assert json.loads(manifest.read_text())["slice"]["run"]["texts"] == 0
    merge(cli)
    assert read_store(corpus) == alone


def test_rows_that_came_meanwhile_are_what_is_lacking(corpus: Path, cli: Cli) -> None:
    embed_slices(cli, 2)
    write_texts(corpus / "texts.tsv", list(range(-5, TEXTS)))  # every shard is another now
    run_stages(cli, "fetch", "prepare")
    assert "5 texts of the corpus have no vectors yet" in refuse(cli, "cache", "merge")
    said = cli("embed").stdout
    assert "300 texts already embedded in slices" in said
    assert json.loads(Project(corpus).last_embed.read_text())["embedded"] == 5
    assert cli("cache", "verify").returncode == 0


def test_a_slice_that_is_being_embedded_is_not_merged_and_not_embedded_twice(
    corpus: Path, cli: Cli
) -> None:
    embed_slices(cli, 2)
    slices = Project(corpus).slices
    with hold_slice(slices, Slice(2, 2)):
        for command in (("cache", "merge"), ("embed",), ("embed", "--slice", "2/2")):
            said = refuse(cli, *command)
            assert f"(process {os.getpid()}) is writing cache/slices/slice-0002-of-0002/" in said
    with hold_lock(Project(corpus).lock, what="cache/"):  # as another merge does
        assert "is writing cache/" in refuse(cli, "cache", "merge")
    merge(cli)


# From here on in processes of their own.


def run_process(
    folder: Path,
    home: Path,
    arguments: tuple[str, ...],
    fails_at: int | None,
    kills: bool,
    output: Path,
) -> None:
    """The command line on a machine of its own: another home folder, the project's folder shared.

    :param fails_at: number of the write below ``cache/`` that finds the disk full, or is the last.
    :param kills: whether the process is killed there instead.
    """
    from pipeline.cli import main
    from pipeline.embed import shards

    os.environ["HOME"] = str(home)
    os.environ["XDG_CACHE_HOME"] = str(home / ".cache")
    os.environ.pop("PIPELINE_CACHE_DIR", None)
    home.mkdir(exist_ok=True)
    os.chdir(folder)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    shards._KEEP_SECONDS = 0.0  # as if every batch took long
    layout.SHARD_ROWS = SHARD_ROWS
    if fails_at is not None:
        disk = Disk(pytest.MonkeyPatch(), Project().cache, removals=kills)
        disk.errno, disk.fails_at, disk.kills = errno.ENOSPC, fails_at, kills
    sys.argv = ["pipeline", *arguments]
    try:
        main()
    finally:
        if fails_at is not None:
            print(disk.calls, "writes")


def start(
    folder: Path,
    *arguments: str,
    machine: int = 1,
    fails_at: int | None = None,
    kills: bool = False,
) -> multiprocessing.Process:
    output = folder / f"output-{machine}"
    home = folder.parent / f"home-{machine}"
    process = PROCESSES.Process(
        target=run_process, args=(folder, home, arguments, fails_at, kills, output)
    )
    process.start()
    return process  # type: ignore[return-value]


def wait_for_progress(processes: Sequence[multiprocessing.Process]) -> None:
    """Wait until one of the slices has vectors on the disk, or all processes have ended."""
    while any(process.is_alive() for process in processes):
        if list(Project().slices.glob("*/rows-*")):
            return
        time.sleep(0.001)


def finish(process: multiprocessing.Process, folder: Path, machine: int = 1) -> tuple[int, str]:
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode, (folder / f"output-{machine}").read_text()


@pytest.mark.parametrize("machines", [2, 4])
def test_machines_at_once_with_homes_of_their_own(corpus: Path, cli: Cli, machines: int) -> None:
    alone = make_alone(corpus, cli)
    numbers = range(1, machines + 1)
    running = [start(corpus, "embed", "--slice", f"{n}/{machines}", machine=n) for n in numbers]
    for number, process in zip(numbers, running, strict=True):
        status, said = finish(process, corpus, number)
        assert status == 0, said
    merge(cli)
    assert read_store(corpus) == alone


def test_two_merges_at_once(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    for _ in range(3):
        embed_slices(cli, 2)
        running = [start(corpus, "cache", "merge", machine=number) for number in (1, 2)]
        ended = [finish(process, corpus, number + 1) for number, process in enumerate(running)]
        assert 0 in {status for status, _ in ended}
        for status, said in ended:
            assert status in {0, 1}, said
            assert "Traceback" not in said
            if status == 1:
                assert re.search(r"another run \(process (\d+|unknown)\) is writing", said)
        assert read_store(corpus) == alone
        shutil.rmtree(Project(corpus).store)


def test_a_merge_that_is_killed_anywhere_is_done_again(
    corpus: Path, cli: Cli, tmp_path: Path
) -> None:
    alone = make_alone(corpus, cli)
    embed_slices(cli, 3)
    whole = shutil.copytree(Project(corpus).cache, tmp_path / "whole")
    kills = number = 0
    for number in range(1, 400, 5):
        shutil.rmtree(Project(corpus).cache)
        shutil.copytree(whole, Project(corpus).cache)
        status, said = finish(start(corpus, "cache", "merge", fails_at=number, kills=True), corpus)
        if status == 0:
            break
        assert status == -9, said
        kills += 1
        # Nobody reads a half-merged store: it is as before, or whole.
        held = cli("cache", "verify")
        assert held.returncode == 0 or "no such file" in held.stderr, held.stderr
        merge(cli)
        assert read_store(corpus) == alone, number
        assert not Project(corpus).slices.exists()
        assert not (Project(corpus).cache / "embeddings.next").exists()
    assert kills > 10, "the merge was not as this test thinks"


def test_a_full_disk_in_a_slice_loses_nothing(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    embed_slices(cli, 2, 1)
    failures = 0
    for number in range(1, 400, 7):
        shutil.rmtree(Project(corpus).slices / "slice-0002-of-0002", ignore_errors=True)
        process = start(corpus, "embed", "--slice", "2/2", fails_at=number)
        status, said = finish(process, corpus)
        if int(said.split()[-2]) < number:
            break
        if status == 0:  # the flush of a folder failed, which is not asked of all
            continue
        failures += 1
        assert status == 1, said
        assert said.count("Error: cannot write cache/slices/") == 1, said
        assert "No space left on device" in said
        assert "next: free some space" in said
        assert "Traceback" not in said
        if (Project(corpus).slices / "slice-0002-of-0002").exists():
            states = list_slices(Project(corpus).slices)
            assert [state.is_finished for state in states] == [True, False]
            assert "1 finished: 1/2, 2/2 (not finished)" in cli("cache", "info").stdout
    assert failures > 5, "the disk was not asked for what this test thinks"
    embed_slices(cli, 2, 2)
    merge(cli)
    assert read_store(corpus) == alone


def test_killed_slices_go_on_where_they_stopped(corpus: Path, cli: Cli) -> None:
    """Kill -9 at random moments, on two machines that share the folder."""
    alone = make_alone(corpus, cli)
    started = time.monotonic()
    assert finish(start(corpus, "embed", "--slice", "1/2"), corpus)[0] == 0
    whole_run = time.monotonic() - started
    generator = random.Random(0)
    kills = taken_up = 0
    while kills < KILLS or not taken_up:
        assert kills < 10 * KILLS + 10, "no kill met the embedding itself"
        is_by_chance = kills < KILLS
        shutil.rmtree(Project(corpus).slices, ignore_errors=True)
        running = [start(corpus, "embed", "--slice", f"{n}/2", machine=n) for n in (1, 2)]
        if is_by_chance:
            time.sleep(generator.uniform(0.2, 1.0) * whole_run)
        else:  # chance never met the embedding itself, which is short on a fast machine
            wait_for_progress(running)
        for process in running:
            process.kill()
            process.join()
            kills += process.exitcode == -9
        for number in (1, 2):
            again = cli("embed", "--slice", f"{number}/2")
            assert again.returncode == 0, again.stdout + again.stderr
            found = re.search(r"resuming an interrupted run: (\d+) texts", again.stdout)
            if found:
                taken_up += 1
                state = Project(corpus).slices / f"slice-000{number}-of-0002/manifest.json"
                run = json.loads(state.read_text())["slice"]["run"]
                assert run["texts"] + int(found[1]) == run["texts"] + run["kept"]
        merge(cli)
        assert read_store(corpus) == alone
        assert not list(corpus.rglob(".tmp-*"))
        shutil.rmtree(Project(corpus).store)


def test_a_run_that_lost_its_slice_to_another_stops(corpus: Path, cli: Cli) -> None:
    """Locks of a shared folder can be lost; the marks in the slices tell."""
    from pipeline.errors import LockedError
    from pipeline.store.slices import SliceUpdate

    embed_slices(cli, 2, 1)
    state = Project(corpus).slices / "slice-0001-of-0002"
    recipe = read_recipe(state)
    keys, first_rows = read_keys(corpus)
    shutil.rmtree(state)
    arguments = (Project(corpus).slices, Project(corpus).store, Slice(2, 1), recipe, keys)
    first, second = (SliceUpdate(*arguments, first_rows) for _ in range(2))
    first.begin()
    second.begin()
    with pytest.raises(LockedError, match="another run has taken over"):
        first.finish(None, {}, is_measured=False)


def read_recipe(folder: Path) -> object:
    from pipeline.store.manifest import parse_manifest

    return parse_manifest((folder / "manifest.json").read_bytes(), "slice").to_recipe()


def read_keys(folder: Path) -> tuple[object, object]:
    from pipeline.corpus.tables import read_distinct_keys

    return read_distinct_keys(Project(folder).texts_file)


def test_a_slice_on_another_disk_than_the_store(corpus: Path, cli: Cli) -> None:
    """The store is a link to another disk; shards are copied there instead of renamed."""
    other = Path("/dev/shm") / f"store-{os.getpid()}"
    if not other.parent.is_dir() or other.parent.stat().st_dev == corpus.stat().st_dev:
        pytest.skip("there is no second disk here")
    alone = make_alone(corpus, cli)
    try:
        other.mkdir()
        Project(corpus).store.symlink_to(other)
        embed_slices(cli, 2)
        merge(cli)
        assert read_store(corpus) == alone
        assert read_manifest(Project(corpus).store).rows == TEXTS
    finally:
        for path in other.parent.glob(f"{other.name}*"):
            shutil.rmtree(path)


def test_the_help_of_a_slice_is_quick_of_torch(project: Path) -> None:
    """A wrong slice is refused before anything is imported that takes seconds."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", "embed", "--slice", "9/4"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "--slice 9/4: must be I/N" in run.stderr
    assert not re.search(r"\| +torch$", run.stderr, re.MULTILINE)
