"""The stage `report` on a small project: real files in, metrics, plots and a page out."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import classification_report

from pipeline.config import Settings
from pipeline.corpus.tables import read_labelled_rows
from pipeline.errors import PipelineError, StageError
from pipeline.files import add_hash, hash_json
from pipeline.model.decision import Decision
from pipeline.model.saved import Heads, History, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.model.weights import HeadWeights
from pipeline.project import Project
from pipeline.report import run
from pipeline.report.run import run_report, show_report
from pipeline.store import Recipe, Rows, StoreUpdate, read_manifest, read_vectors
from pipeline.store.manifest import SHARD_ROWS

HOSTILE = ["<b>bold</b>", 'a "quoted", class', "slash/and\nline", "$x^2$ & _y"]
BACKBONE = {
    "id": "acme/second",
    "source": "a mirror",
    "revision": None,
    "wanted": "acme/first",
    "files": {"model.safetensors": "ab" * 32},
}
DATASET = {"id": "d", "source": "s", "files": {"d.csv": "cd" * 32}}
LEXICON = {"id": "words", "source": "s", "files": {}}
LAYERS, WIDTH = (0, 2), 6
D = len(LAYERS) * WIDTH
ROWS = 120


def make_project(
    tasks: dict[str, Sequence[str]],
    rows: int = ROWS,
    name_text: Callable[[int], str] = "text {}".format,
) -> None:
    """Write what the earlier stages write, in the working directory; two classes make a binary
    task. Every tenth row repeats the text of row 0, which is in the training part.

    Texts and labels are written as version 0.1.0 did, which stated no identity."""
    generator = np.random.default_rng(0)
    texts = [name_text(0 if row % 10 == 0 else row) for row in range(rows)]
    keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    vectors = write_store(list(dict.fromkeys(keys)), generator)
    Project().assets.write_text(
        json.dumps({"dataset": DATASET, "lexicon": LEXICON, "backbone": BACKBONE})
    )
    split = [
        "test" if r % 4 == 0 and r else "validation" if r % 4 == 1 else "train" for r in range(rows)
    ]
    fields = [pa.field("row", pa.int64()), pa.field("split", pa.string())]
    columns: list[object] = [list(range(rows)), split]
    heads = []
    for name, classes in tasks.items():
        outputs = 1 if len(classes) == 2 else len(classes)
        weight = generator.standard_normal((outputs, D)).astype(np.float32)
        heads.append(make_head(name, classes, HeadWeights(weight, np.zeros(outputs, np.float32))))
        logits = np.array([vectors[key] for key in keys]) @ weight.T
        right = (logits[:, 0] > 0).astype(int) if outputs == 1 else logits.argmax(axis=1)
        labels = np.where(
            generator.random(rows) < 0.7, right, generator.integers(0, len(classes), rows)
        )
        metadata = {"classes": json.dumps(list(classes))}
        fields.append(pa.field(name, pa.int32(), metadata=metadata))
        columns.append(labels.tolist())
    pq.write_table(
        pa.table({"row": range(rows), "text": texts, "key": pa.array(keys, pa.binary(16))}),
        Project().texts_file,
    )
    arrays = [pa.array(c, f.type) for c, f in zip(columns, fields, strict=True)]
    tie = {"texts_sha256": hashlib.sha256(b"".join(keys)).hexdigest()}
    pq.write_table(pa.table(arrays, schema=pa.schema(fields, metadata=tie)), Project().labels_file)
    save_heads(heads)


def make_head(name: str, classes: Sequence[str], weights: HeadWeights) -> SavedHead:
    binary = len(classes) == 2
    return SavedHead(
        name=name,
        type=TASK_TYPES["binary" if binary else "multiclass"],
        classes=tuple(classes),
        layers=LAYERS,
        decision=Decision(2.0, (0.5,) if binary else None),
        weights=(weights,),
        about={
            "metric": "f1_macro",
            "loss_weight": 1.0,
            "class_weights": None,
            "best_epoch": 2,
            "validation_loss": 0.4,
        },
        history=History((1, 2, 3), (1, 1 / 2, 1 / 3), (1.2, 0.6, 0.4)),
    )


def save_heads(heads: Sequence[SavedHead]) -> None:
    """Save heads as trained on the labels that there are now."""
    manifest = read_manifest(Project().store)
    corpus = read_labelled_rows(Project()).identity
    Heads(
        heads=tuple(heads),
        layers=LAYERS,
        width=WIDTH,
        backbone=BACKBONE,
        fingerprint=manifest.fingerprint,
        recipe=manifest.recipe,
        corpus=corpus.select_tasks([head.name for head in heads]),
        features={"layers": list(LAYERS), "width": WIDTH, "standardized": True},
        training={"learning_rate": 0.001, "patience": None, "keep": "best", "epochs_run": 3},
    ).save(Project().heads)


def retrain(*tasks: str) -> None:
    """Save the same heads as trained on the labels that there are now.

    :param tasks: the heads to keep; all if none is named.
    """
    kept = Heads.load(Project().heads).heads
    save_heads([head for head in kept if not tasks or head.name in tasks])


def write_store(keys: list[bytes], generator: np.random.Generator) -> dict[bytes, np.ndarray]:
    contents = {
        "algorithm": 1,
        "files": BACKBONE["files"],
        "max_tokens": 128,
        "pooling": "mean",
        "layers": [0, 1, 2],
        "precision": "float32",
        "dtype": "float16",
    }
    recipe = Recipe("acme/second", contents, (0, 1, 2), WIDTH, "float16")
    vectors = generator.standard_normal((len(keys), 3, WIDTH)).astype(np.float16)
    update = StoreUpdate(Project().store, recipe, pa.array(keys, pa.binary(16)))
    for start in range(0, len(keys), SHARD_ROWS):
        part = vectors[start : start + SHARD_ROWS]
        update.write_shard(start, Rows(np.ones(len(part), np.int32), part))
    update.commit()
    read = vectors[:, LAYERS].astype(np.float32)
    return dict(zip(keys, read.reshape(len(keys), -1), strict=True))


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file, and its hash if it states one."""
    content = json.loads(path.read_text())
    stated = content.pop("sha256", None)
    change(content)
    path.write_text(json.dumps(add_hash(content) if stated else content))


def read_report() -> dict[str, bytes]:
    return {
        str(path.relative_to(Project().report)): path.read_bytes()
        for path in sorted(Project().report.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def two_tasks(project: Path) -> Path:
    make_project({"spam": ["ham", "spam"], "kind": HOSTILE})
    return project


@pytest.mark.parametrize(
    "tasks",
    [
        {"spam": ["ham", "spam"], "kind": HOSTILE},
        # Names that ends of intervals and averages once had in the same place.
        {"urgent": ["low", "high"], "kind": ["macro", "weighted", "micro", "f1.low"]},
    ],
)
def test_metrics_are_those_of_the_heads_on_each_part(
    project: Path, tasks: dict[str, list[str]]
) -> None:
    make_project(tasks)
    details = run_report(Project(), Settings())
    metrics = json.loads((Project().report / "metrics.json").read_text())
    labels, texts = pq.read_table(Project().labels_file), pq.read_table(Project().texts_file)
    split = np.array(labels["split"].to_pylist())
    text = np.array(texts["text"].to_pylist())
    seen = np.isin(text, text[split == "train"])
    vectors = read_vectors(Project().store, texts["key"].combine_chunks(), LAYERS)
    tensors = load_file(Project().heads / "heads.safetensors")
    parts = {name: split == name for name in ("train", "validation", "test")}
    parts["test_unseen"] = parts["test"] & ~seen
    assert parts["test_unseen"].sum() < parts["test"].sum()
    for name, classes in tasks.items():
        logits = vectors.reshape(ROWS, -1) @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
        predicted = (logits[:, 0] > 0).astype(int) if len(classes) == 2 else logits.argmax(axis=1)
        for part, chosen in parts.items():
            found = metrics[part][name]
            expected = classification_report(
                labels[name].to_numpy()[chosen],
                predicted[chosen],
                labels=range(len(classes)),
                target_names=classes,
                output_dict=True,
            )
            assert found["rows"] == chosen.sum()
            assert found["f1_macro"] == pytest.approx(expected["macro avg"]["f1-score"])
            for class_name in classes:
                of_class = found["classes"][class_name]
                assert of_class["f1"] == pytest.approx(expected[class_name]["f1-score"])
                assert of_class["support"] == expected[class_name]["support"]
            if part.startswith("test"):
                interval = found["intervals"]["f1_macro"]
                assert interval["low"] < found["f1_macro"] < interval["high"]
    assert details["rows"] == ROWS
    assert details["heads"] == 2


def test_chunks_do_not_change_the_metrics(two_tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_report(Project(), Settings())
    whole = json.loads((Project().report / "metrics.json").read_text())
    monkeypatch.setattr("pipeline.report.scoring._CHUNK_TEXTS", 7)
    run_report(Project(), Settings())
    assert json.loads((Project().report / "metrics.json").read_text()) == whole


def test_two_runs_write_the_same_bytes(two_tasks: Path) -> None:
    run_report(Project(), Settings())
    first = read_report()
    run_report(Project(), Settings())
    assert read_report() == first
    assert {name.split("/")[1] for name in first if name.startswith("plots/")} == {
        "training",
        "confusion",
        "roc",
        "precision_recall",
    }


def test_plots_hold_what_dvc_draws(two_tasks: Path) -> None:
    run_report(Project(), Settings())
    metrics = json.loads((Project().report / "metrics.json").read_text())["test"]["kind"]
    plots = Project().report / "plots"
    with (plots / "confusion" / "kind.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["rows"]
    assert sum(row["actual"] == row["predicted"] for row in rows) / len(rows) == pytest.approx(
        metrics["accuracy"]
    )
    assert {row["actual"] for row in rows} == {
        n for n in HOSTILE if metrics["classes"][n]["support"]
    }
    with (plots / "roc" / "spam.csv").open(newline="") as file:
        points = [
            (float(p["false_positive_rate"]), float(p["true_positive_rate"]))
            for p in csv.DictReader(file)
        ]
    assert points[0][0] == 0
    assert points[-1] == (1, 1)
    training = (plots / "training" / "spam.csv").read_text().splitlines()
    assert training[0] == "epoch,train_loss,validation_loss"
    assert training[2] == "2,0.5,0.6"


def test_plots_of_tasks_that_are_no_more_are_removed(two_tasks: Path) -> None:
    run_report(Project(), Settings())
    plots = Project().report / "plots"
    (plots / "old_kind").mkdir()
    (plots / "old_kind" / "spam.csv").write_text("a\n")
    retrain("spam")
    run_report(Project(), Settings())
    assert {path.name for path in plots.rglob("*.csv")} == {"spam.csv"}
    assert not (plots / "old_kind").exists()


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page() -> Page:
    return Page((Project().report / "report.html").read_text("utf-8"))


def test_the_page_escapes_what_it_did_not_write(two_tasks: Path) -> None:
    title = '<script>alert("x")</script> & more'
    run_report(Project(), Settings.model_validate({"report": {"title": title}}))
    page = read_page()
    # The data and our own script are all; no name became an element.
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == [
        "application/json",
        None,
    ]
    assert [tag for tag, _ in page.tags].count("b") == 4  # the counts of the findings
    assert title in page.text
    for name in HOSTILE:
        assert name in page.text


def test_the_page_needs_nothing_from_elsewhere(two_tasks: Path) -> None:
    run_report(Project(), Settings())
    page = read_page()
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "image"), tag
        assert "src" not in attributes
        assert "style" not in attributes  # which the policy would not let in
        target = attributes.get("href") or ""
        if target.startswith("#"):
            assert any(attributes.get("id") == target[1:] for _, attributes in page.tags)
        elif target:
            assert tag == "a"
            assert (Project().report / target).is_file()
    html = (Project().report / "report.html").read_text("utf-8")
    assert not re.search(r"@import|url\(|https?://", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len([chart for chart in charts if chart.get("class") == "chart"]) == 9


def test_the_page_names_the_backbone_and_the_one_that_was_wanted(
    two_tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_report(Project(), Settings())
    text = " ".join(read_page().text)
    assert text.index("acme/second") < text.index("Results")
    assert "Not the backbone that was wanted" in text
    printed = capsys.readouterr().out
    assert "backbone: acme/second" in printed
    assert "acme/first was wanted" in printed
    edit_json(Project().assets, lambda assets: assets["backbone"].update(wanted="acme/second"))
    run_report(Project(), Settings())
    assert "Not the backbone" not in " ".join(read_page().text)
    assert "was wanted" not in capsys.readouterr().out


def test_the_summary_can_be_shown_again(
    two_tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageError, match=r"metrics\.json: no such file"):
        show_report(Project())
    run_report(Project(), Settings())
    first = capsys.readouterr().out
    show_report(Project())
    assert capsys.readouterr().out == first
    lines = first.splitlines()
    assert re.match(r"kind: Macro F1 0\.\d{3} \(0\.\d+ to 0\.\d+\) on 29 test rows; ", lines[1])
    assert lines[2].startswith("leaks: of 29 test rows, 5 have the text of a training row")
    assert lines[-1] == "page: cache/report/report.html"


@pytest.mark.parametrize(
    ("content", "hashed"),
    [
        ("[]", True),
        ('{"test": {"spam": {"f1": 1}}}', True),
        ("{", True),
        ('{"test": {"spam": {"rows": 30, "f1": 1}}}', False),
        ('{"test": {"spam": {"rows": 1e999}}}', True),
        ("[" * 100_000, True),
    ],
)
def test_a_summary_of_damaged_metrics_is_one_message(
    two_tasks: Path, content: str, hashed: bool
) -> None:
    run_report(Project(), Settings())
    (Project().report / "metrics.json").write_text(content)
    if hashed:
        found = hashlib.sha256(content.encode()).hexdigest()
        (Project().report / "SHA256SUMS").write_text(f"{found}  metrics.json\n")
    with pytest.raises(StageError, match=r"metrics\.json: damaged") as caught:
        show_report(Project())
    assert caught.value.hint == "run `pipeline report` again"


def test_damaged_timings_are_one_message(two_tasks: Path) -> None:
    Project().timings.mkdir()
    for record in (
        {"stage": "embed"},
        {"wall_seconds": 1, "details": "long"},
        [],
        {"wall_seconds": 25.1, "sha256": "0" * 64},
    ):
        (Project().timings / "embed.json").write_text(json.dumps(record))
        with pytest.raises(StageError, match=r"embed\.json: damaged") as caught:
            run_report(Project(), Settings())
        assert caught.value.hint == "run `pipeline embed` again"


def test_timings_are_shown_where_there_are_any(two_tasks: Path) -> None:
    run_report(Project(), Settings())
    assert "What the stages took" not in " ".join(read_page().text)
    Project().timings.mkdir()
    record = {"stage": "embed", "wall_seconds": 25.1, "details": {"tokens": 128057}}
    (Project().timings / "embed.json").write_text(json.dumps(record))
    run_report(Project(), Settings())
    text = " ".join(read_page().text)
    assert "What the stages took" in text
    assert "128,057" in text


def test_many_classes_get_a_list_of_mistakes_instead_of_a_matrix(project: Path) -> None:
    make_project({"intent": [f"class {index}" for index in range(40)]}, rows=400)
    run_report(Project(), Settings())
    text = " ".join(read_page().text)
    assert "Most frequent mistakes" in text
    assert "classes with the lowest F1" in text


def test_a_part_of_one_class_has_no_auc_and_no_nan(project: Path) -> None:
    make_project({"spam": ["ham", "spam"]})
    table = pq.read_table(Project().labels_file)
    none = pa.array(np.zeros(ROWS, np.int32))
    pq.write_table(table.set_column(2, table.schema.field(2), none), Project().labels_file)
    retrain()
    run_report(Project(), Settings())
    text = (Project().report / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert "roc_auc" not in metrics["test"]["spam"]
    html = (Project().report / "report.html").read_text("utf-8")
    without_script = html[: html.rindex("<script>")]
    assert not re.search(r"(?<![A-Za-z])NaN(?![A-Za-z])|nan(?= |<|,|\])", without_script)
    assert not (Project().report / "plots" / "roc").exists()


def test_without_test_rows_the_validation_rows_are_shown(project: Path) -> None:
    make_project({"spam": ["ham", "spam"], "kind": HOSTILE})
    run_report(Project(), Settings())
    whole = json.loads((Project().report / "metrics.json").read_text())
    table = pq.read_table(Project().labels_file)
    split = ["train" if part == "test" else part for part in table["split"].to_pylist()]
    pq.write_table(table.set_column(1, "split", pa.array(split)), Project().labels_file)
    retrain()
    run_report(Project(), Settings())
    metrics = json.loads((Project().report / "metrics.json").read_text())
    assert list(metrics) == ["train", "validation", "validation_unseen"]
    for task, scores in metrics["validation"].items():
        assert {k: v for k, v in scores.items() if k != "intervals"} == whole["validation"][task]
        assert scores["intervals"]["f1_macro"]["low"] < scores["f1_macro"]
        assert metrics["validation_unseen"][task]["rows"] == scores["rows"] == 30
    page = (Project().report / "report.html").read_text("utf-8")
    assert "There is no test part." in page
    assert "on test" not in page


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("assets.json", "fetch"),
        ("texts.parquet", "prepare"),
        ("labels.parquet", "prepare"),
        ("embeddings/manifest.json", "embed"),
        ("heads/heads.json", "train-heads"),
        ("heads/heads.safetensors", "train-heads"),
        ("heads/curves.csv", "train-heads"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_file_that_cannot_be_read_is_named(
    two_tasks: Path, name: str, stage: str, damage: str
) -> None:
    path = Project().cache / name
    run_report(Project(), Settings())
    before = read_report()
    path.unlink()
    if damage == "damaged":
        path.write_bytes(b"epoch,task\n1,spam\n")
    with pytest.raises(PipelineError, match=re.escape(str(path))) as caught:
        run_report(Project(), Settings())
    assert f"pipeline {stage}" in (caught.value.hint or "")
    assert read_report() == before


def _drop_label(name: str) -> Callable[[], None]:
    def change() -> None:
        pq.write_table(
            pq.read_table(Project().labels_file).drop_columns([name]), Project().labels_file
        )

    return change


def _change_labels(column: str, values: list[object]) -> Callable[[], None]:
    def change() -> None:
        table = pq.read_table(Project().labels_file)
        index = table.column_names.index(column)
        field = table.schema.field(index)
        table = table.set_column(index, field, pa.array(values, field.type))
        pq.write_table(table, Project().labels_file)

    return change


def _change_recipe() -> None:
    """Heads of another store, whose description is right in itself."""
    heads = Heads.load(Project().heads)
    recipe = {**heads.recipe, "max_tokens": 64}
    replace(heads, recipe=recipe, fingerprint=hash_json(recipe)).save(Project().heads)


def _change_backbone() -> None:
    files = {"model.safetensors": "ef" * 32}
    edit_json(Project().assets, lambda assets: assets["backbone"].update(files=files))


def _add_task(record: dict) -> None:
    for table in (record["tasks"], record["search"], record["corpus"]["labels"]):
        table["new"] = table["spam"]


def _edit_heads(change: Callable[[dict], object]) -> Callable[[], None]:
    return lambda: edit_json(Project().heads / "heads.json", change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change_recipe, "trained on other vectors"),
        (_edit_heads(lambda h: h.update(weights_sha256="0" * 64)), "is not the file that"),
        (_edit_heads(lambda h: h["tasks"]["spam"].update(layers=[2])), r"spam.weight"),
        (_edit_heads(lambda h: h["tasks"]["spam"].update(classes=["spam", "ham"])), "classes"),
        (_edit_heads(_add_task), "new.weight"),
        (_edit_heads(lambda h: h.update(format=5)), "format 5"),
        (_drop_label("kind"), "no labels 'kind'"),
        (_edit_heads(lambda h: h["tasks"]["spam"].pop("best_epoch")), "damaged .*best_epoch"),
        (_edit_heads(lambda h: h["tasks"]["spam"].update(metric=1)), "damaged .*metric"),
        (
            _edit_heads(lambda h: h["tasks"]["spam"].update(configuration=[1])),
            "damaged .*configuration",
        ),
        (_edit_heads(lambda h: h["training"].update(judged_rows="all")), "damaged .*judged_rows"),
        (_edit_heads(lambda h: h["tasks"]["spam"].update(layers=[1])), r"layers \[1\] of \[0, 2\]"),
        (
            _edit_heads(
                lambda h: h["tasks"]["kind"].update(type="multilabel", threshold=[0.5] * 4)
            ),
            "kind is a label of the kind class; its head .* of the kind tags",
        ),
        (_change_labels("split", ["train"] * ROWS), "another corpus .*: another split$"),
        (_change_labels("spam", [1] * ROWS), "another corpus .*: other labels spam$"),
        (_change_backbone, "holds vectors of acme/second, but .* names acme/second with other"),
    ],
)
def test_files_of_different_runs_are_refused(
    two_tasks: Path, change: Callable[[], None], message: str
) -> None:
    run_report(Project(), Settings())
    before = read_report()
    change()
    with pytest.raises(StageError, match=message) as caught:
        run_report(Project(), Settings())
    assert "pipeline " in (caught.value.hint or "")
    assert read_report() == before


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        ({"max_tokens": 64}, "made with embed.max_tokens 128, which is 64 now"),
        (
            {"dtype": "float32", "max_tokens": 9},
            "made with embed.max_tokens 128, which is 9 now, and with embed.dtype float16, which "
            "is float32 now",
        ),
        ({"precision": "bfloat16"}, "made with embed.precision float32, which is bfloat16 now"),
    ],
)
def test_vectors_of_other_settings_are_refused(
    two_tasks: Path, embed: dict[str, object], message: str
) -> None:
    run_report(Project(), Settings())
    before = read_report()
    with pytest.raises(StageError) as caught:
        run_report(Project(), Settings.model_validate({"embed": embed}))
    assert caught.value.message == f"{Project().store} holds vectors {message}"
    assert caught.value.hint == "run `pipeline embed` first"
    assert read_report() == before


def test_labels_that_no_head_uses_may_change(two_tasks: Path) -> None:
    retrain("kind")
    run_report(Project(), Settings())
    before = read_report()
    _change_labels("spam", [1] * ROWS)()
    run_report(Project(), Settings())
    assert read_report() == before
    _drop_label("spam")()
    run_report(Project(), Settings())
    assert read_report() == before


def test_the_checksums_are_those_of_the_files(two_tasks: Path) -> None:
    run_report(Project(), Settings())
    files = read_report()
    lines = files.pop("SHA256SUMS").decode().splitlines()
    files["../heads/heads.json"] = (Project().heads / "heads.json").read_bytes()
    assert lines == [f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in sorted(files)]


def test_the_summary_for_dvc_holds_a_few_figures_of_the_test_part(two_tasks: Path) -> None:
    run_report(Project(), Settings())
    metrics = json.loads((Project().report / "metrics.json").read_text())["test"]
    assert json.loads((Project().report / "summary.json").read_text()) == {
        "test": {
            "spam": {name: metrics["spam"][name] for name in ("accuracy", "f1")},
            "kind": {name: metrics["kind"][name] for name in ("accuracy", "f1_macro")},
        }
    }


def test_a_failure_in_the_middle_changes_nothing(
    two_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_report(Project(), Settings())
    before = read_report()
    retrain("spam")
    monkeypatch.setattr(run, "render_page", lambda content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_report(Project(), Settings())
    assert read_report() == before


def test_the_stage_imports_no_framework(two_tasks: Path) -> None:
    code = (
        "import sys; from pipeline.config import Settings; from pipeline.project import Project; "
        "from pipeline.report.run import run_report; run_report(Project(), Settings()); "
        "print('loaded:', sorted({'torch', 'transformers', "
        "'lightning', 'nltk', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=two_tasks, capture_output=True, text=True, check=True
    )
    assert "loaded: []" in result.stdout
