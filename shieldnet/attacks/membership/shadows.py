"""Training shadow models, wherever the work runs, and asking them what the target is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.features import Scale
from shieldnet.attacks.base import Behind, in_batches
from shieldnet.attacks.membership.references import (
    MAX_FEATURES,
    MAX_SGD_FEATURES,
    Narrowed,
    reference,
)
from shieldnet.attacks.shadow_answers import Shadows, drawn, share_of_members
from shieldnet.core.errors import AnswerError, ConfigError, ShieldnetError
from shieldnet.data.examples import Canaries, Examples, reference_rows
from shieldnet.findings.finding import NotApplicable
from shieldnet.running.engine import alone, run
from shieldnet.running.store import Cache, fingerprint
from shieldnet.shield.module import Shield
from shieldnet.training.recipe import Recipe

Train = Callable[[tuple[Tensor, Tensor], int], nn.Module]
"""Trains a model like the target: ``train((inputs, labels), seed) -> model``."""
MIN_SHADOWS = 4
"""Fewer shadows than this say nothing of a single record."""
COPIES = 16
"""Moved copies of a record that label-only attacks ask about."""
_CHUNK = 8  # models trained as one: fixed, so that the engine cannot change a result
_MAX_PERTURBED_ROWS = 1000  # records whose copies are asked about, fewer of many features
_MAX_PERTURBED_NUMBERS = 5 * 10**7
_MIN_PERTURBED_ROWS = 100
_MAX_OWNED_ROWS = 2000
_MAX_CHECKED_ROWS = 200
_MAX_REFERENCE_ROWS = 5000  # of each set, for reference models
_MAX_REFERENCE_STEPS = 1500
_MAX_ACCURACY_GAP = 0.1  # to the target, of reference models on the records that trained them


@dataclass(frozen=True)
class Order:
    """Says which shadows are wanted: trained how, how many, on what, asked about what.

    copies: whether they are asked about moved copies too, for attacks that see labels alone.
    """

    train: Train | None
    count: int
    shield: Shield
    members: Examples
    nonmembers: Examples
    auxiliary: Examples | None = None
    canaries: Canaries | None = None
    seed: int = 0
    copies: bool = True

    def __post_init__(self) -> None:
        if self.count < MIN_SHADOWS:
            raise ConfigError(f"Expected at least {MIN_SHADOWS} shadows, got {self.count}.")
        if self.train is not None and not callable(self.train):
            raise ConfigError(
                "Expected train as a function train((inputs, labels), seed) -> model, or a Recipe; "
                f"got {type(self.train).__name__}."
            )


def trained(
    order: Order,
    *,
    engine: str = "processes",
    workers: int | None = None,
    cache: Cache | None = None,
    done: Callable[[], object] = lambda: None,
) -> Shadows:
    """Trains the shadows of an order and returns what they say; done is called after each piece.

    Each shadow is trained on records drawn by independent coins from members, nonmembers and
    canaries together. Without ``train`` they are reference models: small networks of our own,
    with most of the power for two seconds, and the weaker form of the attack.

    Errors: NotApplicable where labels are missing or inputs are no numbers; ConfigError for a
        ``train`` that returns no model, another kind of model, or a new one for the same seed.
    """
    sets = _sets(order)
    rate = share_of_members(len(order.members), len(order.nonmembers))
    limit = _MAX_REFERENCE_ROWS if order.train is None else None
    places = {one.name: _some(len(one), limit, order.seed) for one in sets}
    pool = [
        Examples(one.name, one.inputs[places[one.name]], _labels(one)[places[one.name]])
        for one in sets
    ]
    coins = drawn(pool, order.count, rate, order.seed)
    inside = {one.name: coin for one, coin in zip(pool, coins, strict=True)}
    inputs = torch.cat([one.inputs for one in pool])
    labels = torch.cat([_labels(one) for one in pool])
    rows = [_rows(pool, [coin[place] for coin in coins], order) for place in range(order.count)]
    if min(len(one) for one in rows) < 2:
        raise NotApplicable(f"{len(inputs)} records in all are too few to train shadows on")
    asked = {one.name: one.inputs for one in pool}
    if order.auxiliary is not None and order.auxiliary.labels is not None:
        places["auxiliary"] = _some(len(order.auxiliary), _MAX_OWNED_ROWS, order.seed)
        asked["auxiliary"] = order.auxiliary.inputs[places["auxiliary"]]
        count = len(places["auxiliary"])
        inside["auxiliary"] = torch.zeros(order.count, count, dtype=torch.bool)
    if order.copies and inputs.is_floating_point():
        reference = reference_rows(order.members, order.nonmembers, order.auxiliary)
        for one in pool:
            copies = moved(one.inputs[: most_moved(one.inputs)], reference, order.seed)
            asked[f"moved {one.name}"] = copies.flatten(0, 1)
    if order.train is None and inputs.is_floating_point() and inputs[0].numel() > MAX_FEATURES:
        narrowed = Narrowed.of(inputs)
        inputs, asked = narrowed(inputs), {name: narrowed(part) for name, part in asked.items()}
    train, answer = _way(order, inputs, labels, rows)
    if order.train is not None:
        alone(_probe, train, answer, inputs, labels, order)
    size = _CHUNK if isinstance(train, Recipe) else 1
    # Of 31 bits: what numpy's, torch's and Python's generators all take.
    words = np.random.SeedSequence(order.seed).generate_state(order.count)
    seeds = [int(word) >> 1 for word in words]
    jobs = [
        (
            _piece,
            (
                train,
                answer,
                inputs,
                labels,
                rows[start : start + size],
                seeds[start : start + size],
                asked,
                cache,
            ),
        )
        for start in range(0, order.count, size)
    ]
    try:
        pieces = run(jobs, engine=engine, workers=workers, done=done)
    except ConfigError as failed:
        if order.train is None:  # ours, not the user's to fix
            raise NotApplicable(f"reference models fail on these records: {failed}") from failed
        raise
    scores = {name: torch.from_numpy(np.concatenate([p[name] for p in pieces])) for name in asked}
    if order.train is None:
        _require_learned(order, pool[0], scores["members"], inside["members"])
    return Shadows(
        scores={name: value for name, value in scores.items() if not name.startswith("moved ")},
        inside=inside,
        places=places,
        moved={
            name.removeprefix("moved "): value.unflatten(1, (COPIES, -1))
            for name, value in scores.items()
            if name.startswith("moved ")
        },
        how=_words(order),
        weaker=order.train is None,
    )


def most_moved(inputs: Tensor) -> int:
    """Counts the records whose moved copies are asked about: fewer where each has many numbers."""
    fit = _MAX_PERTURBED_NUMBERS // (COPIES * inputs[0].numel())
    return max(_MIN_PERTURBED_ROWS, min(_MAX_PERTURBED_ROWS, fit))


def moved(inputs: Tensor, reference: Tensor, seed: int, copies: int = COPIES) -> Tensor:
    """Returns copies of inputs, moved by normal noise of growing width, the same for every record.

    How far a record can be moved before its label changes tells how sure the model is of it, even
    to somebody who sees labels alone (Choquette-Choo et al. 2021). Widths go from .1 to 1 standard
    deviation that each feature has in the reference rows; what is constant there is not moved.

    Shapes: inputs and reference (rows, ...) -> (copies, rows, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    widths = torch.logspace(-1, 0, copies).reshape(-1, *[1] * inputs.dim())
    steps = torch.randn(copies, 1, *inputs.shape[1:], generator=generator)
    return (inputs + steps * widths * _widths(reference)).to(inputs.dtype)


def _widths(reference: Tensor) -> Tensor:
    """Returns the deviation of every feature, 0 where it is constant. Shapes: -> of one input."""
    varies = reference.amax(0) > reference.amin(0)
    return Scale.of(reference).deviation.reshape(reference.shape[1:]) * varies


def _piece(
    train: Train,
    answer: Callable[[nn.Module], Callable[[Tensor], Tensor]],
    inputs: Tensor,
    labels: Tensor,
    rows: Sequence[Tensor],
    seeds: Sequence[int],
    asked: Mapping[str, Tensor],
    cache: Cache | None,
) -> dict[str, Any]:
    """Trains a few shadows and returns their scores, from the cache if they are there."""
    key = ""
    if cache is not None:
        key = fingerprint("shadows", train, answer, inputs, labels, rows, seeds, asked)
        if (kept := cache.get(key)) is not None:
            return kept
    if isinstance(train, Recipe):
        models = train.models(inputs, labels, rows, seeds)
    else:
        models = [
            _called(train, (inputs[chosen], labels[chosen]), seed)
            for chosen, seed in zip(rows, seeds, strict=True)
        ]
    try:
        scores = {
            name: torch.stack([in_batches(answer(model), part).float() for model in models]).numpy()
            for name, part in asked.items()
        }
    except AnswerError as refused:
        raise ConfigError(
            f"A shadow model gives answers that cannot be used; did its training diverge? {refused}"
        ) from refused
    if not all(np.isfinite(one).all() for one in scores.values()):
        raise ConfigError("A shadow model gives NaN or Inf: its training diverged.")
    if cache is not None:
        cache.put(key, scores)
    return scores


@dataclass(frozen=True)
class AsTheTarget:
    """Reads the true scores of a model that answers like the target."""

    shield: Shield

    def __call__(self, model: nn.Module) -> Behind:
        return Behind(self.shield.with_model(model.eval()))


def as_it_is(model: nn.Module) -> nn.Module:
    """Reads the scores of a reference model, which are rows already."""
    return model.eval()


def _way(
    order: Order, inputs: Tensor, labels: Tensor, rows: Sequence[Tensor]
) -> tuple[Train, Callable[[nn.Module], Callable[[Tensor], Tensor]]]:
    if order.train is not None:
        return order.train, AsTheTarget(_empty(order.shield))
    if not inputs.is_floating_point():
        raise NotApplicable(f"reference models read no {inputs.dtype} inputs: pass train=...")
    layout = order.shield.chain.layout
    classes = max(_classes(order), int(labels.max()) + 1)
    probabilities = layout.row_kind == "probabilities"
    steps = -(-max(len(one) for one in rows) // 32)
    is_narrow = inputs[0].numel() <= MAX_SGD_FEATURES
    recipe = Recipe(
        partial(reference, Scale.of(inputs), classes, probabilities),
        epochs=max(5, min(50, _MAX_REFERENCE_STEPS // steps)),
        outputs="probabilities" if probabilities else "logits",
        optimizer="sgd" if is_narrow else "adam",
        learning_rate=0.05 if is_narrow else 1e-3,
    )
    return recipe, as_it_is


def _require_learned(order: Order, members: Examples, said: Tensor, inside: Tensor) -> None:
    """Raises NotApplicable where reference models know their records less well than the target.

    Shapes: said (shadows, rows, classes), inside (shadows, rows).
    """
    labels = _labels(members)
    target = in_batches(Behind(order.shield), members.inputs).argmax(-1) == labels
    right = (said.argmax(-1) == labels)[inside].double().mean()
    if float(right) < float(target.double().mean()) - _MAX_ACCURACY_GAP:
        raise NotApplicable(
            f"reference models are right on {right:.2f} of the records that trained them, the "
            f"target on {target.double().mean():.2f}: they do not stand for it. Pass train=..."
        )


def _empty(shield: Shield) -> Shield:
    """Returns a shield with the layout of another and no model: jobs need not carry the target."""
    return shield.bare().with_model(nn.Identity())


def _classes(order: Order) -> int:
    return in_batches(Behind(order.shield), order.members.inputs[:2]).shape[-1]


def _probe(
    train: Train,
    answer: Callable[[nn.Module], Callable[[Tensor], Tensor]],
    inputs: Tensor,
    labels: Tensor,
    order: Order,
) -> None:
    """Trains three times on a few rows: is it a model, like the target, and is its seed heeded?

    A recipe heeds its seed: one epoch tells whether its models fit the records.
    """
    is_recipe = isinstance(train, Recipe)
    if isinstance(train, Recipe):
        train = replace(train, epochs=1)
    wanted = _classes(order)
    few = _some(len(inputs), _MAX_CHECKED_ROWS, order.seed)
    said = []
    for seed in (1,) if is_recipe else (1, 1, 2):
        model = _called(train, (inputs[few], labels[few]), seed)
        try:
            said.append(in_batches(answer(model), inputs[few]))
        except AnswerError as refused:
            raise ConfigError(
                f"The model that train returned gives answers that cannot be used: {refused}"
            ) from refused
        except Exception as unlike:
            raise ConfigError(
                f"The model that train returned cannot read the members: "
                f"{type(unlike).__name__}: {unlike}"
            ) from unlike
        if said[-1].shape[-1] != wanted:
            raise ConfigError(
                f"Expected train to return a model of {wanted} classes like the target, "
                f"got {said[-1].shape[-1]}."
            )
    if is_recipe:
        return
    if not torch.allclose(said[0], said[1], rtol=1e-3, atol=1e-4):
        raise ConfigError(
            "train ignores its seed: the same data and seed gave two different models, and no "
            "report could be repeated. Begin it with torch.manual_seed(seed), and seed the order "
            "of the batches too."
        )
    if torch.equal(said[0], said[2]):
        raise ConfigError(
            "train ignores its seed: two seeds gave the same model. Shadows must differ as a "
            "second run of your training would. Seed the start of the weights with it; if your "
            "training has nothing random in it, add a start of small random weights."
        )


def _called(train: Train, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    try:  # the user's own code: whatever it raises is theirs to fix
        model = train(data, seed)
    except ShieldnetError:
        raise
    except Exception as failed:
        raise ConfigError(
            f"train((inputs, labels), seed) failed on {len(data[0])} rows: "
            f"{type(failed).__name__}: {failed}"
        ) from failed
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"Expected train((inputs, labels), seed) to return an nn.Module, "
            f"got {type(model).__name__}."
        )
    return model


def _sets(order: Order) -> list[Examples]:
    sets = [order.members, order.nonmembers]
    if order.canaries is not None:
        sets += [order.canaries.planted, order.canaries.held_out]
    for one in sets:
        _labels(one)
    return sets


def _labels(examples: Examples) -> Tensor:
    if examples.labels is None:
        raise NotApplicable(f"it needs labels: pass {examples.name}=(inputs, labels)")
    return examples.labels


def _some(rows: int, limit: int | None, seed: int) -> Tensor:
    """Chooses rows at random, all of them below the limit. Shapes: -> (n,) in order."""
    if limit is None or rows <= limit:
        return torch.arange(rows)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows, generator=generator)[:limit].sort().values


def _rows(pool: Sequence[Examples], coins: Sequence[Tensor], order: Order) -> Tensor:
    """Numbers the records that train one shadow; planted duplicates come as often as planted."""
    copies = 1 if order.canaries is None else order.canaries.copies
    chosen, start = [], 0
    for one, coin in zip(pool, coins, strict=True):
        own = coin.nonzero().flatten() + start
        is_canary = order.canaries is not None and one.name in (
            order.canaries.planted.name,
            order.canaries.held_out.name,
        )
        chosen += [own] * (copies if is_canary else 1)
        start += len(one)
    return torch.cat(chosen)


def _words(order: Order) -> str:
    if order.train is None:
        return f"{order.count} small networks stand for them, the weaker form: pass train=..."
    kind = "by a recipe" if isinstance(order.train, Recipe) else "by train"
    return f"{order.count} shadows trained {kind}"
