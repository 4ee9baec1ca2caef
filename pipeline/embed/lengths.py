"""Counting the texts that were cut, of shards of which no run has counted them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.corpus.tables import TextReader
from pipeline.embed.tokens import find_distinct, load_tokenizer
from pipeline.recipe import TextRecipe
from pipeline.store import Update, count_lengths

if TYPE_CHECKING:
    import pyarrow as pa

# A function from texts, [B], to the tokens of each before it is cut: int64, [B].
MeasureTexts: TypeAlias = "Callable[[pa.Array], npt.NDArray[np.int64]]"


def count_uncounted(
    update: Update,
    texts: TextReader,
    first_rows: npt.NDArray[np.int64],
    measure: MeasureTexts,
) -> None:
    """Count the texts that were cut of finished shards of which no run has counted them.

    Such shards come from an earlier version, from an interrupted run, or from a store whose
    manifest was made anew.

    :param update: the change of the store, or the slice.
    :param texts: reader of the texts of the corpus, from its start.
    :param first_rows: the row of the corpus in which each distinct text stands first: int64.
    :param measure: a function that counts the tokens of texts.
    """
    maximum = update.recipe.contents["max_tokens"]
    for start, n_tokens in update.list_uncounted():
        whole_lengths = n_tokens.astype(np.int64)
        # A text of the longest length was cut, or just fits: its tokens tell which.
        full = np.flatnonzero(whole_lengths >= maximum)
        if len(full):
            whole_lengths[full] = measure(texts.take(first_rows[start + full]))
        update.note_lengths(start, count_lengths(whole_lengths, maximum))


def count_by_tokenizer(
    update: Update, texts_file: Path, first_rows: npt.NDArray[np.int64], backbone: Path
) -> None:
    """Count them with the backbone's tokenizer alone, where nothing is to be embedded.

    :param update: the change of the store, or the slice.
    :param texts_file: the project's ``texts.parquet``.
    :param first_rows: the row of the corpus in which each distinct text stands first: int64.
    :param backbone: the folder of the backbone.
    """
    text_recipe = TextRecipe.from_contents(update.recipe.contents)
    is_whole = text_recipe.long_texts == "windows"
    tokenizer = load_tokenizer(
        backbone, text_recipe.max_tokens, text_recipe.prompt, is_whole=is_whole
    )
    count_uncounted(
        update,
        TextReader(texts_file),
        first_rows,
        lambda texts: find_distinct(tokenizer.tokenize(texts)).whole_lengths,
    )
