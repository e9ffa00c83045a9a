"""Can members be told from nonmembers without the model? Then their split is biased."""

import torch
from torch import Tensor, nn

from shieldnet.attacks.decoders import KernelRidge, Ridge
from shieldnet.attacks.inversion import choose, secret_of
from shieldnet.data import Examples
from shieldnet.finding import Finding, Threat
from shieldnet.statistics import auc

CONFIDENCE = 0.99
_MOST = 4000


def blind_finding(members: Examples, nonmembers: Examples, seed: int) -> Finding:
    """Measures how well inputs and labels alone tell members from nonmembers.

    A regression learns membership on half of the records and judges the other half. Where its AUC
    lies surely (99 %) above one half, the two sets differ in more than membership, and no
    membership attack on them means anything. (Judging both halves, each by the other, would not
    do: the two errors hang together, and the interval would be too narrow.)

    Source: the blind baselines of Das, Zhang, Tramer 2024 (arXiv:2406.16201).
    """
    generator = torch.Generator().manual_seed(seed)
    sets = [_some(examples, generator) for examples in (members, nonmembers)]
    features = _features(sets)
    truth = torch.cat([torch.full((len(one),), float(one is sets[0])) for one in sets])
    learn = torch.rand(len(truth), generator=generator) < 0.5
    known, target = {"records": features[learn]}, truth[learn].unsqueeze(1)
    chosen = choose((Ridge(), KernelRidge()), known, target, seed=seed)
    guess = chosen.predict(known, target, {"records": features[~learn]}).squeeze(1)
    judged = truth[~learn]
    found = auc(guess[judged == 1], guess[judged == 0], CONFIDENCE)
    return Finding.of(
        "membership.blind",
        found,
        samples=len(judged),
        baseline=0.5,
        threat=Threat(queries=0, sees="no answer"),
        source="records alone, without the model; 99 % interval",
        note="the split is biased: membership findings are void" if found.low > 0.5 else "",
    )


def _some(examples: Examples, generator: torch.Generator) -> Examples:
    order = torch.randperm(len(examples), generator=generator)[:_MOST]
    labels = None if examples.labels is None else examples.labels[order]
    return Examples(examples.name, examples.inputs[order], labels)


def _features(sets: list[Examples]) -> Tensor:
    """Returns inputs, and labels where both have them, as columns. Shapes: -> (rows, columns)."""
    inputs = torch.cat([one.inputs for one in sets])
    features = secret_of(inputs).apply(inputs)
    if any(one.labels is None for one in sets):
        return features
    labels = torch.cat([one.labels for one in sets if one.labels is not None])
    _, place = labels.unique(return_inverse=True)
    return torch.cat([features, nn.functional.one_hot(place)], 1)
