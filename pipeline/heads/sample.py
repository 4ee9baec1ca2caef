"""A sample of very many rows, on which the weight decay is searched before heads train on all.

The best weight decay of a mean loss falls with the number of rows, but no faster than their number
grows: the mean over twice the rows has half the variance, while what a linear head cannot learn
stays. So heads of all rows are fitted, and judged, under the decay that was best for the sample,
under that decay times the share of the rows that the sample holds, and between both.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from pipeline.heads.choosing import Score
from pipeline.heads.features import Features, MemoryFeatures
from pipeline.heads.path import TOLERANCE, Found, PathSearch
from pipeline.heads.targets import Targets

# Rows of the training part that are sampled, if that many are less than half of them, and of those
# that configurations are judged by. The features of a sample take at most so many numbers: 1 GB.
_TRAIN_ROWS = 40_000
_JUDGED_ROWS = 20_000
_MAX_NUMBERS = 240_000_000
# Steps of half the logarithm of the sample's share, in which decays of all rows follow.
_FEWEST_STEPS, _MOST_STEPS = 3, 6


@dataclass(frozen=True)
class Sample:
    """Some of the rows, to search on, and one split of all rows, to judge what was found.

    :param targets: the labels of the sample, with one fit.
    :param rows: the numbers of its rows among all, int64, training rows first.
    :param split: all rows, with one fit.
    """

    targets: Targets
    rows: torch.Tensor
    split: Targets
    _held: dict[int, tuple[Features, MemoryFeatures]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of the training rows that the sample holds."""
        return self.targets.train_rows / self.split.train_rows

    def take(self, features: Features) -> MemoryFeatures:
        """The sample's features; those that were taken last are at hand.

        :param features: the features of all rows.
        """
        if id(features) not in self._held:
            self._held.clear()
            taken = features.take(self.rows, self.targets.train_rows)
            self._held[id(features)] = features, taken
        return self._held[id(features)][1]

    def close(self) -> None:
        """Let go of the features that were taken last."""
        self._held.clear()

    def judge(self, search: PathSearch, found: Found, features: Features) -> Found:
        """Fit what was found on the sample on all rows, under decays that more rows may call for.

        They are the decay of the sample, that times its share of the rows, and one between; and
        weaker ones as long as the last is better by more than what heads are fitted to.

        :param search: the search of the task on one split of all rows.
        :param found: what was found on the sample.
        :param features: the features, of all rows, of the family that won.
        """
        best, rows = found.best.step, len(self.split.judged)
        steps, scores, is_open = [best], list[Score](), True
        while len(scores) < _FEWEST_STEPS or (is_open and len(scores) < _MOST_STEPS):
            decay = best.decay * self.share ** (len(scores) / 2)
            steps += search.refit([replace(best, decay=decay)], features, steps[-1])
            scores.append(search.judge(steps[-1], self.split))
            is_open = search.is_news(scores[-1], scores[:-1], rows, TOLERANCE)
        judged = search.finish(steps[1:])
        # A plateau that reaches down to the weakest decay is no bound of the path.
        return replace(judged, folded=False, bound="weakest" if is_open else found.bound)


def is_sampled(train_rows: int, width: int) -> bool:
    """Whether a search is on a sample, since so many rows are for training.

    :param train_rows: the number of training rows.
    :param width: the number of features.
    """
    wanted = min(_TRAIN_ROWS, 2 * (_MAX_NUMBERS // width) // 3)
    return train_rows >= 2 * wanted and wanted >= width


def are_enough(validation_rows: int) -> bool:
    """Whether validation rows alone can judge what was found on a sample, so that no fold need do.

    :param validation_rows: their number.
    """
    return validation_rows >= _JUDGED_ROWS


def draw_sample(targets: Targets, width: int, seed: int) -> Sample | None:
    """Draw a sample; ``None`` if rows are so few that all of them are searched on.

    :param targets: labels and masks of all rows.
    :param width: the number of features.
    :param seed: the seed of the draw.
    """
    if not is_sampled(targets.train_rows, width):
        return None
    most = _MAX_NUMBERS // width
    wanted, to_judge = min(_TRAIN_ROWS, 2 * most // 3), min(_JUDGED_ROWS, most // 3)
    split = targets.take_full_fit()
    if targets.fits > 1 and not are_enough(targets.rows - targets.train_rows):
        split = targets.leave_out(0)
    generator = torch.Generator().manual_seed(seed)
    cut = targets.train_rows
    trained = torch.randperm(cut, generator=generator)[:wanted]
    judged = cut + torch.randperm(targets.rows - cut, generator=generator)[:to_judge]
    rows = torch.cat([trained.sort().values, judged.sort().values])
    at = rows.to(split.masks.device)
    labels = {name: values[at] for name, values in split.labels.items()}
    return Sample(Targets(labels, split.masks[at], wanted), rows, split)
