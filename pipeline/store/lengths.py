"""How many texts of a store were cut at its longest length, and what that cost.

A shard holds just the texts that the hash of its keys says, so what was counted of it stays true as
long as the shard is there, whatever later runs add to the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.console import count
from pipeline.store.manifest import LENGTHS, Manifest

_PERCENTILE = 99
_STEP_TOKENS = 8  # a length that is suggested is a multiple of this


def count_lengths(whole_lengths: npt.NDArray[np.int64], max_tokens: int) -> dict[str, int]:
    """What a manifest says of the lengths of a shard's texts.

    :param whole_lengths: tokens of each text before it was cut, special tokens counted in: [B].
    :param max_tokens: length to which longer texts were cut, special tokens counted in.
    :returns: ``cut``, number of texts that were longer; ``lost``, number of tokens that were cut
        off; ``long``, length that 99 % of the texts do not exceed.
    """
    lost = np.maximum(whole_lengths - max_tokens, 0)
    long = int(np.percentile(whole_lengths, _PERCENTILE, method="higher"))
    return dict(zip(LENGTHS, (int((lost > 0).sum()), int(lost.sum()), long), strict=True))


@dataclass(frozen=True)
class CutTexts:
    """What cutting texts at the longest length has cost a store.

    :param max_tokens: that length, special tokens counted in.
    :param texts: number of texts whose whole length is known.
    :param cut: number of those that were longer.
    :param lost: number of tokens that were cut off.
    :param long: length that at least 99 % of the texts do not exceed.
    :param uncounted: number of texts of shards that an earlier version made, which did not count.
    :param are_windows: whether they were embedded in windows, so that nothing was cut off.
    :param is_mean: whether texts are pooled by mean, so that windows are possible.
    """

    max_tokens: int
    texts: int
    cut: int
    lost: int
    long: int
    uncounted: int
    are_windows: bool = False
    is_mean: bool = True

    @classmethod
    def read(cls, manifest: Manifest) -> CutTexts:
        """Sum up what a manifest says of its shards.

        :param manifest: what the store holds.
        """
        counted = [shard for shard in manifest.shards if shard.lengths is not None]
        lengths: list[Mapping[str, int]] = [s.lengths for s in counted if s.lengths is not None]
        texts = sum(shard.rows for shard in counted)
        return cls(
            max_tokens=int(manifest.recipe.get("max_tokens", 0)),
            texts=texts,
            cut=sum(of_shard["cut"] for of_shard in lengths),
            lost=sum(of_shard["lost"] for of_shard in lengths),
            # Where 99 % of each shard are no longer than this, 99 % of all are not.
            long=max((of_shard["long"] for of_shard in lengths), default=0),
            uncounted=manifest.rows - texts,
            are_windows=manifest.recipe.get("long_texts") == "windows",
            is_mean=manifest.poolings == ("mean",),
        )

    @property
    def are_most(self) -> bool:
        """Whether at least half of the texts were cut."""
        return not self.are_windows and self.cut > 0 and 2 * self.cut >= self.texts

    def describe(self) -> str:
        """One sentence for people."""
        known = count(self.texts, "text")
        limit = f"max_tokens {self.max_tokens:,}"
        if not self.texts:
            return "not known, as an earlier version made the store"
        if not self.cut:
            sentence = f"none of {known} is longer than {limit}"
        elif self.are_windows:
            verb = "is" if self.cut == 1 else "are"
            sentence = (
                f"{self.cut:,} of {known} {verb} longer than {limit} and stand there in windows, "
                "so that nothing is lost"
            )
        else:
            share = 100 * self.lost / (self.lost + self.cut * self.max_tokens)
            lost = f"{share:.0f} %" if share >= 1 else "less than 1 %"
            verb, were, whose = ("is", "was", "its") if self.cut == 1 else ("are", "were", "their")
            sentence = (
                f"{self.cut:,} of {known} {verb} longer than {limit} and {were} cut; {lost} of "
                f"{whose} tokens are lost"
            )
        if self.uncounted:
            sentence += (
                f" (not known of {self.uncounted:,} more, which an earlier version embedded)"
            )
        return sentence

    def suggest(self, most: int) -> str:
        """What to do about texts that were cut.

        :param most: length of the longest text that the backbone takes.
        """
        wanted = min(-(-self.long // _STEP_TOKENS) * _STEP_TOKENS, most)
        if wanted <= self.max_tokens:
            whole = (
                "`embed.long_texts: windows` keeps" if self.is_mean else "divide the texts to keep"
            )
            return f"the backbone takes no more than {most:,}; {whole} what is cut"
        kept = f"would keep {_PERCENTILE} % of them whole"
        if wanted < self.long:
            kept = "is the most that this backbone takes"
        return f"`embed.max_tokens: {wanted}` {kept}; embedding takes longer then"
