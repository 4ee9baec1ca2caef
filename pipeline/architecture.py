"""What a backbone's folder says of it, without a library that could run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import AssetError, SettingsError
from pipeline.files import parse_json, read_bounded

# Model types that number the positions of a text from the padding token's id + 1, so that as many
# entries of their position embeddings are never used.
_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "xlm-roberta-xl",
    "data2vec-text",
}
# The id of the padding token that these have where the configuration does not say.
_OFFSET_PADDING_ID = 1
# What no text encoder exceeds: a larger number is a mistake or an attack, which would have this
# machine ask for memory that it has not, or build layers for hours.
_MOST_LAYERS = 1_000
_MOST_WIDTH = 100_000
_MOST_POSITIONS = 10_000_000
_MOST_TOKENS = 10_000_000


@dataclass(frozen=True)
class Architecture:
    """What ``config.json`` says of a backbone.

    :param model_type: the kind of encoder, as transformers names it.
    :param layers: number of transformer layers; layer 0 is the output of the embedding layer.
    :param width: numbers D in one token's vector, the same in every layer.
    :param max_tokens: the longest text that it has positions for, special tokens counted in.
    :param pad_id: id of the token that fills up a padded batch.
    :param vocabulary: number of token ids that it has vectors for; ``None`` if it does not say.
    """

    model_type: str
    layers: int
    width: int
    max_tokens: int
    pad_id: int
    vocabulary: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Architecture:
        """Read ``config.json`` without importing transformers.

        :param folder: the backbone's folder.
        :raises AssetError: if the file is missing, or not that of a text encoder.
        """
        path = folder / "config.json"
        try:
            config = parse_json(read_bounded(path))
            model_type = config["model_type"]
            if not isinstance(model_type, str):
                raise TypeError(f"model_type must be text, not {model_type!r:.60}")
            layers = _read_size(config, _MOST_LAYERS, "num_hidden_layers", "n_layers", "num_layers")
            width = _read_size(config, _MOST_WIDTH, "hidden_size", "dim", "d_model")
            positions = _read_size(
                config, _MOST_POSITIONS, "max_position_embeddings", "n_positions"
            )
            vocabulary = None
            if config.get("vocab_size") is not None:
                vocabulary = _read_size(config, _MOST_TOKENS, "vocab_size")
            is_offset = model_type in _OFFSET_POSITIONS
            pad_id = _read_pad_id(config, vocabulary, _OFFSET_PADDING_ID if is_offset else 0)
            if is_offset:
                positions -= pad_id + 1
            if positions < 1:
                raise ValueError("it has no position for any token")
        except FileNotFoundError as error:
            raise AssetError(f"{path}: no such file", hint="run `pipeline fetch` again") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AssetError(
                f"{path}: not the configuration of a text encoder ({error})",
                hint="choose another backbone in fetch.backbones",
            ) from error
        return cls(model_type, layers, width, positions, pad_id, vocabulary)

    def check_vocabulary(self, highest_id: int, folder: Path) -> None:
        """Make sure that the backbone has a vector for every token that its tokenizer makes.

        :param highest_id: the highest token id that the tokenizer knows.
        :param folder: the backbone's folder, for the message.
        :raises AssetError: if it has not.
        """
        if self.vocabulary is not None and highest_id >= self.vocabulary:
            raise AssetError(
                f"{folder}: tokenizer.json has token ids up to {highest_id:,}, but config.json a "
                f"vocabulary of {self.vocabulary:,}",
                hint="the two are of different models; choose another backbone in fetch.backbones",
            )

    def check_max_tokens(self, max_tokens: int) -> None:
        """Make sure that the backbone has positions for texts of some length.

        :param max_tokens: tokens of the longest text, special tokens counted in.
        :raises SettingsError: if it has not.
        """
        if max_tokens > self.max_tokens:
            raise SettingsError(
                f"embed.max_tokens: must be <= {self.max_tokens} for this backbone, "
                f"got {max_tokens}"
            )


def _read_size(config: dict[str, Any], most: int, *names: str) -> int:
    """The first of some keys that a configuration has: a whole number from 1 to ``most``."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int:  # nor a bool, which is an int to Python
            raise TypeError(f"{name} must be a whole number, not {value!r:.60}")
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most:,}, not {value!r:.60}")
        return value
    raise KeyError(" or ".join(names))


def _read_pad_id(config: dict[str, Any], vocabulary: int | None, default: int) -> int:
    pad_id = config.get("pad_token_id")
    if pad_id is None:
        return default
    if type(pad_id) is not int:
        raise TypeError(f"pad_token_id must be a whole number, not {pad_id!r:.60}")
    if not 0 <= pad_id < (vocabulary or _MOST_TOKENS):
        raise ValueError(f"pad_token_id is {pad_id!r:.60}, which no token of the vocabulary has")
    return pad_id
