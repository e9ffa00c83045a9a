"""Can training text be extracted? Beginnings that are completed word for word, planted canaries."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.membership.reporting import MIN_ROWS, distinct_records, shared
from shieldnet.attacks.positions.readings import (
    base_readings_of,
    extent_of,
    readings_of,
    released,
    rows_at_once,
    truth_of,
)
from shieldnet.attacks.positions.sequence_scores import base_scores, means_of
from shieldnet.attacks.positions.sequences import floor_of, require_sequences
from shieldnet.attacks.positions.truth import Truth, tokens_of, with_tokens
from shieldnet.core.checks import finite, fraction, positive, whole
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import noise_about
from shieldnet.core.statistics import Interval, proportion
from shieldnet.data.examples import Canaries, Examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Limit, Metric
from shieldnet.shield.module import Shield

_MAX_ROWS = 2000
_ROWS_TRIED = 8  # to see whether an answer depends on later tokens
_MAX_MOVED = 1e-3  # in probability: what other kernels round differently
_RESAMPLES = 1000
_MIN_DIFFERING = 10  # canaries of other ranks than the commonest: fewer hardly vary when resampled
_SUGGESTED_BITS = 3.0
_MORE_BITS = 2.0  # that there must be above the suggested limit, for a finding to break it
_MIN_HELD_OUT = round(2 ** (_SUGGESTED_BITS + _MORE_BITS)) - 1
_HELPS = (
    "Take duplicates out of the training data, train for fewer epochs, or release less of a text: "
    "fewer tokens a client (a budget), a filter of training text. DPSGD bounds it."
)


@dataclass(frozen=True)
class TextExtraction(Attack):
    """Completes texts from their first half, and ranks planted canaries among others.

    ``extraction.verbatim``: the share of members of which the next tokens, up to ``tokens`` of the
    second half, are all drawn with a chance of at least ``chance`` in ``tries`` tries:
    1 - (1 - p)^tries, where p is the product of what the released distributions give them at a
    temperature (0: always the winner). Nothing is drawn: p is exact, of one answer behind noise.
    The temperature at which most members are completed is reported, its interval holds for all.
    The baseline is the share of nonmembers. Texts with fewer than ``least`` tokens in the second
    half are left out.

    ``extraction.exposure``: the mean over planted canaries of log2 of the number of canaries to
    choose from, less log2 of their rank among those held out, in bits; by loss or by the ratio to
    the base, whichever is more. Chance gives about 1.44. Fewer than 31 canaries held out leave less
    than 5 bits to show, and are not tested.

    Errors: NotApplicable for labels that are no next tokens, and for models whose answers depend on
        later tokens: they complete nothing.
    NOT promised: that no other beginning makes the model say more of a text.
    Source: Carlini et al. 2019 (arXiv:1802.08232) for exposure; Hayes et al. 2024
    (arXiv:2410.19482) for (n, p)-discoverable extraction.
    """

    at_positions = True
    metrics = (
        Metric(
            "extraction.verbatim",
            "texts completed verbatim",
            "more",
            Limit(
                "max_verbatim",
                0.01,
                "how many training texts a language model completes word for word",
                helps=_HELPS,
                needs="it needs texts of 20 members and nonmembers, and a causal language model",
            ),
            standards=("AISVS 11.1.3", "NISTAML.032", "EDPB extraction"),
            headline=True,
            rows="members",
        ),
        Metric(
            "extraction.exposure",
            "exposure of canaries (bits)",
            "more",
            Limit(
                "max_exposure",
                _SUGGESTED_BITS,
                "how far planted texts stand out, in bits (1.44 is chance)",
                most=math.inf,
                helps=_HELPS,
                needs="plant canaries among the texts before training, hold 31 of them out, and "
                "give them (canaries=)",
            ),
            standards=("EDPB extraction",),
            rows="planted canaries",
        ),
    )
    tries: int = 100
    chance: float = 0.5
    tokens: int = 50
    least: int = 4
    temperatures: tuple[float, ...] = (0.0, 0.5, 1.0)

    def __post_init__(self) -> None:
        for name in ("tries", "tokens", "least"):
            whole(name, getattr(self, name), low=1)
        fraction("chance", self.chance)
        positive("chance", self.chance)  # at 0 every text would count as completed
        if not (isinstance(self.temperatures, tuple | list) and self.temperatures):
            raise ConfigError(
                "Expected temperatures as a tuple of one or more numbers, such as (0.0, 1.0), got "
                f"temperatures={self.temperatures!r}."
            )
        for temperature in self.temperatures:
            if finite("temperatures", temperature) != 0:
                positive("temperatures", temperature)

    def __call__(self, game: Game) -> Outcome:
        require_sequences(game)
        game.require_rows(MIN_ROWS, game.members, game.nonmembers)
        findings: list[Finding] = []
        untested: list[str] = []
        try:
            findings.append(self._verbatim(game))
        except NotApplicable as reason:
            untested.append(f"extraction.verbatim: {reason}")
        if game.canaries is None:
            untested.append("extraction.exposure: needs texts planted in the training (canaries=)")
        elif (held_out := len(game.canaries.held_out)) < _MIN_HELD_OUT:
            untested.append(
                f"extraction.exposure: needs {_MIN_HELD_OUT} canaries held out, there are "
                f"{held_out}, among which no text can stand out by more than "
                f"{math.log2(held_out + 1):.2f} bits: plant_canaries(count=200) holds out about 100"
            )
        else:
            findings.append(_exposure(game, game.canaries))
        return Outcome(findings=tuple(findings), untested=tuple(untested))

    def _verbatim(self, game: Game) -> Finding:
        require_completing(game)
        firsts = distinct_records(game)
        rows = [
            is_first.nonzero().flatten()[:_MAX_ROWS]
            for is_first in (firsts.members, firsts.nonmembers)
        ]
        sets = [
            examples.shuffled(chosen)
            for examples, chosen in zip((game.members, game.nonmembers), rows, strict=True)
        ]
        members, nonmembers = (self._completed(game, game.shield, examples) for examples in sets)
        for name, done in (("members", members), ("nonmembers", nonmembers)):
            if done.shape[1] < MIN_ROWS:
                raise NotApplicable(
                    f"needs {MIN_ROWS} {name} with {self.least} tokens or more in the second half, "
                    f"there are {done.shape[1]}"
                )
        best = int(members.sum(1).argmax())
        count = members.shape[1]
        tries = f"{self.tries} {'try' if self.tries == 1 else 'tries'}"
        note = ""
        if game.base is not None:
            by_base = float(self._completed(game, game.base, sets[0])[best].double().mean())
            note = f"of the same texts the base completes {by_base:.3f}"
        return Finding.of(
            "extraction.verbatim",
            proportion(int(members[best].sum()), count, shared(len(self.temperatures))),
            samples=count,
            baseline=float(nonmembers[best].double().mean()),
            threat=Threat(self.tries, sees=f"the first half of a text and {tries} at the rest"),
            source=f"a chance of {self.chance:g} in {tries} at temperature "
            f"{self.temperatures[best]:g}, baseline: nonmembers",
            note=note,
        )

    def _completed(self, game: Game, shield: Shield, examples: Examples) -> Tensor:
        """Says which texts are completed. Shapes: -> (temperatures, texts that are long enough)."""
        extent, truth = extent_of(game), truth_of(game, examples)
        wanted = self._second_half(truth.counted)
        size = rows_at_once(extent, examples.inputs)
        with noise_about(examples.content, "completion"):
            parts = [
                _log_chances(
                    released(shield, rows, extent.classes), labels, is_wanted, self.temperatures
                )
                for rows, labels, is_wanted in zip(
                    examples.inputs.split(size),
                    truth.labels.split(size),
                    wanted.split(size),
                    strict=True,
                )
            ]
        once = torch.cat(parts, 1)[:, wanted.sum(1) >= self.least].exp()
        in_all = -torch.expm1(self.tries * torch.log1p(-once.clamp_max(1.0)))
        return in_all >= self.chance

    def _second_half(self, counted: Tensor) -> Tensor:
        """Chooses the tokens to complete. Shapes: (rows, length) bool -> the same."""
        number, half = counted.cumsum(1), counted.sum(1, keepdim=True) // 2
        return counted & (number > half) & (number <= half + self.tokens)


def _log_chances(
    p: Tensor, labels: Tensor, wanted: Tensor, temperatures: tuple[float, ...]
) -> Tensor:
    """Returns log of the chance that all wanted tokens are drawn, at each temperature.

    Shapes: p (rows, length, classes), labels and wanted (rows, length) -> (temperatures, rows).
    """
    log_p, own = p.log(), labels.where(wanted, 0).unsqueeze(-1)
    chances = []
    for temperature in temperatures:
        if temperature == 0:
            true = torch.where(p.argmax(-1, keepdim=True) == own, 0.0, -torch.inf).double()
        else:
            true = (log_p / temperature).log_softmax(-1).gather(-1, own)
        chances.append(true.squeeze(-1).where(wanted, 0.0).sum(1))
    return torch.stack(chances)


def require_completing(game: Game) -> None:
    """Raises NotApplicable unless each answer is about the next token and knows no later one."""
    positions = extent_of(game).positions
    for examples in (game.members, game.nonmembers):
        tokens, truth = tokens_of(examples, positions), truth_of(game, examples)
        follows = Truth.following(tokens) if tokens is not None else None
        if follows is None or not torch.equal(follows[truth.counted], truth.labels[truth.counted]):
            raise NotApplicable("only next tokens complete a text, the labels are others")
    if reads_later_tokens(game):
        raise NotApplicable("answers about a token depend on later ones: it completes no text")


def reads_later_tokens(game: Game) -> bool:
    """Returns whether the model's answers about a token change with the last token of the text.

    The game is about texts.
    """
    positions = extent_of(game).positions
    examples = game.nonmembers.shuffled(torch.arange(min(_ROWS_TRIED, len(game.nonmembers))))
    tokens, counted = tokens_of(examples, positions), truth_of(game, examples).counted
    assert tokens is not None  # noqa: S101  # the caller looked
    last = torch.arange(positions[0]).where(counted, -1).amax(1, keepdim=True) + 1
    changed = tokens.scatter(1, last, (tokens.gather(1, last) + 1) % extent_of(game).classes)
    bare, classes = game.shield.bare(), extent_of(game).classes
    before, after = (
        released(bare, one.inputs, classes)
        for one in (examples, with_tokens(examples, positions, changed))
    )
    return float((before - after).abs().amax(-1)[counted].max()) > _MAX_MOVED


def _exposure(game: Game, canaries: Canaries) -> Finding:
    """Ranks planted canaries among those held out, by loss and by the ratio to the base."""
    scores = [_canary_scores(game, part) for part in (canaries.planted, canaries.held_out)]
    generator = torch.Generator().manual_seed(game.seed)
    intervals = {
        name: exposure(scores[0][name], scores[1][name], shared(len(scores[0])), generator)
        for name in scores[0]
    }
    source, interval = max(intervals.items(), key=lambda item: item[1].value)
    alternatives = len(canaries.held_out) + 1
    return Finding.of(
        "extraction.exposure",
        interval,
        samples=len(canaries.planted),
        baseline=float((alternatives / torch.arange(1, alternatives + 1)).log2().mean()),
        threat=Threat(),
        source=f"{source}, among {len(canaries.held_out)} canaries held out",
        note=f"at most {math.log2(alternatives):.2f} bits",
    )


def _canary_scores(game: Game, examples: Examples) -> dict[str, Tensor]:
    floor, readings = floor_of(game), readings_of(game, examples)
    scores = {"loss": means_of(readings, floor)["loss"]}
    if game.base is not None:
        base = base_readings_of(game, examples, game.base)
        scores["ratio to base"] = base_scores(readings, base, floor)["ratio to base"]
    return scores


def exposure(
    planted: Tensor, held_out: Tensor, confidence: float, generator: torch.Generator
) -> Interval:
    """Estimates the mean exposure in bits; both sets are resampled for its interval.

    Where nearly all planted texts have one rank, resampling shows no variation, and the interval is
    extended to an exact one. Shapes: planted (n,), held_out (m,) scores. A tie counts half.
    """
    above = (held_out.unsqueeze(1) > planted).double() + (held_out.unsqueeze(1) == planted) / 2
    count = len(held_out)

    def mean(others: Tensor, own: Tensor) -> Tensor:
        bits = math.log2(count + 1) - (1 + others @ above).log2()
        return (bits * own).sum(-1) / own.sum(-1)

    draws = [
        torch.nn.functional.one_hot(
            torch.randint(size, (_RESAMPLES, size), generator=generator), size
        )
        .sum(1)
        .double()
        for size in (count, len(planted))
    ]
    value = float(mean(torch.ones(1, count).double(), torch.ones(1, len(planted))))
    tail = (1 - confidence) / 2
    ends = mean(*draws).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    before = above.sum(0)
    commonest = before.mode().values
    alike = int((before == commonest).sum())
    if len(planted) - alike < _MIN_DIFFERING:
        ends += _exact_ends(alike, len(planted), float(commonest), count, confidence)
    return Interval(value, min(value, *ends), max(value, *ends))


def _exact_ends(
    alike: int, planted: int, before: float, held_out: int, confidence: float
) -> tuple[float, float]:
    """Bounds the mean exposure where ``alike`` of the planted texts have one rank, exactly.

    Two Clopper-Pearson intervals share the error: of the share of canaries with that rank, all
    others having no bit or every bit; and of the share of texts, never planted, before that rank.
    """
    each = (1 + confidence) / 2
    most = math.log2(held_out + 1)
    share = proportion(alike, planted, each).low
    ranks = proportion(before, held_out, each)
    low, high = (most - math.log2(1 + held_out * end) for end in (ranks.high, ranks.low))
    return share * low, share * high + (1 - share) * most
