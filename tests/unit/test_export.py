"""What an exported graph makes of logits is what the types of tasks make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.assets import Asset
from pipeline.corpus.identity import CorpusIdentity
from pipeline.errors import ExportError
from pipeline.export.card import CardFacts
from pipeline.export.check import compare_outputs, demand_agreement
from pipeline.export.graph import TAILS, make_tail
from pipeline.export.labels import describe_labels, name_outputs
from pipeline.model.decision import Decision
from pipeline.model.saved import Heads, SavedHead
from pipeline.model.tasks import OLDER_TYPES, TASK_TYPES
from pipeline.model.weights import HeadWeights

CLASSES = {"binary": 2, "multiclass": 4, "ordinal": 4, "multilabel": 3, "regression": 0}


def make_head(name: str, thresholds: tuple[float, ...] | None = None) -> SavedHead:
    C = CLASSES[name.removeprefix("older ")]
    kind = TASK_TYPES[name] if name in TASK_TYPES else OLDER_TYPES[name.removeprefix("older ")]
    if kind.has_thresholds and thresholds is None:
        thresholds = (0.3,) if name == "binary" else (0.2, 0.5, 0.9)
    rows, outputs = kind.count_weight_rows(C), kind.count_outputs(C)
    return SavedHead(
        name=name.removeprefix("older "),
        type=kind,
        classes=tuple(f"class {c}" for c in range(C)),
        layers=(0,),
        decision=Decision(1.7 if kind.has_temperature else 1.0, thresholds),
        weights=(HeadWeights(np.ones((rows, 3), np.float32), np.zeros(outputs, np.float32)),),
        center=1e9 if kind.has_unit else 0.0,
        spread=2.5 if kind.has_unit else 1.0,
    )


def make_heads(*heads: SavedHead) -> Heads:
    return Heads(
        heads=heads,
        layers=(0,),
        width=3,
        backbone={"id": "acme/tiny", "source": "hub", "folder": "backbones/x", "files": {}},
        fingerprint="f" * 64,
        recipe={"max_tokens": 64, "files": {}},
        corpus=CorpusIdentity(0, "", "", {}),
        features={},
        training={},
    )


def draw_logits(head: SavedHead) -> Iterator[np.ndarray]:
    """Ordinary ones, extreme ones, and such as lie on the boundaries."""
    outputs = head.type.count_outputs(CLASSES[head.name])
    generator = np.random.default_rng(0)
    yield generator.normal(0, 3, (500, outputs)).astype(np.float32)
    yield (
        generator.normal(0, 1, (200, outputs)) * 10.0 ** generator.integers(-8, 8, (200, 1))
    ).astype(np.float32)
    yield np.zeros((1, outputs), np.float32)


@pytest.mark.parametrize("name", [*CLASSES, "older ordinal"])
def test_tails_answer_as_the_types_do(name: str) -> None:
    head = make_head(name)
    tail = make_tail(head)
    for logits in draw_logits(head):
        *probabilities, label = (output.numpy() for output in tail(torch.from_numpy(logits)))
        restored = head.restore(logits)
        expected = head.type.predict(restored, head.decision)
        assert label.dtype == expected.dtype
        np.testing.assert_array_equal(label, expected)
        assert len(probabilities) == (name != "regression")
        for found in probabilities:
            assert found.dtype == np.float32
            wanted = head.type.compute_probabilities(restored, head.decision)
            np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_every_type_has_a_tail() -> None:
    assert set(TAILS) == set(TASK_TYPES)


def test_thresholds_that_float32_cannot_tell_from_one() -> None:
    """A probability of 1 - 1e-9 is above one of 1 - 2e-9 and not above one of 1 - 5e-10."""
    logit = np.float32(np.log(1e9))
    for threshold, expected in ((1 - 2e-9, 1), (1 - 5e-10, 0)):
        head = replace(make_head("binary"), decision=Decision(1.0, (threshold,)))
        _, label = TAILS["binary"](head)(torch.tensor([[logit]]))
        assert label.tolist() == [expected]
        assert head.type.predict(np.array([[logit]]), head.decision).tolist() == [expected]


@pytest.mark.parametrize("name", [*CLASSES, "older ordinal"])
def test_a_difference_is_found_where_it_matters_alone(name: str) -> None:
    """Labels of another class are wrong unless the probability is at a boundary."""
    head = make_head(name)
    heads = make_heads(head)
    (logits, *_) = draw_logits(head)
    tail = make_tail(head)

    def compare(found: np.ndarray) -> None:
        outputs = dict(
            zip(
                name_outputs(head),
                (output.numpy() for output in tail(torch.from_numpy(found))),
                strict=True,
            )
        )
        restored = {head.name: head.restore(logits)}
        demand_agreement(compare_outputs(heads, restored, outputs))

    compare(logits)
    compare(logits + np.float32(1e-6))
    one_missing = logits.copy()
    one_missing[7] = np.nan
    for wrong in (logits * np.float32(1.1), one_missing):
        with pytest.raises(ExportError, match=f"{head.name}: differences"):
            compare(wrong)


def test_a_wrong_label_with_right_probabilities_is_found() -> None:
    head = make_head("binary")
    logits = {"binary": np.array([[2.0], [-2.0]], np.float32)}
    outputs = {
        "binary_probabilities": head.type.compute_probabilities(logits["binary"], head.decision),
        "binary_label": np.array([0, 0]),
    }
    (agreement,) = compare_outputs(make_heads(head), logits, outputs)
    assert (agreement.difference, agreement.others, agreement.wrong) == (0.0, 1, 1)
    # At the boundary itself either label will do.
    at = np.log(0.3 / 0.7) * head.decision.temperature
    logits["binary"] = np.array([[at + 1e-4], [-2.0]], np.float32)
    outputs["binary_probabilities"] = head.type.compute_probabilities(
        logits["binary"], head.decision
    )
    (agreement,) = compare_outputs(make_heads(head), logits, outputs)
    assert (agreement.others, agreement.wrong, agreement.is_close) == (1, 0, True)


def test_labels_say_what_outputs_mean() -> None:
    heads = make_heads(*(make_head(name) for name in CLASSES))
    record = json.loads(json.dumps(describe_labels(heads, {"backbone": "acme/tiny"})))
    assert record["max_tokens"] == 64
    assert record["model"] == {"backbone": "acme/tiny"}
    assert record["tasks"]["binary"] == {
        "type": "binary",
        "outputs": ["binary_probabilities", "binary_label"],
        "classes": ["class 0", "class 1"],
        "threshold": 0.3,
    }
    assert record["tasks"]["multilabel"]["threshold"] == [0.2, 0.5, 0.9]
    assert record["tasks"]["regression"] == {"type": "regression", "outputs": ["regression_label"]}


@pytest.mark.parametrize(
    ("dataset", "backbone", "license_id", "expected"),
    [
        (
            Asset("hf://datasets/acme/mail@abc/all.csv", "hub", {}, folder="d"),
            Asset("sentence-transformers/all-MiniLM-L6-v2", "hub", {}, folder="b"),
            None,
            ("apache-2.0", "sentence-transformers/all-MiniLM-L6-v2", ["acme/mail"]),
        ),
        (
            Asset("/home/someone/secret/mail.csv", "local file", {}, path="/home/someone/secret"),
            Asset(
                "/home/someone/models/mine", "local folder", {}, path="/home/someone/models/mine"
            ),
            None,
            ("unknown", None, None),
        ),
        (
            Asset(
                "hf://datasets/acme/mail/*.csv, hf://datasets/acme/mail/b/c.csv",
                "hub",
                {},
                members=(
                    Asset("hf://datasets/acme/mail/*.csv", "hub", {}, folder="d"),
                    Asset("hf://datasets/acme/mail/b/c.csv", "hub", {}, folder="e"),
                ),
            ),
            Asset("acme/tiny@0123", "hub", {}, folder="b"),
            "mit",
            ("mit", "acme/tiny", ["acme/mail"]),
        ),
        (
            Asset(
                "/home/someone/secret/a.csv, hf://datasets/acme/mail/b.csv",
                "local file, hub",
                {},
                members=(
                    Asset("/home/someone/secret/a.csv", "local file", {}, path="/home/someone"),
                    Asset("hf://datasets/acme/mail/b.csv", "hub", {}, folder="e"),
                ),
            ),
            Asset("acme/tiny@0123", "hub", {}, folder="b"),
            "mit",
            ("mit", "acme/tiny", None),
        ),
        (
            Asset("https://example.org/mail.csv", "web", {}, folder="d"),
            Asset("acme/tiny@0123", "hub", {}, folder="b"),
            "mit",
            ("mit", "acme/tiny", None),
        ),
    ],
)
def test_a_card_is_read_by_the_hubs_own_parser(
    dataset: Asset, backbone: Asset, license_id: str | None, expected: tuple[object, ...]
) -> None:
    from huggingface_hub import ModelCard

    figures = {
        "binary": {"accuracy": 0.9, "f1": 0.8, "rows": 10},
        "regression": {
            "root_mean_squared_error": 1.5,
            "rows": 9,
            "intervals": {"root_mean_squared_error": {"low": 1.0, "high": 2.0}},
        },
        "ordinal": {"rows": 10},
    }
    text = CardFacts(
        name="mail",
        heads=make_heads(*(make_head(name) for name in CLASSES)),
        dataset=dataset,
        backbone=backbone,
        license=license_id,
        report={"test": figures},
        agreement="Checked.",
        files={"model.onnx": "the graph"},
    ).render()
    card = ModelCard(text)
    data = card.data
    assert (data.license, data.base_model, data.datasets) == expected
    assert "onnx" in data.tags
    found = {(r.dataset_config, r.metric_type): r for r in data.eval_results}
    assert found["binary", "f1"].metric_value == 0.8
    assert found["regression", "mse"].metric_args == {"squared": False}
    assert set(found) == {
        ("binary", "accuracy"),
        ("binary", "f1"),
        ("regression", "mse"),
    }
    assert data.metrics == ["accuracy", "f1", "mse"]
    assert "| regression | root_mean_squared_error | 1.5000 | 1.0000 to 2.0000 | 9 |" in card.text
    assert "secret" not in text
    assert "someone" not in text
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()  # as the hub's client writes it
