"""`pipeline cluster embed`: slices as tasks of datatrove, on this machine, and what goes to others.

`sbatch`, `srun` and `scontrol` are small programs of the test, which run what the script says, so
that all of it but Slurm itself is tried wherever the tests run.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cluster import ClusterJob, ClusterOptions, SliceTask
from pipeline.project import Project
from pipeline.store import manifest as layout
from tests.conftest import ROOT, Cli, edit_params, name_spam, read_store, run_stages
from tests.integration.test_slices import make_alone

pytest.importorskip("datatrove", reason="the extra `cluster` is not installed")

KILLS = int(os.environ.get("KILLS", "3"))
TEXTS = 3 * layout.SHARD_ROWS  # processes of their own have shards of the usual size


@pytest.fixture
def corpus(project: Path, tiny_backbone: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    lines = [f"{('ham', 'spam')[n % 3 == 0]}\tmessage {n} of a corpus" for n in range(TEXTS)]
    (project / "texts.tsv").write_text("label\tmessage\n" + "\n".join(lines) + "\n")
    edit_params(name_spam(tiny_backbone))
    run_stages(cli, "fetch", "prepare")
    return project


def find_children(process: int) -> list[int]:
    """The processes that a process has started, and theirs, those of `pipeline embed` last."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found += [int(path.parent.name), *find_children(int(path.parent.name))]
    return found


def is_embedding(process: int) -> bool:
    with contextlib.suppress(OSError):
        return b"--slice" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def test_slices_on_this_machine_are_the_store_of_one_run(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    run = cli("cluster", "embed", "--slices", "3", "--workers", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 slices, 0 of them done before" in run.stdout
    assert "taken from 3 slices" in run.stdout
    assert read_store(corpus) == alone
    (marks,) = Project(corpus).cluster.iterdir()
    assert sorted(path.name for path in (marks / "completions").iterdir()) == [
        "00000", "00001", "00002",
    ]  # fmt: skip
    again = cli("cluster", "embed", "--slices", "3")
    assert "nothing to merge" in again.stdout


def run_and_kill(generator: random.Random, most: int) -> tuple[int, int, str]:
    """Run the command, and kill -9 its processes at random moments.

    :param most: the number of kills after which it is left alone.
    :returns: the number of kills, the exit status, and what the command said.
    """
    command = ["cluster", "embed", "--slices", "3", "--workers", "2"]
    run = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    kills = 0
    while kills < most and run.poll() is None:
        if any(map(is_embedding, find_children(run.pid))):
            time.sleep(generator.uniform(0, 2))
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(generator.choice(find_children(run.pid)), signal.SIGKILL)
                kills += 1
    said, _ = run.communicate(timeout=240)
    assert not find_children(run.pid)
    return kills, run.returncode, said


def test_killed_workers_are_noticed_and_started_again(corpus: Path, cli: Cli) -> None:
    """Kill -9 of what embeds, or of what watches over it, at random moments.

    Whenever the store is whole before there were enough kills, it is made anew from nothing.
    """
    alone = make_alone(corpus, cli)
    generator = random.Random(0)
    kills = whole = noticed = 0
    while kills < KILLS or not whole or not noticed:  # a kill may meet what is about to end
        assert kills < KILLS + 20, "no loss was noticed"
        more, status, said = run_and_kill(generator, max(KILLS - kills, 0 if noticed else 1))
        kills += more
        noticed += said.count("its process is gone; it is started again")
        if status:  # a slice that was lost three times without anything new stops the command
            assert status == 1, said
            assert "failed or were lost" in said
            assert "Traceback" not in said
            continue
        whole += 1
        assert read_store(corpus) == alone
        assert not Project(corpus).slices.exists()
        if kills < KILLS or not noticed:
            shutil.rmtree(Project(corpus).store)


def test_a_slice_that_went_after_its_mark_is_made_again(corpus: Path, cli: Cli) -> None:
    alone = make_alone(corpus, cli)
    edit = ClusterOptions(slices=3)
    keys, recipes = read_plan(corpus)
    job = ClusterJob.plan(Project(corpus), corpus / "params.yaml", edit, recipes, keys)
    for rank in (0, 1):
        job.make_task_executor(rank).run()
    assert job.list_missing() == [2]
    shutil.rmtree(Project(corpus).slices / "slice-0002-of-0003")
    run = cli("cluster", "embed", "--slices", "3")
    assert "1 of them done before" in run.stdout, run.stdout + run.stderr
    assert read_store(corpus) == alone


def read_plan(folder: Path) -> tuple[object, list[object]]:
    from pipeline.cache_commands import list_recipes
    from pipeline.corpus.tables import read_distinct_keys

    project = Project(folder)
    return read_distinct_keys(project.texts_file)[0], list_recipes(project, folder / "params.yaml")


def test_a_task_that_fails_is_one_message(corpus: Path, cli: Cli) -> None:
    (Project(corpus).slices).mkdir()
    (Project(corpus).slices / "slice-0001-of-0001").write_text("a file where a folder should be")
    run = cli("cluster", "embed", "--slices", "1")
    assert run.returncode == 1
    assert "1 slice failed or were lost: 1/1" in run.stderr
    assert "Error: cannot write" in run.stderr
    assert "Traceback" not in run.stderr
    assert not find_children(os.getpid()) or all(
        not is_embedding(process) for process in find_children(os.getpid())
    )


def test_a_disk_that_does_not_serve_is_no_lost_process(corpus: Path, cli: Cli) -> None:
    """What datatrove writes fails each time, so that nothing is started again."""
    keys, recipes = read_plan(corpus)
    options = ClusterOptions(slices=1)
    job = ClusterJob.plan(Project(corpus), corpus / "params.yaml", options, recipes, keys)
    job.marks.mkdir(parents=True)
    (job.marks / "stats").write_text("a file where a folder should be")
    run = cli("cluster", "embed", "--slices", "1")
    assert run.returncode == 1
    assert "1 slice failed or were lost: 1/1" in run.stderr
    assert "Error: cannot write" in run.stderr
    assert "stats" in run.stderr
    assert "started again" not in run.stdout + run.stderr
    (job.marks / "stats").unlink()
    assert cli("cluster", "embed", "--slices", "1").returncode == 0


def write_program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)


def test_slurm_gets_a_script_that_embeds_the_slices(
    corpus: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "--executor", "slurm", "--slices", "2", "--partition", "gpu", "--gpus", "1", "--cpus", "4",
        "--time", "01:00:00", "--workers", "8",
    )  # fmt: skip
    alone = make_alone(corpus, cli)
    shown = cli("cluster", "embed", *options, "--print").stdout
    for line in (
        "#SBATCH --partition=gpu", "#SBATCH --gpus=1", "#SBATCH --cpus-per-task=4",
        "#SBATCH --time=01:00:00", "#SBATCH --array=0-1%8", "#SBATCH --mem-per-cpu=4G",
        "#SBATCH --kill-on-invalid-dep=yes", "launch_pickled_pipeline",
    ):  # fmt: skip
        assert line in shown, shown
    assert "--qos" not in shown
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "nothing"))
        lacking = cli("cluster", "embed", *options)
    assert lacking.returncode == 1
    assert "there is no program sbatch here" in lacking.stderr

    programs = tmp_path / "programs"
    for number in (0, 1):  # what Slurm does with the script, once for each task of the array
        env = f"SLURM_ARRAY_TASK_ID={number} SLURM_NODELIST=here"
        runs = f'{env} bash "$script" >> {tmp_path}/out 2>&1'
        text = (
            f'for script; do :; done\ncase "$(cat $script)" in *merge_stats*) ;; *) {runs} ;; esac'
        )
        write_program(programs, f"task-{number}", text)
    write_program(
        programs, "sbatch",
        'for script; do :; done\n'
        f'cp "$script" {tmp_path}/script\n'
        f'{programs}/task-0 "$script"\n{programs}/task-1 "$script"\necho "Submitted batch job 42"',
    )  # fmt: skip
    write_program(programs, "srun", 'shift 3\nexec "$@"')  # -l -n 1
    write_program(programs, "scontrol", "echo here")
    write_program(
        programs, "launch_pickled_pipeline",
        f'exec {sys.executable} -P -c "from datatrove.tools.launch_pickled_pipeline import main; '
        'main()" "$@"',
    )  # fmt: skip
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    run = cli("cluster", "embed", *options)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "when the jobs have ended, run `pipeline cache merge`" in run.stdout
    (tmp_path / "script").unlink()
    merged = cli("cluster", "embed", *options)
    assert merged.returncode == 0, merged.stderr + (tmp_path / "out").read_text()
    assert "taken from 2 slices" in merged.stdout
    assert not (tmp_path / "script").exists()
    assert read_store(corpus) == alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--executor", "slurm"), "--partition: must name a partition of Slurm"),
        (("--executor", "ray"), "needs ray, which is not installed"),
    ],
)
def test_what_is_missing_is_named(
    corpus: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    from pipeline import cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    found = cluster.importlib.util.find_spec
    monkeypatch.setattr(
        cluster.importlib.util, "find_spec", lambda name: None if name == "ray" else found(name)
    )
    run = cli("cluster", "embed", *options)
    assert run.returncode == 1
    assert message in run.stderr
    assert "next: " in run.stderr


def test_ray_gets_the_resources_of_the_options(corpus: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    keys, recipes = read_plan(corpus)
    options = ClusterOptions(executor="ray", slices=3, workers=2, gpus=1, cpus=4, memory_gb=6)
    job = ClusterJob.plan(Project(corpus), corpus / "params.yaml", options, recipes, keys)
    executor = job.make_executor()
    assert executor.tasks == 3
    assert executor.workers == 2
    assert (executor.gpus_per_task, executor.cpus_per_task, executor.mem_per_cpu_gb) == (1, 4, 6)


def test_slices_on_ray_are_the_store_of_one_run(corpus: Path, cli: Cli) -> None:
    """Ray starts on this machine; a task that fails there is one message, and is done again."""
    pytest.importorskip("ray", reason="Ray is not installed")
    alone = make_alone(corpus, cli)
    command = [
        sys.executable, "-m", "pipeline", "cluster", "embed", "--executor", "ray", "--slices", "2",
        "--memory-gb", "1",
    ]  # fmt: skip
    blocked = Project(corpus).slices / "slice-0001-of-0002"
    blocked.parent.mkdir()
    blocked.write_text("a file where a folder should be")
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "Error: 1 slice failed or were lost: 1/2" in failed.stderr
    blocked.unlink()
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 slices, 1 of them done before" in run.stdout
    assert "taken from 2 slices" in run.stdout
    assert read_store(corpus) == alone


def test_the_commands_of_other_executors_are_printed(corpus: Path, cli: Cli) -> None:
    shown = cli("cluster", "embed", "--slices", "2", "--print").stdout
    assert shown.splitlines() == [
        f"pipeline embed --project {corpus} --slice {number}/2" for number in (1, 2)
    ]


def test_a_task_can_be_sent_to_another_machine() -> None:
    import dill

    task = SliceTask("/shared/project", "/shared/project/params.yaml")
    assert dill.loads(dill.dumps(task)) == task
