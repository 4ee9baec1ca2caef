"""The command `pipeline cluster embed`: slices as tasks of datatrove, here, on Slurm or on Ray.

datatrove keeps a mark of each finished task, hands tasks to a cluster, and needs no server of its
own. A task runs `pipeline embed --slice` in a process of its own, so that a process that is lost
takes nothing with it and is noticed. On this machine each task is started and watched from here:
datatrove's own pool of processes waits for ever for one that was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from pipeline.console import count, say, warn
from pipeline.corpus.keys import hash_keys
from pipeline.errors import DeviceError, SettingsError
from pipeline.files import describe_write_error, hash_json
from pipeline.project import Project
from pipeline.store.slices import Slice, read_slice

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.store import Recipe

Engine = Literal["local", "slurm", "ray"]
# An executor of datatrove, which has no types.
_Executor: TypeAlias = Any

_MOST_LOSSES = 3  # of a task, one after another, without any new file of its slice in between
_PAUSE_SECONDS = 0.1
_LOST = 75  # the exit status of a task whose process was ended from outside: "try again"
_SHOWN_LINES = 4  # of a log, in an error
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class ClusterOptions:
    """What the command line says of the machines.

    :param executor: where tasks run.
    :param slices: number of tasks.
    :param workers: number of tasks at once; all if ``None``, on this machine one a GPU, else one.
    :param gpus: GPUs of a task; on this machine, GPUs that it has, one for each task at once.
    :param cpus: cores of a task.
    :param memory_gb: memory of a core.
    :param partition: partition of Slurm.
    :param time: time limit of a task of Slurm, as ``sbatch --time`` takes it.
    :param qos: quality of service of Slurm; ``None`` for the cluster's own.
    """

    executor: Engine = "local"
    slices: int = 8
    workers: int | None = None
    gpus: int = 0
    cpus: int = 1
    memory_gb: int = 4
    partition: str | None = None
    time: str = "24:00:00"
    qos: str | None = None


class LostTaskError(Exception):
    """The process of a task was ended from outside, as a machine without memory does."""


@dataclass(frozen=True)
class SliceTask:
    """What datatrove calls for each task; it can be sent to other machines.

    :param root: the project's folder, the same on all machines.
    :param params: the settings file.
    """

    root: str
    params: str

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Embed a slice, in a process of its own that ends with this one.

        :param data: nothing, as there is no step before.
        :param rank: number of the task, from 0.
        :param world_size: number of tasks.
        :raises LostTaskError: if the process was ended from outside.
        :raises RuntimeError: if the command failed.
        """
        part = Slice(world_size, rank + 1)
        command = [
            sys.executable, "-P", "-m", "pipeline", "embed", "--project", self.root,
            "--params", self.params, "--slice", str(part),
        ]  # fmt: skip
        status = subprocess.run(command, check=False, preexec_fn=_end_with_parent).returncode
        if status < 0:
            raise LostTaskError(f"slice {part}: its process was ended by signal {-status}")
        if status:
            raise RuntimeError(f"slice {part}: pipeline embed ended with status {status}")


def _end_with_parent() -> None:
    """Let a process that just starts end with its parent, where the system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


@dataclass(frozen=True)
class ClusterJob:
    """All slices of a corpus as tasks.

    :param project: the project.
    :param task: what is called for each task.
    :param marks: the folder of datatrove: marks of finished tasks, logs, what goes to the cluster.
    :param options: what the command line says of the machines.
    """

    project: Project
    task: SliceTask
    marks: Path
    options: ClusterOptions

    @classmethod
    def plan(
        cls,
        project: Project,
        params: Path,
        options: ClusterOptions,
        recipes: Sequence[Recipe],
        keys: pa.Array,
    ) -> ClusterJob:
        """The tasks of a corpus; marks of other settings or another corpus are none of theirs.

        :param project: the project.
        :param params: the settings file.
        :param options: what the command line says of the machines.
        :param recipes: recipes that the settings may mean.
        :param keys: keys of the distinct texts of the corpus.
        """
        fingerprints = [recipe.fingerprint for recipe in recipes]
        name = hash_json([fingerprints, hash_keys(keys), options.slices])[:16]
        task = SliceTask(str(project.root), str(params.resolve()))
        return cls(project, task, project.cluster / name, options)

    def make_executor(self) -> _Executor:
        """The executor of datatrove that hands all tasks to the cluster that the options name.

        :raises SettingsError: if a package or an option is missing.
        """
        require_packages(self.options.executor)
        return _EXECUTORS[self.options.executor](self.options, self._describe_pipeline())

    def make_task_executor(self, rank: int) -> _Executor:
        """The executor of datatrove that runs one of the tasks in this process.

        :param rank: number of the task, from 0.
        """
        from datatrove.executor import LocalPipelineExecutor

        return LocalPipelineExecutor(
            tasks=self.options.slices,
            workers=1,
            local_tasks=1,
            local_rank_offset=rank,
            **self._describe_pipeline(),
        )

    def _describe_pipeline(self) -> dict[str, Any]:
        """What all executors of datatrove are told."""
        return {"pipeline": [self.task], "logging_dir": str(self.marks)}

    def forget_lost_marks(self) -> None:
        """Drop the marks of finished tasks whose slices are not there, or not whole."""
        for rank in range(self.options.slices):
            part = Slice(self.options.slices, rank + 1)
            if not read_slice(self.project.slices / part.name, part).holds_all():
                (self.marks / "completions" / f"{rank:05}").unlink(missing_ok=True)

    def list_missing(self) -> list[int]:
        """The numbers of the tasks that have no mark of their end, from 0."""
        completions = self.marks / "completions"
        return [n for n in range(self.options.slices) if not (completions / f"{n:05}").exists()]


def _make_slurm(options: ClusterOptions, common: Mapping[str, Any]) -> _Executor:
    from datatrove.executor import SlurmPipelineExecutor

    if options.partition is None:
        raise SettingsError(
            "--partition: must name a partition of Slurm",
            hint="`sinfo` lists them",
            source="command line",
        )
    activate = Path(sys.prefix) / "bin" / "activate"
    return SlurmPipelineExecutor(
        tasks=options.slices,
        workers=options.workers or -1,
        time=options.time,
        partition=options.partition,
        qos=options.qos,
        cpus_per_task=options.cpus,
        mem_per_cpu_gb=options.memory_gb,
        gpus_per_task=options.gpus,
        job_name="pipeline-embed",
        venv_path=str(activate) if activate.exists() else None,
        # Else the job that sums up all tasks stays in the queue for good when one of them fails.
        sbatch_args={"kill-on-invalid-dep": "yes"},
        **common,
    )


def _make_ray(options: ClusterOptions, common: Mapping[str, Any]) -> _Executor:
    from datatrove.executor import RayPipelineExecutor

    return RayPipelineExecutor(
        tasks=options.slices,
        workers=options.workers or -1,
        cpus_per_task=options.cpus,
        mem_per_cpu_gb=options.memory_gb,
        gpus_per_task=options.gpus,
        **common,
    )


_EXECUTORS: Mapping[Engine, Callable[[ClusterOptions, Mapping[str, Any]], _Executor]] = {
    "slurm": _make_slurm,
    "ray": _make_ray,
}
_PACKAGES: Mapping[Engine, Sequence[str]] = {
    "local": ("datatrove",),
    "slurm": ("datatrove",),
    "ray": ("datatrove", "ray"),
}


def require_packages(executor: Engine) -> None:
    """Make sure that what an executor needs is installed.

    :param executor: the executor.
    :raises SettingsError: naming what is missing.
    """
    missing = [name for name in _PACKAGES[executor] if importlib.util.find_spec(name) is None]
    if missing:
        more = " ray" if "ray" in missing else ""
        raise SettingsError(
            f"--executor {executor}: needs {' and '.join(missing)}, which is not installed",
            hint=f"pip install 'embedding-pipeline[cluster]'{more}",
            source="command line",
        )


def run_job(job: ClusterJob) -> bool:
    """Run the tasks that are missing.

    :param job: the tasks.
    :returns: whether all slices are there; a cluster of Slurm is still at work.
    :raises DeviceError: if tasks failed, or were lost again and again.
    """
    require_packages(job.options.executor)
    job.forget_lost_marks()
    missing = job.list_missing()
    done = job.options.slices - len(missing)
    say(f"cluster   {count(job.options.slices, 'slice')}, {done:,} of them done before")
    if not missing:
        return True
    if job.options.executor == "local":
        _run_local(job, missing)
        return True
    with _saying_what_is_lacking(job):
        job.make_executor().run()
    if job.options.executor == "slurm":
        say("when the jobs have ended, run `pipeline cache merge`, or this command again")
        return False
    missing = job.list_missing()
    if missing:
        raise _describe_failure(job, missing)
    return True


@contextlib.contextmanager
def _saying_what_is_lacking(job: ClusterJob) -> Iterator[None]:
    """Turn a program of the cluster that is not there, or refuses, into one message."""
    try:
        yield
    except FileNotFoundError as error:
        raise SettingsError(
            f"--executor {job.options.executor}: there is no program {error.filename} here",
            hint="run the command where jobs are submitted from, or with --print",
            source="command line",
        ) from error
    except subprocess.CalledProcessError as error:
        raise DeviceError(
            f"{error.cmd[0]} ended with status {error.returncode}",
            hint=f"see what it says above; the script is {job.marks / 'launch_script.slurm'}",
        ) from error


def describe_job(job: ClusterJob) -> str:
    """What would go to the cluster: the script of Slurm, else the command of each task.

    :param job: the tasks.
    """
    if job.options.executor == "slurm":
        executor = job.make_executor()
        run = f"srun -l -n 1 launch_pickled_pipeline {job.marks / 'executor.pik'}"
        script: str = executor.get_launch_file_contents(
            executor.get_sbatch_args(job.options.slices), run
        )
        return script
    parts = [Slice(job.options.slices, n + 1) for n in range(job.options.slices)]
    root = job.project.root
    return "".join(f"pipeline embed --project {root} --slice {part}\n" for part in parts)


@dataclass
class _Worker:
    """A task that is under way on this machine."""

    rank: int
    place: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]


def _run_local(job: ClusterJob, missing: Sequence[int]) -> None:
    """Run tasks on this machine, each in processes that are watched."""
    places = list(range(job.options.workers or max(1, job.options.gpus)))
    waiting, running = deque(missing), list[_Worker]()
    losses: Counter[int] = Counter()
    held: dict[int, int] = {}
    failed: list[int] = []
    try:
        while (waiting and not failed) or running:
            while waiting and places and not failed:
                running.append(_start_task(job, waiting.popleft(), places.pop(0)))
            time.sleep(_PAUSE_SECONDS)
            for worker in [w for w in running if w.process.poll() is not None]:
                running.remove(worker)
                worker.log.close()
                places.append(worker.place)
                status = worker.process.returncode
                if status == 0:
                    continue
                if status > 0 and status != _LOST:
                    failed.append(worker.rank)
                    continue
                size = _measure_slice(job, worker.rank)
                losses[worker.rank] = 0 if size > held.get(worker.rank, 0) else losses[worker.rank]
                losses[worker.rank] += 1
                held[worker.rank] = size
                if losses[worker.rank] >= _MOST_LOSSES:
                    failed.append(worker.rank)
                    continue
                part = Slice(job.options.slices, worker.rank + 1)
                warn(f"slice {part}: its process is gone; it is started again")
                waiting.append(worker.rank)
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.wait()
            worker.log.close()
    if failed:
        raise _describe_failure(job, failed)


def _start_task(job: ClusterJob, rank: int, place: int) -> _Worker:
    """Start a task; its log goes to a file of its own.

    :param place: number of the GPU, and of the share of the cores, that it has.
    """
    environment = dict(os.environ)
    if job.options.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(place)
    elif job.options.workers:
        cores = max(1, (os.cpu_count() or 1) // job.options.workers)
        environment.setdefault("OMP_NUM_THREADS", str(cores))
    try:
        job.marks.mkdir(parents=True, exist_ok=True)
        log = _name_log(job, rank).open("ab")
    except OSError as error:
        raise describe_write_error(error, job.marks) from error
    options = job.options
    run = (
        "from pipeline.cluster import run_task; "
        f"run_task({job.task.root!r}, {job.task.params!r}, {str(job.marks)!r}, "
        f"{options.slices}, {rank})"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", run],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        preexec_fn=_end_with_parent,
    )
    return _Worker(rank, place, process, log)


def run_task(root: str, params: str, marks: str, slices: int, rank: int) -> None:
    """What the process of a task on this machine does: datatrove runs it and marks its end.

    :param root: the project's folder.
    :param params: the settings file.
    :param marks: the folder of datatrove.
    :param slices: number of tasks.
    :param rank: number of this one, from 0.
    """
    job = ClusterJob(
        Project(root, Path(params)),
        SliceTask(root, params),
        Path(marks),
        ClusterOptions(slices=slices),
    )
    # datatrove starts a process beside the task, which would outlive this one when it is killed.
    os.register_at_fork(after_in_child=_end_with_parent)
    try:
        job.make_task_executor(rank).run()
    except (LostTaskError, EOFError, ConnectionError) as error:  # the latter if it is lost
        print(f"lost: {error!r}", file=sys.stderr)
        sys.exit(_LOST)
    except RuntimeError:
        sys.exit(1)
    except OSError as error:  # a full disk, or a folder that may not be written to, stays as it is
        failure = describe_write_error(error, Path(error.filename or marks))
        hint = f"\n  next: {failure.hint}" if failure.hint else ""
        print(f"Error: {failure.message}{hint}", file=sys.stderr)
        sys.exit(1)


def _name_log(job: ClusterJob, rank: int) -> Path:
    return job.marks / f"task-{rank:05}.log"


def _measure_slice(job: ClusterJob, rank: int) -> int:
    """The bytes of the files of a slice, which grow as it is embedded."""
    folder = job.project.slices / Slice(job.options.slices, rank + 1).name
    total = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _describe_failure(job: ClusterJob, ranks: Sequence[int]) -> DeviceError:
    """The error that names the tasks that failed, with the end of the first one's log."""
    parts = ", ".join(str(Slice(job.options.slices, rank + 1)) for rank in sorted(ranks)[:5])
    log = _name_log(job, min(ranks))
    said = ""
    with contextlib.suppress(OSError):
        lines = log.read_text("utf-8", errors="replace").splitlines()
        told = [line for line in lines if line.startswith(("Error: ", "  next: "))]
        said = "".join(f"\n  {line.strip()}" for line in told[-_SHOWN_LINES:])
    return DeviceError(
        f"{count(len(ranks), 'slice')} failed or were lost: {parts}{said}",
        hint=f"see {job.marks}; run the command again to do what is missing",
    )
