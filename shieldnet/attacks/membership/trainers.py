"""Trainers of shadows: a function of the user's, which is checked before it is relied on."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from shieldnet.attacks.answers import in_batches
from shieldnet.core.errors import AnswerError, ConfigError, ShieldnetError
from shieldnet.training.recipe import Recipe

Train = Callable[[tuple[Tensor, Tensor], int], nn.Module]
"""Trains a model like the target: ``train((inputs, labels), seed) -> model``."""
Reader = Callable[[nn.Module], Callable[[Tensor], Tensor]]
_MAX_CHECKED_ROWS = 200


def check_trainer(
    train: Train,
    reader: Reader,
    data: tuple[Tensor, Tensor],
    classes: int,
    seed: int,
    named: str = "classes",
) -> None:
    """Trains on a few rows: is it a model, like the target, and does it heed seed and data?

    A recipe heeds both: one epoch tells whether its models fit the records.
    named: what the last axis of the answers counts.
    """
    inputs, labels = data
    few = some(len(inputs), _MAX_CHECKED_ROWS, seed)

    def scores(train: Train, rows: Tensor, seed: int) -> Tensor:
        model = called(train, (inputs[rows], labels[rows]), seed)
        return _checked_scores(lambda rows: reader(model)(rows), inputs[few], classes, named)

    if isinstance(train, Recipe):
        scores(replace(train, epochs=1), few, 1)
        return
    first = scores(train, few, 1)
    if not torch.allclose(first, scores(train, few, 1), rtol=1e-3, atol=1e-4):
        raise ConfigError(
            "train ignores its seed: the same data and seed gave two different models, and no "
            "report could be repeated. Begin it with torch.manual_seed(seed), and seed the order "
            "of the batches too."
        )
    if not torch.equal(first, scores(train, few, 2)):
        return
    if torch.equal(first, scores(train, few[: len(few) // 2], 2)):  # nothing random in it is fine
        raise ConfigError(
            "train ignores its data: two sets of records gave the same model. Train on the "
            "(inputs, labels) that it is given."
        )


def _checked_scores(
    ask: Callable[[Tensor], Tensor], inputs: Tensor, classes: int, named: str
) -> Tensor:
    """Asks a model that a user's train returned; raises ConfigError for one unlike the target."""
    try:
        scores = in_batches(ask, inputs)
    except AnswerError as refused:
        raise ConfigError(
            f"The model that train returned gives answers that cannot be used: {refused}"
        ) from refused
    except Exception as unlike:
        raise ConfigError(
            f"The model that train returned cannot read the members: "
            f"{type(unlike).__name__}: {unlike}"
        ) from unlike
    if scores.shape[-1] != classes:
        raise ConfigError(
            f"Expected train to return a model of {classes} {named} like the target, "
            f"got {scores.shape[-1]}."
        )
    return scores


def called(train: Train, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """Trains one model; raises ConfigError where that fails or gives none."""
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


def some(rows: int, limit: int | None, seed: int) -> Tensor:
    """Chooses rows at random, all of them below the limit. Shapes: -> (n,) in plan."""
    if limit is None or rows <= limit:
        return torch.arange(rows)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows, generator=generator)[:limit].sort().values
