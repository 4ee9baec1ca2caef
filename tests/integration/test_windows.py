"""Long texts in windows: each token counts once, and vectors are those of Hugging Face by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import pipeline
from pipeline import FrozenTextEncoder
from pipeline.embed.embedder import Embedder
from pipeline.embed.fidelity import check_fidelity, measure_fidelity
from pipeline.embed.loading import EnginePlan
from pipeline.embed.tokens import Tokens, load_tokenizer
from pipeline.embed.windows import WindowCutter
from pipeline.errors import SettingsError
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.conftest import edit_params, run_cli
from tests.integration.test_pooling import declare
from tests.integration.test_precision import make_project, run
from tests.integration.test_task_types import write_tickets

MAX_TOKENS = 16
PROMPT = "ask: "
# Of 1 to 500 tokens: letters are tokens here.
TEXTS = [
    "a",
    "server down",
    "abc " * 4,
    "abcd " * 4,
    *(f"t{n} " + "xy z" * n for n in (3, 9, 40, 160)),
]


def list_windows(length: int, before: int, after: int) -> list[tuple[int, int]]:
    """Starts and ends of the windows of a text's own tokens, by the definition, one by one."""
    room = MAX_TOKENS - before - after
    body = length - before - after
    if body <= room:
        return [(0, body)]
    stride = room - room // 4
    count = 1
    while (count - 1) * stride < body - room:
        count += 1
    starts = [int((body - room) * n / (count - 1) + 0.5) for n in range(count)]
    return [(start, start + room) for start in starts]


@given(st.lists(st.integers(4, 200), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 2))
def test_each_token_counts_once_where_it_stands_most_central(
    lengths: list[int], before: int, after: int
) -> None:
    lengths = [max(length, before + after + 1) for length in lengths]
    ids = np.arange(sum(lengths), dtype=np.int32)  # so that an id tells where it comes from
    whole = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))
    cut = WindowCutter(MAX_TOKENS, before, after).cut(whole)
    if max(lengths) <= MAX_TOKENS:
        assert cut is whole
        return
    assert cut.windows is not None
    assert cut.lengths.max() <= MAX_TOKENS
    counted = []
    for number, owner in enumerate(cut.windows.owners.tolist()):
        of_window = cut.ids[cut.offsets[number] : cut.offsets[number + 1]]
        of_text = ids[whole.offsets[owner] : whole.offsets[owner + 1]]
        if len(of_text) <= MAX_TOKENS:
            np.testing.assert_array_equal(of_window, of_text)
        else:
            assert len(of_window) == MAX_TOKENS
        np.testing.assert_array_equal(of_window[:before], of_text[:before])
        np.testing.assert_array_equal(
            of_window[len(of_window) - after :], of_text[len(of_text) - after :]
        )
        low, high = cut.windows.spans[number].tolist()
        counted += of_window[low:high].tolist()
    assert sorted(counted) == ids.tolist()
    for owner, length in enumerate(lengths):
        numbers = np.flatnonzero(cut.windows.owners == owner)
        expected = list_windows(length, before, after)
        if length <= MAX_TOKENS:
            assert len(numbers) == 1
            continue
        first = int(whole.offsets[owner]) + before
        found = []
        for number in numbers:
            own = cut.ids[cut.offsets[number] + before : cut.offsets[number + 1] - after] - first
            found.append((int(own[0]), int(own[-1]) + 1))
            low, high = cut.windows.spans[number].tolist()
            for token in range(max(low, before), min(high, MAX_TOKENS - after)):
                place = int(cut.ids[cut.offsets[number] + token]) - first
                distances = [
                    abs(place + 0.5 - (start + stop) / 2)
                    for start, stop in expected
                    if start <= place < stop
                ]
                centre = sum(found[-1]) / 2
                assert abs(place + 0.5 - centre) <= min(distances) + 1
        assert found == expected
        assert all(a[1] > b[0] for a, b in itertools.pairwise(found))  # they overlap


def embed_by_hand(folder: Path, texts: list[str], prompt: str = "") -> npt.NDArray[np.float32]:
    """Every layer of each text, window by window, through Hugging Face: [B, L, D]."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    n_prompt = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    vectors = []
    for text in texts:
        ids = tokenizer.encode(prompt + text).ids
        before = 1 + n_prompt
        windows = list_windows(len(ids), before, 1)
        if len(windows) == 1:
            parts = [(ids, list(range(len(ids))))]
        else:
            parts = []
            for number, (start, stop) in enumerate(windows):
                low = (windows[number - 1][0] + stop) // 2 if number else 0
                high = (start + windows[number + 1][1]) // 2 if number + 1 < len(windows) else stop
                own = [before + place - start for place in range(low, high)]
                own = ([*range(before)] if not number else []) + own
                own += [MAX_TOKENS - 1] if number + 1 == len(windows) else []
                part = ids[:before] + ids[before + start : before + stop] + ids[-1:]
                parts.append((part, own))
        total = []
        for part, own in parts:
            with torch.no_grad():
                states = model(torch.tensor([part]), output_hidden_states=True).hidden_states
            total.append(torch.stack(states)[:, 0, own])
        joined = torch.cat(total, dim=1)
        assert joined.shape[1] == len(ids)
        vectors.append(joined.mean(dim=1).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_vectors_are_those_of_hugging_face_by_hand(
    tiny_backbone: Path, prompt: str, is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_padded:
        monkeypatch.setattr(EnginePlan, "family", None)
    expected = embed_by_hand(tiny_backbone, TEXTS, prompt)
    with Embedder(
        tiny_backbone, max_tokens=MAX_TOKENS, prompt=prompt, long_texts="windows",
        precision="float32", token_budget=64,
    ) as embedder:  # fmt: skip
        rows = embedder.embed(TEXTS)
        tokens = embedder.tokenize(TEXTS)
        fidelity = measure_fidelity(
            embedder.load_reference(), tokens.tokens, rows, embedder.layers, cutter=embedder.cutter
        )
    assert np.abs(rows.vectors - expected).max() < 1e-5
    check_fidelity(fidelity, "float32")
    whole = load_tokenizer(tiny_backbone, 512, prompt).tokenize(pa.array(TEXTS)).whole_lengths
    np.testing.assert_array_equal(rows.n_tokens, whole)
    wrong = rows.vectors.copy()
    wrong[-1] += 0.1
    rows.vectors[:] = wrong
    with Embedder(tiny_backbone, max_tokens=MAX_TOKENS, long_texts="windows") as embedder:
        found = measure_fidelity(
            embedder.load_reference(), tokens.tokens, rows, embedder.layers, cutter=embedder.cutter
        )
    assert found.largest_error > 0.05


def test_short_texts_are_as_ever_and_long_ones_do_not_depend_on_their_neighbours(
    tiny_backbone: Path,
) -> None:
    short = TEXTS[:3]
    options: dict[str, Any] = {"max_tokens": MAX_TOKENS, "precision": "float32"}
    with (
        Embedder(tiny_backbone, **options) as cut,
        Embedder(tiny_backbone, long_texts="windows", **options) as windows,
    ):
        together = windows.embed(TEXTS).vectors
        assert np.abs(together[:3] - cut.embed(short).vectors).max() < 1e-6
        assert np.abs(together[3:] - cut.embed(TEXTS[3:]).vectors).max() > 1e-3
        for number, text in enumerate(TEXTS):
            alone = windows.embed([text]).vectors[0]
            assert np.abs(together[number] - alone).max() < 1e-6


def test_unit_length_and_half_precision(tiny_backbone: Path, tmp_path: Path) -> None:
    folder = declare(tiny_backbone, tmp_path / "b", ["mean"])
    expected = embed_by_hand(tiny_backbone, TEXTS)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    with Embedder(
        folder, max_tokens=MAX_TOKENS, long_texts="windows", normalize="auto", dtype="float16",
        precision="float32",
    ) as embedder:  # fmt: skip
        vectors = embedder.embed(TEXTS).vectors
    assert vectors.dtype == np.float16
    assert np.abs(vectors - expected).max() < 1e-3


def test_several_processes_join_windows_too(tiny_backbone: Path) -> None:
    with Embedder(
        tiny_backbone, max_tokens=MAX_TOKENS, long_texts="windows", devices=["cpu", "cpu"],
        precision="float32",
    ) as embedder:  # fmt: skip
        vectors = embedder.embed(TEXTS).vectors
    assert np.abs(vectors - embed_by_hand(tiny_backbone, TEXTS)).max() < 1e-5


def test_batches_filled_up_for_a_gpu_keep_their_spans(tiny_backbone: Path) -> None:
    from pipeline.embed.batches import fill_up

    tokens = load_tokenizer(tiny_backbone, MAX_TOKENS, is_whole=True).tokenize(pa.array(TEXTS))
    cut = WindowCutter(MAX_TOKENS, 1, 1).cut(tokens)
    full = fill_up(cut, 4096, 128)
    assert len(full.ids) % 4096 == 0
    assert full.windows is not None
    assert cut.windows is not None
    assert len(full.windows.spans) == len(full.windows.owners) == len(full)
    np.testing.assert_array_equal(full.windows.spans[: len(cut)], cut.windows.spans)
    np.testing.assert_array_equal(full.windows.spans[len(cut) :, 1], full.lengths[len(cut) :])


def test_other_poolings_are_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    folder = declare(tiny_backbone, tmp_path / "b", ["cls"])
    with pytest.raises(SettingsError, match=r"embed\.long_texts: windows are joined where .* cls"):
        Embedder(folder, long_texts="windows")
    Embedder(folder, long_texts="windows", pooling="mean").close()


def test_a_project_with_long_texts(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = make_project(tmp_path / "p", tiny_backbone, "float32", 60)
    edit_params({"embed.max_tokens": MAX_TOKENS}, folder / "params.yaml")
    said = run(folder, "embed")
    assert "longer than max_tokens 16 and were cut" in said  # by default it is told
    edit_params({"embed.long_texts": "windows"}, folder / "params.yaml")
    refused = run_cli(folder, "train-heads")
    assert refused.returncode == 1
    assert "embed.long_texts cut, which is windows now" in refused.stdout + refused.stderr
    said = run(folder, "embed")
    assert "longer texts in windows" in said
    assert "longer than max_tokens 16 and stand there in windows, so that nothing is lost" in said
    manifest = read_manifest(Project(folder).store)
    assert manifest.recipe["long_texts"] == "windows"
    import pyarrow.parquet as pq

    table = pq.read_table(Project(folder).texts_file)
    texts, keys = table["text"].to_pylist(), table["key"].combine_chunks()
    stored = read_vectors(Project(folder).store, keys, manifest.layers)
    assert np.abs(stored - embed_by_hand(tiny_backbone, texts)).max() < 2e-3  # as float16
    assert "holds all" in run(folder, "embed")

    write_tickets(folder / "tickets.csv", 80)  # the texts that are there stay
    for stage in ("fetch", "prepare", "embed", "train-heads", "report"):
        said = run(folder, stage)
    assert "long_texts" in run(folder, "cache", "info")
    with pipeline.load(folder) as model:
        fresh = model.embed(TEXTS)
    assert np.abs(fresh - embed_by_hand(tiny_backbone, TEXTS)).max() < 2e-3
    refused = run_cli(folder, "export", str(tmp_path / "out"))
    assert refused.returncode == 1
    assert "embeds long texts in windows, which an ONNX graph" in refused.stdout + refused.stderr
    assert not (tmp_path / "out").exists()

    encoder = FrozenTextEncoder(
        tiny_backbone, layers="all", max_tokens=MAX_TOKENS, long_texts="windows",
        precision="float32", cache=tmp_path / "c", devices="cpu",
    )  # fmt: skip
    vectors = encoder.fit_transform(TEXTS).reshape(fresh.shape)
    assert np.abs(vectors - embed_by_hand(tiny_backbone, TEXTS)).max() < 1e-5
