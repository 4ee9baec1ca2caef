"""Whether the vectors are those of the backbone: a sample embedded again, by the plainest way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.embed.tokens import Tokens, select_tokens
from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pipeline.embed.backbone import Backbone
    from pipeline.embed.windows import WindowCutter
    from pipeline.store import Rows

# The sample is one text in 64, so that a small run does not spend its time on the gauge, but no
# fewer and no more texts than these.
_FEWEST_TEXTS, _MOST_TEXTS = 8, 16
_LONG_TEXT_TOKENS = 128
# The lowest cosine to the vector in float32 that rounding explains: bfloat16 has 8 bits of mantissa
# and float16 has 11.
_LOWEST_COSINE = {"float32": 0.999999, "float16": 0.9999, "bfloat16": 0.99}


@dataclass(frozen=True)
class Fidelity:
    """How far stored vectors are from Hugging Face's in float32, over a sample and every layer.

    :param texts: number of texts in the sample.
    :param lowest_cosine: cosine of the stored vector that is furthest off to its reference.
    :param largest_error: largest absolute difference between two numbers of such vectors.
    """

    texts: int
    lowest_cosine: float
    largest_error: float

    def to_record(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def measure_fidelity(
    reference: Backbone,
    tokens: Tokens,
    rows: Rows,
    layers: tuple[int, ...],
    *,
    normalize: bool = False,
    cutter: WindowCutter | None = None,
) -> Fidelity:
    """Embed a sample one text at a time, without padding, and compare.

    The reference is pooled by its pooling's definition on a single text, so that a fault in padded
    or packed pooling shows too.

    :param reference: the backbone in float32.
    :param tokens: token ids of B texts.
    :param rows: rows that are about to be stored for these texts.
    :param layers: numbers of the layers in ``rows``.
    :param normalize: whether vectors are scaled to length 1.
    :param cutter: what cuts long texts into windows; ``None`` if they are not.
    """
    import torch

    size = min(max(len(rows.vectors) // 64, _FEWEST_TEXTS), _MOST_TEXTS)
    sample = np.unique(np.linspace(0, len(rows.vectors) - 1, size).astype(np.int64))
    lowest, largest = 1.0, 0.0
    threads = torch.get_num_threads()
    for text in sample.tolist():
        one = select_tokens(tokens, np.array([text]))
        # Several threads gain little on a short text, and on a busy machine they lose much, since
        # each product waits for the slowest of them.
        torch.set_num_threads(threads if len(one.ids) >= _LONG_TEXT_TOKENS else 1)
        expected = _embed_plainly(reference, cutter.cut(one) if cutter else one, layers)
        if normalize:
            expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        stored = rows.vectors[text].astype(np.float32)
        lowest = min(lowest, float(_compute_cosine(stored, expected).min()))
        largest = max(largest, float(np.abs(stored - expected).max()))
    torch.set_num_threads(threads)
    return Fidelity(len(sample), lowest, largest)


def _embed_plainly(
    reference: Backbone, windows: Tokens, layers: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """The pooled vectors of one text in some layers, by the definition: [L, D].

    :param windows: token ids of the text, or of its windows.
    """
    import torch

    total, joined = 0, np.zeros(0, np.float32)
    for number in range(len(windows)):
        ids = windows.ids[windows.offsets[number] : windows.offsets[number + 1]].astype(np.int64)
        batch = torch.from_numpy(ids[None]).to(reference.device)
        states = reference.compute_states(batch, torch.ones_like(batch, dtype=torch.bool))
        low, high = windows.windows.spans[number] if windows.windows else (0, len(ids))
        pool = reference.pooling.pool_text
        pooled = np.stack([pool(states[layer][0, low:high]).cpu().numpy() for layer in layers])
        # The mean over all tokens is that of the windows' means, weighted by what counts of them.
        total += int(high - low)
        joined = pooled if not number else joined + (pooled - joined) * (int(high - low) / total)
    return joined


def _compute_cosine(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=-1) * np.linalg.norm(b64, axis=-1)
    cosine: npt.NDArray[np.float64] = (a64 * b64).sum(axis=-1) / norms
    return cosine


def check_fidelity(fidelity: Fidelity, precision: str) -> None:
    """Refuse vectors that are further off than rounding explains.

    :param fidelity: distance of the vectors from the reference.
    :param precision: the precision that they were computed in.
    :raises StoreError: if they are further off than that precision explains.
    """
    if not fidelity.lowest_cosine >= _LOWEST_COSINE[precision]:
        raise StoreError(
            f"vectors computed in {precision} are not those of the backbone: the lowest cosine to "
            f"Hugging Face in float32 is {fidelity.lowest_cosine:.6f} over {fidelity.texts} texts; "
            "nothing was written",
            hint="set embed.precision to float32",
        )
