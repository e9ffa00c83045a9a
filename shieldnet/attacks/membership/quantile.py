"""How high would the answer be for a record like this that was not a member? No shadow needed."""

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.decoders import KernelRidge, NearestNeighbors, Ridge
from shieldnet.attacks.adversary.features import Scale
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

    known_signal: a number for each owned row, such as the log odds of its label. signals: by name,
    examples and the same number for them.
    Source: Bertran et al. 2023 (arXiv:2307.03694), the Gaussian form.
    """
    scale = Scale.of(owned.inputs)
    known = {"inputs": _features(owned, scale, classes)}
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
    views = {
        "inputs": torch.cat(
            [_features(examples, scale, classes) for examples, _ in signals.values()]
        )
    }
    expected = center.predict(known, target, views).squeeze(1)
    width = spread.predict(known, missed.unsqueeze(1), views).squeeze(1).clamp_min(least)
    value = torch.cat([value for _, value in signals.values()])
    sizes = [len(examples) for examples, _ in signals.values()]
    return dict(zip(signals, ((value - expected) / width).double().split(sizes), strict=True))


def _features(examples: Examples, scale: Scale, classes: int) -> Tensor:
    """Returns inputs, or random sums of many, and labels as columns. Shapes: -> (rows, columns)."""
    labels = examples.require_labels(classes)
    inputs = random_sums(scale.apply(examples.inputs), _MAX_FEATURES)
    return torch.cat([inputs, nn.functional.one_hot(labels, classes)], 1)
