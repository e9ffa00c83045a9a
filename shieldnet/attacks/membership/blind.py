"""Can members be told from nonmembers without the model? Then their split is biased."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.decoders import KernelRidge, Ridge
from shieldnet.attacks.adversary.features import Parts, Words, rows_of_each, secret_of
from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.adversary.selection import choose
from shieldnet.core.statistics import Interval, auc
from shieldnet.data.examples import Examples, row_bytes
from shieldnet.data.packing import Packing
from shieldnet.findings.finding import Finding, Threat
from shieldnet.findings.metrics import Metric

METRICS = (Metric("membership.blind", "members told without the model", "neither"),)
CONFIDENCE = 0.99
_MAX_ROWS = 4000
_MAX_DIFFICULTY_ROWS = 1000  # of each set, whose difficulty is learned
_FOLDS = 4
_MIN_ROWS = 8  # of each set
_WAYS = 3
_MAX_TOKENS = 500  # counted one by one; all others are one


def blind_finding(members: Examples, nonmembers: Examples, seed: int) -> Finding:
    """Measures how well members are separated from nonmembers without the model, in two ways.

    Records: a regression learns membership from inputs (of texts, which tokens are in them and how
    often) and labels on half of the records and
    judges the other half. (Judging both halves, each by the other, would not do: the two errors
    hang together, and the interval would be too narrow.) Difficulty: a regression learns labels
    from inputs, of both sets alike, and is asked about records that it did not see, by how much it
    is right and by whether: where the labels of one set are harder to tell, a model that saw
    neither seems to know the other. Targets of a regression are labels too.

    Where an AUC lies surely (99%, all together) above one half, the two sets differ in more than
    membership, and no membership attack on them means anything. Records that are in a set more
    than once count once.

    Source: the blind baselines of Das, Zhang, Tramer 2024 (arXiv:2406.16201).
    """
    generator = torch.Generator().manual_seed(seed)
    sets = [_some(examples, generator) for examples in (members, nonmembers)]
    inputs = torch.cat([examples.inputs for examples in sets])
    features = _read(inputs, members.packing)
    truth = torch.cat(
        [torch.full((len(examples),), float(examples is sets[0])) for examples in sets]
    )
    labels = _targets(sets) if members.has_targets else _hot(sets)
    ways = {"too few records": (Interval(0.5, 0.0, 1.0), len(truth))}
    if min(map(len, sets)) >= _MIN_ROWS:
        ways = {"records": _told_apart(features, labels, truth, generator, seed)}
        if labels is not None:
            harder = _missed if members.has_targets else _misnamed
            ways |= _harder(features, labels, truth, generator, seed, harder)
    source, (interval, samples) = max(ways.items(), key=lambda item: item[1][0].low)
    return Finding.of(
        "membership.blind",
        interval,
        samples=samples,
        baseline=0.5,
        threat=Threat(queries=0, sees="no answer"),
        source=f"{source} alone, without the model; 99% interval",
        note="the split is biased: membership findings are void" if interval.low > 0.5 else "",
    )


def _read(inputs: Tensor, packing: Packing | None) -> Tensor:
    """Reads records in units of their own; of texts also how often each token occurs in them.

    Shapes: (rows, ...) -> (rows, features).
    """
    secret = secret_of(inputs, packing)
    units = secret.secrets if isinstance(secret, Parts) else (secret,)
    parts = [inputs] if packing is None else rows_of_each(packing, inputs)
    pairs = zip(units, parts, strict=True)
    bags = [_bag(part.long().flatten(1)) for unit, part in pairs if isinstance(unit, Words)]
    return torch.cat([secret.apply(inputs), *bags], 1)


def _bag(tokens: Tensor) -> Tensor:
    """Counts the most frequent tokens in each text. Shapes: (rows, length) -> (rows, tokens)."""
    distinct, codes, counts = tokens.unique(return_inverse=True, return_counts=True)
    kept = counts.argsort(descending=True, stable=True)[:_MAX_TOKENS]
    column = torch.full((len(distinct),), len(kept)).scatter(0, kept, torch.arange(len(kept)))
    bag = torch.zeros(len(tokens), len(kept) + 1)
    bag.scatter_add_(1, column[codes], torch.ones_like(codes, dtype=bag.dtype))
    return bag.log1p()


def _told_apart(
    features: Tensor, labels: Tensor | None, truth: Tensor, generator: torch.Generator, seed: int
) -> tuple[Interval, int]:
    records = features if labels is None else torch.cat([features, labels], 1)
    learn = torch.rand(len(truth), generator=generator) < 0.5
    known, target = {"records": records[learn]}, truth[learn].unsqueeze(1)
    chosen = choose((Ridge(), KernelRidge()), known, target, seed=seed)
    guess = chosen.predict(known, target, {"records": records[~learn]}).squeeze(1)
    return _judged(guess, truth[~learn])


def _harder(
    features: Tensor,
    labels: Tensor,
    truth: Tensor,
    generator: torch.Generator,
    seed: int,
    harder: Callable[[Tensor, Tensor], dict[str, Tensor]],
) -> dict[str, tuple[Interval, int]]:
    """Compares how well a regression predicts the labels of records that it did not see."""
    order = torch.randperm(len(truth), generator=generator)
    few = torch.cat([order[truth[order] == side][:_MAX_DIFFICULTY_ROWS] for side in (1, 0)])
    features, labels, truth = features[few], labels[few].float(), truth[few]
    chosen = choose((KernelRidge(),), {"records": features}, labels, seed=seed)
    fold = torch.randint(_FOLDS, (len(few),), generator=generator)
    guess = torch.empty_like(labels)
    for held in range(_FOLDS):
        known = {"records": features[fold != held]}
        unseen = {"records": features[fold == held]}
        guess[fold == held] = chosen.predict(known, labels[fold != held], unseen)
    scores = harder(guess, labels)
    return {name: _judged(score, truth, either_way=True) for name, score in scores.items()}


def _misnamed(guess: Tensor, labels: Tensor) -> dict[str, Tensor]:
    own = (guess * labels).sum(1)
    others = guess.masked_fill(labels.bool(), -torch.inf).amax(1)
    return {
        "how hard their labels are": own - others,
        "whether their labels are as expected": (own > others).float(),
    }


def _missed(guess: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"how hard their targets are": -(guess - targets).square().sum(1)}


def _judged(guess: Tensor, truth: Tensor, either_way: bool = False) -> tuple[Interval, int]:
    interval = auc(guess[truth == 1], guess[truth == 0], 1 - (1 - CONFIDENCE) / _WAYS)
    if either_way and interval.value < 0.5:
        interval = Interval(1 - interval.value, 1 - interval.high, 1 - interval.low)
    return interval, len(truth)


def _some(examples: Examples, generator: torch.Generator) -> Examples:
    """Draws records, each of which once."""
    order = torch.randperm(len(examples), generator=generator).tolist()
    content = row_bytes(examples)
    distinct = {content[row]: row for row in order}
    rows = torch.tensor(list(distinct.values())[:_MAX_ROWS])
    labels = None if examples.labels is None else examples.labels[rows]
    return replace(examples, inputs=examples.inputs[rows], labels=labels)


def _targets(sets: list[Examples]) -> Tensor | None:
    """Returns targets in units of both sets, where both have some. Shapes: -> (rows, outputs)."""
    if any(examples.labels is None for examples in sets):
        return None
    targets = torch.cat(
        [
            examples.labels.reshape(len(examples), -1)
            for examples in sets
            if examples.labels is not None
        ]
    )
    return Scale.of(targets).apply(targets)


def _hot(sets: list[Examples]) -> Tensor | None:
    """Returns labels as columns where both sets have some. Shapes: -> (rows, classes)."""
    if any(examples.labels is None or examples.labels.dim() > 1 for examples in sets):
        return None
    labels = torch.cat([examples.labels for examples in sets if examples.labels is not None])
    classes, codes = labels.unique(return_inverse=True)
    return nn.functional.one_hot(codes) if len(classes) > 1 else None
