"""A loss of one's own: one file, this one, and one entry in the table of losses.

    python -m tests.integration.poly_loss train-heads

is ``pipeline train-heads`` with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pipeline.losses import LOSSES, ClassLoss


@dataclass(frozen=True)
class Poly(ClassLoss):
    """-log p + ε (1 - p).

    Source: Leng et al. (2022), PolyLoss, equation 5.

    :param poly_epsilon: ε, 0 or more.
    """

    task_types = ("binary", "multiclass")
    curvature = 2.0

    poly_epsilon: Annotated[
        float, Field(ge=0, strict=True, description="The weight ε of PolyLoss's first term.")
    ] = 1.0

    def compute(self, cross_entropy, find_wrong):  # type: ignore[no-untyped-def]
        return cross_entropy + self.poly_epsilon * find_wrong()


LOSSES["poly"] = Poly

if __name__ == "__main__":
    from pipeline.cli import main

    main()
