"""Pooling, prompts and lengths that a backbone declares: sentence-transformers is the reference.

The backbone is a BERT with random weights, whose folder is declared as that of bge: the first
token's vector, scaled to length 1.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch

import pipeline
from pipeline import FrozenTextEncoder
from pipeline.declaration import Declaration, find_prompt, read_max_tokens
from pipeline.embed.embedder import Embedder
from pipeline.embed.pooling import POOLINGS
from pipeline.errors import AssetError, PipelineError, SettingsError
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.conftest import edit_params, run_cli
from tests.integration.test_predict import run_all
from tests.integration.test_task_types import SETTINGS, write_tickets

QUERY = "represent this: "
TEXTS = [
    "a",
    "server down again",
    "the invoice 17 is wrong, is it?",
    "x y " * 60,
    "?",
    "login " * 5,
]
# Our name → the key of older files and the name of newer ones.
NAMES = {
    "cls": ("pooling_mode_cls_token", "cls"),
    "max": ("pooling_mode_max_tokens", "max"),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "mean_sqrt_len": ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
}


def declare(
    source: Path,
    folder: Path,
    poolings: Sequence[str] = ("cls",),
    *,
    normalize: bool = True,
    max_tokens: int = 48,
    is_old: bool = True,
    more: Sequence[Mapping[str, Any]] = (),
    **config: Any,
) -> Path:
    """A copy of a backbone's folder that declares how it is pooled.

    :param more: modules behind the others.
    :param **config: further keys of the pooling's configuration.
    """
    shutil.copytree(source, folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules: list[Mapping[str, Any]] = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    pooling: dict[str, Any] = {"word_embedding_dimension": 32}
    if is_old:
        pooling |= {key: ours in poolings for ours, (key, _) in NAMES.items()}
    else:
        pooling["pooling_mode"] = [NAMES[name][1] for name in poolings]
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    for name, content in {
        "modules.json": [*modules, *more],
        "1_Pooling/config.json": pooling | config,
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": QUERY, "passage": ""},
            "default_prompt_name": None,
        },
    }.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """The tiny backbone with larger weights, so that a text's first vector depends on its words.

    With the small weights that a BERT begins with, it hardly does, and heads are all rounding.
    """
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("lively") / "bert"
    shutil.copytree(tiny_backbone, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.startswith("encoder") and tensor.ndim == 2:
            tensor *= 8
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory, lively: Path) -> Path:
    """A backbone that declares the first token's vector, scaled to length 1, and prompts."""
    return declare(lively, tmp_path_factory.mktemp("declared") / "bge")


def encode(folder: Path, texts: Sequence[str], **options: Any) -> npt.NDArray[np.float32]:
    """The vectors of sentence-transformers itself, [B, D]."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return model.encode(list(texts), show_progress_bar=False, **options)


def make_project(folder: Path, backbone: Path, **embed: Any) -> Path:
    """A project with a head of each of several types of tasks, and everything run."""
    folder.mkdir()
    write_tickets(folder / "tickets.csv", 200)
    settings = SETTINGS.replace("BACKBONE", str(backbone))
    settings = settings.replace(
        "embed: {precision: float32}", f"embed: {json.dumps({'dtype': 'float32', **embed})}"
    )
    settings = settings.replace("\nheads:\n", "\nheads:\n  search: []\n")
    (folder / "params.yaml").write_text(settings, "utf-8")
    run_all(folder, "fetch", "prepare", "embed", "train-heads", "report")
    return folder


def read_corpus(folder: Path) -> tuple[list[str], Any]:
    """The texts of a project and their keys."""
    table = pq.read_table(Project(folder).texts_file)
    return table["text"].to_pylist(), table["key"].combine_chunks()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, bge: Path) -> Path:
    """A project on that backbone with all that it declares, and one of its prompts."""
    return make_project(
        tmp_path_factory.mktemp("project") / "bge",
        bge,
        max_tokens="auto",
        normalize="auto",
        prompt="query",
        precision="float32",
    )


@pytest.mark.parametrize("is_old", [True, False])
@pytest.mark.parametrize(
    "poolings", [(name,) for name in NAMES] + [("cls", "mean"), ("max", "mean_sqrt_len", "last")]
)
def test_every_declared_pooling_is_that_of_sentence_transformers(
    tmp_path: Path, tiny_backbone: Path, poolings: tuple[str, ...], is_old: bool
) -> None:
    folder = declare(tiny_backbone, tmp_path / "b", poolings, normalize=False, is_old=is_old)
    with Embedder(folder, max_tokens="auto", layers="last", precision="float32") as embedder:
        assert embedder.text_recipe.max_tokens == 48
        assert embedder.text_recipe.pooling == poolings
        vectors = embedder.embed(TEXTS).vectors
    assert vectors.shape == (len(TEXTS), 1, 32 * len(poolings))
    assert np.abs(vectors[:, 0] - encode(folder, TEXTS)).max() < 1e-5


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_padded_and_packed_pooling_are_the_definition(name: str) -> None:
    from pipeline.embed.attention import Packing

    generator = torch.Generator().manual_seed(0)
    lengths = np.array([3, 3, 1, 7, 2, 7])
    texts = [torch.randn(length, 8, generator=generator) for length in lengths]
    expected = torch.stack([POOLINGS[name].pool_text(text) for text in texts])
    packed = POOLINGS[name].make_packed(Packing(lengths), torch.device("cpu"))(torch.cat(texts))
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=99.0)
    mask = torch.arange(7) < torch.from_numpy(lengths)[:, None]
    for found in (packed, POOLINGS[name].pool_padded(padded, mask)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_declared_model_has_the_same_vectors_everywhere(
    trained: Path, bge: Path, tmp_path: Path
) -> None:
    """Store, predict, the encoder for scikit-learn: all are sentence-transformers' vectors."""
    texts, keys = read_corpus(trained)
    assert max(map(len, texts)) > 48  # letters are tokens, so that some are cut
    expected = encode(bge, texts, prompt_name="query")
    manifest = read_manifest(Project(trained).store)
    assert manifest.recipe["pooling"] == "cls"
    assert manifest.recipe["normalize"] is True
    assert manifest.recipe["prompt"] == QUERY
    assert manifest.recipe["max_tokens"] == 48
    stored = read_vectors(Project(trained).store, keys, manifest.layers)
    assert np.abs(stored[:, -1] - expected).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(stored, axis=-1), 1, atol=1e-6)

    with pipeline.load(trained) as model:
        assert model.heads.layers[-1] == 2
        fresh = model.embed(TEXTS)
    assert np.abs(fresh[:, -1] - encode(bge, TEXTS, prompt_name="query")).max() < 1e-5

    encoder = FrozenTextEncoder(
        bge, max_tokens="auto", normalize="auto", prompt="query", precision="float32",
        cache=tmp_path, devices="cpu",
    )  # fmt: skip
    vectors = encoder.fit_transform(TEXTS)
    assert np.abs(vectors - encode(bge, TEXTS, prompt_name="query")).max() < 1e-5


def test_the_exported_graph_and_its_program_answer_as_the_model_does(
    trained: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    done = run_cli(trained, "export", str(target), "--with-backbone")
    assert done.returncode == 0, done.stdout + done.stderr
    labels = json.loads((target / "labels.json").read_text("utf-8"))
    assert labels["prompt"] == QUERY
    assert labels["max_tokens"] == 48
    assert (target / "backbone" / "1_Pooling" / "config.json").is_file()
    alone = subprocess.run(
        [sys.executable, str(target / "predict.py"), *TEXTS],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in alone.stdout.splitlines()]
    for folder in (trained, target):
        with pipeline.load(folder) as model:
            probabilities = model.predict_proba(TEXTS)["urgent"]
            expected = model.predict(TEXTS)["urgent"].tolist()
        assert [answer["urgent"] for answer in answers] == expected
        scores = [answer["urgent_score"] for answer in answers]
        of_answers = [probabilities[label][row] for row, label in enumerate(expected)]
        np.testing.assert_allclose(scores, of_answers, atol=1e-4)


def test_log_report_and_cache_info_say_how_vectors_are_made(trained: Path) -> None:
    said = run_cli(trained, "embed").stderr + run_cli(trained, "embed").stdout
    described = f"cls over 48 tokens at most, scaled to length 1, each text after {QUERY!r}"
    assert f"{described}, as the backbone declares" in " ".join(said.split())
    info = run_cli(trained, "cache", "info").stdout
    for line in (["pooling", "cls"], ["normalize", "True"], ["prompt", QUERY.strip()]):
        assert any(all(word in row for word in line) for row in info.splitlines())
    page = (Project(trained).report / "report.html").read_text("utf-8")
    assert "cls over 48 tokens at most, scaled to length 1" in page


def test_several_poolings_stand_in_columns_of_their_own(
    tmp_path: Path, bge: Path, lively: Path
) -> None:
    folder = make_project(tmp_path / "several", bge, pooling=["mean", "cls"], precision="float32")
    texts, keys = read_corpus(folder)
    store = Project(folder).store
    schema = pq.read_schema(next(store.glob("*.parquet")))
    names = [f"layer_{n:02}{end}" for n in range(3) for end in ("", "_cls")]
    assert schema.names == ["key", "n_tokens", *names]
    assert {schema.field(name).type.list_size for name in names} == {32}
    table = pq.read_table(next(store.glob("*.parquet")))
    by_key = dict(zip(table["key"].to_pylist(), range(len(table)), strict=True))
    rows = [by_key[key] for key in keys.to_pylist()]
    for end, pooling in (("", "mean"), ("_cls", "cls")):
        of_one = declare(lively, tmp_path / pooling, [pooling], normalize=False, max_tokens=128)
        found = np.stack(table[f"layer_02{end}"].to_pylist())[rows]
        assert np.abs(found - encode(of_one, texts)).max() < 1e-5
    joined = read_vectors(store, keys, (2,))
    assert joined.shape == (len(texts), 1, 64)

    target = folder / "out.parquet"
    done = run_cli(folder, "cache", "export", str(target), "--layers", "last")
    assert done.returncode == 0, done.stdout + done.stderr
    exported = pq.read_table(target)
    np.testing.assert_array_equal(np.stack(exported["layer_02"].to_pylist()), joined[:, 0, :32])
    np.testing.assert_array_equal(np.stack(exported["layer_02_cls"].to_pylist()), joined[:, 0, 32:])
    for arguments in (["export", "graph"], ["cache", "verify"], ["cache", "prune"], ["embed"]):
        done = run_cli(folder, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    with pipeline.load(folder) as model:
        assert model.embed(TEXTS).shape == (len(TEXTS), 3, 64)

    (store / "manifest.json").unlink()
    done = run_cli(folder, "cache", "verify", "--repair")
    assert done.returncode == 0, done.stdout + done.stderr
    np.testing.assert_array_equal(read_vectors(store, keys, (2,)), joined)

    encoder = FrozenTextEncoder(
        bge, pooling=["mean", "cls"], cache=tmp_path / "c", devices="cpu", precision="float32"
    )
    assert encoder.fit_transform(TEXTS).shape == (len(TEXTS), 64)
    names = encoder.get_feature_names_out()
    assert (names[0], names[31], names[32], names[63]) == (
        "layer_02_0", "layer_02_31", "layer_02_cls_0", "layer_02_cls_31",
    )  # fmt: skip


def test_a_store_of_before_is_taken_as_it_is(tmp_path: Path, tiny_backbone: Path) -> None:
    """What earlier versions hashed for the default settings, written out by hand."""
    import hashlib

    folder = make_project(tmp_path / "before", tiny_backbone, precision="float32")
    manifest = read_manifest(Project(folder).store)
    files = {
        name: hashlib.sha256((tiny_backbone / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    contents = {
        "algorithm": 1,
        "files": files,
        "max_tokens": 128,
        "pooling": "mean",
        "layers": [0, 1, 2],
        "precision": "float32",
        "dtype": "float32",
    }
    assert manifest.recipe == contents
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert manifest.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    done = run_cli(folder, "embed")
    assert "holds all" in done.stdout + done.stderr


def test_a_folder_that_declares_nothing_is_pooled_by_mean_and_says_so(
    tmp_path: Path, tiny_backbone: Path
) -> None:
    folder = tmp_path / "bare"
    make_project(folder, tiny_backbone)
    done = run_cli(folder, "embed")
    said = " ".join((done.stdout + done.stderr).split())
    assert "mean over 128 tokens at most; the backbone has no modules.json" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": [{"path": "3_Dense", "type": "sentence_transformers.models.Dense"}]},
         "modules.json: the model has the part 3_Dense of the type "
         "sentence_transformers.models.Dense, which this program does not know"),
        ({"more": [{"path": "", "type": "custom_st.Normalize"}]}, "the part custom_st.Normalize"),
        ({"more": [{"path": "4", "type": "sentence_transformers.models.Pooling"}]},
         "the parts of the model are Transformer, Pooling, Normalize, Pooling, not"),
        ({"pooling_mode_weightedmean_tokens": True}, "pools by weightedmean, which this program"),
        ({"pooling_mode_attention": True}, "pools by attention, which this program"),
        ({"pooling_mode": "first"}, "pools by first, which this program"),
        ({"pooling_mode": []}, "is no pooling"),
        ({"pooling_mode": {"a": 1}}, "is no pooling"),
        ({"more": ["x"]}, "is no part of a model"),
    ],
)  # fmt: skip
def test_an_odd_declaration_is_an_error_that_names_it(
    tmp_path: Path, tiny_backbone: Path, change: dict[str, Any], message: str
) -> None:
    folder = declare(tiny_backbone, tmp_path / "b", **change)
    with pytest.raises(AssetError) as caught:
        Embedder(folder)
    assert message in caught.value.message
    assert "embed.pooling: mean" in str(caught.value.hint)
    with Embedder(folder, pooling="mean", layers="last") as embedder:  # the remedy
        assert embedder.embed(TEXTS).vectors.shape == (len(TEXTS), 1, 32)


def test_files_that_are_missing_or_damaged(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = declare(tiny_backbone, tmp_path / "b")
    (folder / "1_Pooling/config.json").unlink()
    with pytest.raises(AssetError, match=r"1_Pooling/config.json: no such file, but"):
        Declaration.read(folder)
    (folder / "modules.json").write_text("{")
    with pytest.raises(AssetError, match=r"modules.json: damaged"):
        Declaration.read(folder)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(AssetError, match=r"modules.json: is not a list"):
        Declaration.read(folder)
    (folder / "modules.json").write_text(
        '[{"path": "../x", "type": "sentence_transformers.models.Pooling"}]'
    )
    with pytest.raises(AssetError, match=r"\.\./x is no folder below the model's"):
        Declaration.read(folder)


def test_lengths(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = declare(tiny_backbone, tmp_path / "b", max_tokens=1_000)
    assert read_max_tokens(folder, 512) == 512
    length_file = folder / "sentence_bert_config.json"
    length_file.write_text('{"max_seq_length": "many"}')
    with pytest.raises(AssetError, match=r"max_seq_length is 'many', no length"):
        read_max_tokens(folder, 512)
    length_file.unlink()
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 200}')
    assert read_max_tokens(folder, 512) == 200
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert read_max_tokens(folder, 512) == 512


def test_prompts(tmp_path: Path, bge: Path, tiny_backbone: Path) -> None:
    assert find_prompt(bge, "none") == ""
    assert find_prompt(bge, "query") == QUERY
    assert find_prompt(bge, "passage") == ""
    assert find_prompt(bge, "my text: ") == "my text: "
    with pytest.raises(SettingsError, match="no prompt 'querry'; it has 'query', 'passage'"):
        find_prompt(bge, "querry")
    with pytest.raises(SettingsError, match="no prompt 'query'; it declares none"):
        find_prompt(tiny_backbone, "query")
    with Embedder(bge, prompt="my text: ", max_tokens="auto", layers="last") as embedder:
        vectors = embedder.embed(TEXTS).vectors[:, 0]
        expected = encode(bge, TEXTS, prompt="my text: ")
        expected = expected * np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.abs(vectors - expected).max() < 1e-4
        # A text of signs that the vocabulary lacks says nothing, whatever stands before it.
        is_hollow = embedder.find_hollow(embedder.tokenize(["日本", "a 日本", ""]))
    assert is_hollow.tolist() == [True, False, True]
    with pytest.raises(SettingsError, match="max_tokens: must be >= 10 for this backbone and"):
        Embedder(bge, prompt="my text: ", max_tokens=9)


def test_a_prompt_that_is_not_pooled_is_refused(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = declare(tiny_backbone, tmp_path / "b", include_prompt=False)
    Embedder(folder).close()
    with pytest.raises(SettingsError, match=r"embed\.prompt: the backbone declares"):
        Embedder(folder, prompt="a: ")


def test_other_settings_than_the_stores_are_said(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    edit_params({"embed.prompt": "none", "embed.normalize": False}, folder / "params.yaml")
    done = run_cli(folder, "train-heads")
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert "embed.normalize true, which is false now" in said
    assert f"embed.prompt {QUERY.strip()} , which is none now" in said or "embed.prompt" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "first"}, "embed.pooling"),
        ({"pooling": ["mean", "mean"]}, "embed.pooling: has mean twice"),
        ({"pooling": []}, "embed.pooling"),
        ({"pooling": ["auto", "cls"]}, "embed.pooling"),
        ({"normalize": True}, "embed.normalize: must be one of false, auto, got True"),
        ({"prompt": ""}, "embed.prompt"),
        ({"max_tokens": "most"}, "embed.max_tokens"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    from pipeline.config import load_settings

    path = tmp_path / "params.yaml"
    path.write_text(f"embed: {json.dumps(settings)}\n")
    with pytest.raises(PipelineError) as caught:
        load_settings(path)
    assert message in caught.value.message
