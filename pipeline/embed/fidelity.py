"""Whether the vectors are those of the backbone: a sample embedded again, by the plainest way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pipeline.embed.backbone import Backbone
    from pipeline.embed.tokens import Tokens
    from pipeline.store import Rows

# Texts in the sample: one in 64, so that a small run does not spend its time on this, but within
# these bounds.
_FEWEST, _MOST = 8, 16
_LONG = 128  # tokens
# The lowest cosine to float32 that rounding explains: bfloat16 has 8 bits of mantissa, float16 11.
_TOLERANCE = {"float32": 0.999999, "float16": 0.9999, "bfloat16": 0.99}


@dataclass(frozen=True)
class Fidelity:
    """How far stored vectors are from Hugging Face's in float32, over a sample and every layer.

    :param texts: in the sample.
    :param lowest_cosine: of a stored vector to the reference.
    :param largest_error: of one number of a vector, absolute.
    """

    texts: int
    lowest_cosine: float
    largest_error: float

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure_fidelity(
    reference: Backbone, tokens: Tokens, rows: Rows, layers: tuple[int, ...]
) -> Fidelity:
    """Embed a sample one text at a time, without padding, and compare.

    :param reference: the backbone in float32.
    :param tokens: of B texts.
    :param rows: what is about to be stored for them.
    :param layers: numbers of the layers in ``rows``.
    """
    import torch

    size = min(max(len(rows.vectors) // 64, _FEWEST), _MOST)
    sample = np.unique(np.linspace(0, len(rows.vectors) - 1, size).astype(np.int64))
    lowest, largest = 1.0, 0.0
    threads = torch.get_num_threads()
    for text in sample.tolist():
        ids = tokens.ids[tokens.offsets[text] : tokens.offsets[text + 1]].astype(np.int64)
        # On a short text more threads gain little, and much is lost on a busy machine.
        torch.set_num_threads(threads if len(ids) >= _LONG else 1)
        batch = torch.from_numpy(ids[None]).to(reference.device)
        states = reference.compute_states(batch, torch.ones_like(batch, dtype=torch.bool))
        expected = np.stack([states[n][0].mean(dim=0).cpu().numpy() for n in layers])
        found = rows.vectors[text].astype(np.float32)
        lowest = min(lowest, float(_cosine(found, expected).min()))
        largest = max(largest, float(np.abs(found - expected).max()))
    torch.set_num_threads(threads)
    return Fidelity(len(sample), lowest, largest)


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=-1) * np.linalg.norm(b64, axis=-1)
    cosine: npt.NDArray[np.float64] = (a64 * b64).sum(axis=-1) / norms
    return cosine


def check_fidelity(fidelity: Fidelity, precision: str) -> None:
    """:raises StoreError: if the vectors are further off than the precision explains."""
    if not fidelity.lowest_cosine >= _TOLERANCE[precision]:
        raise StoreError(
            f"vectors computed in {precision} are not those of the backbone: the lowest cosine to "
            f"Hugging Face in float32 is {fidelity.lowest_cosine:.6f} over {fidelity.texts} texts; "
            "nothing was written",
            hint="set embed.precision to float32",
        )
