"""Turning answers back into inputs: how much closer does an answer bring than its label alone?"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.adversary.decoders import (
    Convolutional,
    Decoder,
    KernelRidge,
    NearestNeighbors,
    Network,
    Ridge,
)
from shieldnet.attacks.base import Attack, Game
from shieldnet.core.statistics import (
    LEAST_SHARE,
    Interval,
    normal_quantile,
    normal_share,
    proportion,
    random_sums,
    saved_share,
    saved_shares,
)
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Exposed, Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Limit, Metric

MIN_ROWS = 40
"""Fewer auxiliary rows, or fewer targets, than this are refused: nothing could be learned."""
SMALLEST_PICTURE = 16
"""Pixels on each side, at least, of a picture that is drawn."""

_CUT = 0.005  # of the rows on each side of a column: further out, values count as these
_DRAWN = 400  # rows
_MOST_FIT, _MOST_CHECK = 1000, 1000  # rows to learn from and to judge by, while choosing
_SUMS = 64
_DOUBT = 2.0  # standard errors
_COLUMN_RESAMPLES = 500
_MIN_FEATURES, _MUCH, _ONE_SIDED = 8, 0.5, 3.0  # to bound what is given away of one record
_BY_CHANCE = 0.00135  # of records that give nothing away, above such a bound
_MOST_NAMED = 8
_MAX_GALLERY = 1000
_MOST_WORDS = 500

LEAKAGE = Limit(
    "max_leakage",
    0.10,
    "How far an answer gives its input away beyond its label; 0 nothing, 1 everything. One answer, "
    "and many averaged.",
    is_set=True,
)
INVERTS = ("AISVS 11.1.3", "AML.T0024.001", "NISTAML.032")
"""Items of standards that every attack on inputs speaks to."""


@dataclass(frozen=True)
class Inversion(Attack):
    """Trains every decoder on every reading of the answers and keeps the best for each feature.

    The adversary asks the shield about its own auxiliary rows and learns inputs from answers. On a
    fifth of these rows it chooses each decoder's reading and setting, and then, column by column
    (pixel by pixel, word by word), a decoder or the label alone; it trains again on all of them and
    is scored once on the nonmembers. leakage = (MSE_label - MSE) / MSE_label, with MSE_label of a
    decoder that sees the model's label alone: 0 means that the answer gives no more away than its
    label, 1 that it gives everything.

    ``inversion.records`` is the share of records of which more than half is surely given away: of
    each, the features are the sample. ``r2.inversion`` is the leakage over the mean input instead
    of the label's. Values and embeddings have no label: the mean is the baseline.

    queries: answers about each row, averaged. Pictures are scored in one unit for all pixels,
    tables in the units and weights of ``Columns``, texts by the words that occur in them. Columns
    that hardly ever vary are listed as not tested.
    pictures: also tries a decoder that draws, for pictures of 16 x 16 pixels and more.
    """

    metrics = (
        Metric(
            "inversion",
            "leakage",
            "more",
            LEAKAGE,
            standards=(*INVERTS, "EDPB queries"),
            headline=True,
        ),
        Metric(
            "averaging.*",
            "leakage, averaged",
            "more",
            LEAKAGE,
            standards=(*INVERTS, "EDPB queries"),
            headline=True,
        ),
        Metric(
            "inversion.records",
            "records read",
            "more",
            Limit("max_inversion_records", 0.01, "the share of records that are read by half"),
            standards=("EDPB queries",),
        ),
        Metric(
            "inversion.column.*",
            "leakage of a column",
            "more",
            ungated="all columns are judged together, as inversion",
        ),
        Metric(
            "r2.*",
            "R2 over the mean input",
            "more",
            ungated="the label is released on purpose: inversion counts what is beyond it",
        ),
    )
    queries: int = 1
    decoders: tuple[Decoder, ...] = (Ridge(), KernelRidge(), NearestNeighbors(), Network())
    pictures: bool = True

    def __call__(self, game: Game) -> Outcome:
        auxiliary, targets = game.owned(), game.nonmembers
        game.require_rows(MIN_ROWS, auxiliary, targets)
        secret = units_of(auxiliary.inputs)
        known, sought = secret.apply(auxiliary.inputs), secret.apply(targets.inputs)
        if known.shape[1] == 0:
            raise NotApplicable("no word tells one text from another")
        weights = secret.weights
        if not weights.any():
            raise NotApplicable("no column of the auxiliary rows varies")
        learned = game.views(game.ask(auxiliary, self.queries))
        decoders = (*self.decoders, *self._drawing(auxiliary.inputs.shape[1:]))
        labels = game.model_labels(auxiliary)
        chosen = choose_each(decoders, learned, known, labels, game.classes, seed=game.seed)
        asked = game.views(game.ask(targets, self.queries))
        by_label = label_baseline(labels, known, game.classes)[game.model_labels(targets)]
        tried = chosen.predict(learned, known, asked, by_label)
        guess = tried.where(chosen.sure, by_label)
        errors = (guess - sought).square() * weights
        of_tried = (tried - sought).square() * weights
        baseline = (by_label - sought).square() * weights
        by_mean = (known.mean(0) - sought).square() * weights

        def finding(name: str, share: Interval) -> Finding:
            return Finding.of(
                name,
                share,
                samples=len(targets),
                baseline=0.0,
                threat=Threat(self.queries, len(auxiliary)),
                source=str(chosen),
                note=chosen.note,
            )

        name = "inversion" if self.queries == 1 else f"averaging.{self.queries}"
        columns = game.columns if self.queries == 1 and isinstance(secret, Scale) else ()
        total = errors.sum(1)
        parts = torch.stack([total, of_tried.sum(1)], 1)
        found, most = saved_shares(parts, baseline.sum(1).repeat(2, 1).T, seed=game.seed)
        scored = (weights[: len(columns)] > 0).nonzero().flatten()
        shares = saved_shares(
            of_tried[:, scored], baseline[:, scored], seed=game.seed, resamples=_COLUMN_RESAMPLES
        )
        return Outcome(
            findings=(
                finding(name, replace(found, high=max(found.high, most.high))),
                *(
                    finding(f"inversion.column.{columns[place]}", chosen.kept(share, place))
                    for place, share in zip(scored.tolist(), shares, strict=True)
                ),
                finding(f"r2.{name}", saved_share(total, by_mean.sum(1), seed=game.seed)),
                *self._of_records(finding, errors, of_tried, baseline),
            ),
            untested=_rare(columns, weights),
            features={"recovered": secret.shaped(share_per_feature(errors, baseline))},
            exposed=tuple(_exposed(name, total, baseline.sum(1))),
            reconstructions=(
                secret.undo(guess).reshape(targets.inputs.shape)
                if isinstance(secret, Scale)
                else None
            ),
        )

    def _of_records(
        self,
        finding: Callable[[str, Interval], Finding],
        errors: Tensor,
        tried: Tensor,
        baseline: Tensor,
    ) -> tuple[Finding, ...]:
        """Counts the records of which more than half is given away, each by its own lower bound."""
        if self.queries > 1 or errors.shape[1] < _MIN_FEATURES:
            return ()
        found, most = (
            proportion(float((record_bounds(part, baseline) > _MUCH).sum()), len(errors))
            for part in (errors, tried)
        )
        # A bound that each record keeps with 99.9 % is broken by one in a thousand.
        share = finding("inversion.records", replace(found, high=max(found.high, most.high)))
        return (replace(share, baseline=_BY_CHANCE),)

    def _drawing(self, shape: torch.Size) -> tuple[Decoder, ...]:
        is_picture = len(shape) == 3 and min(shape[1:]) >= SMALLEST_PICTURE
        return (Convolutional(shape=tuple(shape)),) if self.pictures and is_picture else ()


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
            Limit("max_reidentification", 0.10, "the right record named in a gallery"),
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


@dataclass(frozen=True)
class Scale:
    """Maps inputs to the units in which they are scored.

    Each column of a table has its own deviation; the pixels of a picture share one. weights: of
    each feature in a sum of squared errors.
    """

    shape: torch.Size
    center: Tensor
    deviation: Tensor
    weights: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> "Scale":
        """Measures the inputs. Shapes: (rows, columns) is a table; anything else is a picture."""
        flat = inputs.flatten(1).float()
        deviation = flat.std(0) if inputs.dim() == 2 else flat.std().expand(flat.shape[1])
        deviation = deviation.where(deviation > 0, 1.0)
        return cls(inputs.shape[1:], flat.mean(0), deviation, torch.ones(flat.shape[1]))

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
class Columns(Scale):
    """Maps the columns of a table to units in which no outlier and no rare value counts for all.

    Each column is cut at the least and greatest values but ``_CUT`` of the rows on each side (one
    at least), and measured in the deviation that is left. weights: of each column in a sum of
    squared errors: 3 / kurtosis, at most 1, so that a column whose variance lies in few rows counts
    as far as these are many; 0 where nothing varies after the cut. Multiplying a column, or adding
    to it, changes nothing.
    Shapes: low, high and weights (columns,).
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> "Columns":
        """Measures a table. Shapes: (rows, columns)."""
        rows = inputs.double()
        low, high = _usual(rows)
        kept = rows.clamp(low, high)
        center, varies = kept.mean(0), high > low
        deviation = kept.std(0).where(varies, 1.0)
        kurtosis = ((kept - center) / deviation).pow(4).mean(0)
        weights = (3 / kurtosis.clamp_min(3.0)).where(varies, 0.0)
        return cls(inputs.shape[1:], center, deviation, weights.float(), low, high)

    def apply(self, inputs: Tensor) -> Tensor:
        kept = inputs.double().clamp(self.low, self.high)
        return ((kept - self.center) / self.deviation).float()

    def undo(self, features: Tensor) -> Tensor:
        return (features * self.deviation + self.center).float()


def _usual(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the ends of each column between which all but a few rows lie."""
    cut = min(math.ceil(_CUT * len(rows)), (len(rows) - 1) // 2)
    low, high = (rows.topk(cut + 1, dim=0, largest=largest).values for largest in (False, True))
    return low[-1], high[-1]


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
        if not len(self.words):
            return torch.zeros(len(tokens), 0)
        place = torch.searchsorted(self.words, tokens.flatten(1).to(self.words.dtype))
        place = place.clamp_max(len(self.words) - 1)
        known = self.words[place] == tokens.flatten(1)
        marks = torch.zeros(len(tokens), len(self.words))
        return marks.scatter_reduce_(1, place, known.float(), reduce="amax")

    @property
    def weights(self) -> Tensor:
        """Returns the weight of each word: they all count the same."""
        return torch.ones(len(self.words))

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


def units_of(inputs: Tensor) -> Scale | Words:
    """Returns the units in which guesses are scored: those of ``Columns`` for a table."""
    secret = secret_of(inputs)
    return Columns.of(inputs) if isinstance(secret, Scale) and inputs.dim() == 2 else secret


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
    fit, check = _parts(len(known), seed)
    return min(_best(decoders, views, known, fit, check), key=lambda trial: trial.error)


@dataclass(frozen=True)
class Each:
    """Holds, for every feature, the decoder that did best on it, or the label alone.

    sure: of which features they are surely better than the label; of the others the adversary
    guesses from the label, and what they would have reached is the upper end of what is found.
    Shapes: places (features,), numbers of ``chosen``, or their count for the label; sure
    (features,) bool.
    """

    chosen: tuple[Chosen, ...]
    places: Tensor
    sure: Tensor

    def predict(
        self, learned: dict[str, Tensor], known: Tensor, asked: dict[str, Tensor], by_label: Tensor
    ) -> Tensor:
        """Learns from all known rows and returns what it expects; by_label: the label's guess.

        No guess lies outside of what the known rows hold.
        """
        guess = by_label.clone()
        for number, one in enumerate(self.chosen):
            mine = self.places == number
            if not mine.any():
                continue
            if one.decoder.joint:
                guess[:, mine] = one.predict(learned, known, asked)[:, mine]
            else:
                guess[:, mine] = one.predict(learned, known[:, mine], asked)
        return guess.clamp(known.amin(0), known.amax(0))

    def kept(self, share: Interval, feature: int) -> Interval:
        """Returns what is found of a feature, given the share that the decoders save."""
        return share if self.sure[feature] else Interval(0.0, 0.0, max(0.0, share.high))

    @property
    def note(self) -> str:
        """Says so where the adversary does not use the answers at all."""
        if self.sure.any():
            return ""
        return "no decoder was surely better than the label alone, which is used"

    def __str__(self) -> str:
        used_places = self.places.where(self.sure, len(self.chosen))
        counts = torch.bincount(used_places, minlength=len(self.chosen) + 1).tolist()
        named = [*map(str, self.chosen), "the label alone"]
        used = sorted(zip(counts, named, strict=True), key=lambda pair: -pair[0])
        words = [f"{name} ({count})" for count, name in used if count]
        return words[0].rpartition(" ")[0] if len(words) == 1 else ", ".join(words)


def choose_each(
    decoders: tuple[Decoder, ...],
    views: dict[str, Tensor],
    known: Tensor,
    labels: Tensor,
    classes: int,
    *,
    seed: int,
) -> Each:
    """Chooses every decoder's reading and setting on a fifth of the rows, and one for each feature.

    They are used only where, chosen on half of the rows held back and judged on the other half,
    they err less than the label: in all features together by ``_DOUBT`` standard errors, or in one
    by as many as make chance as seldom among all. What is gained by chance is lost on other rows.
    Shapes: views, each (rows, readings); known (rows, features); labels (rows,), the model's.
    """
    fit, check = _parts(len(known), seed)
    best = _best(decoders, views, known, fit, check)
    learned, asked = (
        {trial.view: views[trial.view][rows] for trial in best} for rows in (fit, check)
    )
    by_label = label_baseline(labels[fit], known[fit], classes)[labels[check]]
    ends = known[fit].amin(0), known[fit].amax(0)
    guesses = [trial.predict(learned, known[fit], asked).clamp(*ends) for trial in best]
    guesses.append(by_label)
    return Each(tuple(best), *surely_best(torch.stack(guesses).sub_(known[check]).square_()))


def surely_best(errors: Tensor) -> tuple[Tensor, Tensor]:
    """Says which guess errs least in each feature, and of which it surely errs less than the last.

    Shapes: errors (guesses, rows, features), squared -> (features,), (features,) bool.
    """
    half = torch.arange(errors.shape[1]) % 2 == 0
    saved = torch.empty(errors.shape[1:])
    for choose_by, judge in ((half, ~half), (~half, half)):
        place = _least(errors[:, choose_by]).expand(1, int(judge.sum()), -1)
        kept = errors[:, judge]
        saved[judge] = kept[-1] - kept.gather(0, place)[0]
    features = saved.shape[1]
    alone = normal_quantile(1 - 2 * (1 - normal_share(_DOUBT)) / features)
    sure = _gained(saved, errors[-1], alone)
    if _gained(saved.sum(1, keepdim=True), errors[-1].sum(1, keepdim=True), _DOUBT).all():
        sure = torch.ones_like(sure)
    return _least(errors), sure


def _gained(saved: Tensor, errors: Tensor, doubt: float) -> Tensor:
    """Says in which columns more is saved than by chance. Shapes: (rows, columns) -> (columns,)."""
    least = doubt * saved.std(0) / len(saved) ** 0.5
    gained: Tensor = saved.mean(0) > least + LEAST_SHARE * errors.mean(0)
    return gained


def _least(errors: Tensor) -> Tensor:
    """Says which guess errs least in each feature, by shares of the last one's errors.

    A feature's own are drawn towards those of all features together as if ``_DRAWN`` more rows had
    judged: few rows say little of one feature. Together, a feature counts as far as it varies: of
    pixels that hardly do, a good decoder may miss many times what the label does.
    Shapes: (guesses, rows, features) -> (features,).
    """
    means = errors.mean(1)
    varies = means[-1] > 0
    shares = means / means[-1].where(varies, 1.0)
    total = means.sum(1, keepdim=True)
    everywhere = total / total[-1].clamp_min(1e-30)
    weight = errors.shape[1] / (errors.shape[1] + _DRAWN)
    places = (weight * shares + (1 - weight) * everywhere).argmin(0)
    places = places.where(shares.amin(0) > _MUCH, shares.argmin(0))  # much is no luck of few rows
    return places.where(varies, len(errors) - 1)


def _parts(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divides rows into those to learn from and those to choose by."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    check, fit = order[: rows // 5], order[rows // 5 :]
    return fit[:_MOST_FIT], check[:_MOST_CHECK]


def _best(
    decoders: tuple[Decoder, ...],
    views: dict[str, Tensor],
    known: Tensor,
    fit: Tensor,
    check: Tensor,
) -> list[Chosen]:
    """Tries every reading and setting, and returns the best of each decoder.

    Decoders that learn each feature by itself are judged on few random sums of many features.
    """
    sums, best = random_sums(known, _SUMS), dict[Decoder, Chosen]()
    for name, view in views.items():
        features, questions = standardize(view[fit], view[check])
        for decoder in decoders:
            targets = known if decoder.joint else sums
            guesses = decoder.predict_each(features, targets[fit], questions)
            for setting, guess in zip(decoder.settings, guesses, strict=True):
                error = float((guess - targets[check]).square().mean())
                if decoder not in best or error < best[decoder].error:
                    best[decoder] = Chosen(decoder, name, setting, error)
    return list(best.values())


def _rare(columns: tuple[str, ...], weights: Tensor) -> tuple[str, ...]:
    """Names the columns that cannot be scored, in one line."""
    rare = [name for name, weight in zip(columns, weights.tolist(), strict=False) if not weight]
    if not rare:
        return ()
    more = f" and {len(rare) - _MOST_NAMED} more" if len(rare) > _MOST_NAMED else ""
    named = ", ".join(rare[:_MOST_NAMED]) + more
    return (f"inversion of {named}: hardly any auxiliary row differs there from the others",)


def standardize(learned: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Scales both by the mean and deviation of the first, no further out than ten deviations.

    A feature that hardly ever moves would else throw a linear decoder far off where it does, and
    one answer that is far off would hide what all the others say: a few rows on each side count as
    the next of them.
    Shapes: (n, f), (m, f).
    """
    low, high = _usual(learned)
    kept = learned.clamp(low, high)
    varies = kept.std(0) > 1e-6
    center = kept.mean(0).where(varies, learned.mean(0))
    deviation = kept.std(0).where(varies, learned.std(0))
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


def record_bounds(errors: Tensor, baseline: Tensor) -> Tensor:
    """Returns lower bounds (99.9 %: of many records) of what is given away beyond its label.

    Its features are the sample: of few that depend on each other the bound is too sure.
    Shapes: errors and baseline (records, features), squared -> (records,).
    """
    total = baseline.sum(1).clamp_min(1e-30)
    ratio = errors.sum(1) / total
    spread = (errors - ratio.unsqueeze(1) * baseline).norm(dim=1) / total
    bound: Tensor = 1 - ratio - _ONE_SIDED * spread
    return bound


def share_per_feature(errors: Tensor, baseline: Tensor) -> Tensor:
    """Returns what share of each feature is recovered beyond the label; 0 for constant ones.

    Shapes: (n, d), (n, d) -> (d,).
    """
    total = baseline.sum(0)
    return torch.where(total > 0, 1 - errors.sum(0) / total.clamp_min(1e-30), 0.0)


def _exposed(name: str, errors: Tensor, baseline: Tensor) -> Iterator[Exposed]:
    """Lists the targets of which an answer gives the most away, if any. Shapes: (n,), (n,)."""
    shares = 1 - errors / baseline.clamp_min(1e-30)
    words = "share of the record that its answer gives away beyond its label"
    found = Exposed.of(name, "nonmembers", torch.arange(len(shares)), shares, shares, words)
    if found.rows:
        yield found


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
