"""Training shadow models, wherever the work runs, and asking them what the target is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.attacks.answers import Behind, in_batches
from shieldnet.attacks.membership.perturbations import COPIES, max_perturbed_rows, perturbed
from shieldnet.attacks.membership.references import (
    MAX_FEATURES,
    MAX_ROWS,
    Narrowed,
    reference_recipe,
    require_learned,
    value_recipe,
)
from shieldnet.attacks.membership.trainers import Reader, Train, called, check_trainer, some
from shieldnet.attacks.shadow_answers import Shadows, drawn, share_of_members
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.data.examples import Canaries, Examples, reference_rows
from shieldnet.findings.finding import NotApplicable
from shieldnet.running.engine import alone, run
from shieldnet.running.fingerprints import fingerprint
from shieldnet.running.store import Cache
from shieldnet.shield.module import Shield
from shieldnet.training.recipe import Recipe

__all__ = [
    "MIN_SHADOWS",
    "ShadowPlan",
    "TargetScores",
    "Train",
    "reference_scores",
    "train_shadows",
    "trained_at_once",
]
MIN_SHADOWS = 4
"""Fewer shadows than this say nothing of a single record."""
_CHUNK = 8  # models trained as one: fixed, so that the engine cannot change a result
_MAX_OWNED_ROWS = 2000
_PERTURBED = "perturbed "  # before the name of a set: the copies of its records


@dataclass(frozen=True)
class ShadowPlan:
    """Says which shadows are wanted: trained how, how many, on what, asked about what.

    copies: whether they are asked about perturbed copies too, for attacks that see labels alone.
    stage: the first is 0; each has other draws and seeds. chances: by the name of a set, the chance
    with which each of its records trains a shadow; by default the same for all.
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
    stage: int = 0
    chances: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < MIN_SHADOWS:
            raise ConfigError(f"Expected at least {MIN_SHADOWS} shadows, got {self.count}.")
        if self.train is not None and not callable(self.train):
            raise ConfigError(
                "Expected train as a function train((inputs, labels), seed) -> model, or a Recipe; "
                f"got {type(self.train).__name__}."
            )

    @property
    def entropy(self) -> list[int]:
        """Returns what draws and seeds of this stage begin with."""
        return [self.seed, self.stage] if self.stage else [self.seed]


def trained_at_once(train: Train | None) -> int:
    """Counts the shadows of one job: recipes, as reference models are, train several as one."""
    return _CHUNK if train is None or isinstance(train, Recipe) else 1


def train_shadows(
    plan: ShadowPlan,
    *,
    engine: str = "processes",
    workers: int | None = None,
    cache: Cache | None = None,
    done: Callable[[], object] = lambda: None,
) -> Shadows:
    """Trains the shadows of a plan and returns what they say; done is called after each chunk.

    Each shadow is trained on records drawn independently (Bernoulli) from members, nonmembers and
    canaries together. Without ``train`` they are reference models: small networks of our own,
    with most of the power for two seconds, and the weaker form of the attack.

    Errors: NotApplicable where labels are missing or inputs are no numbers; ConfigError for a
        ``train`` that returns no model, another kind of model, or a new one for the same seed.
    """
    pool = _Pool.of(plan)
    inputs, labels, questions = pool.inputs, pool.labels, _questions(plan, pool)
    if plan.train is None and inputs.is_floating_point() and inputs[0].numel() > MAX_FEATURES:
        narrowed = Narrowed.of(inputs)
        inputs = narrowed(inputs)
        questions = {name: narrowed(rows) for name, rows in questions.items()}
    train, reader = _trainer(plan, inputs, labels, pool.rows)
    if plan.train is not None and plan.stage == 0:
        named = "outputs" if plan.members.has_targets else "classes"
        alone(check_trainer, train, reader, (inputs, labels), _classes(plan), plan.seed, named)
    size = trained_at_once(plan.train)
    chunks = [slice(start, start + size) for start in range(0, plan.count, size)]
    seeds = _seeds(plan)
    jobs = [
        (
            _chunk_scores,
            (train, reader, inputs, labels, pool.rows[chunk], seeds[chunk], questions, cache),
        )
        for chunk in chunks
    ]
    try:
        parts = run(jobs, engine=engine, workers=workers, done=done)
    except ConfigError as failed:
        if plan.train is None:  # ours, not the user's to fix
            raise NotApplicable(f"reference models fail on these records: {failed}") from failed
        raise
    scores = {
        name: torch.from_numpy(np.concatenate([chunk_scores[name] for chunk_scores in parts]))
        for name in questions
    }
    if plan.train is None:
        require_learned(plan.shield, pool.sets[0], scores["members"], pool.trained_on["members"])
    return _shadows(plan, pool, scores)


@dataclass(frozen=True)
class _Pool:
    """Holds the records that shadows are drawn from, and which of them train which shadow.

    places, trained_on: as in ``Shadows``. inputs, labels: of the records of all sets together;
    rows: for every shadow, which of them train it.
    """

    sets: list[Examples]
    places: dict[str, Tensor]
    trained_on: dict[str, Tensor]
    inputs: Tensor
    labels: Tensor
    rows: list[Tensor]

    @classmethod
    def of(cls, plan: ShadowPlan) -> "_Pool":
        """Chooses the records and draws who trains on them. Errors: NotApplicable for too few."""
        limit = MAX_ROWS if plan.train is None else None
        places, pool = {}, []
        for examples in _sets(plan):
            chosen = some(len(examples), limit, plan.seed)
            places[examples.name] = chosen
            pool.append(
                replace(examples, inputs=examples.inputs[chosen], labels=_labels(examples)[chosen])
            )
        rate = share_of_members(len(plan.members), len(plan.nonmembers))
        rates = [plan.chances.get(examples.name, rate) for examples in pool]
        draws = drawn(pool, plan.count, rates, plan.entropy)
        inputs = torch.cat([examples.inputs for examples in pool])
        labels = torch.cat([_labels(examples) for examples in pool])
        trained_on = {examples.name: draw for examples, draw in zip(pool, draws, strict=True)}
        rows = [_rows(pool, [draw[shadow] for draw in draws], plan) for shadow in range(plan.count)]
        if min(map(len, rows)) < 2:
            raise NotApplicable(f"{len(inputs)} records in all are too few to train shadows on")
        if plan.auxiliary is not None and plan.auxiliary.labels is not None:
            chosen = some(len(plan.auxiliary), _MAX_OWNED_ROWS, plan.seed)
            places["auxiliary"] = chosen
            trained_on["auxiliary"] = torch.zeros(plan.count, len(chosen), dtype=torch.bool)
        return cls(pool, places, trained_on, inputs, labels, rows)


def _questions(plan: ShadowPlan, pool: _Pool) -> dict[str, Tensor]:
    """Returns the inputs that shadows are asked about, by the name of their set."""
    questions = {examples.name: examples.inputs for examples in pool.sets}
    if plan.auxiliary is not None and "auxiliary" in pool.places:
        questions["auxiliary"] = plan.auxiliary.inputs[pool.places["auxiliary"]]
    if plan.copies and pool.inputs.is_floating_point():
        population = reference_rows(plan.members, plan.nonmembers, plan.auxiliary)
        for examples in pool.sets:
            rows = examples.inputs[: max_perturbed_rows(examples.inputs)]
            copies = perturbed(rows, population, plan.seed)
            questions[f"{_PERTURBED}{examples.name}"] = copies.flatten(0, 1)
    return questions


def _seeds(plan: ShadowPlan) -> list[int]:
    """Returns a seed for every shadow, of 31 bits: numpy, torch and Python all take them."""
    states = np.random.SeedSequence(plan.entropy).generate_state(plan.count)
    return [int(state) >> 1 for state in states]


def _shadows(plan: ShadowPlan, pool: _Pool, scores: Mapping[str, Tensor]) -> Shadows:
    return Shadows(
        scores={name: rows for name, rows in scores.items() if not name.startswith(_PERTURBED)},
        trained_on=pool.trained_on,
        places=pool.places,
        perturbed={
            name.removeprefix(_PERTURBED): rows.unflatten(1, (COPIES, -1))
            for name, rows in scores.items()
            if name.startswith(_PERTURBED)
        },
        how=description(plan),
        weaker=plan.train is None,
    )


def _chunk_scores(
    train: Train,
    reader: Reader,
    inputs: Tensor,
    labels: Tensor,
    rows: Sequence[Tensor],
    seeds: Sequence[int],
    questions: Mapping[str, Tensor],
    cache: Cache | None,
) -> dict[str, Any]:
    """Trains a few shadows and returns their scores, from the cache if they are there."""
    key = ""
    if cache is not None:
        key = fingerprint("shadows", train, reader, inputs, labels, rows, seeds, questions)
        if (kept := cache.get(key)) is not None:
            return kept
    if isinstance(train, Recipe):
        models = train.models(inputs, labels, rows, seeds)
    else:
        models = [
            called(train, (inputs[chosen], labels[chosen]), seed)
            for chosen, seed in zip(rows, seeds, strict=True)
        ]
    try:
        scores = {
            name: torch.stack([in_batches(reader(model), rows).float() for model in models]).numpy()
            for name, rows in questions.items()
        }
    except AnswerError as refused:
        raise ConfigError(
            f"A shadow model gives answers that cannot be used; did its training diverge? {refused}"
        ) from refused
    if not all(np.isfinite(array).all() for array in scores.values()):
        raise ConfigError("A shadow model gives NaN or Inf: its training diverged.")
    if cache is not None:
        cache.put(key, scores)
    return scores


@dataclass(frozen=True)
class TargetScores:
    """Reads the true scores of a model that answers like the target."""

    shield: Shield

    def __call__(self, model: nn.Module) -> Behind:
        return Behind(self.shield.with_model(model.eval()))


def reference_scores(model: nn.Module) -> nn.Module:
    """Reads the scores of a reference model, which are rows already."""
    return model.eval()


def _trainer(
    plan: ShadowPlan, inputs: Tensor, labels: Tensor, rows: Sequence[Tensor]
) -> tuple[Train, Reader]:
    """Returns what trains a shadow and what reads its scores: the user's, or reference models."""
    if plan.train is not None:
        return plan.train, TargetScores(_empty(plan.shield))
    if not inputs.is_floating_point():
        raise NotApplicable(
            f"reference models cannot read {inputs.dtype} inputs, such as tokens: pass train=..."
        )
    if plan.members.has_targets:
        return value_recipe(inputs, labels, rows), reference_scores
    classes = max(_classes(plan), int(labels.max()) + 1)
    probabilities = plan.shield.chain.layout.row_kind == "probabilities"
    return reference_recipe(inputs, classes, probabilities, rows), reference_scores


def _empty(shield: Shield) -> Shield:
    """Returns a shield with the layout of another and no model: jobs need not carry the target."""
    return shield.bare().with_model(nn.Identity())


def _classes(plan: ShadowPlan) -> int:
    return in_batches(Behind(plan.shield), plan.members.inputs[:2]).shape[-1]


def _sets(plan: ShadowPlan) -> list[Examples]:
    sets = [plan.members, plan.nonmembers]
    if plan.canaries is not None:
        sets += [plan.canaries.planted, plan.canaries.held_out]
    for examples in sets:
        _labels(examples)
    return sets


def _labels(examples: Examples) -> Tensor:
    if examples.labels is None:
        raise NotApplicable(f"it needs labels: pass {examples.name}=(inputs, labels)")
    return examples.labels


def _rows(pool: Sequence[Examples], draws: Sequence[Tensor], plan: ShadowPlan) -> Tensor:
    """Numbers the records that train one shadow; planted duplicates come as often as planted."""
    own_sets = () if plan.canaries is None else (plan.canaries.planted, plan.canaries.held_out)
    planted, copies = [one.name for one in own_sets], getattr(plan.canaries, "copies", 1)
    chosen, start = [], 0
    for examples, draw in zip(pool, draws, strict=True):
        own = draw.nonzero().flatten() + start
        chosen += [own] * (copies if examples.name in planted else 1)
        start += len(examples)
    return torch.cat(chosen)


def description(plan: ShadowPlan) -> str:
    by = "a recipe" if isinstance(plan.train, Recipe) else "train"
    weaker = f"{plan.count} small networks stand for them, the weaker form: pass train=..."
    return weaker if plan.train is None else f"{plan.count} shadows trained by {by}"
