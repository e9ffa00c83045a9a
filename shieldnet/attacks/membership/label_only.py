"""How far can a record be moved before its label changes? Labels alone tell it."""

import torch
from torch import Tensor

from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.perturbations import COPIES, max_perturbed_rows, perturbed
from shieldnet.attacks.membership.scored import Scored
from shieldnet.data.examples import Examples, reference_rows


def label_only(game: Game, members: Examples, nonmembers: Examples) -> Scored:
    """Counts on how many perturbed copies of a record the released winner is its label."""
    places = tuple(perturbed_places(game, examples) for examples in (members, nonmembers))
    shares = []
    for examples, rows in zip((members, nonmembers), places, strict=True):
        inputs, labels = examples.inputs[rows], game.labels(examples)[rows]
        copies = Examples(f"perturbed {examples.name}", perturbed_rows(game, inputs))
        winners = game.ask(copies).distribution.argmax(-1).unflatten(0, (COPIES, -1))
        first = game.ask(examples).distribution.argmax(-1)[rows]
        shares.append(share(torch.cat([first.unsqueeze(0), winners]), labels))
    return Scored(shares[0], shares[1], (places[0], places[1]), COPIES + 1)


def share(winners: Tensor, labels: Tensor) -> Tensor:
    """Shapes: winners (copies, rows), labels (rows,) -> (rows,)."""
    return (winners == labels).double().mean(0)


def perturbed_rows(game: Game, inputs: Tensor) -> Tensor:
    """Shapes: (rows, ...) -> (copies * rows, ...)."""
    reference = reference_rows(game.members, game.nonmembers, game.auxiliary)
    return perturbed(inputs, reference, game.seed).flatten(0, 1)


def perturbed_places(game: Game, examples: Examples) -> Tensor:
    """Returns which records are moved: those that shadows answer about, as many as are worth it."""
    rows = torch.arange(len(examples))
    places = rows if game.shadows is None else game.shadows.places.get(examples.name, rows)
    return places[: max_perturbed_rows(examples.inputs)]
