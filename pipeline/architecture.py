"""What a backbone's folder says of it, without a library that could run it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import AssetError, SettingsError

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


@dataclass(frozen=True)
class Architecture:
    """What ``config.json`` says of a backbone.

    :param model_type: the kind of encoder, as transformers names it.
    :param layers: number of transformer layers; layer 0 is the output of the embedding layer.
    :param width: numbers D in one token's vector, the same in every layer.
    :param max_tokens: the longest text that it has positions for, special tokens counted in.
    :param pad_id: id of the token that fills up a padded batch.
    """

    model_type: str
    layers: int
    width: int
    max_tokens: int
    pad_id: int

    @classmethod
    def read(cls, folder: Path) -> Architecture:
        """Read ``config.json`` without importing transformers.

        :param folder: the backbone's folder.
        :raises AssetError: if the file is missing, or not that of a text encoder.
        """
        path = folder / "config.json"
        try:
            config = json.loads(path.read_bytes())
            model_type = config["model_type"]
            layers = _first(config, "num_hidden_layers", "n_layers", "num_layers")
            width = _first(config, "hidden_size", "dim", "d_model")
            positions = _first(config, "max_position_embeddings", "n_positions")
            pad_id = config.get("pad_token_id") or 0
        except FileNotFoundError as error:
            raise AssetError(f"{path}: no such file", hint="run `pipeline fetch` again") from error
        except (ValueError, KeyError, TypeError) as error:
            raise AssetError(
                f"{path}: not the configuration of a text encoder ({error})",
                hint="choose another backbone in fetch.backbones",
            ) from error
        if model_type in _OFFSET_POSITIONS:
            positions -= pad_id + 1
        return cls(model_type, layers, width, positions, pad_id)

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


def _first(config: dict[str, Any], *names: str) -> int:
    for name in names:
        if config.get(name) is not None:
            return int(config[name])
    raise KeyError(" or ".join(names))
