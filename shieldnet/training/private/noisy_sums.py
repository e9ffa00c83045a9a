"""Private updates: the noisy sum of clipped gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from shieldnet.core.errors import DataError, TrainingFailed
from shieldnet.core.randomness import bernoulli, noise_about
from shieldnet.training.checkpoint import State
from shieldnet.training.distributed import Ranks
from shieldnet.training.ids import FIX, ids_beyond, is_beyond
from shieldnet.training.private.canaries import canary_sum, log_likelihood_ratio
from shieldnet.training.private.clipping import Clip
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.gradient_parts import sum_error
from shieldnet.training.private.gradients import RecordGradients
from shieldnet.training.private.lattice import Lattice
from shieldnet.training.private.sampling import checked_draws
from shieldnet.training.records import Records
from shieldnet.training.updates import Updates

_MAX_BYTES = 2**28  # of gradients in memory at once
_MAX_ROWS = 256


@dataclass
class DpSgd(Updates):
    """Draws records at random, clips and sums their gradients, and adds noise on a grid.

    noise: standard deviation, as a multiple of the most that one record moves a sum. rate:
    probability that a record is drawn.
    """

    model: nn.Module
    gradients: RecordGradients
    records: Records
    settings: DPSGD
    noise: float
    rate: float
    ranks: Ranks
    keeps_buffers: ClassVar[bool] = False  # changes by forward passes have no noise

    def start(self, state: State) -> None:
        """Draws which canaries are in and sets the first clip norm, once per run."""
        state.clip = state.clip or self.clip.start
        count = self.settings.canaries if self.ranks.is_first else 0
        if len(state.coins) != count:
            with noise_about("coins"):
                state.coins = bernoulli(count, 0.5)
            state.scores = torch.zeros(count, dtype=torch.float64)

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Builds the tables that noise is drawn by, on the process that draws it."""
        if self.ranks.is_first:
            self.lattice.prepare(tell)

    def __call__(self, step: int, state: State) -> Sequence[Tensor]:
        """Returns the noisy sum of a step's clipped gradients, divided by the batch size."""
        rows = self.ranks.broadcast(self._drawn(len(self.records))).nonzero()[:, 0]
        self.gradients.clip = state.clip
        totals, within = self._clipped_sums(rows)
        counted = self.clip.counted(within, len(rows), self.noise, self.size)
        scale = self.clip.scale(state.clip, self.noise, self.size)
        if self.ranks.is_first:
            totals, counted = self._released(totals, counted, scale, state)
        totals = [self.ranks.broadcast(total) for total in totals]
        counts = [self.ranks.broadcast(count) for count in counted]
        released = torch.cat(counts) if counts else torch.zeros(0, dtype=torch.float64)
        state.clip = self.clip.next(state.clip, released, self.noise, self.size)
        for total, row in zip(totals, self.gradients.silent_rows, strict=True):
            if row is not None:  # padding: it has no gradient, so it needs no noise
                total[row] = 0.0
        return [
            total.div_(self.size * scale).to(weight.dtype)
            for total, weight in zip(totals, self.gradients.weights, strict=True)
        ]

    @property
    def clip(self) -> Clip:
        """Returns how gradients are clipped."""
        return self.settings.clipping

    @property
    def size(self) -> float:
        """Returns the average number of records that a step draws."""
        return self.rate * len(self.records)

    @property
    def variation(self) -> float:
        return self.lattice.variation

    @cached_property
    def lattice(self) -> Lattice:
        """Returns the grid on which sums are released."""
        numbers = sum(weight.numel() for weight in self.gradients.weights)
        records, terms = len(self.records), self.gradients.terms
        return Lattice.of(
            self.noise,
            self.clip.unit,
            numbers=numbers + self.settings.canaries + self.clip.numbers,
            records=records,
            error=sum_error(records, self.physical, terms, scaled=self.clip.numbers > 0),
        )

    @property
    def physical(self) -> int:
        """Returns the largest number of records whose gradients are in memory at once."""
        if self.settings.max_physical_batch_size is not None:
            return self.settings.max_physical_batch_size
        return max(1, min(_MAX_ROWS, _MAX_BYTES // max(1, self.gradients.bytes_per_record)))

    def _drawn(self, records: int) -> Tensor:
        """Draws the records of a step. Shapes: -> (records,) bool."""
        return checked_draws(self.settings.sampler, records, self.rate)

    def _clipped_sums(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sums the clipped gradients of rows over all processes.

        Also returns how many of them are no longer than the clip norm.
        """
        totals = self.gradients.zeros()
        within = torch.zeros((), dtype=torch.float64, device=totals[0].device)
        for number, batch in enumerate(self.ranks.shard(rows).split(self.physical)):
            if len(batch):  # empty if there are no rows, or fewer rows than processes
                # Summed separately, so that its terms are not rounded at the size of the total.
                sums = self.gradients.zeros() if number else totals
                within = within + self._add(sums, batch)
                if number:
                    torch._foreach_add_(totals, sums)
        self.ranks.summed([*totals, within])
        return totals, within

    def _add(self, totals: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Adds the gradients of rows; returns how many are no longer than the clip norm."""
        inputs, labels = self.records.rows(rows, self.gradients.weights[0].device)
        try:
            batch, within = self.gradients.add(totals, inputs, labels)
        except (IndexError, RuntimeError) as outside:
            if not is_beyond(outside):
                raise
            beyond = ids_beyond(self.model, self.records)
            raise DataError(
                f"A record has a value outside the model's range, such as a token beyond its "
                f"embedding: {str(outside).splitlines()[0]:.200}. "
                f"{f'{beyond}. {FIX}. ' if beyond else ''}Nothing was published."
            ) from outside
        row = int(torch.randint(len(rows), ()))
        difference = self.gradients.difference(batch, inputs, labels, row)
        if difference > self.gradients.tolerance:
            raise TrainingFailed(
                f"A record's gradient in a batch differs by {difference:.2g} of its norm from its "
                "gradient by itself. Nothing was published. This should not be possible: please "
                "report it with the model."
            )
        return within

    def _released(
        self, totals: list[Tensor], counted: list[Tensor], scale: float, state: State
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Adds noise to the sums and the counts, and scores the canaries by their noisy sums."""
        canaries = self._canary_sums(state).to(totals[0].device)
        sums = [*totals, canaries] if len(canaries) else totals
        if scale != 1:
            torch._foreach_mul_(sums, scale)
        released = self.lattice.released([*sums, *counted])
        if len(canaries):
            height = scale * state.clip
            noise = self.lattice.deviation * self.lattice.step / height
            seen = released[len(totals)].cpu() / height
            state.scores += log_likelihood_ratio(seen, noise, self.rate)
        return released[: len(totals)], released[len(sums) :]

    def _canary_sums(self, state: State) -> Tensor:
        """Sums the gradients of the planted canaries that are drawn."""
        count = len(state.coins)
        if not count:
            return torch.zeros(0, dtype=torch.float64)
        return canary_sum(state.coins & self._drawn(count), state.clip)
