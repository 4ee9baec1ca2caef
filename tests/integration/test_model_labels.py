"""Labels by a classification model, against transformers' own pipeline."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.config import ModelLabel, RuntimeSettings
from pipeline.corpus.keys import hash_texts
from pipeline.errors import AssetError, SettingsError
from pipeline.prepare.labelers import model as model_module
from pipeline.prepare.labelers.base import LabelingContext, Labels, make_labeler
from pipeline.project import Project
from tests.conftest import Cli, edit_params, run_stages

NAMES = ("bad", "fair", "good")
WORDS = tuple("abcdefghijklmnopqrstuvwxyz")


def make_texts(number: int) -> list[str]:
    """Texts of 1 to 30 words, all different."""
    rng = np.random.default_rng(0)
    return [
        f"{n} " + " ".join(rng.choice(WORDS, rng.integers(1, 30)).tolist()) for n in range(number)
    ]


TEXTS = make_texts(80)


def make_classifier(
    folder: Path, backbone: Path, names: tuple[str, ...] = NAMES, **settings: object
) -> Path:
    """A BERT with a random classifier whose outputs differ from text to text."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    shutil.copytree(backbone, folder)
    config = BertConfig.from_pretrained(folder)
    config.initializer_range = 0.3  # with the usual one, all texts would be about the same
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    for key, value in settings.items():
        setattr(config, key, value)
    torch.manual_seed(1)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    # Outputs are spread about 0, so that each class is the answer to some texts.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.inference_mode():
        outputs = [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in TEXTS]
    mean, scale = torch.stack(outputs).mean(dim=0), torch.stack(outputs).std(dim=0)
    model.classifier.weight.data /= scale[:, None]
    model.classifier.bias.data = (model.classifier.bias.data - mean) / scale
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    return make_classifier(tmp_path_factory.mktemp("models") / "classes", tiny_backbone)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    return make_classifier(
        tmp_path_factory.mktemp("models") / "tags",
        tiny_backbone,
        problem_type="multi_label_classification",
    )


def ask_transformers(folder: Path, texts: list[str], max_tokens: int) -> list[dict[str, float]]:
    """The probability of each class by transformers' pipeline, a text at a time."""
    from transformers import BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]"
    )
    classify = pipeline(
        "text-classification",
        model=BertForSequenceClassification.from_pretrained(folder),
        tokenizer=tokenizer,
        top_k=None,
    )
    answers = classify(texts, truncation=True, max_length=max_tokens)
    return [{answer["label"]: answer["score"] for answer in of_text} for of_text in answers]


def label(root: Path, folder: Path, texts: list[str], **settings: object) -> Labels:
    """The labels that a model gives in a project."""
    import pandas as pd

    made = ModelLabel(labeler="model", model=str(folder), **settings)  # type: ignore[arg-type]
    context = LabelingContext(Project(root), RuntimeSettings(devices="cpu"))
    labeler = make_labeler("t", made, context)
    return labeler.label(pd.DataFrame({"text": texts}), texts, {"t.model": folder})


def name_labels(labels: Labels) -> list[str]:
    return [labels.classes[index] for index in labels.values.tolist()]


@pytest.mark.parametrize("max_tokens", [8, 128])
def test_classes_are_those_of_transformers(
    tmp_path: Path, classifier: Path, max_tokens: int
) -> None:
    expected = ask_transformers(classifier, TEXTS, max_tokens)
    best = [max(answer, key=answer.__getitem__) for answer in expected]
    assert len(set(best)) > 1
    made = label(tmp_path, classifier, TEXTS, max_tokens=max_tokens)
    assert made.classes == NAMES
    assert name_labels(made) == best
    (file,) = Project(tmp_path).scores.iterdir()
    table = pq.read_table(file)
    assert table["key"].to_pylist() != hash_texts(TEXTS)  # the longest first
    index = {key: row for row, key in enumerate(table["key"].to_pylist())}
    scores = np.array(table["scores"].to_pylist())[[index[key] for key in hash_texts(TEXTS)]]
    found = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    wanted = [[answer[name] for name in NAMES] for answer in expected]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_tags_are_those_of_transformers(tmp_path: Path, tagger: Path) -> None:
    expected = ask_transformers(tagger, TEXTS, 128)
    made = label(tmp_path, tagger, TEXTS, kind="tags")
    wanted = [[int(answer[name] >= 0.5) for name in NAMES] for answer in expected]
    assert made.classes == NAMES
    assert made.values.tolist() == wanted
    assert 0 < np.mean(wanted) < 1
    strict = label(tmp_path, tagger, TEXTS, kind="tags", threshold=0.9, classes=["good", "bad"])
    assert strict.classes == ("good", "bad")
    assert strict.values.tolist() == [
        [int(answer[name] >= 0.9) for name in ("good", "bad")] for answer in expected
    ]


def test_mapping_and_classes_are_as_of_a_column(tmp_path: Path, classifier: Path) -> None:
    plain = name_labels(label(tmp_path, classifier, TEXTS))
    merged = label(tmp_path, classifier, TEXTS, mapping={"fair": "good"})
    assert merged.classes == ("bad", "good")
    assert name_labels(merged) == [{"fair": "good"}.get(name, name) for name in plain]
    two = label(tmp_path, classifier, TEXTS, classes=["good", "bad"])
    assert two.classes == ("good", "bad")
    assert two.unusable == {row: "'fair'" for row, name in enumerate(plain) if name == "fair"}


def count_scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each later call has the model score."""
    counts: list[int] = []
    score = model_module.Classifier.score

    def note(self: Any, texts: list[str]) -> Any:
        counts.append(len(texts))
        return score(self, texts)

    monkeypatch.setattr(model_module.Classifier, "score", note)
    return counts


def test_a_text_is_scored_once(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_scored(monkeypatch)
    label(tmp_path, classifier, [*TEXTS[:50], "", *TEXTS[:9]])
    again = label(tmp_path, classifier, TEXTS[:50], mapping={"fair": "bad"})
    grown = label(tmp_path, classifier, TEXTS)
    assert counts == [50, 30]
    label(tmp_path, classifier, TEXTS[:9], max_tokens=9)
    assert counts == [50, 30, 9]
    fresh = label(tmp_path / "other", classifier, TEXTS)
    assert grown.values.tolist() == fresh.values.tolist()
    assert len(again.classes) == 2


def test_scores_are_kept_in_between(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends early leaves what it had written."""
    monkeypatch.setattr(model_module, "_KEEP_SECONDS", 0.0)
    monkeypatch.setattr(model_module, "_KEEP_PAUSES", 0)
    monkeypatch.setitem(model_module._TOKEN_BUDGET, "cpu", 512)
    advanced: list[int] = []
    check = model_module.ModelLabeler._check_scores

    def stop(self: Any, outputs: Any, texts: list[str]) -> None:
        if sum(advanced) >= 40:
            raise KeyboardInterrupt
        advanced.append(len(texts))
        check(self, outputs, texts)

    with monkeypatch.context() as patch:
        patch.setattr(model_module.ModelLabeler, "_check_scores", stop)
        with pytest.raises(KeyboardInterrupt):
            label(tmp_path, classifier, TEXTS)
    counts = count_scored(monkeypatch)
    label(tmp_path, classifier, TEXTS)
    assert counts == [len(TEXTS) - sum(advanced)]
    assert counts[0] < 45


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_damaged_scores_are_not_used(
    tmp_path: Path,
    classifier: Path,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = label(tmp_path, classifier, TEXTS).values.tolist()
    (file,) = Project(tmp_path).scores.iterdir()
    if damage == "other":  # whole, but with other numbers
        table = pq.read_table(file)
        reverse = table["scores"].take(list(range(len(table)))[::-1])
        pq.write_table(table.set_column(1, table.schema.field(1), reverse), file)
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1
        file.write_bytes(content if damage == "flip" else content[:200])
    counts = count_scored(monkeypatch)
    assert label(tmp_path, classifier, TEXTS).values.tolist() == before
    assert counts == [len(TEXTS)]
    assert f"{file.name}: damaged (" in capsys.readouterr().out
    label(tmp_path, classifier, TEXTS)
    assert counts == [len(TEXTS)]


@pytest.fixture
def own(project: Path, tiny_backbone: Path, classifier: Path) -> Path:
    (project / "data.csv").write_text("message\n" + "\n".join(f'"{t}"' for t in TEXTS) + "\n")
    shutil.copytree(classifier, project / "judge")
    edit_params(
        {
            "fetch.dataset": "data.csv",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.labels": {"mood": {"labeler": "model", "model": "judge"}},
            "heads.tasks": {"mood": {"type": "multiclass"}},
            "heads.search": [],
            "runtime.devices": "cpu",
        }
    )
    return project


def read_labels() -> tuple[list[int], Mapping[str, Any]]:
    table = pq.read_table(Project().labels_file)
    identity = json.loads(table.schema.metadata[b"identity"])
    return table["mood"].to_pylist(), identity["labels"]["mood"]["settings"]


def test_it_runs_from_settings_to_report(own: Path, cli: Cli, classifier: Path) -> None:
    run_stages(cli, "fetch", "prepare", "embed", "train-heads", "report")
    expected = ask_transformers(classifier, TEXTS, 128)
    labels, about = read_labels()
    assert [NAMES[index] for index in labels] == [max(a, key=a.__getitem__) for a in expected]
    hashes = {
        name: hashlib.sha256((classifier / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert about["sources"] == hashes
    asset = json.loads(Project().assets.read_text())["mood.model"]
    assert (asset["id"], asset["path"], asset["files"]) == ("judge", "judge", hashes)
    # Another reading of the same scores needs no model, and no torch in a process of its own.
    edit_params({"prepare.labels.mood.mapping": {"fair": "good"}})
    run_stages(cli, "fetch")
    result = cli("prepare")
    assert result.returncode == 0
    assert "scoring" not in result.stdout
    assert set(read_labels()[0]) <= {0, 1}


def test_kept_scores_need_no_torch(own: Path, cli: Cli, process: Cli) -> None:
    run_stages(cli, "fetch", "prepare")
    (own / "torch.py").write_text("raise SystemExit('torch is imported')\n")
    result = process("prepare")  # whose working directory comes first on the path
    assert (result.returncode, result.stderr) == (0, "")


def test_a_changed_model_is_noticed(own: Path, cli: Cli, tmp_path: Path) -> None:
    run_stages(cli, "fetch", "prepare", "embed", "train-heads")
    weights = load_file(own / "judge" / "model.safetensors")
    weights["classifier.weight"] *= -1
    save_file(weights, own / "judge" / "model.safetensors")
    result = cli("prepare")
    assert result.stderr.startswith("Error: mood.model judge: ")
    assert "has changed since it was fetched\n  next: run `pipeline fetch` again" in result.stderr
    run_stages(cli, "fetch", "prepare")
    result = cli("report")
    assert "other labels mood (sources" in result.stderr


def complain(root: Path, folder: Path, **settings: object) -> str:
    with pytest.raises((AssetError, SettingsError)) as caught:
        label(root, folder, TEXTS[:2], **settings)
    return f"{caught.value.message}\n{caught.value.hint}"


def test_models_that_cannot_serve(
    tmp_path: Path, tiny_backbone: Path, classifier: Path, tagger: Path
) -> None:
    assert "the weights lack 2 tensors of a classifier, the first is classifier.bias" in complain(
        tmp_path, shutil.copytree(tiny_backbone, tmp_path / "headless"), mapping={"LABEL_0": "a"}
    ).replace("4 tensors", "2 tensors")
    one = make_classifier(tmp_path / "one", tiny_backbone, ("x",))
    assert "has one output, which names no class" in complain(tmp_path, one)
    message = complain(tmp_path, tagger)
    assert message.startswith("prepare.labels.t.kind: is class, but config.json of ")
    assert message.endswith("problem_type 'multi_label_classification'\nset it to tags")
    long = complain(tmp_path, classifier, max_tokens=513)
    assert long.startswith("prepare.labels.t.max_tokens: must be <= 512 for this model, got 513")


def test_names_that_the_model_does_not_know(tmp_path: Path, classifier: Path) -> None:
    assert complain(tmp_path, classifier, mapping={"god": "x"}).startswith(
        "prepare.labels.t.mapping.god: the model has no such output; did you mean `good`?"
    )
    assert complain(tmp_path, classifier, classes=["bad", "goood"]).startswith(
        "prepare.labels.t.classes: the model never answers 'goood'; did you mean `good`?"
    )
    assert "leads all outputs to 'x'" in complain(
        tmp_path, classifier, mapping=dict.fromkeys(NAMES, "x")
    )


def test_a_folder_that_is_no_model_is_refused_by_fetch(own: Path, cli: Cli) -> None:
    edit_params({"prepare.labels.mood.model": "jugde"})
    result = cli("fetch")
    assert result.returncode == 1
    assert result.stderr == (
        "Error: model jugde: no such folder, and not a hub id (owner/name)\n"
        "  next: correct prepare.labels.mood.model\n"
    )
    (own / "judge" / "tokenizer.json").unlink()
    edit_params({"prepare.labels.mood.model": "judge"})
    assert cli("fetch").stderr.startswith("Error: model judge: has no tokenizer.json\n")
