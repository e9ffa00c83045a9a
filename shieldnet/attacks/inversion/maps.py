"""Turning answers at positions back into inputs: an image from its segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.adversary.decoders import Decoder, KernelRidge, Ridge
from shieldnet.attacks.adversary.features import Parts, Words, units_of
from shieldnet.attacks.adversary.map_decoders import (
    MapDecoder,
    MapNetwork,
    Patches,
    standardized,
)
from shieldnet.attacks.adversary.scales import Scale
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
from shieldnet.attacks.inversion.map_answers import Answered, View, first_rows, own_images
from shieldnet.attacks.positions.box_numbers import readings_of_numbers
from shieldnet.attacks.positions.readings import extent_of
from shieldnet.attacks.positions.truth import token_columns
from shieldnet.core.errors import ConfigError
from shieldnet.core.statistics import Interval, random_sums, saved_share
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Metric
from shieldnet.findings.reading import BY_WINNERS

_MAX_TARGETS = 300
SHARE_HELD_BACK = 5
"""Of the adversary's rows, one in so many is held back, to choose by."""
_MAX_FLAT = 4096  # numbers of an answer, those that vary the most
_SUMS = 64


@dataclass(frozen=True)
class MapInversion(Attack):
    """Learns inputs from answers at positions, beyond what the released labels tell.

    A map is an answer of several rows: a segmentation's pixels, the decisions of a multi-label
    model, the tokens of a text. The adversary asks the shield about its own auxiliary rows. An
    image is learned place by place (``local``: least squares on patches, a convolutional network),
    and everything from the flattened answer (``flat``); each on p, log p and, where scores are
    released, logits. The baseline is the best of the same decoders, and of the label's mean at
    every pixel, that sees the released winners alone, or of a shield with noise the model's own
    winners: a segmentation's labels are released on purpose. Of a detector, the numbers of its
    boxes are read as well: alone, beside the flattened map, and for what a decoder of places
    misses. Choices are made on a fifth of the auxiliary rows, and where no decoder is surely better
    there, the adversary uses the labels.

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
        each = trial.scored(tried, is_sure=is_sure)
        total = each.guess.sum(1)
        finding = Finding.of(
            "inversion.map",
            each.share(game.seed),
            samples=len(targets),
            baseline=0.0,
            threat=Threat(auxiliary=learner.rows),
            source=f"{name}; baseline: {trial.source}",
            note="" if is_sure else BY_WINNERS,
        )
        is_by_winners = not is_sure and trial.by_winners is trial.by_label
        used = tried if is_sure else trial.by_winners
        if not (is_sure or is_by_winners):
            released = {**trial.guesses, "": trial.by_winners}
            used = released[learner.best_of(released)]
        missed = trial.scored(used, is_sure=True).guess.sum(1)
        over_mean = saved_share(missed, each.mean.sum(1), seed=game.seed)
        if not trial.surely_over_mean(used):  # one constant guess beats another by a hair
            over_mean = Interval(0.0, 0.0, max(0.0, over_mean.high))
        guess = used[-len(targets) :]
        return Outcome(
            findings=(
                finding,
                replace(
                    _renamed(finding, "r2.inversion.map", over_mean),
                    note="all of it from the released winners" if is_by_winners else "",
                ),
            ),
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
        targets = first_rows(game, game.nonmembers, _MAX_TARGETS)
        game.require_rows(MIN_ROWS, auxiliary, targets)
        secret = units_of(auxiliary.inputs, auxiliary.packing)
        learner = _Learner.of(game, auxiliary, secret)
        varies = learner.known.amax(0) > learner.known.amin(0)
        if not (secret.weights[varies] > 0).any():
            raise NotApplicable("nothing varies among the auxiliary rows")
        answers = Answered.of(game, auxiliary, targets)
        by_winners = self._guesses(learner, {"the labels": answers.labels})
        by_winners["the mean input"] = learner.mean(len(targets))
        by_labels = dict(by_winners)
        if not game.shield.deterministic:  # whose winners may tell less than the model's
            bare = Answered.of(replace(game, shield=game.shield.bare()), auxiliary, targets)
            by_labels |= self._guesses(learner, {"the model's labels": bare.labels})
        source, released = learner.best_of(by_labels), learner.best_of(by_winners)
        known = by_labels[source], by_winners[released]
        guesses = self._guesses(learner, answers.views, answers.numbers)
        return Trial(learner, answers, secret, targets, guesses, source, *known)

    def _guesses(
        self, learner: "_Learner", views: Mapping[str, View], numbers: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Guesses the rows held back and the targets, by every kind of decoder's best reading."""
        guesses: dict[str, Tensor] = {}
        read = None if numbers is None else learner.varying(readings_of_numbers(numbers))
        if learner.image is not None and views:
            first, *others = self.local
            by_view = {name: learner.local(first, view()) for name, view in views.items()}
            best = min(by_view, key=lambda name: float(learner.errors(by_view[name]).sum()))
            name = f"{type(first).__name__} on {best}"
            guesses[name] = by_view[best]
            if read is not None:
                both = learner.local_then_flat(first, views[best](), read)
                guesses[f"{name}, the rest by Ridge on numbers"] = both
            for decoder in others:
                guess = learner.local(decoder, views[best]())
                guesses[f"{type(decoder).__name__} on {best}"] = guess
        flat = {name: learner.flattened(view()) for name, view in views.items()}
        if read is not None:
            flat |= learner.with_numbers(read, flat)
        return guesses | (learner.flat(self.flat, flat) if flat else {})


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
        held = len(order) // SHARE_HELD_BACK
        check, fit = order[:held], order[held:]
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

    def best_of(self, guesses: Mapping[str, Tensor]) -> str:
        """Names the guess with the smallest errors on the rows held back."""
        return min(guesses, key=lambda name: float(self.errors(guesses[name]).sum()))

    def local(self, decoder: MapDecoder, maps: Tensor) -> Tensor:
        """Guesses images place by place. Shapes: maps, all rows -> (check + targets, features)."""
        learned, unseen = self._parted(maps)
        return self._local(decoder, learned, unseen)

    def _local(self, decoder: MapDecoder, learned: Tensor, asked: Tensor) -> Tensor:
        assert self.image is not None  # noqa: S101  # the caller looked
        seen, unseen = standardized(learned.movedim(-1, 1), asked.movedim(-1, 1), self.image[1:])
        known = (self.known - self.center).reshape(-1, *self.image)
        guess = decoder.predict(seen, known, unseen).flatten(1) + self.center
        return guess.clamp(self.known.amin(), self.known.amax())

    def local_then_flat(self, decoder: MapDecoder, maps: Tensor, numbers: Tensor) -> Tensor:
        """Guesses place by place, and what that misses by least squares on numbers.

        Shapes: maps, numbers, all rows -> (check + targets, features).
        """
        learned, unseen = self._parted(maps)
        guess = self._local(decoder, learned, torch.cat([learned, unseen]))
        missed, count = self.known - guess[: len(learned)], len(learned)
        read, others = ({"numbers": part} for part in self._parted(numbers))
        choice = choose((Ridge(),), read, random_sums(missed, _SUMS), seed=self.seed)
        both = guess[count:] + choice.predict(read, missed, others)
        return both.clamp(self.known.amin(), self.known.amax())

    def varying(self, numbers: Tensor) -> Tensor | None:
        """Keeps numbers that vary among the rows to learn from; None where none does."""
        learned = numbers[self.fit]
        varies = learned.amax(0) > learned.amin(0)
        return numbers[:, varies] if varies.any() else None

    def with_numbers(
        self, numbers: Tensor, views: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Lists the numbers alone, and beside p. Shapes: -> (n, k), (others, k)."""
        own = self._parted(numbers)
        if "p" not in views:
            return {"numbers": own}
        both = [torch.cat(pair, 1) for pair in zip(views["p"], own, strict=True)]
        return {"numbers": own, "p and numbers": (both[0], both[1])}

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

    source, by_label: of the guess that sees winners alone, which is the baseline. by_winners: the
    best that sees the released winners alone.
    Shapes: guesses, by_label, by_winners (check + targets, features).
    """

    learner: _Learner
    answers: Answered
    secret: Scale | Words | Parts
    targets: Examples
    guesses: Mapping[str, Tensor]
    source: str
    by_label: Tensor
    by_winners: Tensor

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
            answers=replace(self.answers, p=self.answers.p[places], logits=None, numbers=None),
            targets=replace(self.targets, inputs=self.targets.inputs[:targets]),
            guesses={name: guess[kept] for name, guess in self.guesses.items()},
            by_label=self.by_label[kept],
            by_winners=self.by_winners[kept],
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

    def scored(self, tried: Tensor, *, is_sure: bool) -> Errors:
        """Returns the squared errors on the targets, of the last rows of a guess."""
        sought = self.secret.apply(self.targets.inputs)
        count = len(sought)
        tried, by_label = tried[-count:], self.by_label[-count:]
        guesses = (tried if is_sure else by_label, tried, by_label, self.learner.center)
        return Errors(*((guess - sought).square() * self.secret.weights for guess in guesses))


def _renamed(finding: Finding, name: str, share: Interval) -> Finding:
    return replace(finding, name=name, value=share.value, low=share.low, high=share.high)
