"""Saved heads: what was saved is what is read and applied; numpy written out is the reference."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.corpus.identity import CorpusIdentity, LabelIdentity
from pipeline.errors import StageError
from pipeline.model.decision import Decision
from pipeline.model.saved import Heads, History, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.model.weights import Centers, HeadWeights

LAYERS, WIDTH, ROWS = (0, 3, 6), 5, 17
CLASSES = {
    "binary": ("ham", "spam"),
    "multiclass": ("a", "b", "c"),
    "ordinal": ("low", "middle", "high", "top"),
    "multilabel": ("x", "y", "z"),
    "regression": (),
}
# Of each type, the shape of the weight without its width, and the number of logits.
SHAPES = {
    "binary": (1, 1),
    "multiclass": (3, 3),
    "ordinal": (3, 3),
    "multilabel": (3, 3),
    "regression": (1, 1),
}
RECIPE = {"files": {"model.safetensors": "ab" * 32}, "pooling": "mean"}
# The hash of the recipe in canonical JSON, written out.
FINGERPRINT = hashlib.sha256(
    b'{"files":{"model.safetensors":"' + b"ab" * 32 + b'"},"pooling":"mean"}'
).hexdigest()
THRESHOLDS = {"binary": (0.3,), "multilabel": (0.3, 0.5, 0.9)}


def make_numbers(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


def make_centers(seed: int, features: int) -> Centers:
    generator = np.random.default_rng(seed)
    return Centers(
        (make_numbers(generator, 9, features) / 4).astype(np.float16),
        np.abs(make_numbers(generator, features)) / 4,
        make_numbers(generator, features) / 4,
    )


def make_weights(
    generator: np.random.Generator,
    kind: str,
    form: str,
    features: int,
    centers: Centers | None,
    rows: int | None = None,
) -> HeadWeights:
    outputs = SHAPES[kind][1]
    rows = rows or SHAPES[kind][0]
    inside = {"linear": features, "hidden": 4, "kernel": 9}[form]
    hidden = (
        (make_numbers(generator, 4, features), make_numbers(generator, 4))
        if form == "hidden"
        else (None, None)
    )
    weight, bias = make_numbers(generator, rows, inside), make_numbers(generator, outputs)
    return HeadWeights(weight, bias, *hidden, centers=centers)


def make_head(
    name: str,
    kind: str,
    form: str = "linear",
    layers: tuple[int, ...] = LAYERS,
    seeds: tuple[int, ...] = (4,),
    centers: Centers | None = None,
) -> SavedHead:
    generator = np.random.default_rng(len(name))
    features = len(layers) * WIDTH
    if form == "kernel" and centers is None:
        centers = make_centers(1, features)
    return SavedHead(
        name=name,
        type=TASK_TYPES[kind],
        classes=CLASSES[kind],
        layers=layers,
        decision=Decision(1.5, THRESHOLDS.get(kind)),
        weights=tuple(make_weights(generator, kind, form, features, centers) for _ in seeds),
        seeds=seeds,
        center=-3.5 if kind == "regression" else 0.0,
        spread=0.25 if kind == "regression" else 1.0,
        about={"metric": "loss", "configuration": {"head": form, "learning_rate": 0.1}},
        search=({"score": 0.5, "head": form}, {"score": 0.4, "head": "linear"}),
        history=History((1, 2), (0.5, 0.25), (0.75, 0.5)),
    )


def make_corpus(*tasks: str) -> CorpusIdentity:
    labels = {task: LabelIdentity("4" * 64, {"column": task}) for task in tasks}
    return CorpusIdentity(12, "1" * 64, "2" * 64, labels)


def make_heads(*heads: SavedHead) -> Heads:
    return Heads(
        heads=heads,
        layers=LAYERS,
        width=WIDTH,
        backbone={"id": "acme/first", "files": {"model.safetensors": "ab" * 32}},
        fingerprint=FINGERPRINT,
        recipe=RECIPE,
        corpus=make_corpus(*(head.name for head in heads)),
        features={"layers": list(LAYERS), "width": WIDTH, "standardized": True},
        training={"max_epochs": 5, "patience": None},
    )


def compute_by_hand(head: SavedHead, weights: HeadWeights, vectors: np.ndarray) -> np.ndarray:
    """Logits of one head in float64, row by row: the README's formulas written out."""
    logits = []
    for row in vectors:
        x = np.concatenate([row[LAYERS.index(layer)] for layer in head.layers]).astype(np.float64)
        if weights.input_weight is not None and weights.input_bias is not None:
            x = np.maximum(weights.input_weight.astype(np.float64) @ x + weights.input_bias, 0)
        if weights.centers is not None:
            centers, scale, shift = (
                getattr(weights.centers, name) for name in weights.centers.__dataclass_fields__
            )
            z = (row_features(row, head) * scale + shift).astype(np.float16).astype(np.float64)
            x = np.array([np.exp(-((z - p.astype(np.float64)) ** 2).sum()) for p in centers])
        outputs = [weights.weight[o % len(weights.weight)] @ x for o in range(len(weights.bias))]
        logits.append(np.array(outputs) + weights.bias)
    return np.array(logits) * head.spread + head.center


def row_features(row: np.ndarray, head: SavedHead) -> np.ndarray:
    """One row's features in float32, in which they are scaled."""
    return np.concatenate([row[LAYERS.index(layer)] for layer in head.layers])


@pytest.fixture
def vectors() -> np.ndarray:
    return make_numbers(np.random.default_rng(7), ROWS, len(LAYERS), WIDTH)


def test_ordinal_heads_of_one_weight_are_read_and_answer_as_before(
    tmp_path: Path, vectors: np.ndarray
) -> None:
    """Until version 0.2 all logits of an ordinal head shared a weight; the median was answered."""
    made = make_head("task", "ordinal")
    weights = make_weights(
        np.random.default_rng(1), "ordinal", "linear", len(LAYERS) * WIDTH, None, rows=1
    )
    falling = HeadWeights(weights.weight, -np.sort(-weights.bias))
    made = dataclasses.replace(made, weights=(falling,), layers=LAYERS)
    make_heads(made).save(tmp_path)
    loaded = Heads.load(tmp_path)
    (logits,) = loaded.compute_logits(vectors)["task"]
    by_hand = compute_by_hand(made, falling, vectors)
    np.testing.assert_allclose(logits, by_hand, rtol=1e-4, atol=1e-4)
    (head,) = loaded.heads
    answers = head.type.predict(logits, head.decision)
    np.testing.assert_array_equal(answers, (by_hand > 0).sum(axis=1))


@pytest.mark.parametrize("form", ["linear", "hidden", "kernel"])
@pytest.mark.parametrize("kind", TASK_TYPES)
def test_heads_of_every_kind_survive_a_round_trip(
    tmp_path: Path, vectors: np.ndarray, kind: str, form: str
) -> None:
    seeds = (4,) if form == "kernel" else (4, 0, 9)
    head = make_head("task", kind, form, layers=(6, 0), seeds=seeds)
    heads = make_heads(head)
    heads.save(tmp_path)
    loaded = Heads.load(tmp_path)

    (read,) = loaded.heads
    given = {name: getattr(head, name) for name in head.__dataclass_fields__ if name != "weights"}
    assert {name: getattr(read, name) for name in given} == given
    for name in set(heads.__dataclass_fields__) - {"heads", "folder"}:
        assert getattr(loaded, name) == getattr(heads, name), name
    found = loaded.compute_logits(vectors)["task"]
    assert len(found) == len(seeds)
    for logits, weights, exact in zip(
        found, head.weights, heads.compute_logits(vectors)["task"], strict=True
    ):
        assert logits.dtype == (np.float64 if kind == "regression" else np.float32)
        assert logits.shape == (ROWS, SHAPES[kind][1])
        np.testing.assert_array_equal(logits, exact)
        np.testing.assert_allclose(
            logits, compute_by_hand(head, weights, vectors), rtol=1e-4, atol=1e-4
        )


def test_heads_of_all_types_share_a_folder_and_their_centers(
    tmp_path: Path, vectors: np.ndarray
) -> None:
    shared, other = make_centers(2, 2 * WIDTH), make_centers(3, 2 * WIDTH)
    heads = make_heads(
        make_head("first", "binary", "kernel", (0, 3), centers=shared),
        make_head("second", "multiclass", "kernel", (0, 3), centers=shared),
        # The same centers on other layers: their likeness may not be taken for that of the first.
        make_head("third", "ordinal", "kernel", (3, 6), centers=shared),
        make_head("fourth", "multilabel", "kernel", (0, 3), centers=other),
        make_head("fifth", "regression", "hidden", (3,), seeds=(1, 2)),
        make_head("sixth", "multiclass", "linear", (0, 3, 6), seeds=(1, 2, 3)),
    )
    heads.save(tmp_path)
    tensors = load_file(tmp_path / "heads.safetensors")
    assert sum(tensor.shape == (9, 2 * WIDTH) for tensor in tensors.values()) == 2
    found = Heads.load(tmp_path).compute_logits(vectors)
    assert list(found) == [head.name for head in heads.heads]
    for head in heads.heads:
        for logits, weights in zip(found[head.name], head.weights, strict=True):
            np.testing.assert_allclose(
                logits, compute_by_hand(head, weights, vectors), rtol=1e-4, atol=1e-4
            )


def test_numbers_far_from_zero_keep_their_digits(tmp_path: Path, vectors: np.ndarray) -> None:
    """In float32 all of these would be one number: its neighbours there are 1.4e11 apart."""
    head = replace(make_head("time", "regression"), center=1.7e18, spread=3e9)
    make_heads(head).save(tmp_path)
    (found,) = Heads.load(tmp_path).compute_logits(vectors)["time"]
    expected = compute_by_hand(replace(head, center=0, spread=1), head.weights[0], vectors)
    np.testing.assert_allclose((found - 1.7e18) / 3e9, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spread": 0}, "hours: center -3.5, spread 0"),
        ({"spread": -1}, "hours: center -3.5, spread -1"),
        ({"center": float("inf")}, "Infinity is not a finite number"),
        ({"center": "0"}, "hours: center is '0', not a number"),
        ({"center": None}, "hours: center is None, not a number"),
    ],
)
def test_a_unit_that_gives_no_numbers_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    make_heads(make_head("hours", "regression")).save(tmp_path)
    _edit(lambda record: record["tasks"]["hours"].update(change))(tmp_path)
    with pytest.raises(StageError, match=f"heads.json: .*{message}"):
        Heads.load(tmp_path)


@pytest.mark.parametrize("key", ["center", "spread", "temperature", "seeds", "layers", "classes"])
def test_an_entry_that_lacks_what_every_run_writes_is_refused(tmp_path: Path, key: str) -> None:
    make_heads(make_head("hours", "regression")).save(tmp_path)
    _edit(lambda record: record["tasks"]["hours"].pop(key))(tmp_path)
    with pytest.raises(StageError, match=f"heads.json: damaged .*{key}"):
        Heads.load(tmp_path)


def test_no_rows_give_no_logits() -> None:
    heads = make_heads(make_head("linear", "multiclass"), make_head("kernel", "binary", "kernel"))
    logits = heads.compute_logits(np.empty((0, len(LAYERS), WIDTH), np.float32))
    assert logits["linear"][0].shape == (0, 3)
    assert logits["kernel"][0].shape == (0, 1)


@pytest.mark.parametrize("shape", [(4, 2, WIDTH), (4, 3, WIDTH + 1), (4, 3 * WIDTH)])
def test_vectors_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    make_heads(make_head("task", "binary")).save(tmp_path)
    with pytest.raises(StageError, match=r"was trained on \(3, 5\)") as caught:
        Heads.load(tmp_path).compute_logits(np.zeros(shape, np.float32))
    assert caught.value.hint == "run `pipeline train-heads`"


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    head = make_head("task", "binary")
    broken = replace(head.weights[0], bias=np.array([np.nan], np.float32))
    make_heads(replace(head, weights=(broken,))).save(tmp_path)
    with pytest.raises(StageError, match="the head task gives values that are not finite"):
        Heads.load(tmp_path).compute_logits(vectors)


def _edit(change: Callable[[dict], object], *, hashed: bool = True) -> Callable[[Path], None]:
    """Change ``heads.json`` and, as one who wants to be believed would, its hash."""

    def apply(folder: Path) -> None:
        path = folder / "heads.json"
        content = json.loads(path.read_text())
        del content["sha256"]
        stated = hash_canonically(content)
        change(content)
        content["sha256"] = hash_canonically(content) if hashed else stated
        path.write_text(json.dumps(content))

    return apply


def hash_canonically(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _edit_task(*, hashed: bool = True, **changes: object) -> Callable[[Path], None]:
    return _edit(lambda record: record["tasks"]["task"].update(changes), hashed=hashed)


def _rename_task(name: str) -> Callable[[Path], None]:
    def change(record: dict) -> None:
        for table in (record["tasks"], record["search"], record["corpus"]["labels"]):
            table[name] = table.pop("task")

    return _edit(change)


def _write_hashed(name: str, content: bytes) -> Callable[[Path], None]:
    """Other bytes, of which ``heads.json`` states the hash."""
    key = {"curves.csv": "curves_sha256", "heads.safetensors": "weights_sha256"}[name]

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)
        found = hashlib.sha256(content).hexdigest()
        _edit(lambda record: record.update({key: found}))(folder)

    return apply


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


def _swap_tensors(folder: Path) -> None:
    """The tensors of another run: readable, of the right shapes, and not those."""
    path = folder / "heads.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)


def _edit_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Other tensors, of which ``heads.json`` states the hash."""

    def apply(folder: Path) -> None:
        path = folder / "heads.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        _edit(lambda record: record.update(weights_sha256=found))(folder)

    return apply


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (lambda folder: (folder / "heads.json").unlink(), "heads.json", "no such file"),
        (lambda folder: (folder / "curves.csv").unlink(), "curves.csv", "no such file"),
        (
            lambda folder: (folder / "heads.safetensors").unlink(),
            "heads.safetensors",
            "no such file",
        ),
        (_write("heads.json", b"{"), "heads.json", "damaged, not JSON"),
        (_write("heads.json", b"[]"), "heads.json", "damaged"),
        (_write("heads.json", b"{}"), "heads.json", "damaged .*format"),
        (_write("heads.json", b"[" * 100_000 + b"]" * 100_000), "heads.json", "nested too deeply"),
        (_write("heads.json", b'{"format":' + b"9" * 9_999 + b"}"), "heads.json", "not JSON"),
        (_write("heads.json", b'{"format": 1e999}'), "heads.json", "1e999 is not a finite number"),
        (_write("heads.json", b'{"format": NaN}'), "heads.json", "NaN is not a finite number"),
        (_write("curves.csv", b"epoch,task\n1,task\n"), "curves.csv", "is not the file that"),
        (_write("heads.safetensors", b"short"), "heads.safetensors", "is not the file that"),
        (_write_hashed("curves.csv", b"epoch,task\n1,task\n"), "curves.csv", "damaged"),
        (_write_hashed("curves.csv", b"\xff\xfe"), "curves.csv", "damaged"),
        (_write_hashed("curves.csv", b'task\n"' + b"a" * 200_000), "curves.csv", "damaged"),
        (_write_hashed("heads.safetensors", b"short"), "heads.safetensors", "damaged"),
        (_swap_tensors, "heads.safetensors", "is not the file that .*heads.json tells of"),
        (_edit(lambda r: r.update(format=3)), "heads.json", "format 3, this version reads 4"),
        (_edit_task(threshold=0.31, hashed=False), "heads.json", "do not have the hash"),
        (_edit(lambda r: r.pop("weights_sha256")), "heads.json", "damaged .*weights_sha256"),
        (_edit(lambda r: r.pop("curves_sha256")), "heads.json", "damaged .*curves_sha256"),
        (_edit(lambda r: r.pop("corpus")), "heads.json", "damaged .*corpus"),
        (_edit(lambda r: r["corpus"].update(keys=1)), "heads.json", "keys is 1, not a hash"),
        (_edit(lambda r: r["corpus"]["labels"].clear()), "heads.json", "not those of the tasks"),
        (_edit(lambda r: r.pop("fingerprint")), "heads.json", "damaged .*fingerprint"),
        (_edit(lambda r: r.update(fingerprint="f" * 64)), "heads.json", "not that of the recipe"),
        (_edit(lambda r: r.update(trained_parts=[])), "heads.json", r"trained_parts \[\]"),
        (_edit(lambda r: r.update(trained_parts=["dev"])), "heads.json", "trained_parts .*dev"),
        (_edit(lambda r: r.update(trained_parts="train")), "heads.json", "trained_parts"),
        (_edit(lambda r: r.update(trained_parts=[["train"]])), "heads.json", "damaged"),
        (_edit(lambda r: r["features"].update(width=0)), "heads.json", "of width 0"),
        (_edit(lambda r: r["features"].update(width=True)), "heads.json", "width is True"),
        (_edit(lambda r: r["features"].update(layers=[3, 0, 6])), "heads.json", "layers"),
        (_edit(lambda r: r["features"].update(layers=[0, 3, 3.5])), "heads.json", "a layer is 3.5"),
        (_rename_task("../../outside"), "heads.json", "'../../outside' is no name of a task"),
        (_rename_task("task\n"), "heads.json", "is no name of a task"),
        (_rename_task(""), "heads.json", "is no name of a task"),
        (_edit_task(type="ranking"), "heads.json", "task: no type 'ranking'"),
        (_edit_task(type=["binary"]), "heads.json", "damaged"),
        (_edit_task(classes=["ham"]), "heads.json", "binary with 1 classes"),
        (_edit_task(classes=["a", "b", "c"]), "heads.json", "binary with 3 classes"),
        (_edit_task(classes=["ham", "ham"]), "heads.json", "a class that stands there twice"),
        (_edit_task(classes=["ham", 1]), "heads.json", "a class that is no text"),
        (_edit_task(layers=[0, 5]), "heads.json", r"layers \[0, 5\] of \[0, 3, 6\]"),
        (_edit_task(layers=[]), "heads.json", r"layers \[\]"),
        (_edit_task(layers=[0, 0]), "heads.json", r"layers \[0, 0\]"),
        (_edit_task(layers=[-1]), "heads.json", "a layer is -1"),
        (_edit_task(seeds=[]), "heads.json", r"seeds \[\]"),
        (_edit_task(seeds=[4, 4]), "heads.json", r"seeds \[4, 4\]"),
        (_edit_task(seeds=["../4"]), "heads.json", r"a seed is '\.\./4'"),
        (_edit_task(temperature=0), "heads.json", "temperature 0"),
        (_edit_task(temperature=-1.5), "heads.json", "temperature -1.5"),
        (_edit_task(temperature=float("nan")), "heads.json", "NaN is not a finite number"),
        (_edit_task(temperature=float("inf")), "heads.json", "Infinity is not a finite number"),
        (_edit_task(temperature=10**400), "heads.json", "damaged"),
        (_edit_task(temperature="1"), "heads.json", "temperature is '1', not a number"),
        (_edit_task(threshold=1.5), "heads.json", "not from 0 to 1"),
        (_edit_task(threshold=-0.1), "heads.json", "not from 0 to 1"),
        (_edit_task(threshold=True), "heads.json", "threshold is True, not a number"),
        (_edit_task(threshold=[0.1, 0.2]), "heads.json", "2 thresholds, not 1"),
        (_edit_task(threshold="high"), "heads.json", "damaged .*high"),
        (_edit_task(seeds=[4, 5]), "heads.safetensors", "task.seed_5.weight: no such tensor"),
        (_edit_task(layers=[0]), "heads.safetensors", r"task.weight: \(1, 15\), .* \(1, 5\)"),
        (_edit_task(kernel="kernel_0"), "heads.safetensors", "kernel_0.places: no such tensor"),
        (_edit_tensors(lambda t: t.pop("task.bias")), "heads.safetensors", "task.bias: no such"),
        (
            _edit_tensors(lambda t: t.update({"task.bias": np.zeros(2, np.float32)})),
            "heads.safetensors",
            r"task.bias: \(2,\), .* \(1,\)",
        ),
    ],
)
def test_damaged_files_are_one_message_each(
    tmp_path: Path, damage: Callable[[Path], None], file: str, message: str
) -> None:
    make_heads(make_head("task", "binary")).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(StageError, match=message) as caught:
        Heads.load(tmp_path)
    assert str(tmp_path / file) in caught.value.message
    assert "\n" not in caught.value.message
    assert "pipeline train-heads" in (caught.value.hint or "")


def test_a_description_without_its_hash_is_not_believed(tmp_path: Path) -> None:
    make_heads(make_head("task", "binary")).save(tmp_path)
    content = json.loads((tmp_path / "heads.json").read_text())
    assert content.pop("sha256") == hash_canonically(content)
    (tmp_path / "heads.json").write_text(json.dumps(content))
    with pytest.raises(StageError, match=r"heads\.json: damaged .*sha256"):
        Heads.load(tmp_path)


def test_a_loss_that_is_no_number_is_saved_as_none(tmp_path: Path) -> None:
    """A configuration that came to nothing has such a loss; JSON has no word for it."""
    found = {"score": 0.0, "held_out_loss": float("inf"), "layers": (0, 3)}
    head = replace(make_head("task", "binary"), search=(found,), about={"deep": [float("nan")]})
    make_heads(head).save(tmp_path)
    (read,) = Heads.load(tmp_path).heads
    assert read.search == ({"score": 0.0, "held_out_loss": None, "layers": [0, 3]},)
    assert read.about == {"deep": [None]}


def test_another_corpus_is_refused_in_words(tmp_path: Path) -> None:
    make_heads(make_head("task", "binary")).save(tmp_path)
    heads, path = Heads.load(tmp_path), tmp_path / "labels.parquet"
    same = make_corpus("task", "more")
    heads.check_corpus(same, path)
    other = LabelIdentity("5" * 64, {"column": "other"})
    for now, message in (
        (replace(same, keys="9" * 64, rows=13), r"other texts \(12 rows, now 13\)$"),
        (replace(same, keys="9" * 64), "other texts$"),
        (replace(same, split="9" * 64), "another split$"),
        (replace(same, labels={}), "labels task, which are gone$"),
        (
            replace(same, labels={"task": other}, split="9" * 64),
            r'another split; other labels task \(column "task", now "other"\)$',
        ),
        (replace(same, labels={"task": replace(other, settings=None)}), "other labels task$"),
    ):
        with pytest.raises(StageError, match=message) as caught:
            heads.check_corpus(now, path)
        assert str(tmp_path) in caught.value.message
        assert caught.value.hint == "run `pipeline train-heads`"


def test_files_of_two_savings_do_not_read_as_one(tmp_path: Path) -> None:
    make_heads(make_head("task", "binary")).save(tmp_path / "old")
    make_heads(make_head("other_task", "binary")).save(tmp_path / "new")
    (tmp_path / "old" / "heads.json").replace(tmp_path / "new" / "heads.json")
    with pytest.raises(StageError, match="is not the file that"):
        Heads.load(tmp_path / "new")


def test_saved_heads_are_used_without_a_framework(tmp_path: Path) -> None:
    make_heads(make_head("task", "multiclass", "kernel")).save(tmp_path)
    code = (
        "import sys, numpy as np; from pathlib import Path; from pipeline.model.saved import Heads;"
        f"heads = Heads.load(Path({str(tmp_path)!r})); "
        f"logits = heads.compute_logits(np.zeros((2, {len(LAYERS)}, {WIDTH}), np.float32)); "
        "print(logits['task'][0].shape, {'torch', 'lightning', 'pyarrow', 'sklearn'} & "
        "set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "(2, 3) set()\n", result.stderr


def test_likeness_is_by_distance_for_more_centres_than_are_converted_at_once() -> None:
    from scipy.spatial.distance import cdist

    random = np.random.default_rng(0)
    positions = random.normal(size=(150, 12)).astype(np.float16)
    centers = Centers(positions, np.full(12, 0.5, np.float32), np.full(12, 0.25, np.float32))
    rows = random.normal(size=(7, 12)).astype(np.float32)
    rounded = (rows * np.float32(0.5) + np.float32(0.25)).astype(np.float16).astype(float)
    expected = np.exp(-(cdist(rounded, positions.astype(float)) ** 2))
    for _ in range(2):  # with the positions converted just now, and before
        np.testing.assert_allclose(centers.compare(rows), expected, rtol=1e-4, atol=1e-7)
