"""`pipeline export`: a graph that answers as the heads do, with all that belongs to it.

References: Hugging Face a text at a time and numpy for what the graph should answer; the model
hub's own parser for the card; programs without torch for the example.
"""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from tokenizers import Tokenizer

import pipeline
from pipeline.embed.backbone import Backbone
from pipeline.errors import StageError
from pipeline.export import graph as graph_module
from pipeline.export.graph import TAILS, write_graph
from pipeline.model.decision import Decision
from pipeline.model.saved import Heads, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.model.weights import Centers, HeadWeights
from pipeline.project import Project
from tests.conftest import edit_params, run_cli
from tests.integration.test_fetch_hub import REVISION, Hub, hub, tiny_files
from tests.integration.test_predict import answer_by_hand, run_all
from tests.integration.test_task_types import SETTINGS, write_tickets

__all__ = ["hub", "tiny_files"]  # fixtures

TASKS = ("urgent", "topics", "hours", "level", "team")
MAX_TOKENS = 512
KINDS = {
    "linear": {"heads.search": []},
    "kernel": {"heads.search": [], "heads.head": "kernel"},
    "hidden": {"heads.search": [], "heads.head": "hidden", "heads.optimizer": "adamw"},
}
# Of 1 to 512 tokens and of more; of signs that the vocabulary has and has not.
ODD_TEXTS = [
    "a",
    ".",
    "x " * 509,
    "y " * 510,
    "z " * 511,
    "server down " * 400,
    *["ab c " * n for n in (1, 2, 3, 7, 20, 63, 127, 169)],
    "word" * 40,  # which is longer than what the tokenizer takes for a word
    "naïve café — “quoted” £5",
    "e\u0301 n\u0303 \ufb01 \u1e9b\u0323",
    "日本語 テキスト 한국어",
    "\u202eright to left\u202c \u200bzero width\ufeff",
    "🎉👩‍👩‍👧‍👦🇩🇪",
    "tab\tnew\nline\r\x07 bell",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010fffd",
    " blanks   within  and around ",
]


def make_project(folder: Path, backbone: Path, max_tokens: int = MAX_TOKENS) -> Path:
    """A project with a head of each of the five types of tasks."""
    folder.mkdir()
    write_tickets(folder / "tickets.csv", 300)
    rows = list(csv.DictReader((folder / "tickets.csv").open(encoding="utf-8")))
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "team"])
        writer.writeheader()
        for row in rows:
            team = next((w for w in ("server", "invoice", "login") if w in row["body"]), "other")
            writer.writerow(row | {"team": team})
    settings = SETTINGS.replace("BACKBONE", str(backbone))
    embed = f"{{max_tokens: {max_tokens}, dtype: float32, precision: float32}}"
    embed = f"    team: {{column: team}}\nembed: {embed}"
    settings = settings.replace("embed: {precision: float32}", embed)
    settings = settings.replace(
        "    level: {type: ordinal}\n", "    level: {type: ordinal}\n    team: {}\n"
    )
    (folder / "params.yaml").write_text(settings.replace("\nheads:\n", "\nheads:\n  search: []\n"))
    run_all(folder, "fetch", "prepare", "embed", "train-heads", "report")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A project whose heads are linear."""
    return make_project(tmp_path_factory.mktemp("export") / "linear", tiny_backbone)


@pytest.fixture(scope="module", params=list(KINDS))
def exported(request: pytest.FixtureRequest, trained: Path) -> tuple[Path, Path]:
    """A project with heads of one of three kinds, and the folder that it was exported to."""
    folder = trained
    if request.param != "linear":
        folder = trained.with_name(request.param)
        shutil.copytree(trained, folder)
        edit_params(KINDS[request.param], folder / "params.yaml")
        run_all(folder, "train-heads", "report")
    target = trained.parent / "exports" / request.param / "out"
    done = run_cli(folder, "export", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, target


@pytest.fixture(scope="module")
def linear(trained: Path) -> Path:
    """The export of the linear heads."""
    target = trained.parent / "exports" / "alone"
    done = run_cli(trained, "export", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the backbone is a local folder" in done.stdout
    return target


def embed_by_hand(folder: Path, texts: Sequence[str], max_tokens: int) -> np.ndarray:
    """Mean-pooled hidden states by Hugging Face, a text at a time: float32, [B, L, D]."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]]
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        rows.append(np.stack([state[0].mean(dim=0).numpy() for state in states]))
    return np.stack(rows)


def run_example(folder: Path, texts: Sequence[str], tmp_path: Path) -> list[dict[str, Any]]:
    """What the example prints, where neither torch nor this package can be imported."""
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.onnx", "tokenizer.json", "labels.json", "predict.py"):
        shutil.copy(folder / name, alone / name)
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'transformers', 'pipeline', 'pandas', 'safetensors'):\n"
        "    sys.modules[name] = None\n"  # so that importing it fails
        f"sys.argv[0] = {str(alone / 'predict.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *texts], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_answers(found: Sequence[dict[str, Any]], expected: dict[str, list[Any]]) -> None:
    """Labels are those wanted, and scores within 1e-4 of them; numbers in tens."""
    for number, row in enumerate(found):
        assert set(row) == set(expected)
        for name, values in expected.items():
            wanted = values[number]
            if isinstance(wanted, str) or name == "topics":
                assert row[name] == wanted, (name, number)
            else:
                np.testing.assert_allclose(row[name], wanted, atol=1e-4 if "_" in name else 1e-3)


def test_the_example_answers_as_hugging_face_and_numpy_do(
    exported: tuple[Path, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    """Three kinds of heads, five types of tasks, texts of 1 to 512 tokens, odd signs."""
    folder, target = exported
    heads = Heads.load(Project(folder).heads)
    assert {head.type.name for head in heads.heads} == set(TASK_TYPES)
    kinds = {
        "kernel" if w.centers else "linear" if w.input_weight is None else "hidden"
        for head in heads.heads
        for w in head.weights
    }
    assert kinds == {folder.name}
    tokenizer = Tokenizer.from_file(str(tiny_backbone / "tokenizer.json"))
    lengths = {len(tokenizer.encode(text)) for text in ODD_TEXTS}
    assert lengths >= {3, 511, 512, 513}
    vectors = embed_by_hand(tiny_backbone, ODD_TEXTS, MAX_TOKENS)[:, heads.layers]
    expected = answer_by_hand(heads, vectors)
    assert_answers(run_example(target, ODD_TEXTS, tmp_path), expected)


def test_the_example_labels_as_predict_does(exported: tuple[Path, Path], tmp_path: Path) -> None:
    folder, target = exported
    texts = pq.read_table(Project(folder).texts_file)["text"].to_pylist()
    with pipeline.load(folder) as model:
        table = model.predict(texts)
    expected = {name: table[name].tolist() for name in table}
    assert_answers(run_example(target, texts, tmp_path), expected)


def test_the_graph_is_as_the_ecosystem_expects(exported: tuple[Path, Path]) -> None:
    folder, target = exported
    onnx.checker.check_model(target / "model.onnx", full_check=True)
    model = onnx.load(target / "model.onnx")
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 18)]
    session = onnxruntime.InferenceSession(target / "model.onnx")
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        (name, "tensor(int64)", ["batch", "tokens"]) for name in ("input_ids", "attention_mask")
    ]
    outputs = {o.name: (o.type, o.shape) for o in session.get_outputs()}
    heads = Heads.load(Project(folder).heads)
    for head in heads.heads:
        C = len(head.classes)
        label = outputs.pop(f"{head.name}_label")
        if head.type.name == "regression":
            assert label == ("tensor(double)", ["batch"])
            continue
        is_tags = head.type.name == "multilabel"
        assert label == ("tensor(int64)", ["batch", C] if is_tags else ["batch"])
        assert outputs.pop(f"{head.name}_probabilities") == ("tensor(float)", ["batch", C])
    assert outputs == {}
    labels = json.loads((target / "labels.json").read_text("utf-8"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == labels
    # Nothing tells of the machine that it was made on.
    content = (target / "model.onnx").read_bytes()
    for path in (str(Path(graph_module.__file__).parent), str(folder), sys.prefix):
        assert path.encode() not in content
    # Each weight is there once; centres that all tasks share are float16, as they are saved.
    sizes = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    backbone = Backbone(Path(heads.backbone["path"]), torch.device("cpu"), "float32").model
    centers = {id(c): c for head in heads.heads if (c := head.weights[0].centers) is not None}
    wanted = sum(tensor.numel() for tensor in (*backbone.parameters(), *backbone.buffers()))
    wanted += sum(c.positions.size + c.scale.size + c.shift.size for c in centers.values())
    for head in heads.heads:
        own = head.weights[0]
        tensors = (own.weight, own.bias, own.input_weight, own.input_bias)
        wanted += sum(tensor.size for tensor in tensors if tensor is not None)
    assert wanted * 0.95 < sizes < wanted * 1.05 + 200
    if folder.name == "kernel":
        assert len(centers) < len(heads.heads)
        halves = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
        assert sorted(tuple(t.dims) for t in halves) == sorted(
            c.positions.shape for c in centers.values()
        )


def test_what_is_in_the_folder(exported: tuple[Path, Path]) -> None:
    folder, target = exported
    names = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    assert names == {
        "README.md",
        "heads/curves.csv",
        "heads/reference.safetensors",
        "heads/heads.json",
        "heads/heads.safetensors",
        "labels.json",
        "model.onnx",
        "predict.py",
        "tokenizer.json",
    }
    labels = json.loads((target / "labels.json").read_text("utf-8"))
    assert labels["max_tokens"] == MAX_TOKENS
    assert list(labels["tasks"]) == list(TASKS)
    heads = {head.name: head for head in Heads.load(Project(folder).heads).heads}
    assert labels["tasks"]["topics"]["classes"] == list(heads["topics"].classes)
    assert labels["tasks"]["topics"]["threshold"] == list(heads["topics"].decision.thresholds or ())
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    short, long = tokenizer.encode_batch(["a", "x " * 600])
    assert len(short) == len(long) == MAX_TOKENS
    assert sum(short.attention_mask) == 3


def test_the_card_has_the_figures_of_the_report(exported: tuple[Path, Path]) -> None:
    folder, target = exported
    card = ModelCard.load(target / "README.md")
    figures = json.loads((Project(folder).report / "metrics.json").read_text())["test"]
    results = {r.metric_name: r.metric_value for r in card.data.eval_results}
    for task, metric in (
        ("urgent", "accuracy"),
        ("urgent", "f1"),
        ("topics", "f1_macro"),
        ("hours", "r2"),
        ("level", "mean_absolute_error"),
        ("team", "f1_weighted"),
    ):
        assert results[f"{task} {metric}"] == figures[task][metric]
    assert all(result.dataset_split == "test" for result in card.data.eval_results)
    assert card.data.model_name == "out"
    assert card.data.license == "unknown"
    assert card.data.base_model is None  # a local folder, which the hub does not know
    assert str(folder) not in card.content
    # As the hub's client writes it again, all is still there.
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_a_report_of_other_heads_gives_no_figures(
    trained: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "project")
    edit_params(
        {"heads.seed": 5, "heads.search": [{"weight_decay": [0.5]}]}, folder / "params.yaml"
    )
    run_all(folder, "train-heads")
    done = run_cli(folder, "export", str(tmp_path / "out"), "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert "the model card has no figures" in done.stdout
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.eval_results is None
    assert card.data.license == "mit"


def test_heads_that_were_trained_again_go_out(trained: Path, tmp_path: Path) -> None:
    """The graph answers as those that label new texts, and the card says of which its figures are.

    Without a test part these are of the validation rows.
    """
    folder = shutil.copytree(trained, tmp_path / "project")
    edit_params(
        {"heads.refit": "all", "prepare.split": {"train": 0.7, "validation": 0.3, "test": 0}},
        folder / "params.yaml",
    )
    run_all(folder, "prepare", "train-heads", "report")
    target = folder / "out"
    done = run_cli(folder, "export", str(target))
    assert done.returncode == 0, done.stderr
    assert_same_model(target, folder)
    assert_same_model(target, folder, refit=False)
    texts = pq.read_table(Project(folder).texts_file)["text"].to_pylist()[:50]
    answers = {}
    for refit in (True, False):
        with pipeline.load(folder, refit=refit) as model:
            table = model.predict(texts)
            answers[refit] = {name: table[name].tolist() for name in table}
    assert answers[True]["hours"] != answers[False]["hours"]
    assert_answers(run_example(target, texts, tmp_path), answers[True])
    card = ModelCard.load(target / "README.md")
    assert "trained again, likewise, on train and validation" in card.text
    assert "There is no test part" in card.text
    figures = json.loads((Project(folder).report / "metrics.json").read_text())["validation"]
    results = {r.metric_name: r for r in card.data.eval_results}
    assert results["team accuracy"].metric_value == figures["team"]["accuracy"]
    assert {result.dataset_split for result in results.values()} == {"validation"}


# --- other backbones, large heads


def swap_pieces(folder: Path, target: Path) -> None:
    """A tokenizer whose padding has the id 1, as RoBERTa's has."""
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["[PAD]"], vocabulary["[UNK]"] = 1, 0
    (target / "tokenizer.json").write_text(json.dumps(content), "utf-8")


def make_distilbert(folder: Path, tiny: Path) -> None:
    shutil.copy(tiny / "tokenizer.json", folder)
    config = transformers.DistilBertConfig(
        vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=128
    )
    transformers.DistilBertModel(config).eval().save_pretrained(folder)


def make_roberta(folder: Path, tiny: Path) -> None:
    swap_pieces(tiny, folder)
    config = transformers.RobertaConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
        pad_token_id=1,
        type_vocab_size=1,
    )
    transformers.RobertaModel(config).eval().save_pretrained(folder)


def make_mpnet(folder: Path, tiny: Path) -> None:
    swap_pieces(tiny, folder)
    config = transformers.MPNetConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
        pad_token_id=1,
    )
    transformers.MPNetModel(config).eval().save_pretrained(folder)


@pytest.mark.parametrize("make", [make_distilbert, make_roberta, make_mpnet])
def test_other_backbones(
    make: Callable[[Path, Path], None], tiny_backbone: Path, tmp_path: Path
) -> None:
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    torch.manual_seed(0)
    make(backbone, tiny_backbone)
    folder = make_project(tmp_path / "project", backbone, max_tokens=128)
    done = run_cli(folder, "export", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    heads = Heads.load(Project(folder).heads)
    expected = answer_by_hand(heads, embed_by_hand(backbone, ODD_TEXTS, 128)[:, heads.layers])
    assert_answers(run_example(folder / "out", ODD_TEXTS, tmp_path), expected)


def test_a_kernel_of_4096_centres(tiny_backbone: Path, tmp_path: Path, trained: Path) -> None:
    """Weights of a hundred and more of both signs nearly cancel each other, as trained ones do."""
    saved = Heads.load(Project(trained).heads)
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("abcdefgh "), 40)) for _ in range(200)]
    vectors = embed_by_hand(tiny_backbone, texts, 128)
    features = vectors.reshape(len(texts), -1)
    scale = (0.05 / features.std(axis=0)).astype(np.float32)
    shift = (-features.mean(axis=0) * scale).astype(np.float32)
    rows = features * scale + shift
    centers = Centers(
        (rows[generator.integers(0, 200, 4096)] + generator.normal(0, 0.02, (4096, 96))).astype(
            np.float16
        ),
        scale,
        shift,
    )
    weight = generator.normal(0, 100, (4, 4096)).astype(np.float32)
    weight -= weight.mean(axis=1, keepdims=True)
    kind = TASK_TYPES["multiclass"]
    head = SavedHead(
        "kind",
        kind,
        ("a", "b", "c", "d"),
        (0, 1, 2),
        Decision(30.0),
        (HeadWeights(weight, np.zeros(4, np.float32), centers=centers),),
    )
    heads = replace(saved, heads=(head, replace(head, name="again")), layers=(0, 1, 2))
    path = tmp_path / "model.onnx"
    write_graph(Backbone(tiny_backbone, torch.device("cpu"), "float32"), heads, path, {})
    tokenizer = Tokenizer.from_file(str(tiny_backbone / "tokenizer.json"))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(texts)
    session = onnxruntime.InferenceSession(path)
    probabilities, label, *again = session.run(
        None,
        {
            "input_ids": np.array([e.ids for e in encodings]),
            "attention_mask": np.array([e.attention_mask for e in encodings]),
        },
    )
    logits = heads.compute_logits(vectors)["kind"][0]
    expected = kind.compute_probabilities(logits, head.decision)
    assert len(set(label.tolist())) > 1
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    sure = kind.measure_margins(logits, head.decision) > 1e-3
    np.testing.assert_array_equal(label[sure], logits.argmax(axis=1)[sure])
    np.testing.assert_array_equal(again[0], probabilities)
    assert path.stat().st_size < 4096 * 96 * 2 * 1.5 + 2 * 4096 * 4 * 4 + 400_000


# --- forms of the target


def test_a_graph_alone(trained: Path, tmp_path: Path, linear: Path) -> None:
    target = tmp_path / "deep" / "mail.onnx"
    done = run_cli(trained, "export", str(target))
    assert done.returncode == 0, done.stderr
    assert [file.name for file in target.parent.iterdir()] == ["mail.onnx"]
    about = onnxruntime.InferenceSession(target).get_modelmeta().custom_metadata_map["labels"]
    assert json.loads(about) == json.loads((linear / "labels.json").read_text())
    done = run_cli(trained, "export", str(target), "--with-backbone")
    assert done.returncode == 1
    assert "--with-backbone" in done.stderr


@pytest.mark.parametrize("quantize", [(), ("--quantize", "int8")])
def test_weights_too_large_for_the_file_stand_beside_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: tuple[str, ...]
) -> None:
    monkeypatch.setattr(graph_module, "MOST_FILE_BYTES", 1_000)
    target = tmp_path / "out"
    done = run_cli(trained, "export", str(target), *quantize)
    assert done.returncode == 0, done.stderr
    names = {file.name for file in target.iterdir()}
    assert {"model.onnx", "model.onnx.data"} <= names
    assert not any(name.startswith("exact") for name in names)
    assert "`model.onnx.data`" in (target / "README.md").read_text()
    moved = shutil.copytree(target, tmp_path / "elsewhere")
    shutil.rmtree(target)
    onnxruntime.InferenceSession(moved / "model.onnx")


def test_int8_says_how_far_it_is_off(trained: Path, tmp_path: Path, linear: Path) -> None:
    target = tmp_path / "out"
    done = run_cli(trained, "export", str(target), "--quantize", "int8")
    assert done.returncode == 0, done.stderr
    assert "int8 graph beside the pipeline" in done.stdout
    assert "whose weights are int8" in (target / "README.md").read_text()
    weights = {t.name: t for t in onnx.load(target / "model.onnx").graph.initializer}
    is_int8 = [name for name, t in weights.items() if t.data_type == onnx.TensorProto.INT8]
    assert is_int8
    # Heads keep their weights; what is printed is what is measured.
    own = Heads.load(Project(trained).heads).heads[0].weights[0].weight
    floats = [t for t in weights.values() if t.data_type == onnx.TensorProto.FLOAT]
    held = [onnx.numpy_helper.to_array(t) for t in floats]
    assert any(
        t.size == own.size and np.array_equal(np.sort(t, None), np.sort(own, None)) for t in held
    )
    texts = pq.read_table(Project(trained).texts_file)["text"].to_pylist()
    chosen = [texts[n] for n in np.linspace(0, len(texts) - 1, 200).astype(int)]
    (exact, rounded) = (
        run_example(folder, chosen, tmp_path / name)
        for folder, name in ((linear, "a"), (target, "b"))
        if (tmp_path / name).mkdir() is None
    )
    differ = sum(a["team"] != b["team"] for a, b in zip(exact, rounded, strict=True))
    line = [line for line in done.stdout.splitlines() if line.strip().startswith("team")][-1]
    assert f"{differ} of 200" in line


# --- mistakes and accidents


def list_tree(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_nothing_is_replaced_but_an_export_by_force(
    trained: Path, tmp_path: Path, linear: Path
) -> None:
    target = shutil.copytree(linear, tmp_path / "out")
    (target / "labels.json").write_text("{}")
    done = run_cli(trained, "export", str(target))
    assert (done.returncode, "--force" in done.stderr) == (1, True)
    assert (target / "labels.json").read_text() == "{}"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    for wrong, option in ((mine, "--force"), (tmp_path / "file", "--force"), (mine, None)):
        done = run_cli(trained, "export", str(wrong), *([option] if option else []))
        assert done.returncode == 1
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "mine"
    done = run_cli(trained, "export", str(target), "--force")
    assert done.returncode == 0, done.stderr
    assert list_tree(target) | {"README.md": b""} == list_tree(linear) | {"README.md": b""}
    assert {file.name for file in tmp_path.iterdir()} == {"out", "mine", "file"}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run_cli(trained, "export", str(empty)).returncode == 0


def test_a_graph_that_answers_otherwise_is_not_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(TAILS["multiclass"]):  # type: ignore[misc]
        def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return super().forward(logits * 1.01)

    monkeypatch.setitem(TAILS, "multiclass", Wrong)  # type: ignore[arg-type]
    for name in ("out", "out.onnx"):
        done = run_cli(trained, "export", str(tmp_path / name))
        assert done.returncode == 1
        assert "does not answer as the pipeline does: team: differences up to" in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_packages_that_are_missing_are_named_first(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.export.run.find_spec", lambda name: None)
    done = run_cli(trained, "export", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "pip install onnx onnxruntime onnxscript" in done.stderr


def test_a_project_without_heads(project: Path) -> None:
    done = run_cli(project, "export", "out")
    assert done.returncode == 1
    assert "run `pipeline fetch` first" in done.stderr
    assert not (project / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_run_that_ends_early_leaves_no_folder(
    trained: Path, tmp_path: Path, number: signal.Signals
) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "export", str(tmp_path / "out")],
        cwd=trained,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not list(tmp_path.glob(".tmp-*/content")):  # written aside, so it has begun
        assert program.poll() is None
    program.send_signal(number)
    _, error = program.communicate()
    assert program.returncode == (-9 if number == signal.SIGKILL else 130)
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert b"interrupted" in error
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(trained: Path, tmp_path: Path, linear: Path) -> None:
    target = shutil.copytree(linear, tmp_path / "out")
    before = list_tree(target)
    # A limit of the size of files is to a program what a full disk is.
    command = f"{sys.executable} -m pipeline export {target} --force"
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -f 60; trap '' XFSZ; {command}"],
        cwd=trained,
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 1, limited.stderr
    assert "cannot write" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert list_tree(target) == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


# --- pipeline.load


def assert_same_model(folder: Path, trained: Path, **options: bool) -> None:
    texts = ["the server is down again", "thanks, a great help", "login broken. refund please!"]
    with pipeline.load(trained, **options) as model:
        expected, identity = model.predict(texts), model.identity
    with pipeline.load(folder, **options) as model:
        assert model.predict(texts).equals(expected)
        assert model.identity == identity


def test_load_with_the_backbone_in_the_folder(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = run_cli(trained, "export", str(target), "--with-backbone")
    assert done.returncode == 0, done.stderr
    assert "local folder" not in done.stdout
    assert "`backbone/`" in (target / "README.md").read_text()
    assert_same_model(shutil.copytree(target, tmp_path / "moved"), trained)
    weights = target / "backbone" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StageError, match="has changed"):
        pipeline.load(target)


def test_predict_by_an_export_in_an_empty_folder(trained: Path, tmp_path: Path) -> None:
    """The command line answers there as in the project, and a folder that is none is named."""
    target = tmp_path / "out"
    done = run_cli(trained, "export", str(target), "--with-backbone")
    assert done.returncode == 0, done.stderr
    away = tmp_path / "away"
    away.mkdir()
    (away / "new.csv").write_text("id,text\n1,the server is down again\n2,refund please\n")
    there = run_cli(away, "predict", "new.csv", "--model", str(target), "-o", "there.csv")
    assert there.returncode == 0, there.stderr
    here = away / "here.csv"
    run_cli(trained, "predict", str(away / "new.csv"), "--text-column", "text", "-o", str(here))
    assert (away / "there.csv").read_text() == here.read_text()
    assert here.read_text().count("\n") == 3
    (away / "new.csv").write_text("id,body\n1,the server is down again\n")
    other = run_cli(away, "predict", "new.csv", "--model", str(target))
    assert other.returncode == 1
    assert "text" in other.stderr
    assert "--text-column" in other.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    none = run_cli(away, "predict", "--text", "a", "--model", str(empty))
    assert none.returncode == 1
    assert str(empty) in none.stderr
    assert "Traceback" not in none.stderr


def test_load_without_the_backbone(trained: Path, linear: Path, tmp_path: Path) -> None:
    """A local folder serves where it is, and is named where it is not."""
    assert_same_model(linear, trained)
    moved = shutil.copytree(linear, tmp_path / "moved")
    change_backbone(moved, path="models/tiny")
    with pytest.raises(StageError, match="local folder models/tiny") as caught:
        pipeline.load(moved)
    assert "--with-backbone" in str(caught.value.hint)


def change_backbone(target: Path, **record: Any) -> None:
    """Make the heads of an export say that their backbone is from elsewhere."""
    heads = Heads.load(target / "heads")
    kept = {key: heads.backbone[key] for key in ("id", "source", "files")}
    replace(heads, backbone={**kept, **record}).save(target / "heads")


@pytest.fixture
def from_hub(linear: Path, tmp_path: Path) -> Path:
    """An export whose backbone is the hub's ``acme/tiny``."""
    target = shutil.copytree(linear, tmp_path / "from-hub")
    change_backbone(
        target, id="acme/tiny", source="hub", folder="backbones/acme--tiny", revision=REVISION
    )
    return target


def predict_there(folder: Path) -> subprocess.CompletedProcess[str]:
    """A text's answers in a program of its own, since the hub's client reads its settings once."""
    code = (
        "import sys, pipeline\n"
        "from pipeline.errors import PipelineError\n"
        "try:\n"
        "    print(pipeline.load(sys.argv[1]).predict(['a text']).to_json())\n"
        "except PipelineError as error:\n"
        "    sys.exit(f'{type(error).__name__}: {error.message}')"
    )
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)


def test_load_fetches_the_backbone_once(
    from_hub: Path, hub: Hub, private_cache: Path, trained: Path
) -> None:
    expected = predict_there(trained).stdout
    first = predict_there(from_hub)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == expected.strip()
    assert (private_cache / "backbones" / "acme--tiny" / "asset.json").is_file()
    asked = len(hub.asked)
    assert asked
    assert predict_there(from_hub).stdout == expected
    assert len(hub.asked) == asked


def test_load_keeps_another_revision_that_is_here(
    from_hub: Path, hub: Hub, private_cache: Path, tiny_backbone: Path
) -> None:
    kept = shutil.copytree(tiny_backbone, private_cache / "backbones" / "acme--tiny")
    changed = (kept / "config.json").read_text() + "\n"
    (kept / "config.json").write_text(changed)
    (kept / "asset.json").write_text("{}")
    done = predict_there(from_hub)
    assert done.returncode == 0, done.stderr
    assert (kept / "config.json").read_text() == changed
    own = private_cache / "backbones" / f"acme--tiny@{REVISION}"
    assert (own / "asset.json").is_file()
    # Where that folder has other files too, none of them is replaced.
    (own / "config.json").write_text(changed)
    refused = predict_there(from_hub)
    assert refused.returncode == 1
    assert "AssetError: backbone acme/tiny" in refused.stderr
    assert "other files of it than those that are wanted" in refused.stderr
    assert (own / "config.json").read_text() == changed


def test_load_refuses_files_with_other_hashes(
    from_hub: Path, hub: Hub, private_cache: Path
) -> None:
    hub.repos["acme/tiny"] = {
        name: content + b" " if name == "tokenizer.json" else content
        for name, content in hub.repos["acme/tiny"].items()
    }
    done = predict_there(from_hub)
    assert done.returncode == 1
    assert "wrong checksum" in done.stderr
    assert not (private_cache / "backbones").exists()
