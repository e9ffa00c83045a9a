"""Turning answers back into inputs: how much closer does an answer bring than its label alone?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.decoders import (
    Convolutional,
    Decoder,
    KernelRidge,
    NearestNeighbors,
    Network,
    Ridge,
)
from shieldnet.data import Examples
from shieldnet.errors import DataError
from shieldnet.finding import Exposed, Finding, NotApplicable, Outcome, Threat
from shieldnet.statistics import proportion, saved_share

MIN_ROWS = 40
"""Fewer auxiliary rows, or fewer targets, than this are refused: nothing could be learned."""

_MAX_GALLERY = 1000
_MOST_WORDS = 500
_SMALLEST_PICTURE = 16


@dataclass(frozen=True)
class Inversion(Attack):
    """Trains every decoder on every reading of the answers and keeps the best.

    The adversary asks the shield about its own auxiliary rows, learns inputs from answers, chooses
    decoder, reading and setting on a fifth of these rows, trains again on all of them and is
    scored once on the nonmembers. leakage = (MSE_label - MSE) / MSE_label, with MSE_label of a
    decoder that sees the model's label alone: 0 means that the answer gives no more away than its
    label, 1 that it gives everything, below 0 that not even the label comes through.

    ``r2.inversion`` is the same over the mean input instead of the label's. Values and embeddings
    have no label: the mean is the baseline.

    queries: answers about each row, averaged. Pictures are scored in one unit for all pixels,
    tables in standard deviations of each column, texts by the words that occur in them.
    pictures: also tries a decoder that draws, for pictures of 16 x 16 pixels and more.
    """

    queries: int = 1
    decoders: tuple[Decoder, ...] = (Ridge(), KernelRidge(), NearestNeighbors(), Network())
    pictures: bool = True

    def __call__(self, game: Game) -> Outcome:
        auxiliary, targets = game.owned(), game.nonmembers
        for examples in (auxiliary, targets):
            if len(examples) < MIN_ROWS:
                raise DataError(
                    f"Inversion expects at least {MIN_ROWS} rows of {examples.name}, "
                    f"got {len(examples)}."
                )
        secret = secret_of(auxiliary.inputs)
        known, sought = secret.apply(auxiliary.inputs), secret.apply(targets.inputs)
        if known.shape[1] == 0:
            raise NotApplicable("no word tells one text from another")
        learned = game.views(game.ask(auxiliary, self.queries))
        decoders = (*self.decoders, *self._drawing(auxiliary.inputs.shape[1:]))
        chosen = choose(decoders, learned, known, seed=game.seed)
        asked = game.views(game.ask(targets, self.queries))
        guess = chosen.predict(learned, known, asked)
        errors = (guess - sought).square()
        means = label_baseline(game.model_labels(auxiliary), known, game.classes)
        baseline = (means[game.model_labels(targets)] - sought).square()

        def finding(name: str, part: Tensor, label_part: Tensor) -> Finding:
            return Finding.of(
                name,
                saved_share(part, label_part, seed=game.seed),
                samples=len(targets),
                baseline=0.0,
                threat=Threat(self.queries, len(auxiliary)),
                source=str(chosen),
            )

        name = "inversion" if self.queries == 1 else f"averaging.{self.queries}"
        columns = game.columns if self.queries == 1 and isinstance(secret, Scale) else ()
        return Outcome(
            findings=(
                finding(name, errors.sum(1), baseline.sum(1)),
                finding(f"r2.{name}", errors.sum(1), (known.mean(0) - sought).square().sum(1)),
                *(
                    finding(f"inversion.column.{column}", errors[:, place], baseline[:, place])
                    for place, column in enumerate(columns)
                ),
            ),
            features={"recovered": secret.shaped(share_per_feature(errors, baseline))},
            exposed=(_exposed(name, errors.sum(1), baseline.sum(1)),),
            reconstructions=(
                secret.undo(guess).reshape(targets.inputs.shape)
                if isinstance(secret, Scale)
                else None
            ),
        )

    def _drawing(self, shape: torch.Size) -> tuple[Decoder, ...]:
        is_picture = len(shape) == 3 and min(shape[1:]) >= _SMALLEST_PICTURE
        return (Convolutional(shape=tuple(shape)),) if self.pictures and is_picture else ()


@dataclass(frozen=True)
class Reidentification(Attack):
    """Finds which candidate an answer is about: the adversary holds a gallery and asks about each.

    It compares the answer with the candidates' own answers and names the nearest, at random among
    equals. Readings are chosen on the auxiliary data. Success is bounded by the price for every
    adversary: prior 1/gallery times 2^bits.
    """

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
                    ceiling=game.shield.price().reconstruction(1 / size),
                ),
            )
        )


@dataclass(frozen=True)
class Scale:
    """Maps inputs to the units in which they are scored.

    Each column of a table has its own deviation; the pixels of a picture share one.
    """

    shape: torch.Size
    center: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> "Scale":
        """Measures the inputs. Shapes: (rows, columns) is a table; anything else is a picture."""
        flat = inputs.flatten(1).float()
        deviation = flat.std(0) if inputs.dim() == 2 else flat.std().expand(flat.shape[1])
        return cls(inputs.shape[1:], flat.mean(0), deviation.where(deviation > 0, 1.0))

    def apply(self, inputs: Tensor) -> Tensor:
        """Returns (rows, features)."""
        return (inputs.flatten(1).float() - self.center) / self.deviation

    def undo(self, features: Tensor) -> Tensor:
        """Returns (rows, features) in the inputs' own units."""
        return features * self.deviation + self.center

    def shaped(self, per_feature: Tensor) -> Tensor:
        """Returns a number per feature in the shape of one input."""
        return per_feature.reshape(self.shape)


@dataclass(frozen=True)
class Words:
    """Reads a text as the words that occur in it: what is secret, whatever their order.

    Shapes: tokens (rows, length) whole numbers; words (words,) the most frequent ones, sorted.
    """

    words: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> "Words":
        """Keeps the most frequent words, but for those that stand in every text or in one alone."""
        every, counts = tokens.flatten().unique(return_counts=True)
        frequent = every[counts.argsort(descending=True, stable=True)[: 4 * _MOST_WORDS]]
        found = cls(frequent.sort().values).apply(tokens).sum(0)
        telling = (found > 1) & (found < len(tokens))
        kept = found.where(telling, -1.0).argsort(descending=True, stable=True)
        kept = kept[: min(_MOST_WORDS, int(telling.sum()))]
        return cls(frequent.sort().values[kept].sort().values)

    def apply(self, tokens: Tensor) -> Tensor:
        """Says which words occur. Shapes: -> (rows, words) float32, 0 or 1."""
        place = torch.searchsorted(self.words, tokens.flatten(1).to(self.words.dtype))
        place = place.clamp_max(max(len(self.words) - 1, 0))
        known = self.words[place] == tokens.flatten(1)
        marks = torch.zeros(len(tokens), len(self.words))
        return marks.scatter_reduce_(1, place, known.float(), reduce="amax")

    def undo(self, features: Tensor) -> Tensor:
        """Returns what was guessed of each word."""
        return features

    def shaped(self, per_feature: Tensor) -> Tensor:
        """Returns a number per word."""
        return per_feature


def secret_of(inputs: Tensor) -> Scale | Words:
    """Returns the units in which inputs are guessed: words for whole numbers, else features.

    Whole numbers in rows (batch, length) are taken for the tokens of a text.
    """
    whole = not (inputs.is_floating_point() or inputs.dtype in (torch.bool, torch.uint8))
    return Words.of(inputs) if whole and inputs.dim() == 2 else Scale.of(inputs)


@dataclass(frozen=True)
class Chosen:
    """The decoder, reading and setting that did best on the rows held back for choosing."""

    decoder: Decoder
    view: str
    setting: tuple[float, ...]
    error: float

    def predict(
        self, learned: dict[str, Tensor], known: Tensor, asked: dict[str, Tensor]
    ) -> Tensor:
        """Learns from all known rows and returns what it expects for the rows asked about."""
        features, questions = standardize(learned[self.view], asked[self.view])
        return self.decoder.predict(features, known, questions, self.setting)

    def __str__(self) -> str:
        return f"{type(self.decoder).__name__} on {self.view}"


def choose(
    decoders: tuple[Decoder, ...], views: dict[str, Tensor], known: Tensor, *, seed: int
) -> Chosen:
    """Tries every decoder, reading and setting on a fifth of the rows; returns the best.

    Shapes: views, each (rows, features); known (rows, d).
    """
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    check, fit = order[: len(order) // 5], order[len(order) // 5 :]
    trials: list[Chosen] = []
    for name, view in views.items():
        features, questions = standardize(view[fit], view[check])
        for decoder in decoders:
            for setting in decoder.settings:
                guess = decoder.predict(features, known[fit], questions, setting)
                error = float((guess - known[check]).square().mean())
                trials.append(Chosen(decoder, name, setting, error))
    return min(trials, key=lambda trial: trial.error)


def standardize(learned: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Scales both by the mean and deviation of the first, no further out than ten deviations.

    A feature that hardly ever moves would else throw a linear decoder far off where it does.

    Shapes: (n, f), (m, f).
    """
    center, deviation = learned.mean(0), learned.std(0)
    deviation = deviation.where(deviation > 1e-6, 1.0)
    scaled = (((part - center) / deviation).clamp(-10, 10).float() for part in (learned, asked))
    known, questions = scaled
    return known, questions


def label_means(labels: Tensor, known: Tensor, classes: int) -> Tensor:
    """Returns the decoder that sees the label alone: the mean input of each class.

    A class without rows gets the mean of all. Shapes: labels (n,), known (n, d) -> (classes, d).
    """
    hot = torch.nn.functional.one_hot(labels, classes).to(known.dtype)
    counts = hot.sum(0).unsqueeze(-1)
    return torch.where(counts > 0, (hot.T @ known) / counts.clamp_min(1), known.mean(0))


def label_baseline(labels: Tensor, known: Tensor, classes: int) -> Tensor:
    """Returns what the best decoder that sees the label alone expects: shrunken class means.

    The means of few rows are noisy; drawn towards the mean of all as far as that noise accounts
    for their spread, they err less, as any regularized decoder's would.

    Shapes: labels (n,), known (n, d) -> (classes, d).
    Source: empirical Bayes, Efron and Morris 1973.
    """
    means, center = label_means(labels, known, classes), known.mean(0)
    counts = torch.bincount(labels, minlength=classes).to(known.dtype)
    present = counts > 0
    if int(present.sum()) < 2:
        return means
    noise = (known - means[labels]).square().sum() / max(1, len(known) - int(present.sum()))
    spread = (means - center).square().sum(1)[present].mean()
    own = (spread - noise * (1 / counts[present]).mean()).clamp_min(0)
    weight = own / (own + noise / counts.clamp_min(1)).clamp_min(1e-30)
    return center + weight.unsqueeze(1) * (means - center)


def share_per_feature(errors: Tensor, baseline: Tensor) -> Tensor:
    """Returns what share of each feature is recovered beyond the label; 0 for constant ones.

    Shapes: (n, d), (n, d) -> (d,).
    """
    total = baseline.sum(0)
    return torch.where(total > 0, 1 - errors.sum(0) / total.clamp_min(1e-30), 0.0)


def _exposed(name: str, errors: Tensor, baseline: Tensor) -> Exposed:
    """Lists the targets of which an answer gives the most away. Shapes: (n,), (n,)."""
    shares = 1 - errors / baseline.clamp_min(1e-30)
    words = "share of the record that its answer gives away beyond its label"
    return Exposed.of(name, "nonmembers", torch.arange(len(shares)), shares, shares, words)


def _chances_of_self(game: Game, examples: Examples, size: int) -> dict[str, Tensor]:
    """Returns, for every reading, each row's chance to be named from one answer about it."""
    gallery = game.views(game.own_answers(examples).first(size))
    asked = game.views(game.ask(examples).first(size))
    return {name: _chance_of_self(gallery[name], view) for name, view in asked.items()}


def _chance_of_self(gallery: Tensor, asked: Tensor) -> Tensor:
    """Returns each row's chance to be named: 1/n if it is among its n nearest equals, else 0.

    Shapes: gallery (n, f), asked (n, f) -> (n,) float64.
    """
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(asked.double(), gallery.double(), compute_mode=exact)
    nearest = (distances <= distances.amin(1, keepdim=True)).double()
    return nearest.diagonal() / nearest.sum(1)
