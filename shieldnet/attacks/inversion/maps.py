"""Turning answers at positions back into inputs: an image from its segmentation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from shieldnet.attacks.adversary.decoders import Decoder, KernelRidge, Ridge
from shieldnet.attacks.adversary.features import Parts, Scale, Words, units_of
from shieldnet.attacks.adversary.map_decoders import (
    MAX_CHANNELS,
    MapDecoder,
    MapNetwork,
    Patches,
    standardized,
)
from shieldnet.attacks.adversary.selection import MIN_ROWS, choose, surely_best
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.inversion.decoding import (
    INVERTS,
    LEAKAGE,
    Inversion,
    exposed_by,
    share_per_feature,
)
from shieldnet.attacks.inversion.inputs import Errors
from shieldnet.attacks.positions.readings import extent_of
from shieldnet.attacks.positions.truth import token_columns
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import noise_about
from shieldnet.core.statistics import Interval, random_sums, saved_share
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Metric
from shieldnet.findings.reading import BY_LABEL
from shieldnet.shield.module import Shield

_MAX_ROWS, _MAX_TARGETS = 1000, 300
_MAX_NUMBERS = 2**26  # of the answers about one set
_MAX_FLAT = 4096  # numbers of an answer, those that vary the most
_SUMS = 64
_AT_ONCE = 2**22  # numbers
_View = Callable[[], Tensor]
"""Makes one reading of the answers about all rows. Shapes: -> (rows, *positions, channels)."""


@dataclass(frozen=True)
class MapInversion(Attack):
    """Learns inputs from answers at positions, beyond what the released labels tell.

    A map is an answer of several rows: a segmentation's pixels, the decisions of a multi-label
    model, the tokens of a text. The adversary asks the shield about its own auxiliary rows. An
    image is learned place by place (``local``: least squares on patches, a convolutional network),
    and everything from the flattened answer (``flat``); each on p, log p and, where scores are
    released, logits. The baseline is the best of the same decoders, and of the label's mean at
    every pixel, that sees the released winners alone: a segmentation's labels are released on
    purpose. Choices are made on a fifth of the auxiliary rows, and where no decoder is surely
    better there, the adversary uses the labels.

    ``inversion.map`` = (MSE_labels - MSE) / MSE_labels on nonmembers: 0 means that the answers give
    no more away than their winners, 1 that they give everything. Defenses that change winners
    change this baseline: ``r2.inversion.map``, over the mean input, compares their shields.
    Errors: NotApplicable without auxiliary data, and for answers of too many numbers.
    """

    learns = True
    at_positions = True
    metrics = (
        Metric(
            "inversion.map",
            "leakage of a map",
            "more",
            LEAKAGE,
            standards=INVERTS,
            headline=True,
        ),
        next(metric for metric in Inversion.metrics if metric.name == "r2.*"),
    )
    flat: tuple[Decoder, ...] = (Ridge(), KernelRidge())
    local: tuple[MapDecoder, ...] = (Patches(), MapNetwork())

    def __post_init__(self) -> None:
        if not (self.flat and self.local):
            raise ConfigError(
                "Expected a decoder at least of the flattened answer and of places, such as "
                f"MapInversion(flat=(Ridge(),), local=(Patches(),)); got {self}."
            )

    def __call__(self, game: Game) -> Outcome:
        trial = self.tried(game)
        learner, secret, targets = trial.learner, trial.secret, trial.targets
        name, tried, is_sure = trial.best(dict(trial.guesses))
        each = trial.scored(tried, is_sure)
        total = each.guess.sum(1)
        finding = Finding.of(
            "inversion.map",
            each.share(game.seed),
            samples=len(targets),
            baseline=0.0,
            threat=Threat(auxiliary=learner.rows),
            source=f"{name}; baseline: {trial.source}",
            note="" if is_sure else BY_LABEL,
        )
        used = tried if is_sure else trial.by_label
        over_mean = saved_share(total, each.mean.sum(1), seed=game.seed)
        if not trial.surely_over_mean(used):  # one constant guess beats another by a hair
            over_mean = Interval(0.0, 0.0, max(0.0, over_mean.high))
        guess = used[-len(targets) :]
        return Outcome(
            findings=(finding, _renamed(finding, "r2.inversion.map", over_mean)),
            features={"recovered": secret.shaped(share_per_feature(each.guess, each.label))},
            exposed=tuple(exposed_by("inversion.map", total, each.label.sum(1))),
            reconstructions=(
                secret.undo(guess).reshape(targets.inputs.shape)
                if isinstance(secret, Scale)
                else None
            ),
        )

    def tried(self, game: Game) -> "Trial":
        """Asks about the adversary's rows and the targets, and guesses by every decoder."""
        if token_columns(game.nonmembers, extent_of(game).positions) is not None:
            raise NotApplicable("texts are read token by token (PromptInversion)")
        auxiliary = own_images(game)
        targets = _some(game, game.nonmembers, _MAX_TARGETS)
        game.require_rows(MIN_ROWS, auxiliary, targets)
        secret = units_of(auxiliary.inputs, auxiliary.packing)
        learner = _Learner.of(game, auxiliary, secret)
        varies = learner.known.amax(0) > learner.known.amin(0)
        if not (secret.weights[varies] > 0).any():
            raise NotApplicable("nothing varies among the auxiliary rows")
        answers = Answered.of(game, auxiliary, targets)
        by_labels = self._guesses(learner, {"the labels": answers.labels})
        by_labels["the mean input"] = learner.mean(len(targets))
        source = min(by_labels, key=lambda name: float(learner.errors(by_labels[name]).sum()))
        guesses = self._guesses(learner, answers.views)
        return Trial(learner, answers, secret, targets, guesses, source, by_labels[source])

    def _guesses(self, learner: "_Learner", views: Mapping[str, _View]) -> dict[str, Tensor]:
        """Guesses the rows held back and the targets, by every kind of decoder's best reading."""
        guesses: dict[str, Tensor] = {}
        if not views:
            return guesses
        if learner.image is not None:
            first, *others = self.local
            by_view = {name: learner.local(first, view()) for name, view in views.items()}
            best = min(by_view, key=lambda name: float(learner.errors(by_view[name]).sum()))
            guesses[f"{type(first).__name__} on {best}"] = by_view[best]
            for decoder in others:
                guess = learner.local(decoder, views[best]())
                guesses[f"{type(decoder).__name__} on {best}"] = guess
        flat = {name: learner.flattened(view()) for name, view in views.items()}
        return guesses | learner.flat(self.flat, flat)


@dataclass(frozen=True)
class Answered:
    """Holds what the shield released about rows at all positions, and how it can be read.

    Shapes: p, logits (rows, *positions, classes); logits None where p says as much. least: the
    smallest p above zero.
    """

    p: Tensor
    logits: Tensor | None
    least: float

    @classmethod
    def of(cls, game: Game, *sets: Examples) -> "Answered":
        """Asks once about every row of these sets, in their order; floors are of the first set."""
        parts = [_answers(game, examples) for examples in sets]
        first = parts[0][0]
        p = torch.cat([p for p, _ in parts])
        scores = [logits for _, logits in parts if logits is not None]
        return cls(p, torch.cat(scores) if scores else None, float(first[first > 0].min()))

    def labels(self) -> Tensor:
        """Returns the released winners. Shapes: -> (rows, *positions, classes), 0 or 1."""
        return one_hot(self.p.argmax(-1), self.p.shape[-1]).float()

    def _log_p(self, floor: float) -> Tensor:
        return self.p.clamp_min(floor).log()

    @property
    def views(self) -> dict[str, _View]:
        """Lists the readings that say more than the winners; none where nothing more is released.

        Released zeros, and all that is smaller than a floor, are read as the floor.
        """
        if self.logits is None and torch.equal(self.p, self.labels()):
            return {}
        floors = {"1e-3": 1e-3, "half the least": max(self.least / 2, 1e-30)}
        views: dict[str, _View] = {"p": lambda: self.p}
        for words, floor in floors.items():
            views[f"log p above {words}"] = partial(self._log_p, floor)
        logits = self.logits
        if logits is not None:
            views["logits"] = lambda: logits
        every = tuple(views.values())
        if len(every) * self.p.shape[-1] <= MAX_CHANNELS:
            views["all readings"] = lambda: torch.cat([view() for view in every], -1)
        return views


def _answers(game: Game, examples: Examples) -> tuple[Tensor, Tensor | None]:
    shield, classes = game.shield, extent_of(game).classes
    size = max(1, _AT_ONCE // _numbers(game))
    p, logits = [], []
    with noise_about(examples.content, "map"):
        for rows in examples.inputs.split(size):
            answers = released_answers(shield, rows)
            p.append(shield.chain.distribution(answers, classes).float())
            if shield.chain.releases_scores:
                logits.append(shield.chain.rows(answers).float())
    return torch.cat(p), torch.cat(logits) if logits else None


def released_answers(shield: Shield, inputs: Tensor) -> Tensor:
    """Asks a shield about rows, which the model may write into. Shapes: -> as it answers, CPU."""
    first = next(shield.parameters(), None)
    device = inputs.device if first is None else first.device
    with torch.no_grad():
        return shield.answer_in(shield(inputs.to(device, copy=True))).cpu()


def own_images(game: Game) -> Examples:
    """Returns the rows that the adversary learns from. Errors: NotApplicable where there are none.

    Its maps are not among them.
    """
    return _some(game, game.owned(), _MAX_ROWS)


def _some(game: Game, examples: Examples, most: int) -> Examples:
    """Keeps the first rows, as many as their answers fit into memory."""
    numbers = _numbers(game)
    rows = min(most, _MAX_NUMBERS // max(numbers, examples.inputs[0].numel()))
    if rows < MIN_ROWS:
        raise NotApplicable(
            f"an answer of {numbers} numbers about {examples.inputs[0].numel()} is too large: "
            f"{_MAX_NUMBERS // MIN_ROWS} fit. Audit a model of smaller images"
        )
    return replace(examples, inputs=examples.inputs[:rows], labels=None)


def _numbers(game: Game) -> int:
    extent = extent_of(game)
    return extent.classes * math.prod(extent.positions)


@dataclass(frozen=True)
class _Learner:
    """Learns inputs from readings; of all rows the adversary's come first, then the targets.

    fit, check: places of its rows to learn from and to choose by. known, checked: what these rows
    hold, in units. image: (colors, height, width) where inputs and answers are both maps.
    Shapes: fit (n,), check (m,), known (n, features), checked (m, features), weights (features,).
    """

    fit: Tensor
    check: Tensor
    known: Tensor
    checked: Tensor
    weights: Tensor
    image: tuple[int, int, int] | None
    seed: int

    @classmethod
    def of(cls, game: Game, auxiliary: Examples, secret: Scale | Words | Parts) -> "_Learner":
        order = torch.randperm(len(auxiliary), generator=torch.Generator().manual_seed(game.seed))
        check, fit = order[: len(order) // 5], order[len(order) // 5 :]
        inputs = secret.apply(auxiliary.inputs)
        shape, image = auxiliary.inputs.shape[1:], None
        is_map = len(extent_of(game).positions) == 2 and isinstance(secret, Scale)
        if is_map and len(shape) in (2, 3):
            colors, height, width = (1, *shape)[-3:]
            image = (colors, height, width)
        return cls(fit, check, inputs[fit], inputs[check], secret.weights, image, game.seed)

    @property
    def rows(self) -> int:
        """Counts the adversary's rows."""
        return len(self.fit) + len(self.check)

    @property
    def center(self) -> Tensor:
        """Returns the mean input. Shapes: -> (features,)."""
        return self.known.mean(0)

    def mean(self, targets: int) -> Tensor:
        """Guesses the mean. Shapes: -> (check + targets, features)."""
        return self.center.expand(len(self.check) + targets, -1)

    def errors(self, guess: Tensor) -> Tensor:
        """Returns the squared errors on the rows held back. Shapes: -> (m,)."""
        missed = (guess[: len(self.check)] - self.checked).square()
        return (missed * self.weights).sum(1)

    def local(self, decoder: MapDecoder, maps: Tensor) -> Tensor:
        """Guesses images place by place. Shapes: maps, all rows -> (check + targets, features)."""
        assert self.image is not None  # noqa: S101  # the caller looked
        learned, unseen = standardized(*self._parted(maps.movedim(-1, 1)), self.image[1:])
        known = (self.known - self.center).reshape(-1, *self.image)
        guess = decoder.predict(learned, known, unseen).flatten(1) + self.center
        return guess.clamp(self.known.amin(), self.known.amax())

    def flattened(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Lays answers flat and keeps the numbers that vary. Shapes: -> (n, k), (others, k)."""
        learned, unseen = self._parted(maps.flatten(1))
        if learned.shape[1] > _MAX_FLAT:
            kept = learned.var(0).topk(_MAX_FLAT).indices
            learned, unseen = learned[:, kept], unseen[:, kept]
        return learned, unseen

    def flat(
        self, decoders: tuple[Decoder, ...], views: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Guesses by each decoder's best reading and setting, chosen on a part of the rows."""
        learned = {name: known for name, (known, _) in views.items()}
        unseen = {name: others for name, (_, others) in views.items()}
        sums, ends = random_sums(self.known, _SUMS), (self.known.amin(0), self.known.amax(0))
        chosen = [choose((decoder,), learned, sums, seed=self.seed) for decoder in decoders]
        return {
            f"{choice} flat": choice.predict(learned, self.known, unseen).clamp(*ends)
            for choice in chosen
        }

    def _parted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[self.fit], torch.cat([rows[self.check], rows[self.rows :]])


@dataclass(frozen=True)
class Trial:
    """Holds what every decoder guesses of the rows held back and then of the targets.

    source, by_label: of the guess that sees the released winners alone.
    Shapes: guesses, by_label (check + targets, features).
    """

    learner: _Learner
    answers: Answered
    secret: Scale | Words | Parts
    targets: Examples
    guesses: Mapping[str, Tensor]
    source: str
    by_label: Tensor

    def at(self, checked: int, targets: int) -> "Trial":
        """Keeps the first rows held back and the first targets, with the answers about them."""
        learner = self.learner
        places = torch.cat(
            [learner.check[:checked], torch.arange(learner.rows, learner.rows + targets)]
        )
        first = len(learner.check)
        kept = torch.cat([torch.arange(checked), torch.arange(first, first + targets)])
        return replace(
            self,
            learner=replace(
                learner, check=learner.check[:checked], checked=learner.checked[:checked]
            ),
            answers=replace(self.answers, p=self.answers.p[places], logits=None),
            targets=replace(self.targets, inputs=self.targets.inputs[:targets]),
            guesses={name: guess[kept] for name, guess in self.guesses.items()},
            by_label=self.by_label[kept],
        )

    def best(self, guesses: Mapping[str, Tensor]) -> tuple[str, Tensor, bool]:
        """Chooses on the rows held back, and tests if the guess is surely better than by labels."""
        every = [*guesses.items(), (self.source, self.by_label)]
        errors = torch.stack([self.learner.errors(guess) for _, guess in every])
        places, certain = surely_best(errors.unsqueeze(-1))
        name, guess = every[int(places)]
        is_sure = bool(certain) and int(places) < len(guesses)
        return (name if is_sure else self.source), guess, is_sure

    def surely_over_mean(self, guess: Tensor) -> bool:
        """Tests on the rows held back if a guess is better than the mean input."""
        both = (guess, self.learner.mean(len(self.targets)))
        errors = torch.stack([self.learner.errors(one) for one in both])
        places, certain = surely_best(errors.unsqueeze(-1))
        return bool(certain) and int(places) == 0

    def scored(self, tried: Tensor, is_sure: bool) -> Errors:
        """Returns the squared errors on the targets, of the last rows of a guess."""
        sought = self.secret.apply(self.targets.inputs)
        count = len(sought)
        tried, by_label = tried[-count:], self.by_label[-count:]
        guesses = (tried if is_sure else by_label, tried, by_label, self.learner.center)
        return Errors(*((guess - sought).square() * self.secret.weights for guess in guesses))


def _renamed(finding: Finding, name: str, share: Interval) -> Finding:
    return replace(finding, name=name, value=share.value, low=share.low, high=share.high)
