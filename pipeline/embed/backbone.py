"""The frozen backbone: what its folder says, and its forward pass through Hugging Face."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.assets import Asset
from pipeline.errors import AssetError, SettingsError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "float16", "bfloat16"]

# These count positions from the padding token's id + 1.
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

    :param layers: number of transformer layers; layer 0 is the output of the embedding layer.
    :param width: D, of each layer's output.
    :param max_tokens: the longest text that it has positions for.
    :param pad_id: the token that fills up a batch.
    """

    model_type: str
    layers: int
    width: int
    max_tokens: int
    pad_id: int

    @classmethod
    def read(cls, folder: Path) -> Architecture:
        """Read ``config.json`` without importing transformers.

        :raises AssetError: if it is missing, or not that of a text encoder.
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
        """:raises SettingsError: if the backbone has no positions for texts of that length."""
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


class Encoder(Protocol):
    """A forward pass from tokens to pooled vectors.

    :ivar is_packed: whether it takes texts of any lengths together without padding them.
    """

    architecture: Architecture
    device: torch.device
    is_packed: bool

    def describe(self) -> str:
        """For the log."""

    def encode(
        self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], layers: tuple[int, ...]
    ) -> torch.Tensor:
        """Mean-pooled outputs of some layers.

        :param ids: [T]: tokens of B texts, one after another.
        :param lengths: [B]: tokens of each text, at least 1.
        :param layers: numbers of L layers, ascending.
        :returns: float32, [B, L, D], on the device.
        """


class Backbone:
    """A frozen encoder in eval mode, by Hugging Face, which pads the texts of a batch.

    Attention is torch's scaled-dot-product attention where the architecture has it in transformers,
    as BERT does; others, as MPNet, take their own.

    :param asset: the fetched backbone.
    :param folder: where its files are.
    :param device: where it runs.
    :param precision: of the weights and activations.
    :raises AssetError: if the weights cannot be loaded, or lack a tensor that the model needs.
    """

    is_packed = False

    def __init__(
        self, asset: Asset, folder: Path, device: torch.device, precision: Precision
    ) -> None:
        import torch

        self.architecture = Architecture.read(folder)
        self.device = device
        self.model = _load_model(asset.id, folder).to(device, getattr(torch, precision))

    def describe(self) -> str:
        """For the log."""
        return f"Hugging Face's forward pass for {self.architecture.model_type}, padded"

    def encode(
        self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], layers: tuple[int, ...]
    ) -> torch.Tensor:
        """Mean-pooled outputs of some layers, as ``Encoder`` has it."""
        import torch

        from pipeline.embed.pooling import mean_pool

        padded, real = pad_texts(ids, lengths, self.architecture.pad_id)
        mask = torch.from_numpy(real).to(self.device)
        states = self.compute_states(torch.from_numpy(padded).to(self.device), mask)
        return torch.stack([mean_pool(states[number], mask) for number in layers], dim=1)

    def compute_states(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Every layer's output: [B, T, D] each.

        :param ids: int64, [B, T].
        :param mask: bool, [B, T], true on real tokens.
        """
        import torch

        with torch.inference_mode():
            output = self.model(
                input_ids=ids, attention_mask=mask.long(), output_hidden_states=True
            )
        # Some architectures apply a last norm that only last_hidden_state has.
        return [*output.hidden_states[:-1], output.last_hidden_state]


def pad_texts(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """A rectangle of token ids.

    :param ids: [T]: tokens of B texts, one after another.
    :param lengths: [B].
    :returns: ids, int64, [B, max(lengths)], padded on the right with ``pad_id``; mask, bool, of the
        same shape, true on real tokens.
    """
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, np.int64)
    padded[mask] = ids
    return padded, mask


def _load_model(name: str, folder: Path) -> Any:
    # The hub was asked in the stage `fetch`; nothing may ask it now.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    # Untyped in transformers itself.
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, loading = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for a folder it cannot load
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AssetError(
            f"backbone {name}: {folder} cannot be loaded: {reason}",
            hint="run `pipeline fetch --refresh`, or choose another backbone in params.yaml",
        ) from error
    # transformers fills what is missing with random numbers; only the unused pooler may be.
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise AssetError(
            f"backbone {name}: the weights lack {len(missing)} tensors, the first is {missing[0]}",
            hint="fetch it again, or choose another backbone in fetch.backbones",
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.eval().requires_grad_(False)
