"""The embedding store in an object store, on a local S3 server: what a folder does, it does too.

Whatever happens to a run, the store there is the one that a folder holds, byte for byte, or it is
what it was before and one message says what to do.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.tables import read_distinct_keys
from pipeline.project import Project
from pipeline.store import manifest as layout
from pipeline.store import read_manifest, read_vectors, staging_folder
from tests.conftest import Cli, edit_params, name_spam, read_store, run_stages
from tests.objects import (
    BUCKET,
    SECRET,
    ObjectServer,
    serve_objects,
    serve_refusals,
    use_objects,
)

SHARD_ROWS = 16
TEXTS = 200
URL = f"s3://{BUCKET}/team/embeddings"


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with serve_objects() as running:
        yield running


@pytest.fixture
def objects(server: ObjectServer, private_cache: Path) -> Iterator[ObjectServer]:
    with use_objects(server):
        yield server


def write_texts(path: Path, numbers: list[int]) -> None:
    lines = [
        f"{('ham', 'spam')[n % 3 == 0]}\tmessage {n} of a corpus{' and more' * (n % 10 == 0) * 5}"
        for n in numbers
    ]
    path.write_text("label\tmessage\n" + "\n".join(lines) + "\n")


@pytest.fixture
def corpus(
    objects: ObjectServer,
    project: Path,
    tiny_backbone: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A project of 200 texts, which are 13 shards, prepared and not embedded."""
    monkeypatch.setattr(layout, "SHARD_ROWS", SHARD_ROWS)
    write_texts(project / "texts.tsv", list(range(TEXTS)))
    edit_params(name_spam(tiny_backbone))
    run_stages(cli, "fetch", "prepare")
    return project


def make_here(folder: Path, cli: Cli) -> dict[str, object]:
    """The store that a run makes in the project's folder, which is removed again."""
    edit_params({"store.url": None})
    run_stages(cli, "embed")
    store = read_store(folder)
    for name in ("embeddings", "embeddings.old", "timings"):
        shutil.rmtree(Project(folder).cache / name, ignore_errors=True)
    edit_params({"store.url": URL})
    return store


def read_there(folder: Path) -> dict[str, object]:
    """What ``read_store`` gives, of the store of a project wherever it is."""
    found: dict[str, object] = {
        path.name: path.read_bytes() for path in Project(folder).store.iterdir()
    }
    manifest = json.loads(found["manifest.json"])  # type: ignore[arg-type]  # these are bytes
    del manifest["fidelity"], manifest["sha256"]
    return found | {"manifest.json": manifest}


def list_beside(folder: Path) -> list[str]:
    """The names of what stands beside the store, as locks and unfinished work do."""
    store = Project(folder).store
    return sorted(path.name for path in store.parent.iterdir() if path.name != store.name)


def refuse(result: subprocess.CompletedProcess[str]) -> str:
    """What a command says that ends in one message, with what to do next and no secret."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert "next: " in result.stderr
    assert SECRET not in result.stdout + result.stderr
    return result.stderr


def test_all_stages_and_commands_on_an_object_store(corpus: Path, cli: Cli, tmp_path: Path) -> None:
    run_stages(cli, "embed", "train-heads", "report")
    here = read_store(corpus)
    cli("cache", "export", "here.npy")
    figures = Project(corpus).report / "metrics.json"
    expected = json.loads(figures.read_text())
    shutil.rmtree(Project(corpus).cache / "embeddings")
    edit_params({"store.url": URL})

    result = cli("embed")
    assert result.returncode == 0, result.stderr
    assert f"{TEXTS} embedded" in result.stdout
    assert read_there(corpus) == here
    assert list_beside(corpus) == []
    assert [path.name for path in Project(corpus).local_store.iterdir()] == ["object-store.json"]
    assert "nothing to do" in cli("embed").stdout
    info = cli("cache", "info")
    assert URL in info.stdout
    assert f"{TEXTS}" in info.stdout
    assert "every byte is right" in cli("cache", "verify").stdout
    assert cli("cache", "export", "there.npy").returncode == 0
    assert (corpus / "there.npy").read_bytes() == (corpus / "here.npy").read_bytes()
    run_stages(cli, "train-heads", "report")
    assert json.loads(figures.read_text()) == expected
    asked = ("predict", "--text", "message 3 of a corpus", "--text", "a new one", "--remember")
    predicted = cli(*asked, "-o", str(tmp_path / "out.csv"))
    assert predicted.returncode == 0, predicted.stderr
    assert read_manifest(Project(corpus).predictions).rows == 1  # the other one is in the store
    assert "nothing to do" in cli("embed").stdout
    assert cli("cache", "prune").returncode == 0
    assert read_there(corpus) == here


def test_a_store_that_has_grown_shrunk_and_changed_its_settings(corpus: Path, cli: Cli) -> None:
    """The same shards as in a folder, after each of the steps that moves, keeps or drops some."""
    stores: dict[str, list[dict[str, object]]] = {}
    for url in (None, URL):
        edit_params({"store.url": url, "embed.max_tokens": 32})
        states = stores.setdefault(str(url), [])
        for numbers in (range(100), range(TEXTS), range(40, TEXTS)):
            write_texts(corpus / "texts.tsv", list(numbers))
            run_stages(cli, "fetch", "prepare", "embed")
            states.append(read_there(corpus))
        edit_params({"embed.max_tokens": 12})
        run_stages(cli, "embed")
        states.append(read_there(corpus))
        assert "kept from earlier settings: 160 texts" in cli("cache", "info").stdout
        edit_params({"embed.max_tokens": 32})
        result = cli("embed")
        assert "160 texts kept from when these settings were in use before" in result.stdout
        assert "0 embedded" in result.stdout
        states.append(read_there(corpus))
        assert cli("cache", "verify").returncode == 0
        assert "dropped" in cli("cache", "prune").stdout
        assert "kept from earlier" not in cli("cache", "info").stdout
    assert stores[URL] == stores["None"]
    assert list_beside(corpus) == []


def test_vectors_of_the_folder_move_and_are_not_embedded_again(corpus: Path, cli: Cli) -> None:
    run_stages(cli, "embed")
    here = read_store(corpus)
    edit_params({"store.url": URL})
    result = cli("embed")
    assert f"cache/embeddings: what it holds goes to {URL}" in result.stdout
    assert "0 embedded" in result.stdout
    assert read_there(corpus) == here
    project = Project(corpus)
    fidelity = read_manifest(project.local_store).fidelity
    assert fidelity is not None
    assert read_manifest(project.store).fidelity == fidelity
    write_texts(corpus / "texts.tsv", list(range(TEXTS + 1)))
    run_stages(cli, "fetch", "prepare")
    result = cli("embed")
    assert "1 embedded" in result.stdout
    assert "goes to" not in result.stdout
    assert "slices" not in result.stdout
    joined = read_manifest(project.store).fidelity
    assert joined is not None
    assert joined["texts"] in {fidelity["texts"], fidelity["texts"] + 1}
    write_texts(corpus / "texts.tsv", list(range(TEXTS)))
    run_stages(cli, "fetch", "prepare", "embed")
    assert read_there(corpus) == here
    edit_params({"store.url": None})
    assert "nothing to do" in cli("embed").stdout
    assert "every byte is right" in cli("cache", "verify").stdout


def test_vectors_that_move_keep_their_precision(corpus: Path, cli: Cli) -> None:
    edit_params({"embed.precision": "bfloat16"})
    run_stages(cli, "embed")
    edit_params({"store.url": URL, "embed.precision": "auto"})  # float32, for a new store
    assert "0 embedded" in cli("embed").stdout
    assert read_manifest(Project(corpus).store).recipe["precision"] == "bfloat16"


OTHERS = list(range(1000, 1150))  # the texts of a second project


def succeed(cli: Cli, *arguments: str) -> str:
    """What a command says that ends well."""
    result = cli(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def give_texts(folder: Path, cli: Cli, numbers: list[int]) -> None:
    write_texts(folder / "texts.tsv", numbers)
    run_stages(cli, "fetch", "prepare")


def read_all(folder: Path) -> dict[str, bytes]:
    """All objects of a store and of what stands beside it."""
    store = Project(folder).store
    found: dict[str, bytes] = {}
    waiting = list(store.parent.iterdir())
    while waiting:
        path = waiting.pop()
        if path.is_dir():
            waiting += path.iterdir()
        else:
            found[str(path)] = path.read_bytes()
    return found


@pytest.mark.parametrize("max_tokens", [32, 12])
def test_a_second_project_does_not_drop_the_texts_of_the_first(
    corpus: Path, cli: Cli, max_tokens: int
) -> None:
    """Of the same settings, which would drop them, or of others, which would move them away."""
    edit_params({"store.url": URL})
    run_stages(cli, "embed")
    before = read_all(corpus)
    give_texts(corpus, cli, [*range(20), *OTHERS])
    edit_params({"embed.max_tokens": max_tokens})
    for command in (("embed",), ("embed", "--slice", "1/2"), ("cache", "prune")):
        said = refuse(cli(*command))
        assert f"{URL}: holds 200 texts, of which the corpus of this project has 20" in said
        assert "give each project a store.url of its own" in said
        assert "`pipeline cache prune --most`" in said
    assert read_all(corpus) == before
    # Whoever means it says so.
    assert "dropped 180 texts; holds 20 texts" in cli("cache", "prune", "--most").stdout
    embedded = 150 if max_tokens == 32 else 170
    assert f"{embedded} embedded" in cli("embed").stdout
    assert read_manifest(Project(corpus).store).rows == 170
    assert cli("cache", "verify").returncode == 0


def test_texts_that_are_dropped_from_an_object_store_are_told(corpus: Path, cli: Cli) -> None:
    edit_params({"store.url": URL})
    run_stages(cli, "embed")
    give_texts(corpus, cli, list(range(100, 250)))  # half of what the store holds
    said = cli("embed").stdout
    assert f"{URL}: 100 texts that the corpus does not have will be dropped" in said
    assert "50 embedded" in said
    give_texts(corpus, cli, list(range(130, 250)))
    succeed(cli, "embed", "--slice", "1/1")
    assert f"{URL}: 30 texts that the corpus does not have" in cli("cache", "merge").stdout
    give_texts(corpus, cli, list(range(130, 270)))
    assert "that the corpus does not have" not in cli("embed").stdout
    edit_params({"store.url": None})
    run_stages(cli, "embed")
    give_texts(corpus, cli, OTHERS)  # a folder of the project is its own
    assert "150 embedded" in cli("embed").stdout


def test_a_second_project_does_not_drop_the_slices_of_the_first(
    corpus: Path, cli: Cli, machines: Machines
) -> None:
    """Those that are finished, those that a kill has cut short, and those of other settings."""
    machines.succeed(1, "embed", "--slice", "1/2")
    running = machines.start(2, "embed", "--slice", "2/2")
    folder = Project(corpus).slices / "slice-0002-of-0002"
    while running.is_alive() and not any(folder.glob("rows-*")):
        time.sleep(0.01)
    running.kill()
    running.join()
    assert any(folder.glob("*.parquet"))
    before = read_all(corpus)
    give_texts(corpus, cli, OTHERS)
    for command in (("embed",), ("embed", "--slice", "1/1"), ("cache", "merge")):
        said = refuse(cli(*command))
        assert f"{URL}.slices/slice-0001-of-0002: holds " in said
        assert "of which the corpus of this project has 0" in said
    edit_params({"embed.max_tokens": 12})
    assert f"{URL}.slices/slice-0001-of-0002: holds " in refuse(cli("cache", "prune"))
    edit_params({"embed.max_tokens": 32})
    after = read_all(corpus)
    assert {name: after[name] for name in before if "lock" not in name} == {
        name: content for name, content in before.items() if "lock" not in name
    }
    for path in list((folder.parent / "slice-0001-of-0002").iterdir()):
        path.unlink()
    assert f"{URL}.slices/slice-0002-of-0002: holds " in refuse(cli("embed"))
    assert "dropped 1 slice of other settings or texts" in succeed(cli, "cache", "prune", "--most")
    assert "150 embedded" in succeed(cli, "embed")


def test_a_second_project_does_not_drop_what_a_killed_run_of_the_first_has_left(
    corpus: Path, cli: Cli, machines: Machines
) -> None:
    running = machines.start(1, "embed")
    folder = staging_folder(Project(corpus).store)
    while running.is_alive() and not any(folder.glob("*.parquet")):
        time.sleep(0.01)
    running.kill()
    running.join()
    before = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    assert before
    give_texts(corpus, cli, OTHERS)
    assert f"{URL}.next: holds " in refuse(cli("embed"))
    assert {path.name: path.read_bytes() for path in folder.glob("*.parquet")} == before
    assert f"{URL}: holds no texts" in succeed(cli, "cache", "prune", "--most")
    assert "150 embedded" in succeed(cli, "embed")
    assert list_beside(corpus) == []


def test_a_store_of_earlier_settings_goes_only_if_its_texts_are_known(
    corpus: Path, cli: Cli
) -> None:
    edit_params({"store.url": URL})
    succeed(cli, "embed")
    edit_params({"embed.max_tokens": 12})
    for numbers in (range(100, 250), range(170, 320)):
        give_texts(corpus, cli, list(numbers))
        succeed(cli, "embed")
    before = read_all(corpus)
    said = refuse(cli("cache", "prune"))
    assert f"{URL}.old/" in said
    assert "holds 200 texts, of which the corpus of this project has 30" in said
    assert read_all(corpus) == before
    succeed(cli, "cache", "prune", "--most")
    assert list_beside(corpus) == []


def test_the_digest_changes_if_and_only_if_the_vectors_do(corpus: Path, cli: Cli) -> None:
    edit_params({"store.url": URL})
    digest = Project(corpus).local_store / "object-store.json"
    run_stages(cli, "embed")
    first = digest.read_bytes()
    assert json.loads(first)["texts"] == TEXTS
    shutil.rmtree(digest.parent)  # as on a machine that has another clone of the project
    assert "nothing to do" in cli("embed").stdout
    assert digest.read_bytes() == first
    (Project(corpus).store / "manifest.json").unlink()  # with the counts of texts that were cut
    run_stages(cli, "embed")
    assert digest.read_bytes() == first
    (Project(corpus).store / "manifest.json").unlink()
    assert cli("cache", "verify", "--repair").returncode == 0
    run_stages(cli, "embed")
    assert digest.read_bytes() == first
    write_texts(corpus / "texts.tsv", list(range(TEXTS + 1)))
    run_stages(cli, "fetch", "prepare", "embed")
    assert digest.read_bytes() != first


def test_reads_are_of_the_columns_asked_for_and_paid_once(
    corpus: Path, cli: Cli, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_params({"store.url": URL})
    run_stages(cli, "embed")
    assert not (private_cache / "blocks").exists()
    from pipeline.store import objects

    fetched: list[int] = []
    read_range = objects.ObjectPath.read_range

    def count(path: objects.ObjectPath, offset: int, size: int) -> bytes:
        content = read_range(path, offset, size)
        fetched.append(len(content))
        return content

    monkeypatch.setattr(objects.ObjectPath, "read_range", count)
    project = Project(corpus)
    keys, _ = read_distinct_keys(project.texts_file)
    whole = read_manifest(project.store)
    footers = sum(min(shard.bytes, 1 << 16) for shard in whole.shards)
    one = read_vectors(project.store, keys, [whole.layers[-1]])
    assert sum(fetched) == footers + len(keys) * (16 + one.itemsize // 2 * one.shape[-1])
    fetched.clear()
    again = read_vectors(project.store, keys, [whole.layers[-1]])
    assert fetched == []
    np.testing.assert_array_equal(one, again)
    every = read_vectors(project.store, keys, whole.layers)
    np.testing.assert_array_equal(every[:, -1], one[:, 0])

    edit_params({"store.cache_gb": 0.00002})  # less than the columns of one layer
    bounded = Project(corpus)
    for _ in range(2):
        np.testing.assert_array_equal(read_vectors(bounded.store, keys, whole.layers), every)
    kept = sum(p.stat().st_size for p in (private_cache / "blocks").rglob("*") if p.is_file())
    assert kept <= 20_000
    edit_params({"store.cache_gb": 0})
    shutil.rmtree(private_cache / "blocks")
    np.testing.assert_array_equal(read_vectors(Project(corpus).store, keys, whole.layers), every)
    assert not (private_cache / "blocks").exists()


def test_a_damaged_cache_is_not_believed(corpus: Path, cli: Cli, private_cache: Path) -> None:
    edit_params({"store.url": URL})
    run_stages(cli, "embed")
    project = Project(corpus)
    keys, _ = read_distinct_keys(project.texts_file)
    layers = read_manifest(project.store).layers
    expected = read_vectors(project.store, keys, layers)
    files = [path for path in (private_cache / "blocks").rglob("*") if path.is_file()]
    assert len(files) > 13
    for number, path in enumerate(files):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: number % 3 * 100] if number % 2 else content)
    np.testing.assert_array_equal(read_vectors(project.store, keys, layers), expected)


# Slices, on machines of which each has a home folder and a clone of the project of its own.


KILLS = int(os.environ.get("KILLS", "4"))


class Machines:
    """Clones of a project, each with a home folder, which share the object store alone.

    :param corpus: the project.
    :param server: the object store.
    :param folder: an empty folder for the clones.
    """

    def __init__(self, corpus: Path, server: ObjectServer, folder: Path) -> None:
        self._corpus = corpus
        self._server = server
        self._folder = folder

    def start(
        self, number: int, *arguments: str, **variables: str
    ) -> multiprocessing.process.BaseProcess:
        """Start a command on a machine.

        :param number: number of the machine.
        :param *arguments: arguments of the command line.
        :param **variables: variables of its environment.
        """
        clone, home = self._folder / f"clone-{number}", self._folder / f"home-{number}"
        if not clone.exists():
            shutil.copytree(self._corpus, clone)
            home.mkdir()
        environment = {**self._server.environment, "HOME": str(home), **variables}
        process = PROCESSES.Process(
            target=run_process, args=(clone, environment, arguments, self._name_output(number))
        )
        process.start()
        return process

    def _name_output(self, number: int) -> Path:
        return self._folder / f"output-{number}"

    def finish(self, number: int, process: multiprocessing.process.BaseProcess) -> tuple[int, str]:
        """The status of a command that was started there, and all that it said."""
        process.join(300)
        assert process.exitcode is not None
        return process.exitcode, self._name_output(number).read_text()

    def run(self, number: int, *arguments: str) -> tuple[int, str]:
        """Run a command on a machine to its end."""
        return self.finish(number, self.start(number, *arguments))

    def succeed(self, number: int, *arguments: str) -> str:
        """What a command says that ends well."""
        status, said = self.run(number, *arguments)
        assert status == 0, said
        return said

    def refuse(self, number: int, *arguments: str) -> str:
        """What a command says that ends in one message."""
        status, said = self.run(number, *arguments)
        return refuse(subprocess.CompletedProcess(arguments, status, "", said))


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pipeline.embed.slices", "pipeline.embed.shards", "pipeline.cache_commands",
     "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert",
     "pyarrow.parquet", "s3fs", __name__]
)  # fmt: skip


def run_process(
    folder: Path, environment: dict[str, str], arguments: tuple[str, ...], output: Path
) -> None:
    """The command line in a process of its own.

    :param folder: the project.
    :param environment: further variables of the environment.
    :param arguments: arguments of the command line.
    :param output: the file that gets all that it says.
    """
    from pipeline.cli import main
    from pipeline.embed import shards
    from pipeline.store import leases

    os.environ.pop("PIPELINE_CACHE_DIR", None)
    os.environ.pop("XDG_CACHE_HOME", None)
    os.environ.update(environment)
    os.chdir(folder)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    shards._KEEP_SECONDS = 0.0  # as if every batch took long
    leases.RENEW_SECONDS = 0.2
    layout.SHARD_ROWS = SHARD_ROWS
    sys.argv = ["pipeline", *arguments]
    main()


@pytest.fixture
def machines(corpus: Path, objects: ObjectServer, tmp_path: Path) -> Machines:
    edit_params({"store.url": URL})
    folder = tmp_path / "machines"
    folder.mkdir()
    return Machines(corpus, objects, folder)


def list_slices_there() -> list[str]:
    """The names of the objects of all slices."""
    slices = Project().slices
    return sorted(
        f"{folder.name}/{path.name}"
        for folder in slices.glob("slice-*")
        for path in folder.iterdir()
    )


@pytest.mark.parametrize("count", [2, 4])
def test_machines_at_once(corpus: Path, cli: Cli, machines: Machines, count: int) -> None:
    here = make_here(corpus, cli)
    numbers = range(1, count + 1)
    running = [machines.start(n, "embed", "--slice", f"{n}/{count}") for n in numbers]
    for number, process in zip(numbers, running, strict=True):
        status, said = machines.finish(number, process)
        assert status == 0, said
    assert f"{count} slices, {count} finished" in machines.refuse(1, "cache", "info")
    said = machines.succeed(1, "cache", "merge")
    assert f"{TEXTS} texts taken from {count} slices" in said
    assert read_there(corpus) == here
    assert list_beside(corpus) == []
    assert "nothing to do" in machines.succeed(2, "embed")
    assert "the store lacks none of it" in machines.succeed(1, "embed", "--slice", f"1/{count}")


def test_a_slice_twice_missing_or_of_another_fingerprint(
    corpus: Path, cli: Cli, machines: Machines
) -> None:
    here = make_here(corpus, cli)
    assert "there are no slices" in machines.refuse(1, "cache", "merge")
    machines.succeed(1, "embed", "--slice", "1/3")
    before = list_slices_there()
    assert "is finished" in machines.succeed(2, "embed", "--slice", "1/3")
    assert list_slices_there() == before
    said = machines.refuse(2, "cache", "merge")
    assert "of the slices 2/3 is missing, 3/3 is missing; nothing was merged" in said
    edit_params({"embed.max_tokens": 12})
    said = refuse(cli("embed", "--slice", "2/3"))
    assert "holds vectors of other settings (max_tokens 32, not 12)" in said
    assert f"{URL}.slices/slice-0001-of-0003" in said
    assert "max_tokens 32, not 12" in refuse(cli("cache", "merge"))
    edit_params({"embed.max_tokens": 32})
    assert list_slices_there() == before
    machines.succeed(3, "embed", "--slice", "3/3")
    machines.succeed(3, "embed", "--slice", "2/3")
    machines.succeed(2, "cache", "merge")
    assert "nothing to merge" in machines.succeed(1, "cache", "merge")
    assert read_there(corpus) == here
    assert list_beside(corpus) == []


def test_two_merges_and_two_runs_of_a_slice_at_once(
    corpus: Path, cli: Cli, machines: Machines
) -> None:
    here = make_here(corpus, cli)
    said_locked = 0
    for command in (("embed", "--slice", "1/1"), ("cache", "merge"), ("embed",)):
        if command == ("embed",):
            for path in [*Project(corpus).store.iterdir()]:
                path.unlink()
        running = [machines.start(number, *command) for number in (1, 2)]
        ended = [machines.finish(n, process) for n, process in zip((1, 2), running, strict=True)]
        assert 0 in {status for status, _ in ended}, ended
        for status, said in ended:
            if status:
                refuse(subprocess.CompletedProcess(command, status, "", said))
                assert re.search(r"another run \(process \d+\) is writing s3://", said)
                said_locked += 1
    assert read_there(corpus) == here
    assert list_beside(corpus) == []


def test_workers_that_are_killed_lose_no_vector_and_break_nothing(
    corpus: Path, cli: Cli, machines: Machines
) -> None:
    """Kill -9 at random moments of slices, of the merge and of a whole run; then once more."""
    here = make_here(corpus, cli)
    generator = random.Random(0)
    started = time.monotonic()
    machines.succeed(1, "embed", "--slice", "1/2")
    whole_run = time.monotonic() - started
    kills = 0
    while kills < KILLS:
        for commands in (
            [("embed", "--slice", "1/2"), ("embed", "--slice", "2/2")],
            [("cache", "merge")],
            [("embed",)],
        ):
            running = [machines.start(n, *command) for n, command in enumerate(commands, 1)]
            time.sleep(generator.uniform(0.1, 1.0) * whole_run)
            for process in running:
                process.kill()
                process.join()
                kills += process.exitcode == -9
            # Nobody reads a half-written store: it is whole, or there is none yet.
            held = cli("cache", "verify")
            assert held.returncode == 0 or "no such file" in held.stderr, held.stderr
            if commands != [("embed",)]:
                for number, command in enumerate(commands, 1):
                    machines.succeed(number, *command)
        machines.succeed(2, "embed")
        assert read_there(corpus) == here
        assert list_beside(corpus) == []
        for path in [*Project(corpus).store.iterdir()]:
            path.unlink()


# Stores that do not serve.

COMMANDS = [("embed",), ("cache", "info"), ("cache", "verify"), ("embed", "--slice", "1/2")]


def refuse_all(cli: Cli) -> str:
    """What commands say, each of which ends in one message."""
    return "".join(refuse(cli(*command)) for command in COMMANDS)


def forget_clients() -> None:
    """Clients are kept by fsspec, with the credentials that they found."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


def test_a_client_that_is_not_installed(
    corpus: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.registry import _registry

    edit_params({"store.url": URL})
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    said = refuse_all(cli)
    assert said.count(f"s3://{BUCKET}: the client for s3:// is not installed") == len(COMMANDS)
    assert said.count("pip install 'embedding-pipeline[s3]'") == len(COMMANDS)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/team", "s3://bucket: the client for s3:// is not installed"),
        ("nowhere://bucket/team", "nowhere://bucket: no client for nowhere:// is known"),
        ("s3://bucket", "store.url: s3://bucket: must name a folder in a bucket"),
        ("s3://key:word@bucket/team", "store.url: s3://…@bucket/team: must hold no user"),
    ],
)
def test_a_url_that_cannot_serve_is_told_before_anything_else(
    project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    """No stage has run, so whatever a command reads first would be missing."""
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    edit_params({"store.url": url})
    for command in (
        ("embed",), ("embed", "--slice", "1/2"), ("train-heads",), ("report",),
        ("cluster", "embed"), ("cache", "merge"), ("cache", "info"),
    ):  # fmt: skip
        assert said in refuse(cli(*command)), command
    assert not Project(project).local_store.exists()


def test_a_bucket_that_is_not_there(corpus: Path, cli: Cli) -> None:
    edit_params({"store.url": "s3://elsewhere/team"})
    said = refuse_all(cli)
    assert said.count("s3://elsewhere: there is no such bucket") == len(COMMANDS)
    assert said.count("create the bucket, or correct store.url") == len(COMMANDS)


def test_no_credentials(corpus: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_params({"store.url": URL})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    forget_clients()
    said = refuse_all(cli)
    assert said.count("no credentials for it were found") == len(COMMANDS)
    assert said.count("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") == len(COMMANDS)


def test_no_network(corpus: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """`predict` does without the store: what it would take from there it computes."""
    edit_params({"store.url": URL})
    run_stages(cli, "embed", "train-heads")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # which nobody listens at
    forget_clients()
    said = refuse(cli("embed"))
    assert "the store does not answer" in said
    assert "check the network" in said
    answer = cli("predict", "--text", "message 3 of a corpus", "-o", "out.csv")
    assert answer.returncode == 0, answer.stderr
    assert "the store does not answer; all vectors are computed anew" in answer.stdout


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AccessDenied", "let them list, read, write and remove objects below store.url"),
        ("InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "check AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_requests_that_are_denied(
    corpus: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, code: str, remedy: str
) -> None:
    edit_params({"store.url": URL})
    with serve_refusals(code) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        forget_clients()
        assert remedy in refuse(cli("embed"))
        refuse(cli("cache", "info"))


def test_a_url_with_a_secret_is_refused_and_not_shown(corpus: Path, cli: Cli) -> None:
    edit_params({"store.url": f"s3://tests:{SECRET}@bucket/team"})
    said = refuse_all(cli)
    assert said.count("params.yaml: store.url: s3://…@bucket/team: must hold no user") == 4
    assert SECRET not in said


@pytest.mark.parametrize("url", ["/mnt/shared/vectors", "s3:/bucket/team", "bucket/team"])
def test_what_is_no_url_is_refused_and_not_passed_over(corpus: Path, cli: Cli, url: str) -> None:
    edit_params({"store.url": url})
    said = refuse_all(cli)
    assert said.count(f"params.yaml: store.url: {url}: must be the URL of a folder in an") == 4
    assert not Project(corpus).cache.joinpath("embeddings").exists()
