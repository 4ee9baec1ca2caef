"""The frozen backbone: its forward pass through Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.architecture import Architecture
from pipeline.errors import AssetError
from pipeline.files import parse_json, read_bounded
from pipeline.recipe import Precision

if TYPE_CHECKING:
    import torch

    from pipeline.embed.pooling import Pooling

# The values that a model may have beyond those of its weights: a pooler, tables of positions.
_SPARE_VALUES = 20_000_000


class Encoder(Protocol):
    """A forward pass from tokens to pooled vectors.

    :ivar architecture: facts that the backbone's folder states.
    :ivar width: numbers D of a text's vector in one layer: those of a token's, or, where several
        poolings are joined, a multiple.
    :ivar device: device that it runs on.
    :ivar is_packed: whether it takes texts of any lengths together without padding them.
    """

    architecture: Architecture
    width: int
    device: torch.device
    is_packed: bool

    def encode(
        self,
        ids: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int64],
        layers: tuple[int, ...],
        spans: npt.NDArray[np.int64] | None = None,
    ) -> torch.Tensor:
        """Pooled outputs of some layers.

        :param ids: token ids of B texts, one text after another: [T].
        :param lengths: tokens of each text, at least 1: [B].
        :param layers: numbers of L layers, ascending.
        :param spans: bounds of the tokens of each text whose mean is wanted, [B, 2], where texts
            are windows; ``None`` for the pooling of all.
        :returns: float32, [B, L, D], on the device.
        """


class Backbone:
    """A frozen encoder in eval mode, by Hugging Face, which pads the texts of a batch.

    Attention is torch's scaled-dot-product attention where transformers has it for the
    architecture, as for BERT; other architectures, such as MPNet, compute their own. What the
    backbone's configuration says of attention, of number types or of code is not followed.

    :param folder: a Hugging Face folder: ``config.json``, ``model.safetensors``.
    :param device: device to run on.
    :param precision: the type of the weights and activations.
    :param pooling: a key of ``POOLINGS``, or several, whose vectors are joined.
    :ivar model: transformers' model.
    :ivar pooling: way to make a text's vector of its tokens'.
    :raises AssetError: if the weights cannot be loaded, or lack a tensor that the model needs.
    :raises SettingsError: if no pooling has that name.
    """

    is_packed = False

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        precision: Precision,
        pooling: str | Sequence[str] = "mean",
    ) -> None:
        import torch

        from pipeline.embed.pooling import find_pooling

        self.architecture = Architecture.read(folder)
        self.device = device
        self.pooling: Pooling = find_pooling(pooling)
        self.width = self.architecture.width * self.pooling.parts
        self.model = _load_model(folder).to(device, getattr(torch, precision))

    def encode(
        self,
        ids: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int64],
        layers: tuple[int, ...],
        spans: npt.NDArray[np.int64] | None = None,
    ) -> torch.Tensor:
        """Pooled outputs of some layers, as ``Encoder`` has it."""
        import torch

        padded, real = pad_texts(ids, lengths, self.architecture.pad_id)
        mask = torch.from_numpy(real).to(self.device)
        states = self.compute_states(torch.from_numpy(padded).to(self.device), mask)
        if spans is not None:
            place = np.arange(real.shape[1])
            real = (place >= spans[:, :1]) & (place < spans[:, 1:])
            mask = torch.from_numpy(real).to(self.device)
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
            return compute_layers(self.model, ids, mask.long())


def compute_layers(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """The token vectors of every layer of transformers' model.

    :param model: the model.
    :param ids: token ids of padded texts: int64, [B, T].
    :param mask: 1 on real tokens: int64, [B, T].
    :returns: one tensor for each layer, from layer 0: [B, T, D].
    """
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, return_dict=True)
    # Some architectures end in a norm that `last_hidden_state` has and `hidden_states` has not.
    return [*output.hidden_states[:-1], output.last_hidden_state]


def describe_padded(architecture: Architecture) -> str:
    """The kind of forward pass of a backbone that is of no packed family, for the log.

    :param architecture: facts that the backbone's folder states.
    """
    return f"Hugging Face's forward pass for {architecture.model_type}, padded"


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
    import torch
    import transformers

    # Untyped in transformers itself.
    # Both are untyped in transformers itself.
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = _read_config(folder)
        attention = _choose_attention(folder, config)
        model, loading = transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except AssetError:
        raise
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


def _read_config(folder: Path) -> Any:
    """Transformers' configuration of a backbone, without what would change how it is computed."""
    import transformers

    about = parse_json(read_bounded(folder / "config.json"))
    for key, what in (
        ("auto_map", "needs code of its own, which is never run"),
        ("quantization_config", "has quantized weights, which are not supported"),
    ):
        known = key == "auto_map" and about.get("model_type") in transformers.CONFIG_MAPPING
        if about.get(key) and not known:
            raise AssetError(
                f"{folder}: the backbone {what} ({key} in config.json)",
                hint="choose another backbone in fetch.backbones",
            )
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    config.output_attentions = False
    return config


def _choose_attention(folder: Path, config: Any) -> str:
    """The attention that a backbone is computed with, found on a model without memory.

    The backbone's configuration may name another one, which may not be installed here, or may even
    be code from the hub.

    :raises AssetError: if the configuration describes a model that is larger than its weights.
    """
    import torch
    import transformers

    make_model: Any = transformers.AutoModel.from_config  # untyped
    with torch.device("meta"):
        empty = make_model(config, attn_implementation="eager", trust_remote_code=False)
    described = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    stored_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if described > stored_bytes + _SPARE_VALUES:  # no value is smaller than a byte
        raise AssetError(
            f"{folder}: config.json describes a model of {described:,} values, but its weights "
            f"have {stored_bytes:,} bytes",
            hint="run `pipeline fetch --refresh`, or choose another backbone in fetch.backbones",
        )
    return "sdpa" if type(empty)._supports_sdpa else "eager"
