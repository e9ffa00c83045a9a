"""Searching for the image whose released map is the one that was seen, by questions alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.attacks.adversary.selection import MIN_ROWS, choose
from shieldnet.attacks.base import Attack, Form, Game
from shieldnet.attacks.inversion.candidates import REPEATS, answered
from shieldnet.attacks.inversion.decoding import INVERTS, LEAKAGE
from shieldnet.attacks.inversion.map_answers import own_images
from shieldnet.attacks.inversion.map_search import (
    DECODER,
    MAX_PRACTICE,
    MAX_TARGETS,
    searched,
    trial_of,
)
from shieldnet.attacks.inversion.maps import SHARE_HELD_BACK, MapInversion, Trial
from shieldnet.attacks.inversion.numbers import Numbers
from shieldnet.attacks.positions.readings import answers_about, extent_of, rows_at_once
from shieldnet.core.checks import whole
from shieldnet.core.statistics import random_sums
from shieldnet.findings.finding import Outcome, Threat
from shieldnet.findings.metrics import Metric

_SUMS = 256  # random sums of a map, by which two maps are compared


@dataclass(frozen=True)
class MapProbing(Attack):
    """Asks the shield about candidates, and descends towards the map that it saw.

    ``Search`` for answers at positions: no weights, no gradients. It starts from what the best map
    decoder expects and moves along the principal directions of its own images, as ``Numbers`` says.
    Maps are compared by random sums of p or of log p, whichever tells more of the adversary's own
    images. The pull, or not to move at all, is chosen on auxiliary rows that the decoder has not
    seen.

    ``inversion.search.map`` is the leakage beyond the released labels, as of ``MapInversion``.
    queries: answers about candidates of each record, about; behind noise each is the mean of four.
    pulls: that are tried.
    Errors: NotApplicable without auxiliary data, and where inputs are texts or several.
    NOT promised: that the search finds the nearest image; another start or budget may do better.
    """

    searches = True
    at_positions = True
    metrics = (
        Metric(
            "inversion.search.map",
            "leakage of a map, by search",
            "more",
            LEAKAGE,
            standards=(*INVERTS, "EDPB queries"),
        ),
    )
    queries: int = 256
    pulls: tuple[float, ...] = Numbers.settings
    decoder: MapInversion = DECODER

    def __post_init__(self) -> None:
        whole("queries", self.queries, low=1)

    def candidates_asked(self, form: Form, owned: int, targets: int) -> int:
        if form != "maps" or min(owned, targets) < MIN_ROWS:
            return 0
        practice = min(MAX_PRACTICE, owned // SHARE_HELD_BACK)
        return (practice * len(self.pulls) + min(MAX_TARGETS, targets)) * self.queries

    def __call__(self, game: Game) -> Outcome:
        trial = trial_of(game, self.decoder)
        candidates = MapCandidates.of(game, trial)
        seeker = Numbers.of(candidates, own_images(game), self.queries)
        wanted = candidates.seen

        def moved(start: Tensor, rows: slice, pull: float) -> Tensor:
            return seeker.search(wanted[rows], start, pull)

        asked = 1 + seeker.asked
        threat = Threat(
            asked,
            trial.learner.rows,
            sees=f"1 answer about each example, and {seeker.asked} about candidates of each",
        )
        return searched(game, trial, moved, self.pulls, "inversion.search.map", threat)


@dataclass(frozen=True)
class MapCandidates:
    """Asks about candidates, and reads maps in units of the adversary's own.

    floor: what smaller numbers are read as, in log p; None for p itself. unit: the deviation of
    each sum. repeats: answers averaged about each.
    Shapes: unit (sums,), seen (rows, sums) of the rows held back and then of the targets.
    """

    game: Game
    classes: int
    floor: float | None
    unit: Tensor
    seen: Tensor
    repeats: int

    @classmethod
    def of(cls, game: Game, trial: Trial) -> "MapCandidates":
        """Chooses the reading, and measures the units on what was released of all rows."""
        p, known = trial.answers.p, trial.learner.checked
        floors = {"p": None, "log p": max(trial.answers.least / 2, 1e-6)}
        views = {name: _summed(p, floor) for name, floor in floors.items()}
        few = {name: view[: len(known)] for name, view in views.items()}
        chosen = choose((Ridge(),), few, random_sums(known, 64), seed=game.seed).view
        unit = few[chosen].std(0)
        unit = unit.where(unit > 1e-6, 1.0)
        repeats = 1 if game.shield.deterministic else REPEATS
        return cls(game, p.shape[-1], floors[chosen], unit, views[chosen] / unit, repeats)

    def ask(self, inputs: Tensor) -> Tensor:
        """Reads answers about candidates; NaN for those that the shield does not answer.

        Shapes: (rows, ...) -> (rows, sums).
        """
        parts = inputs.split(rows_at_once(extent_of(self.game), inputs))
        return torch.cat([answered(self._ask, part, len(self.unit)) for part in parts])

    def _ask(self, inputs: Tensor) -> Tensor:
        shield = self.game.shield
        answers = [
            shield.chain.distribution(answers_about(shield, inputs)[0].cpu(), self.classes)
            for _ in range(self.repeats)
        ]
        return _summed(torch.stack(answers).float().mean(0), self.floor) / self.unit


def _summed(p: Tensor, floor: float | None) -> Tensor:
    """Shapes: (rows, *positions, classes) -> (rows, sums)."""
    read = p if floor is None else p.clamp_min(floor).log()
    return random_sums(read.flatten(1), _SUMS)
