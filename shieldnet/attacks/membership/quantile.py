"""How high would the answer be for a record like this that was not a member? No shadow needed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.decoders import KernelRidge, NearestNeighbors, Ridge
from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.adversary.selection import choose
from shieldnet.core.statistics import random_sums
from shieldnet.data.examples import Examples

MIN_ROWS = 100
"""Fewer rows of one's own than this teach nothing of a record's own threshold."""
_MAX_FEATURES = 256


def quantile_scores(
    owned: Examples,
    known_signal: Tensor,
    classes: int,
    signals: dict[str, tuple[Examples, Tensor]],
    seed: int,
) -> dict[str, Tensor]:
    """Scores answers by how far they lie above what is expected of such a record, in deviations.

    A regression learns the answers about the adversary's own rows, which trained no model,
    from their inputs and labels; a second one learns how widely they miss. Nothing that is scored
    has been learned from.

    known_signal: a number for each owned row, such as the log odds of its label. classes: or
    outputs of a regression. signals: by name, examples and the same number for them.
    Source: Bertran et al. 2023 (arXiv:2307.03694), the Gaussian form.
    """
    features = _Features.of(owned, classes)
    known = {"inputs": features(owned)}
    decoders = (Ridge(), KernelRidge(), NearestNeighbors())
    target = known_signal.float().unsqueeze(1)
    center = choose(decoders, known, target, seed=seed)
    # Misses of rows that were not learned from: of each half by the other.
    half = torch.arange(len(owned)) % 2 == 0
    missed = torch.empty(len(owned))
    for learn, judge in ((half, ~half), (~half, half)):
        half_known = {"inputs": known["inputs"][learn]}
        guess = center.predict(half_known, target[learn], {"inputs": known["inputs"][judge]})
        missed[judge] = (target[judge] - guess).abs().squeeze(1)
    spread = choose(decoders, known, missed.unsqueeze(1), seed=seed)
    least = float(missed.mean()) / 10 + 1e-6
    views = {"inputs": torch.cat([features(examples) for examples, _ in signals.values()])}
    expected = center.predict(known, target, views).squeeze(1)
    width = spread.predict(known, missed.unsqueeze(1), views).squeeze(1).clamp_min(least)
    value = torch.cat([value for _, value in signals.values()])
    sizes = [len(examples) for examples, _ in signals.values()]
    return dict(zip(signals, ((value - expected) / width).double().split(sizes), strict=True))


@dataclass(frozen=True)
class _Features:
    """Lays inputs, or random sums of many, and labels side by side, in the owned rows' units.

    targets: unit of a regression's targets; None for classes.
    """

    inputs: Scale
    width: int
    targets: Scale | None

    @classmethod
    def of(cls, owned: Examples, width: int) -> "_Features":
        targets = Scale.of(owned.require_targets(width)) if owned.has_targets else None
        return cls(Scale.of(owned.inputs), width, targets)

    def __call__(self, examples: Examples) -> Tensor:
        """Shapes: -> (rows, columns)."""
        inputs = random_sums(self.inputs.apply(examples.inputs), _MAX_FEATURES)
        if self.targets is None:
            labels = nn.functional.one_hot(examples.require_labels(self.width), self.width)
        else:
            labels = self.targets.apply(examples.require_targets(self.width))
        return torch.cat([inputs, labels], 1)
