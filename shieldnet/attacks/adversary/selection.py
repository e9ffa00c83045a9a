"""Which decoder, reading and setting an adversary takes, chosen on rows that are not scored."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.adversary.decoders import Decoder
from shieldnet.attacks.adversary.features import standardize
from shieldnet.attacks.adversary.label_baseline import label_baseline
from shieldnet.core.statistics import (
    MIN_SHARE,
    Interval,
    normal_quantile,
    normal_share,
    random_sums,
)
from shieldnet.findings.reading import BY_LABEL

MIN_ROWS = 40
"""Fewer auxiliary rows, or fewer targets, than this are refused: nothing could be learned."""
_MUCH = 0.5  # of an input given away: no luck of few rows
_DRAWN = 400  # rows
_MAX_FIT_ROWS, _MAX_CHECK_ROWS = 1000, 1000  # rows to learn from and to judge by, while choosing
_SUMS = 64
_DOUBT = 2.0  # standard errors
_LABEL = "the label alone"


@dataclass(frozen=True)
class Chosen:
    """The decoder, reading and setting that did best on the rows held back for choosing."""

    decoder: Decoder
    view: str
    setting: tuple[float, ...]
    error: float

    def predict(
        self, learned: dict[str, Tensor], known: Tensor, unseen: dict[str, Tensor]
    ) -> Tensor:
        """Learns from all known rows and returns what it expects for unseen rows."""
        features, questions = standardize(learned[self.view], unseen[self.view])
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
    share, least: what is saved of each beyond the label on the rows held back, and its lower bound.
    Shapes: places (features,), numbers of ``chosen``, or their count for the label; sure
    (features,) bool; share, least (features,).
    """

    chosen: tuple[Chosen, ...]
    places: Tensor
    sure: Tensor
    share: Tensor
    least: Tensor

    def predict(
        self, learned: dict[str, Tensor], known: Tensor, unseen: dict[str, Tensor], by_label: Tensor
    ) -> Tensor:
        """Learns from all known rows and returns what it expects; by_label: the label's guess.

        No guess lies outside of what the known rows hold.
        """
        guess = by_label.clone()
        for number, choice in enumerate(self.chosen):
            mine = self.places == number
            if not mine.any():
                continue
            if choice.decoder.joint:
                guess[:, mine] = choice.predict(learned, known, unseen)[:, mine]
            else:
                guess[:, mine] = choice.predict(learned, known[:, mine], unseen)
        return guess.clamp(known.amin(0), known.amax(0))

    def kept(self, share: Interval, feature: int) -> Interval:
        """Returns what is found of a feature, given the share that the decoders save."""
        return share if self.sure[feature] else Interval(0.0, 0.0, max(0.0, share.high))

    def source_of(self, feature: int) -> str:
        """Names what guesses one feature."""
        place = int(self.places[feature])
        used = self.sure[feature] and place < len(self.chosen)
        return str(self.chosen[place]) if used else _LABEL

    @property
    def note(self) -> str:
        """Says so where the adversary does not use the answers at all."""
        if self.sure.any():
            return ""
        return BY_LABEL

    def __str__(self) -> str:
        used_places = self.places.where(self.sure, len(self.chosen))
        counts = torch.bincount(used_places, minlength=len(self.chosen) + 1).tolist()
        named = [*map(str, self.chosen), _LABEL]
        used = sorted(zip(counts, named, strict=True), key=lambda pair: -pair[0])
        shown = [(name, count) for count, name in used if count]
        if len(shown) == 1:
            return shown[0][0]
        return ", ".join(
            f"{name} for {count} of {len(self.places)} features" for name, count in shown
        )


def choose_each(
    decoders: tuple[Decoder, ...],
    views: dict[str, Tensor],
    known: Tensor,
    labels: Tensor,
    classes: int,
    *,
    weights: Tensor,
    seed: int,
) -> Each:
    """Chooses every decoder's reading and setting on a fifth of the rows, and one for each feature.

    They are used only where, chosen on half of the rows held back and judged on the other half,
    they err less than the label: in all features together by ``_DOUBT`` standard errors (then in
    those in which they err less at all), or in one by as many as make chance as seldom among all.
    What is gained by chance is lost on other rows.
    Shapes: views, each (rows, readings); known (rows, features); labels (rows,), the model's;
    weights (features,), of each in the sum of all.
    """
    fit, check = _parts(len(known), seed)
    best = _best(decoders, views, known, fit, check)
    learned, unseen = (
        {trial.view: views[trial.view][rows] for trial in best} for rows in (fit, check)
    )
    by_label = label_baseline(labels[fit], known[fit], classes)[labels[check]]
    ends = known[fit].amin(0), known[fit].amax(0)
    guesses = [trial.predict(learned, known[fit], unseen).clamp(*ends) for trial in best]
    guesses.append(by_label)
    errors = torch.stack(guesses).sub_(known[check]).square_().mul_(weights)
    saved, missed = _judged(errors), errors[-1].mean(0).clamp_min(1e-30)
    share, doubt = saved.mean(0) / missed, _DOUBT * saved.std(0) / len(saved) ** 0.5 / missed
    return Each(tuple(best), *surely_best(errors), share, share - doubt)


def surely_best(errors: Tensor) -> tuple[Tensor, Tensor]:
    """Says which guess errs least in each feature, and of which it surely errs less than the last.

    Shapes: errors (guesses, rows, features), squared -> (features,), (features,) bool.
    """
    saved = _judged(errors)
    features = saved.shape[1]
    alone = normal_quantile(1 - 2 * (1 - normal_share(_DOUBT)) / features)
    sure = _gained(saved, errors[-1], alone)
    if _gained(saved.sum(1, keepdim=True), errors[-1].sum(1, keepdim=True), _DOUBT).all():
        sure = sure | (saved.mean(0) > 0)
    return _least(errors), sure


def _judged(errors: Tensor) -> Tensor:
    """Says what the best guess saves beyond the last, chosen on one half, judged on the other.

    Shapes: errors (guesses, rows, features), squared -> (rows, features).
    """
    half = torch.arange(errors.shape[1]) % 2 == 0
    saved = torch.empty(errors.shape[1:])
    for choose_by, judge in ((half, ~half), (~half, half)):
        best = _least(errors[:, choose_by]).expand(1, int(judge.sum()), -1)
        kept = errors[:, judge]
        saved[judge] = kept[-1] - kept.gather(0, best)[0]
    return saved


def _gained(saved: Tensor, errors: Tensor, doubt: float) -> Tensor:
    """Says in which columns more is saved than by chance. Shapes: (rows, columns) -> (columns,)."""
    least = doubt * saved.std(0) / len(saved) ** 0.5
    gained: Tensor = saved.mean(0) > least + MIN_SHARE * errors.mean(0)
    return gained


def _least(errors: Tensor) -> Tensor:
    """Says which guess errs least in each feature, by shares of the last one's errors.

    A feature's own are drawn towards those of all features together as if more rows had judged,
    one for each feature, at most ``_DRAWN``: few rows say little of one of many pixels, and columns
    of a table have little in common. Together, a feature counts as far as it varies: of
    pixels that hardly do, a good decoder may miss many times what the label does.
    Shapes: (guesses, rows, features) -> (features,).
    """
    means = errors.mean(1)
    varies = means[-1] > 0
    shares = means / means[-1].where(varies, 1.0)
    total = means.sum(1, keepdim=True)
    everywhere = total / total[-1].clamp_min(1e-30)
    rows, features = errors.shape[1:]
    weight = rows / (rows + min(_DRAWN, features))
    places = (weight * shares + (1 - weight) * everywhere).argmin(0)
    places = places.where(shares.amin(0) > _MUCH, shares.argmin(0))  # much is no luck of few rows
    return places.where(varies, len(errors) - 1)


def _parts(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divides rows into those to learn from and those to choose by."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    check, fit = order[: rows // 5], order[rows // 5 :]
    return fit[:_MAX_FIT_ROWS], check[:_MAX_CHECK_ROWS]


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
