"""Analysis by synthesis: which input does the shield answer like this?"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.adversary.decoders import Decoder, KernelRidge, Ridge
from shieldnet.attacks.adversary.features import Parts, units_of
from shieldnet.attacks.adversary.label_baseline import label_baseline
from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.adversary.selection import MIN_ROWS, Chosen, choose, surely_best
from shieldnet.attacks.base import Attack, Form, Game
from shieldnet.attacks.inversion.candidates import Candidates
from shieldnet.attacks.inversion.decoding import INVERTS, LEAKAGE
from shieldnet.attacks.inversion.numbers import Numbers
from shieldnet.attacks.inversion.tokens import Tokens
from shieldnet.attacks.inversion.white_box import readings
from shieldnet.core.checks import whole
from shieldnet.core.statistics import Interval, random_sums, saved_share
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import RELEASE_LESS, Limit, Metric
from shieldnet.findings.reading import BY_LABEL

_MAX_TARGETS = 200
_MAX_PRACTICE_ROWS = 60
_SUMS = 64
_SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Search(Attack):
    """Asks the shield about candidates, and descends towards the answer that it saw.

    The adversary has one answer about a record and no weights: any caller can do this. It starts
    from what a decoder expects. Texts are searched word by word (``Tokens``), images and tables
    along the principal directions of its own rows (``Numbers``), all targets at once. How far the
    prior counts, and how much of the search's guess is mixed with the decoder's (none of it, where
    it does not help), is chosen on auxiliary rows that the decoder has not seen. Where what is
    chosen is not surely better than the label there, the label is used.

    ``inversion.search`` is the leakage over the label alone, as of ``Inversion``, and judged by the
    same limit. ``inversion.search.tokens`` is the share of a text's different words that are
    among as many guesses as the text has places; its baseline names the commonest words.

    queries: answers about candidates of each record, about, in one search; behind noise each is the
        mean of four. A mean of several searches takes as many times more, which the threat counts.
    Errors: NotApplicable for a model that answers the same rows differently, for texts beside
        numbers, and without auxiliary data.
    NOT promised: that the search finds the nearest input; another start or budget may do better.
    """

    metrics = (
        Metric(
            "inversion.search",
            "leakage, by search",
            "more",
            LEAKAGE,
            standards=(*INVERTS, "EDPB queries"),
        ),
        Metric(
            "inversion.search.tokens",
            "words found by search",
            "more",
            Limit(
                "max_search_tokens",
                0.50,
                "the share of a text's words that a search finds",
                helps=RELEASE_LESS,
                needs="run it with --tier standard or full (tier=), on texts as tokens, and give "
                "auxiliary records",
            ),
            standards=(*INVERTS, "EDPB queries"),
        ),
    )
    searches = True
    queries: int = 256
    decoders: tuple[Decoder, ...] = (Ridge(), KernelRidge())

    def __post_init__(self) -> None:
        whole("queries", self.queries, low=1)

    def candidates_asked(self, form: Form, owned: int, targets: int) -> int:
        if form != "rows" or min(owned, targets) < MIN_ROWS:
            return 0
        practice = min(_MAX_PRACTICE_ROWS, owned // 4)
        return (practice * len(Numbers.settings) + min(_MAX_TARGETS, targets)) * self.queries

    def __call__(self, game: Game) -> Outcome:
        auxiliary = game.owned()
        game.require_rows(MIN_ROWS, auxiliary, game.nonmembers)
        views = readings(game, game.ask(auxiliary))
        seeker = _seeker(game, views, self.queries)
        known = seeker.apply(auxiliary.inputs)
        if not known.shape[1]:
            raise NotApplicable("no word tells one text from another")
        labels = game.model_labels(auxiliary)
        trial = self._practiced(game, seeker, views, known, labels)
        targets = replace(
            game.nonmembers, inputs=game.nonmembers.inputs[:_MAX_TARGETS], labels=None
        )
        chosen = choose(self.decoders, views, known, seed=game.seed)
        unseen = readings(game, game.ask(targets))
        expected = chosen.predict(views, known, unseen)
        wanted = seeker.candidates.about(targets)
        means = label_baseline(labels, known, game.classes)
        by_label = means[game.model_labels(targets)]
        guess = trial.guess(seeker, wanted, expected)
        used = by_label
        if trial.sure and trial.by_label is not None:
            used = by_label.where(trial.by_label, guess)
        sought = seeker.apply(targets.inputs)
        score = _Score(game, seeker, sought, trial, str(chosen))
        return Outcome(findings=tuple(score.findings(used, guess, expected, by_label)))

    def _practiced(
        self,
        game: Game,
        seeker: Tokens | Numbers[Candidates],
        views: dict[str, Tensor],
        known: Tensor,
        labels: Tensor,
    ) -> "_Trial":
        """Tries every setting on rows that the decoder has not seen, and says what is best."""
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(game.seed))
        count = min(_MAX_PRACTICE_ROWS, len(known) // 4)
        practice, rest = order[:count], order[count:]
        fit = {name: view[rest] for name, view in views.items()}
        unseen = {name: view[practice] for name, view in views.items()}
        chosen: Chosen = choose(self.decoders, fit, known[rest], seed=game.seed)
        expected = chosen.predict(fit, known[rest], unseen)
        wanted = seeker.candidates.about(game.owned())[practice]
        tried = [(_Trial(), expected)]
        apart = seeker.without(practice)
        found = [apart.search(wanted, expected, setting) for setting in seeker.settings]
        ways = [((setting,), one) for setting, one in zip(seeker.settings, found, strict=True)]
        for settings, one in (*ways, (seeker.settings, torch.stack(found).mean(0))):
            tried += [
                (_Trial(settings, share), expected + share * (one - expected)) for share in _SHARES
            ]
        weights = _weights(seeker, known)
        best, guess = min(
            tried, key=lambda one: float(((one[1] - known[practice]).square() * weights).mean())
        )
        by_label = label_baseline(labels[rest], known[rest], game.classes)[labels[practice]]
        errors = (torch.stack([guess, by_label]) - known[practice]).square() * weights
        places, sure = surely_best(errors)
        varies = known[practice].amin(0) < known[practice].amax(0)  # else chance is never seen
        return replace(best, by_label=places == 1, sure=bool((sure & varies).any()))


@dataclass(frozen=True)
class _Trial:
    """Says how the guess is made: by which searches, whose mean is taken, and their share in it.

    by_label: features that are left to the label; sure: whether the others are surely better.
    """

    settings: tuple[float, ...] = ()
    share: float = 0.0
    by_label: Tensor | None = None
    sure: bool = False

    def guess(
        self, seeker: Tokens | Numbers[Candidates], wanted: Tensor, expected: Tensor
    ) -> Tensor:
        """Searches, and mixes what is found with what the decoder expects."""
        if not self.settings:
            return expected
        found = [seeker.search(wanted, expected, setting) for setting in self.settings]
        return expected + self.share * (torch.stack(found).mean(0) - expected)

    def __str__(self) -> str:
        if not self.settings:
            return "no search was better"
        weights = ", ".join(f"{setting:g}" for setting in self.settings)
        return f"{self.share:.0%} of searches in which the prior weighs {weights}"


def _seeker(game: Game, views: dict[str, Tensor], queries: int) -> Tokens | Numbers[Candidates]:
    """Chooses what is searched, texts or numbers, and the reading that is compared."""
    own = game.owned()
    secret = units_of(own.inputs, own.packing)
    is_text = secret.are_words if isinstance(secret, Parts) else not isinstance(secret, Scale)
    if not is_text and isinstance(secret, Parts) and not secret.are_numbers:
        raise NotApplicable("it searches texts or numbers, not a text beside numbers")
    candidates = Candidates.of(game, next(iter(views)) if game.is_vector else _best(game, views))
    return (Tokens if is_text else Numbers).of(candidates, own, queries)


def _best(game: Game, views: dict[str, Tensor]) -> str:
    """Returns the reading of scores that tells the most of the adversary's own inputs."""
    if len(views) == 1:
        return next(iter(views))
    own = game.owned()
    known = units_of(own.inputs, own.packing).apply(own.inputs)
    return choose((Ridge(),), views, random_sums(known, _SUMS), seed=game.seed).view


@dataclass(frozen=True)
class _Score:
    """Scores guesses about targets. Shapes: sought (targets, features)."""

    game: Game
    seeker: Tokens | Numbers[Candidates]
    sought: Tensor
    trial: _Trial
    decoder: str

    def findings(
        self, used: Tensor, guess: Tensor, expected: Tensor, by_label: Tensor
    ) -> Iterator[Finding]:
        """Reports the leakage, and of texts the share of words.

        used: what the adversary says. guess: what it would say without the label. expected: by the
        decoder alone. Shapes: each (targets, features).
        """
        share = self._leakage(used, by_label)
        if not self.trial.sure:  # what was tried bounds what is found
            share = Interval(0.0, 0.0, max(0.0, self._leakage(guess, by_label).high))
        alone = self._leakage(expected, by_label).value
        note = f"the decoder that it starts from reaches {alone:.2f}"
        yield self._finding("inversion.search", share, 0.0, note if self.trial.sure else BY_LABEL)
        if isinstance(self.seeker, Tokens) and self.sought.any():
            named, by_decoder, commonest = (
                self._words(scores, self.seeker.per_text) for scores in (used, expected, by_label)
            )
            note = f"the decoder that it starts from names {by_decoder.value:.2f}"
            yield self._finding("inversion.search.tokens", named, commonest.value, note)

    def _leakage(self, guess: Tensor, by_label: Tensor) -> Interval:
        weights = _weights(self.seeker, self.sought)
        errors, baseline = (
            ((guessed - self.sought).square() * weights).sum(1) for guessed in (guess, by_label)
        )
        return saved_share(errors, baseline, seed=self.game.seed)

    def _words(self, scores: Tensor, count: int) -> Interval:
        """Counts the words of texts that are among so many guesses; texts are the sample."""
        guesses = scores.topk(min(count, scores.shape[1]), 1).indices
        found = self.sought.gather(1, guesses).sum(1)
        there = self.sought.sum(1)
        return saved_share(there - found, there, seed=self.game.seed)

    def _finding(self, name: str, share: Interval, baseline: float, note: str) -> Finding:
        asked = self.seeker.asked * len(self.trial.settings)
        return Finding.of(
            name,
            share,
            samples=len(self.sought),
            baseline=baseline,
            threat=Threat(
                1 + asked,
                len(self.game.owned()),
                sees=f"1 answer about each example, and {asked} about candidates of each",
            ),
            source=f"{self.trial}, from {self.decoder}",
            note=note,
        )


def _weights(seeker: Tokens | Numbers[Candidates], features: Tensor) -> Tensor:
    if isinstance(seeker, Numbers):
        return seeker.space.scale.weights
    return torch.ones(features.shape[1])
