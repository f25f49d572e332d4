"""What one of several processes does of a run: which samples of which sub-batches.

Nothing drops and nothing repeats: sample n of the run is item n, whoever loads it, so a run can go on in another number
of processes. Where the sub-batches of a solver step can be dealt out evenly each process takes whole ones: then batch
statistics and losses are its own, and processes meet once a step, to sum gradients. Otherwise every sub-batch is cut
into shares, and its statistics and its loss are summed over the processes. Both are what one process computes, but for
rounding; a convolution of fewer images may round differently, and flip a switch of the encoder where pixels tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import distributed
from ..errors import InputError
from .recipe import Recipe


@dataclass(frozen=True)
class Share:
    """The part of process `rank` of `size` in a run of `recipe`."""

    recipe: Recipe
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not self.whole and self.recipe.batch < self.size:
            raise InputError(
                f"processes: wanted at most {self.recipe.batch}, the recipe's batch, or a number that divides its "
                f"accumulate {self.recipe.accumulate}{' (not with batch_norm)' if self.recipe.batch_norm else ''}, "
                f"got {self.size}"
            )

    @classmethod
    def own(cls, recipe: Recipe) -> Share:
        """This process's."""
        return cls(recipe, distributed.rank(), distributed.size())

    @property
    def whole(self) -> bool:
        """Whether it takes whole sub-batches. Stage 1's running statistics depend on their order: not with those."""
        return self.size == 1 or (self.recipe.accumulate % self.size == 0 and not self.recipe.batch_norm)

    @property
    def sub_batches(self) -> range:
        """Which of a step's sub-batches it works on."""
        return range(self.rank, self.recipe.accumulate, self.size) if self.whole else range(self.recipe.accumulate)

    def samples(self, start: int) -> Iterator[range]:
        """Of solver step `start` and all that follow: its samples of each of its sub-batches."""
        recipe = self.recipe
        low, high = (0, recipe.batch) if self.whole else (self._cut(self.rank), self._cut(self.rank + 1))
        for step in range(start, recipe.iterations):
            for number in self.sub_batches:
                first = (step * recipe.accumulate + number) * recipe.batch
                yield range(first + low, first + high)

    def _cut(self, rank: int) -> int:
        return rank * self.recipe.batch // self.size

    def seed(self, iteration: int) -> int:
        """Of what a process draws in a solver step (dropout): its own, and the same after a resume."""
        words = np.random.SeedSequence([self.recipe.seed, iteration, self.rank]).generate_state(1, np.uint64)
        return int(words[0]) >> 1
