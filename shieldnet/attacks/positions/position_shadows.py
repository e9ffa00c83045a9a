"""Shadows of a model that answers at positions: each is asked and forgotten, sums are kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.shadows import Train
from shieldnet.attacks.membership.trainers import called, check_trainer
from shieldnet.attacks.positions.box_numbers import WIDTH
from shieldnet.attacks.positions.maps import boundaries
from shieldnet.attacks.positions.painted_shield import PaintedShield
from shieldnet.attacks.positions.readings import (
    extent_of,
    owned_with_truth,
    read_by,
    released_with_numbers,
    rows_at_once,
    truth_of,
)
from shieldnet.attacks.positions.sequence_scores import CAP
from shieldnet.attacks.positions.truth import Truth
from shieldnet.attacks.shadow_answers import PositionShadows, share_of_members
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.core.randomness import noise_about, replayed_noise
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable
from shieldnet.running.engine import alone, run
from shieldnet.running.fingerprints import fingerprint
from shieldnet.running.store import Cache
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent
from shieldnet.training.recipe import Recipe


@dataclass(frozen=True)
class _Work:
    """Says what one shadow is trained on and asked about.

    shields: by the digest of their settings, without the target. rows: those that train it.
    """

    train: Train
    shields: Mapping[str, Shield]
    data: tuple[Tensor, Tensor]
    questions: Mapping[str, tuple[Examples, Truth]]
    classes: int
    seed: int

    @classmethod
    def of(cls, game: Game, shields: Mapping[str, Shield], train: Train) -> "_Work":
        """Takes a game's sets; a text without labels comes with its next tokens."""
        sets = (game.members, game.nonmembers)
        asked = (*sets, *owned_with_truth(game))
        return cls(
            train,
            {one.settings.digest(): one.with_model(nn.Identity()) for one in shields.values()},
            (
                torch.cat([examples.inputs for examples in sets]),
                torch.cat([truth_of(game, examples).labels for examples in sets]),
            ),
            {examples.name: (examples, truth_of(game, examples)) for examples in asked},
            extent_of(game).classes,
            game.seed,
        )

    def sums(self, rows: Tensor, seed: int, cache: Cache | None) -> dict[str, Any]:
        """Trains a shadow and returns what it says, by shield and set; or reads it."""
        key = "" if cache is None else fingerprint("position shadows", self, rows, seed)
        if cache is not None and (kept := cache.get(key)) is not None:
            return kept
        inputs, labels = self.data
        model = called(self.train, (inputs[rows], labels[rows]), seed).eval()
        sums = {}
        with replayed_noise(self.seed), noise_about("shadow", seed):
            for digest, shield in self.shields.items():
                for name, (examples, truth) in self.questions.items():
                    own = shield.with_model(model)
                    sums[f"{digest} {name}"] = _summed(own, examples, truth, self.classes)
        if cache is not None:
            cache.put(key, sums)
        return sums


def train_position_shadows(
    game: Game,
    shields: Mapping[str, Shield],
    train: Train | None,
    count: int,
    *,
    engine: str = "processes",
    workers: int | None = None,
    cache: Cache | None = None,
    done: Callable[[], object] = lambda: None,
) -> PositionShadows:
    """Trains shadows on records drawn independently from both sets, and asks them what is scored.

    Each is asked behind every shield. A text without labels is given with its next tokens, -100
    where none counts. Canaries train no shadow.
    Errors: NotApplicable without ``train``: no reference network imitates these models; ConfigError
        as in ``train_shadows``, and for a recipe of a model of sequences.
    """
    if train is None:
        raise NotApplicable(
            "a small reference network cannot imitate a model that answers at positions: pass "
            "train=..."
        )
    if isinstance(train, Recipe) and len(extent_of(game).positions) == 1:
        raise ConfigError(
            "A Recipe trains models that give one row an answer, or maps; this one answers "
            "sequences. Pass train as a function, train((inputs, labels), seed) -> model."
        )
    work = _Work.of(game, shields, train)
    reader = _MeanScores(game.shield.bare().with_model(nn.Identity()), extent_of(game))
    alone(check_trainer, train, reader, work.data, reader.columns, game.seed)
    sizes = [len(game.members), len(game.nonmembers)]
    rng = np.random.default_rng(game.seed)
    drawn = torch.from_numpy(rng.random((count, sum(sizes))) < share_of_members(*sizes))
    if int(drawn.sum(1).min()) < 2:
        raise NotApplicable(f"{sum(sizes)} records in all are too few to train shadows on")
    seeds = np.random.SeedSequence(game.seed).generate_state(count)
    jobs = [
        (work.sums, (chosen.nonzero().flatten(), int(seed) >> 1, cache))
        for chosen, seed in zip(drawn, seeds, strict=True)
    ]
    parts = run(jobs, engine=engine, workers=workers, done=done)
    of_members, of_nonmembers = drawn.split(sizes, 1)
    return PositionShadows(
        {digest: _stacked(parts, digest, work.questions) for digest in work.shields},
        {game.members.name: of_members, game.nonmembers.name: of_nonmembers},
        f"{count} shadows trained by train",
    )


def _stacked(
    parts: Sequence[dict[str, Any]], digest: str, names: Iterable[str]
) -> dict[str, Tensor]:
    """Joins what all shadows say behind one shield. Shapes: -> each (shadows, rows, 4)."""
    return {
        name: torch.stack([torch.from_numpy(part[f"{digest} {name}"]) for part in parts])
        for name in names
    }


def _summed(shield: Shield, examples: Examples, truth: Truth, classes: int) -> Any:
    """Sums what is kept of a shadow's answers; of a map, at its boundaries as well.

    Shapes: -> (rows, 4) float64, or (rows, 8) of a map, as a numpy array.
    """
    try:
        readings = read_by(shield, examples, truth, classes)
    except AnswerError as refused:
        raise ConfigError(
            f"A shadow model gives answers that cannot be used; did its training diverge? {refused}"
        ) from refused
    is_hidden = readings.log_p == -torch.inf
    columns = (
        readings.log_p.where(~is_hidden, 0.0),
        is_hidden,
        readings.log_p.clamp_min(CAP),
        readings.right,
    )
    parts = [readings.counted]
    if readings.labels.dim() > 2:
        parts.append(boundaries(readings.labels, readings.counted))
    sums = [
        column.double().where(part, 0.0).flatten(1).sum(1) for part in parts for column in columns
    ]
    return torch.stack(sums, 1).numpy()


@dataclass(frozen=True)
class _MeanScores:
    """Reads what a model says as one row, to tell two models apart.

    The mean over all positions, and the numbers of a detector's boxes, of which the map shows few.
    """

    shield: Shield
    extent: Extent

    @property
    def columns(self) -> int:
        """Counts the numbers of a row."""
        return self.extent.classes + (WIDTH if isinstance(self.shield, PaintedShield) else 0)

    def __call__(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        asked = self.shield.with_model(model.eval())

        def mean(inputs: Tensor) -> Tensor:
            rows = []
            for part in inputs.split(rows_at_once(self.extent, inputs)):
                said, numbers = released_with_numbers(asked, part, self.extent.classes)
                means = said.flatten(1, -2).mean(1)
                rows.append(means if numbers is None else torch.cat([means, numbers], 1))
            return torch.cat(rows)

        return mean
