"""Whose answer is this? The record in a gallery that answers like it."""

from dataclasses import dataclass

from torch import Tensor

from shieldnet.attacks.adversary.features import exact_distances
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.inversion.decoding import INVERTS
from shieldnet.core.statistics import proportion
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, Outcome, Threat
from shieldnet.findings.metrics import RELEASE_LESS, Limit, Metric

_MAX_GALLERY = 1000


@dataclass(frozen=True)
class Reidentification(Attack):
    """Finds which candidate an answer is about: the adversary holds a gallery and asks about each.

    It compares the answer with the candidates' own answers and names the nearest, at random among
    equals. Readings are chosen on the auxiliary data. Success is bounded by the cost for every
    adversary: prior 1/gallery times 2^bits.
    """

    metrics = (
        Metric(
            "reidentification",
            "re-identified",
            "more",
            Limit(
                "max_reidentification",
                0.10,
                "how often the right record is found in a gallery",
                helps=RELEASE_LESS,
                needs="give auxiliary records",
            ),
            standards=(*INVERTS, "EDPB queries"),
            headline=True,
        ),
    )

    def __call__(self, game: Game) -> Outcome:
        auxiliary, targets = game.owned(), game.nonmembers
        size = min(len(targets), _MAX_GALLERY)
        practice = _chances_of_self(game, auxiliary, size)
        best = max(practice, key=lambda name: float(practice[name].sum()))
        right = _chances_of_self(game, targets, size)[best]
        labels = game.model_labels(targets)[:size].unique()
        return Outcome(
            findings=(
                Finding.of(
                    "reidentification",
                    proportion(float(right.sum()), size),
                    samples=size,
                    baseline=len(labels) / size,
                    threat=Threat(auxiliary=len(auxiliary)),
                    source=f"nearest answer in a gallery of {size}, read as {best}",
                    ceiling=game.shield.cost().reconstruction(1 / size),
                ),
            )
        )


def _chances_of_self(game: Game, examples: Examples, size: int) -> dict[str, Tensor]:
    """Returns, for every reading, each row's chance to be named from one answer about it."""
    gallery = game.views(game.own_answers(examples).first(size))
    answers = game.views(game.ask(examples).first(size))
    return {name: _chance_of_self(gallery[name], view) for name, view in answers.items()}


def _chance_of_self(gallery: Tensor, answers: Tensor) -> Tensor:
    """Returns each row's chance to be named: 1/n if it is among its n nearest equals, else 0.

    Shapes: gallery (n, f), answers (n, f) -> (n,) float64.
    """
    distances = exact_distances(answers, gallery)
    nearest = (distances <= distances.amin(1, keepdim=True)).double()
    return nearest.diagonal() / nearest.sum(1)
