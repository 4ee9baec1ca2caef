"""Time and quality of training heads, beside scikit-learn, Lightning's usual loop, the notebook.

    python -m tests.benchmarks.heads [--json FILE] [--quick | --seeds N | --rows N | --outputs N]

On the SMS corpus if this project's ``cache/`` holds its vectors, and on synthetic rows. All engines
get the same standardized features in memory; scores are macro-F1 on the validation rows, averaged
over the tasks. A row marked ``scaled`` was timed on a part of the work and multiplied. Beside other
programs set GOMP_SPINCOUNT=1000, as ``pipeline train-heads`` does, or threads mostly wait.

``--seeds N`` runs `train-heads` and `report` under N seeds in a scratch folder instead: what is
chosen on held-out rows, and how it does on the test part.

``--rows N`` makes a project of N synthetic rows in ``--folder``, if there is none, and measures its
stages `train-heads` and `report`: seconds of CPU and of the wall, and memory.

``--outputs N`` does so for `train-heads` with N classes, and with N tags, on 5,000 rows.

``--singles N`` has the default search of linear heads on N synthetic rows beside 64 single fits.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from pipeline.config import HeadsSettings, load_settings
from pipeline.corpus.tables import read_labelled_rows
from pipeline.heads.choosing import score
from pipeline.heads.configurations import list_configurations
from pipeline.heads.features import MemoryFeatures, Scaling
from pipeline.heads.targets import draw_folds, make_targets
from pipeline.heads.task_types import LabelSummary
from pipeline.heads.tasks import Task
from pipeline.heads.trainer import make_trainer
from pipeline.heads.training import TrainedHead, fit_heads
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.benchmarks.scale import measure_outputs, measure_stages
from tests.benchmarks.table import describe_machine, present

_SEEDS = 5  # of heads that start from random weights


@dataclass(frozen=True)
class Case:
    """Standardized features, training rows first, and a label of each task."""

    name: str
    features: np.ndarray
    labels: dict[str, np.ndarray]
    train_rows: int

    @property
    def tasks(self) -> list[Task]:
        made = []
        for name, values in self.labels.items():
            counts = tuple(np.bincount(values[: self.train_rows]).tolist())
            classes = tuple(str(index) for index in range(len(counts)))
            kind = "binary" if len(counts) == 2 else "multiclass"
            made.append(
                Task(name, kind, classes, LabelSummary(counts, self.train_rows), metric="f1_macro")
            )
        return made


def load_messages() -> Case | None:
    """The SMS corpus with every layer of its backbone, if it is there."""
    if not (Project().store / "manifest.json").exists() or not Project().labels_file.exists():
        return None
    rows = read_labelled_rows(Project())
    chosen = np.concatenate([rows.select("train"), rows.select("validation")])
    layers = read_manifest(Project().store).layers
    vectors = read_vectors(Project().store, rows.keys.take(chosen), layers)
    labels = {name: task.values[chosen] for name, task in rows.tasks.items()}
    return make_case("SMS", vectors.reshape(len(chosen), -1), labels, len(rows.select("train")))


def make_synthetic(rows: int, width: int = 768) -> Case:
    """Rows of correlated features, and two tasks that a linear head can learn in part."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((64, width)).astype(np.float32)
    features = rng.standard_normal((rows, 64), np.float32) @ mix
    features += 2 * rng.standard_normal((rows, width), np.float32)
    yes = features @ rng.standard_normal(width) / 60 + rng.standard_normal(rows)
    three = features @ rng.standard_normal((width, 3)) / 60 + rng.gumbel(size=(rows, 3))
    labels = {"yes": (yes > 1).astype(np.int64), "three": three.argmax(axis=1)}
    return make_case(f"{rows:,} × {width}", features, labels, rows * 9 // 10)


def make_case(name: str, features: np.ndarray, labels: dict[str, np.ndarray], train: int) -> Case:
    return Case(name, Scaling.fit(features[:train]).apply(features), labels, train)


def list_decays(number: int) -> tuple[float, ...]:
    return tuple(np.logspace(-3, 0, number).tolist()) if number > 1 else (0.03,)


def fit_ours(case: Case, decays: Sequence[float], **changes: Any) -> float:
    settings = HeadsSettings(
        **{"folds": None, "calibrate": False, "search": ({"weight_decay": tuple(decays)},),
           **changes}
    )  # fmt: skip
    width = case.features.shape[1]
    features = MemoryFeatures(torch.from_numpy(case.features), case.train_rows)
    rows = np.arange(case.train_rows)
    folds = draw_folds(rows, settings.folds, settings.seed) if settings.folds else None
    fit = fit_heads(
        lambda _: (features, Scaling.identity(width)),
        make_targets(case.tasks, case.labels, case.train_rows, folds, "cpu"),
        case.tasks,
        list_configurations(settings, (0,)),
        settings,
    )
    # With folds, heads were judged by training rows too.
    cut = case.train_rows - len(case.features)

    def score_head(head: TrainedHead) -> float:
        held_out, labels = head.candidate.held_out, case.labels[head.task.name]
        return score(head.task, "f1_macro", held_out[cut:], labels[cut:])

    return float(np.mean([score_head(head) for head in fit.heads]))


def compare_singles(rows: int) -> list[dict[str, Any]]:
    """The default search beside each of 64 configurations fitted alone, by test macro-F1.

    Half of the rows behind the training rows judge the search; the other half are the test rows.

    :param rows: the number of synthetic rows.
    :returns: a row for the search, one for the best of the 64 by the rows that judge the search,
        and one for the best by the test rows themselves, which no choice could promise.
    """
    case = make_synthetic(rows)
    judged = case.train_rows + (rows - case.train_rows) // 2
    labels = {name: of[:judged] for name, of in case.labels.items()}
    seen = Case(case.name, case.features[:judged], labels, case.train_rows)
    features = MemoryFeatures(torch.from_numpy(seen.features), seen.train_rows)
    scaling = Scaling.identity(features.width)
    targets = make_targets(seen.tasks, seen.labels, seen.train_rows, None, "cpu")

    def fit(**changes: Any) -> dict[str, tuple[float, float]]:
        """Of each task, macro-F1 on the rows that judge, and on the test rows."""
        settings = HeadsSettings(folds=None, **changes)
        fitted = fit_heads(
            lambda _: (features, scaling), targets, seen.tasks,
            list_configurations(settings, (0,)), settings,
        )  # fmt: skip
        found = {}
        for head in fitted.heads:
            logits = head.candidate.head.compute_logits(case.features[case.train_rows :])
            labels = case.labels[head.task.name][case.train_rows :]
            at = judged - case.train_rows
            found[head.task.name] = (
                score(head.task, "f1_macro", logits[:at], labels[:at]),
                score(head.task, "f1_macro", logits[at:], labels[at:]),
            )
        return found

    started = time.process_time()
    searched = fit(head="linear")
    spent = time.process_time() - started
    decays = np.logspace(-6, 0, 32).tolist()
    singles = [
        fit(search=({"weight_decay": (decay,), "logit_adjustment": (adjustment,)},))
        for decay in decays
        for adjustment in (0.0, 0.5)
    ]  # fmt: skip
    spent_on_singles = time.process_time() - started - spent
    rivals = {
        "the best of 64 by the rows that judge": {
            task: max(single[task] for single in singles)[1] for task in searched
        },
        "the best of 64 by the test rows": {
            task: max(single[task][1] for single in singles) for task in searched
        },
    }
    ours = {task: test for task, (_, test) in searched.items()}
    return [
        {"case": case.name, "engine": name, "cpu_seconds": seconds, **scores}
        for name, seconds, scores in (
            ("the default search, linear heads", spent, ours),
            *((name, spent_on_singles, scores) for name, scores in rivals.items()),
        )
    ]


def fit_scikit_learn(case: Case, decays: Sequence[float]) -> float:
    """``LogisticRegression``, one task and one strength after another; the best of each task."""
    from sklearn.linear_model import LogisticRegression

    return _best_of_each(
        case, [lambda d=d: LogisticRegression(C=1 / (case.train_rows * d)) for d in decays]
    )


def fit_scikit_learn_cv(case: Case) -> float:
    from sklearn.linear_model import LogisticRegressionCV

    strengths = [1 / (case.train_rows * decay) for decay in (0.01, 0.03, 0.1)]
    # By accuracy: scikit-learn 1.9.1 fails on macro-F1 of two classes.
    return _best_of_each(
        case,
        [lambda: LogisticRegressionCV(
            Cs=strengths, cv=5, scoring="accuracy", use_legacy_attributes=False,
            l1_ratios=(0,),
        )],
    )  # fmt: skip


def fit_scikit_learn_mlp(case: Case, seed: int) -> float:
    from sklearn.neural_network import MLPClassifier

    return _best_of_each(
        case, [lambda: MLPClassifier((64,), early_stopping=True, random_state=seed, max_iter=40)]
    )


def average_seeds(fit: Callable[[int], float]) -> float:
    """The mean score under ``_SEEDS`` seeds, since one of a hidden layer moves by a hundredth."""
    return float(np.mean([fit(seed) for seed in range(_SEEDS)]))


def fit_scikit_learn_svc(case: Case) -> float:
    """Support vector machines with the kernel that kernel heads of bandwidth 1 have."""
    from sklearn.svm import SVC

    gamma = 1 / (2 * case.features[: case.train_rows].var(axis=0).sum())
    return _best_of_each(case, [lambda c=c: SVC(C=c, gamma=gamma) for c in (1, 3, 10)])


def _best_of_each(case: Case, makers: Sequence[Callable[[], Any]]) -> float:
    from sklearn.metrics import f1_score

    cut, best = case.train_rows, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for values in case.labels.values():
            scores = []
            for make in makers:
                model = make().fit(case.features[:cut], values[:cut])
                found = model.predict(case.features[cut:])
                scores.append(f1_score(values[cut:], found, average="macro"))
            best.append(max(scores))
    return float(np.mean(best))


def fit_plain_lightning(case: Case, epochs: int) -> float:
    """What one writes without this project: a ``DataLoader`` of batches of 32, AdamW."""
    from lightning.pytorch import LightningModule
    from sklearn.metrics import f1_score
    from torch.utils.data import DataLoader, TensorDataset

    tasks, cut = case.tasks, case.train_rows
    features = torch.from_numpy(case.features)
    labels = [torch.from_numpy(values) for values in case.labels.values()]

    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.heads = torch.nn.ModuleList(
                torch.nn.Linear(features.shape[1], len(task.classes)) for task in tasks
            )

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            x, *wanted = batch
            losses = zip(self.heads, wanted, strict=True)
            return sum(torch.nn.functional.cross_entropy(head(x), y) for head, y in losses)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    torch.manual_seed(0)
    module = Plain()
    data = TensorDataset(features[:cut], *(values[:cut] for values in labels))
    make_trainer(epochs, "cpu", []).fit(module, DataLoader(data, batch_size=32, shuffle=True))
    with torch.no_grad():
        scores = [
            f1_score(y[cut:], head(features[cut:]).argmax(dim=1), average="macro")
            for head, y in zip(module.heads, labels, strict=True)
        ]
    return float(np.mean(scores))


def time_backbone(part: int = 64) -> float | None:
    """Seconds of the notebook's way a message and epoch: the backbone on 128 padded tokens."""
    from pipeline.assets import read_assets

    try:
        folder = read_assets(Project().assets)["backbone"].locate(Project())
        import transformers

        model = transformers.AutoModel.from_pretrained(folder).eval()
    except Exception as error:
        click.echo(f"without the notebook's way: {error}")
        return None
    tokens = torch.randint(1000, 20_000, (32, 128))
    with torch.no_grad():
        model(input_ids=tokens)
        started = time.perf_counter()
        for _ in range(part // 32):
            model(input_ids=tokens)
    return (time.perf_counter() - started) / part


def measure(case: str, engine: str, run: Callable[[], float], scale: float = 1) -> dict[str, Any]:
    started = time.perf_counter()
    found = run()
    seconds = (time.perf_counter() - started) * scale
    name = engine + (f", scaled × {scale:g}" if scale > 1 else "")
    click.echo(f"{case}: {name}: {seconds:.1f} s", err=True)  # a full run takes minutes
    return {"case": case, "engine": name, "fit_seconds": seconds, "validation_score": found}


def compare(case: Case, *, quick: bool, large: bool) -> list[dict[str, Any]]:
    rows = []
    for number in (1, 64) if quick or large else (1, 64, 1000):
        name = f"{case.name}: {number:,} × {len(case.labels)} tasks"
        decays = list_decays(number)
        rows.append(measure(name, "ours", lambda d=decays: fit_ours(case, d)))
        # Strengths at even distances stand for all of them.
        timed = min(number, 1 if large or quick else 4)
        step = decays[number // (2 * timed) :: max(number // timed, 1)][:timed]
        rows.append(
            measure(name, "LogisticRegression", lambda d=step: fit_scikit_learn(case, d),
                    number / timed)
        )  # fmt: skip
    if large:
        rows += [
            row | {"case": row["case"].replace(": 64", ": 1,000"),
                   "engine": f"{row['engine'].split(',')[0]}, scaled from 64",
                   "fit_seconds": row["fit_seconds"] * 1000 / 64, "validation_score": None}
            for row in rows if ": 64" in row["case"]
        ]  # fmt: skip
    single = f"{case.name}: 1 × {len(case.labels)} tasks"
    epochs, timed = 5, 1 if large else 5
    rows.append(
        measure(single, "Lightning, DataLoader of 32, 5 epochs",
                lambda: fit_plain_lightning(case, timed), epochs / timed)
    )  # fmt: skip
    if not large and not quick:
        rows.append(measure(f"{case.name}: 3 by 5 folds", "LogisticRegressionCV",
                            lambda: fit_scikit_learn_cv(case)))  # fmt: skip
        rows.append(measure(f"{case.name}: 3 by 5 folds", "ours",
                            lambda: fit_ours(case, (0.01, 0.03, 0.1), folds=5)))  # fmt: skip
        hidden = f"{case.name}: hidden layer of 64, mean of {_SEEDS} seeds"
        rows.append(measure(hidden, "MLPClassifier",
                            lambda: average_seeds(lambda seed: fit_scikit_learn_mlp(case, seed)),
                            1 / _SEEDS))  # fmt: skip
        rows.append(measure(hidden, "ours",
                            lambda: average_seeds(
                                lambda seed: fit_ours(case, (0.1,), head="hidden",
                                                      optimizer="adamw", patience=2, seed=seed)),
                            1 / _SEEDS))  # fmt: skip
        rows.append(measure(f"{case.name}: 3 Gaussian kernels", "SVC",
                            lambda: fit_scikit_learn_svc(case)))  # fmt: skip
        rows.append(measure(f"{case.name}: 3 Gaussian kernels", "ours",
                            lambda: fit_ours(case, (0.01, 0.03, 0.1), head="kernel")))  # fmt: skip
    return rows


def try_seeds(number: int) -> list[dict[str, Any]]:
    """Test figures of this project's settings under each seed, and their mean and deviation.

    L-BFGS draws nothing at random: with it, a seed changes what rows the folds hold, and by that
    what is chosen.
    """
    from pipeline.heads.run import run_train_heads
    from pipeline.report.run import run_report

    settings = load_settings(Project().settings)
    inputs = [
        path.absolute() for path in (Project().assets, Project().texts_file, Project().labels_file)
    ]
    inputs.append(Project().store.absolute())
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Project().cache.mkdir()
        for path in inputs:
            (Project().cache / path.name).symlink_to(path)
        for seed in range(number):
            heads = settings.heads.model_copy(update={"seed": seed})
            with contextlib.redirect_stdout(io.StringIO()):
                run_train_heads(Project(), settings.model_copy(update={"heads": heads}))
                run_report(Project(), settings)
            test = json.loads((Project().report / "metrics.json").read_text())["test"]
            search = json.loads((Project().heads / "heads.json").read_text())["search"]
            for task, figures in test.items():
                chosen = search[task][0]
                rows.setdefault(task, []).append(
                    {"task": task, "seed": seed, "held_out": chosen["score"]}
                    | {name: figures[name] for name in _TEST_FIGURES if name in figures}
                    | {key: chosen[key] for key in chosen if key not in ("score", "held_out_loss")}
                )
    return [row for of_task in rows.values() for row in (*of_task, *_summarize(of_task))]


_TEST_FIGURES = ("accuracy", "f1", "f1_macro")


def _summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation of the figures of one task."""
    means, deviations = ({"task": rows[0]["task"], "seed": s} for s in ("mean", "deviation"))
    for name in ("held_out", *_TEST_FIGURES):
        if name in rows[0]:
            values = [row[name] for row in rows]
            means[name] = float(np.mean(values))
            deviations[name] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return [means, deviations]


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows here too.")
@click.option("--quick", is_flag=True, help="Less of everything: under 50 s on two cores.")
@click.option("--seeds", type=int, help="Test figures under so many seeds instead.")
@click.option("--rows", type=int, help="The stages on so many synthetic rows instead.")
@click.option("--outputs", type=int, help="Training of so many classes and tags instead.")
@click.option("--singles", type=int, help="The search beside 64 single fits on so many rows.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where these rows are.")
@click.option("--width", type=int, default=768, help="The width of their vectors.")
@click.option("--max-memory", type=float, help="runtime.max_memory of these rows.")
def main(
    path: Path | None,
    quick: bool,
    seeds: int | None,
    rows: int | None,
    outputs: int | None,
    singles: int | None,
    folder: Path | None,
    width: int,
    max_memory: float | None,
) -> None:
    """Measure training beside scikit-learn, a plain Lightning loop and the notebook's way."""
    machine = describe_machine("torch", "lightning", "scikit-learn")
    if rows is not None or outputs is not None:
        with tempfile.TemporaryDirectory() as scratch:
            where = (folder or Path(scratch)).absolute()
            measured = [] if rows is None else measure_stages(where, rows, max_memory, width)
            if outputs is not None:
                measured += measure_outputs(where, outputs)
            present(measured, path, machine)
        return
    if singles is not None:
        present(compare_singles(singles), path, machine)
        return
    if seeds is not None:
        present(try_seeds(seeds), path, machine)
        return
    results = []
    messages = load_messages()
    if messages is None:
        click.echo("cache/ holds no vectors of the SMS corpus: synthetic rows alone")
    else:
        results += compare(messages, quick=quick, large=False)
        each = time_backbone()
        if each is not None:
            seconds = each * messages.train_rows * 5
            results.append(
                {"case": f"{messages.name}: 1 × 2 tasks",
                 "engine": "the notebook's way, 5 epochs, scaled from 64 messages",
                 "fit_seconds": seconds, "validation_score": None}
            )  # fmt: skip
    results += compare(make_synthetic(5_000 if quick else 200_000), quick=quick, large=not quick)
    present(results, path, machine)


if __name__ == "__main__":
    main()
