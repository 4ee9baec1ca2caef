"""The frozen backbone: what its folder says, and its forward pass through Hugging Face."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import AssetError, SettingsError

if TYPE_CHECKING:
    import torch

    from pipeline.embed.pooling import Pooling

Precision = Literal["float32", "float16", "bfloat16"]

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


class Encoder(Protocol):
    """A forward pass from tokens to pooled vectors.

    :ivar architecture: facts that the backbone's folder states.
    :ivar device: device that it runs on.
    :ivar is_packed: whether it takes texts of any lengths together without padding them.
    """

    architecture: Architecture
    device: torch.device
    is_packed: bool

    def describe(self) -> str:
        """The kind of forward pass, for the log."""

    def encode(
        self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], layers: tuple[int, ...]
    ) -> torch.Tensor:
        """Pooled outputs of some layers.

        :param ids: token ids of B texts, one text after another: [T].
        :param lengths: tokens of each text, at least 1: [B].
        :param layers: numbers of L layers, ascending.
        :returns: float32, [B, L, D], on the device.
        """


class Backbone:
    """A frozen encoder in eval mode, by Hugging Face, which pads the texts of a batch.

    Attention is torch's scaled-dot-product attention where transformers has it for the
    architecture, as for BERT; other architectures, such as MPNet, compute their own.

    :param folder: a Hugging Face folder: ``config.json``, ``model.safetensors``.
    :param device: device to run on.
    :param precision: the type of the weights and activations.
    :param pooling: a key of ``POOLINGS``.
    :ivar model: transformers' model.
    :ivar pooling: way to make a text's vector of its tokens'.
    :raises AssetError: if the weights cannot be loaded, or lack a tensor that the model needs.
    :raises SettingsError: if no pooling has that name.
    """

    is_packed = False

    def __init__(
        self, folder: Path, device: torch.device, precision: Precision, pooling: str = "mean"
    ) -> None:
        import torch

        from pipeline.embed.pooling import find_pooling

        self.architecture = Architecture.read(folder)
        self.device = device
        self.pooling: Pooling = find_pooling(pooling)
        self.model = _load_model(folder).to(device, getattr(torch, precision))

    def describe(self) -> str:
        """The kind of forward pass, for the log."""
        return f"Hugging Face's forward pass for {self.architecture.model_type}, padded"

    def encode(
        self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], layers: tuple[int, ...]
    ) -> torch.Tensor:
        """Pooled outputs of some layers, as ``Encoder`` has it."""
        import torch

        padded, real = pad_texts(ids, lengths, self.architecture.pad_id)
        mask = torch.from_numpy(real).to(self.device)
        states = self.compute_states(torch.from_numpy(padded).to(self.device), mask)
        return torch.stack(
            [self.pooling.pool_padded(states[number], mask) for number in layers], dim=1
        )

    def compute_states(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """The token vectors of every layer.

        :param ids: token ids of padded texts: int64, [B, T].
        :param mask: true on real tokens: bool, [B, T].
        :returns: one tensor for each layer, from layer 0: [B, T, D].
        """
        import torch

        with torch.inference_mode():
            output = self.model(
                input_ids=ids, attention_mask=mask.long(), output_hidden_states=True
            )
        # Some architectures end in a norm that `last_hidden_state` has and `hidden_states` has not.
        return [*output.hidden_states[:-1], output.last_hidden_state]


def pad_texts(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Token ids as a rectangle, each text padded on the right to the longest.

    :param ids: token ids of B texts, one text after another: [T].
    :param lengths: tokens of each text: [B].
    :param pad_id: id of the padding token.
    :returns: ids, int64, [B, max(lengths)]; and a mask, bool, of the same shape, true on real
        tokens.
    """
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, np.int64)
    padded[mask] = ids
    return padded, mask


def _load_model(folder: Path) -> Any:
    # Only the stage `fetch` asks the hub; from then on everything is read from the folder.
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
            f"{folder}: the backbone's weights cannot be loaded: {reason}",
            hint="run `pipeline fetch --refresh`, or choose another backbone in fetch.backbones",
        ) from error
    # transformers fills a tensor that is missing with random numbers. Only the pooler, whose output
    # is not used, may be missing.
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise AssetError(
            f"{folder}: the weights lack {len(missing)} tensors, the first is {missing[0]}",
            hint="fetch it again, or choose another backbone in fetch.backbones",
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.eval().requires_grad_(False)
