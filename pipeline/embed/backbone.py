"""The frozen backbone: what its folder says, and its forward pass through Hugging Face."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
                hint="choose another backbone in params.yaml: fetch.backbones",
            ) from error
        if model_type in _OFFSET_POSITIONS:
            positions -= pad_id + 1
        return cls(model_type, layers, width, positions, pad_id)

    def check_max_tokens(self, max_tokens: int) -> None:
        """:raises SettingsError: if the backbone has no positions for texts of that length."""
        if max_tokens > self.max_tokens:
            raise SettingsError(
                f"params.yaml: embed.max_tokens: must be <= {self.max_tokens} for this backbone, "
                f"got {max_tokens}"
            )


def _first(config: dict[str, Any], *names: str) -> int:
    for name in names:
        if config.get(name) is not None:
            return int(config[name])
    raise KeyError(" or ".join(names))


class Backbone:
    """A frozen encoder in eval mode, by Hugging Face.

    Attention is torch's scaled-dot-product attention where the architecture has it in transformers,
    as BERT does; others, as MPNet, take their own.

    :param asset: the fetched backbone.
    :param folder: where its files are.
    :param device: where it runs.
    :param precision: of the weights and activations.
    :raises AssetError: if the weights cannot be loaded, or lack a tensor that the model needs.
    """

    def __init__(
        self, asset: Asset, folder: Path, device: torch.device, precision: Precision
    ) -> None:
        import torch

        self.architecture = Architecture.read(folder)
        self.device = device
        self.model = _load_model(asset.id, folder).to(device, getattr(torch, precision))

    def encode(
        self, ids: torch.Tensor, mask: torch.Tensor, layers: tuple[int, ...]
    ) -> torch.Tensor:
        """Mean-pooled outputs of some layers.

        :param ids: int64, [B, T], padded.
        :param mask: bool, [B, T], true on real tokens.
        :param layers: numbers of L layers.
        :returns: float32, [B, L, D], on the device.
        """
        import torch

        from pipeline.embed.pooling import mean_pool

        with torch.inference_mode():
            output = self.model(
                input_ids=ids, attention_mask=mask.long(), output_hidden_states=True
            )
            states = output.hidden_states
            # Some architectures apply a last norm that only last_hidden_state has.
            last = len(states) - 1
            chosen = [output.last_hidden_state if n == last else states[n] for n in layers]
            return torch.stack([mean_pool(state, mask) for state in chosen], dim=1)


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
            hint="fetch it again, or choose another backbone in params.yaml: fetch.backbones",
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.eval().requires_grad_(False)
