"""Vectors on disk against sentence-transformers and Hugging Face, on the real corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.assets import read_assets
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.conftest import Cli, edit_params, run_stages

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 128


def test_vectors_of_the_whole_corpus_equal_sentence_transformers(
    project: Path, real_assets: Path, cli: Cli
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    edit_params({"fetch.backbones": [MINILM], "embed.dtype": "float32", "embed.layers": "last"})
    run_stages(cli, "fetch", "prepare", "embed")
    table = pq.read_table(Project().texts_file)
    texts = table["text"].to_pylist()
    assert len(texts) == 5572
    vectors = read_vectors(Project().store, table["key"].combine_chunks(), (6,))

    body = Transformer(
        str(read_assets(Project().assets)["backbone"].locate(Project())), max_seq_length=MAX_TOKENS
    )
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode="mean")
    reference = SentenceTransformer(modules=[body, pooling], device="cpu").encode(
        texts, batch_size=32, normalize_embeddings=False, show_progress_bar=False
    )
    assert np.abs(vectors[:, 0] - reference).max() < 1e-5


def test_every_layer_equals_hugging_face_and_float16_is_close(few_messages: Path, cli: Cli) -> None:
    edit_params({"embed.dtype": "float32"})
    run_stages(cli, "fetch", "prepare", "embed")
    table = pq.read_table(Project().texts_file)
    keys = table["key"].combine_chunks()
    assert read_manifest(Project().store).layers == tuple(range(7))
    exact = read_vectors(Project().store, keys, range(7))
    sample = np.random.default_rng(0).choice(len(keys), 100, replace=False)
    folder = str(read_assets(Project().assets)["backbone"].locate(Project()))
    expected = embed_by_hugging_face(folder, table["text"].take(sample).to_pylist())
    assert np.abs(exact[sample] - expected).max() < 1e-5
    size = sum(file.stat().st_size for file in Project().store.glob("*.parquet"))

    edit_params({"embed.dtype": "float16"})
    run_stages(cli, "embed")
    rounded = read_vectors(Project().store, keys, range(7))
    norms = np.linalg.norm(exact, axis=-1) * np.linalg.norm(rounded, axis=-1)
    assert ((exact * rounded).sum(-1) / norms).min() > 0.999999
    halved = sum(file.stat().st_size for file in Project().store.glob("*.parquet"))
    assert halved < 0.52 * size


def embed_by_hugging_face(folder: str, texts: list[str]) -> np.ndarray:
    """Every layer of each text by itself, without padding."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        vectors.append(np.stack([state[0].mean(dim=0).numpy() for state in states]))
    return np.stack(vectors)
