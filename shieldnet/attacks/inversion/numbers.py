"""Which image or table row gives this answer? Steps that are learned from answers alone."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from shieldnet.attacks.inversion.candidates import missed
from shieldnet.attacks.inversion.white_box import Space
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable

_DIMENSIONS = 32
_WIDTHS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01)
"""How far probes lie away, in deviations, in one round after the other: past the edges of cells
first, then near enough for a curved model."""
_MIN_ROUNDS = 2
_DAMPED = (0.0, 0.1, 1.0)


class Asks(Protocol):
    """Says what a search asks: answers about candidates, as numbers."""

    @property
    def repeats(self) -> int:
        """Counts the answers that are averaged about each."""

    def ask(self, inputs: Tensor) -> Tensor:
        """Shapes: (rows, ...) -> (rows, numbers), NaN for those that are not answered."""


_Asked = TypeVar("_Asked", bound=Asks)


@dataclass(frozen=True)
class Numbers(Generic[_Asked]):
    """Searches images and tables along the principal directions of the adversary's own rows.

    In every round it asks about one probe in each direction, solves for the step that these say
    leads to the answer (Levenberg-Marquardt with differences in the place of derivatives, all
    targets at once), asks about steps of several lengths, and keeps the best, probes included.
    What is minimized is the mean square of the answer plus pull |moved|^2, in deviations.
    Source: Ralston and Jennrich 1978, least squares without derivatives.
    """

    candidates: _Asked
    space: Space
    own: Examples
    queries: int

    settings = (1e-3, 1e-2, 1e-1)
    """Pulls that are tried."""

    @classmethod
    def of(cls, candidates: _Asked, own: Examples, queries: int) -> "Numbers[_Asked]":
        """Spans the directions. Errors: NotApplicable where no column varies."""
        space = Space.of(own.inputs, min(_DIMENSIONS, max(1, queries // 2)))
        if not space.scale.weights.any():
            raise NotApplicable("no column of the auxiliary rows varies")
        return cls(candidates, space, own, queries)

    def without(self, rows: Tensor) -> "Numbers[_Asked]":
        """Returns the search as it is: it starts from no row, whichever are left out."""
        return self

    @property
    def asked(self) -> int:
        """Counts the answers about candidates of one target, in one search."""
        return (1 + len(self._widths) * self._per_round) * self.candidates.repeats

    @property
    def _per_round(self) -> int:
        return len(self.space.axes) + len(_DAMPED)

    @property
    def _widths(self) -> tuple[float, ...]:
        rounds = self.queries // (self._per_round * self.candidates.repeats)
        return _WIDTHS[: max(_MIN_ROUNDS, rounds)]

    def apply(self, inputs: Tensor) -> Tensor:
        """Returns inputs in the units in which they are scored. Shapes: -> (rows, features)."""
        return self.space.scale.apply(inputs)

    def search(self, wanted: Tensor, expected: Tensor, setting: float) -> Tensor:
        """Returns the rows that were found.

        Shapes: wanted (rows, numbers), expected (rows, features) of the decoder -> the same.
        """
        start = self.space.inside(expected)
        offsets = torch.zeros(len(start), len(self.space.axes))
        found = _Point(offsets, self._ask(start, offsets))
        for width in self._widths:
            found = self._moved(start, found, wanted, width, setting)
        return self.space.inside(start + found.offsets @ self.space.axes)

    def _moved(
        self, start: Tensor, found: "_Point", wanted: Tensor, width: float, pull: float
    ) -> "_Point":
        """Makes one round of probes and steps."""
        points = [found]
        # Inwards, where the probe does not leave the range of the data.
        signs = torch.where(found.offsets > 0, -1.0, 1.0)
        for axis in range(len(self.space.axes)):  # a loop over directions, not over rows
            offsets = found.offsets.clone()
            offsets[:, axis] += width * signs[:, axis]
            points.append(_Point(offsets, self._ask(start, offsets)))
        slopes = torch.stack([point.answers - found.answers for point in points[1:]], 2)
        slopes = (slopes / (width * signs).unsqueeze(1)).nan_to_num(0.0)
        for damping in _DAMPED:
            offsets = _solved(slopes, wanted - found.answers, found.offsets, pull, damping)
            points.append(_Point(offsets, self._ask(start, offsets)))
        errors = torch.stack([point.error(wanted, pull) for point in points])
        best, rows = errors.argmin(0), torch.arange(len(wanted))
        return _Point(
            torch.stack([point.offsets for point in points])[best, rows],
            torch.stack([point.answers for point in points])[best, rows],
        )

    def _ask(self, start: Tensor, offsets: Tensor) -> Tensor:
        return self.candidates.ask(self._inputs(start + offsets @ self.space.axes))

    def _inputs(self, features: Tensor) -> Tensor:
        """Returns features as a caller sends them: whole numbers where the inputs are whole."""
        flat = self.space.scale.undo(self.space.inside(features))
        packing, dtype = self.own.packing, self.own.inputs.dtype
        if packing is not None:
            flat = flat.where(~torch.tensor(packing.is_whole), flat.round())
        elif not dtype.is_floating_point:
            flat = flat.round()
        return flat.reshape(len(flat), *self.space.scale.shape).to(dtype)


@dataclass(frozen=True)
class _Point:
    """Holds a place for every target, and the answers there.

    Shapes: offsets (rows, directions), answers (rows, numbers).
    """

    offsets: Tensor
    answers: Tensor

    def error(self, wanted: Tensor, pull: float) -> Tensor:
        moved: Tensor = pull * self.offsets.square().mean(1)
        return missed(self.answers, wanted) + moved


def _solved(slopes: Tensor, rest: Tensor, offsets: Tensor, pull: float, damping: float) -> Tensor:
    """Returns the offsets that explain the rest, if answers were linear.

    Shapes: slopes (rows, numbers, directions), rest (rows, numbers), offsets (rows, directions).
    """
    count, directions = rest.shape[1], offsets.shape[1]
    wide, weight = slopes.double(), pull / directions
    system = wide.transpose(1, 2) @ wide / count
    size = system.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    system.diagonal(dim1=1, dim2=2).add_(weight + damping * size + 1e-9)
    rest = rest.double().nan_to_num(0.0).unsqueeze(2)
    toward = (wide.transpose(1, 2) @ rest / count).squeeze(2) - weight * offsets.double()
    step = torch.linalg.solve(system, toward.unsqueeze(2)).squeeze(2)
    moved: Tensor = (offsets + step.float().clamp(-3.0, 3.0)).clamp(-6.0, 6.0)
    return moved
