"""What released scores give away of the model itself: its hidden size, and its full logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.answers import defended
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.positions.asking import Asking
from shieldnet.attacks.positions.painted_shield import PaintedShield
from shieldnet.attacks.positions.readings import extent_of, released
from shieldnet.attacks.positions.truth import token_columns
from shieldnet.core.randomness import noise_about
from shieldnet.core.statistics import proportion, random_sums
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import RELEASE_LESS, Limit, Metric

_MAX_ANSWERS = 1024  # of one trial: more would take a hidden size above it to pay
_MAX_TRIALS = 10
_MAX_FEATURES = 2 * _MAX_ANSWERS  # of an answer: random sums keep the rank
_MIN_GAP = 3.0  # between neighboring singular values, of a rank that an adversary believes


@dataclass(frozen=True)
class HiddenSize(Attack):
    """Counts the dimensions of the last hidden layer from released scores.

    Logits are a matrix of weights times a hidden vector, so those of many answers, each less its
    own mean, have the rank of the hidden layer, whatever the softmax took away. The adversary takes
    the singular values of twice as many answers as there are classes (at most 1,024) and looks for
    the widest gap between neighbors.

    ``model.hidden_size``: the share of trials, each on other answers, that agree on one rank behind
    a gap. A bias of the last layer adds one to the hidden size. A layer as wide as the vocabulary,
    or wider than a trial, leaves no gap. Texts are asked about that are made of random tokens.
    Source: Carlini et al. 2024 (arXiv:2403.06634); Finlayson, Ren, Swayamdipta 2024
    (arXiv:2403.09539).
    """

    at_positions = True
    metrics = (
        Metric(
            "model.hidden_size",
            "hidden size found",
            "more",
            Limit(
                "max_hidden_size_found",
                0.5,
                "how often the width of the hidden layer is read from released scores",
                helps=RELEASE_LESS,
                needs="audit a model of more classes than its last hidden layer is wide",
            ),
            rows="trials",
        ),
    )

    def __call__(self, game: Game) -> Outcome:
        size = min(2 * extent_of(game).classes, _MAX_ANSWERS)
        if isinstance(game.shield, PaintedShield):
            raise NotApplicable("it reads scores of a last linear layer, the model gives boxes")
        trials = _scores(game, size * _MAX_TRIALS).split(size)
        parts = [part for part in trials if len(part) == size]
        if not parts:
            raise NotApplicable(f"needs {size} answers, twice as many as there are classes")
        ranks = [_widest_gap(part) for part in parts]
        known = [rank for rank in ranks if rank]
        hidden = max(set(known), key=known.count, default=0)
        found = known.count(hidden) if len(known) > 1 or len(parts) == 1 else 0
        note = f"rank {hidden}, of which 1 may be a bias" if found else "no gap stands out"
        return Outcome(
            findings=(
                Finding.of(
                    "model.hidden_size",
                    proportion(found, len(parts)),
                    samples=len(parts),
                    baseline=0.0,
                    threat=Threat(queries=size),
                    source=f"widest gap between the singular values of {size} answers",
                    note=note,
                ),
            )
        )


def _scores(game: Game, count: int) -> Tensor:
    """Returns log p at random positions, -inf where nothing was released.

    Shapes: -> (rows, classes), or random sums of many classes, of rows less their mean.
    """
    rows: list[Tensor] = []
    classes, taken = extent_of(game).classes, 0
    generator = torch.Generator().manual_seed(game.seed)
    with noise_about("hidden size"):
        for part in _questions(game, count, generator).split(16):
            p = released(game.shield, part, classes).flatten(0, -2)
            rows.append(p.log() if classes <= _MAX_FEATURES else _few(p))
            taken += len(p)
            if taken >= count:
                break
    scores = torch.cat(rows)
    return scores[torch.randperm(len(scores), generator=generator)][:count]


def _few(p: Tensor) -> Tensor:
    log_p = p.clamp_min(float(p[p > 0].min()) / 2).log()
    return random_sums(log_p - log_p.mean(1, keepdim=True), _MAX_FEATURES)


def _questions(game: Game, count: int, generator: torch.Generator) -> Tensor:
    """Returns what is asked: texts of random tokens, or else the nonmembers."""
    extent = extent_of(game)
    if token_columns(game.nonmembers, extent.positions) is None:
        return game.nonmembers.inputs
    asking = Asking.of(game, game.nonmembers)
    texts = -(-count // asking.length)
    return asking.rows(torch.randint(extent.classes, (texts, asking.length), generator=generator))


def _widest_gap(scores: Tensor) -> int:
    """Returns where singular values fall off most; 0 where no gap stands out.

    Classes that are always as probable as one another, such as all that a cut leaves out, count
    once: that there are few others is no hidden size. The last value is that of the mean, which is
    taken away.
    """
    released = scores.isfinite()
    floor = float(scores[released].min()) - math.log(2)
    scores = scores.clamp_min(floor).unique(dim=1)
    scores = scores - scores.mean(1, keepdim=True)
    scores = scores / scores.square().mean(0).sqrt().clamp_min(1e-30)  # rare classes count as much
    values = torch.linalg.svdvals(scores)[: min(scores.shape) - 1].clamp_min(1e-12)
    if len(values) < 3:
        return 0
    gaps = (values[:-1] / values[1:]).log()
    place = int(gaps.argmax())
    return place + 1 if place and float(gaps[place]) > math.log(_MIN_GAP) else 0


@dataclass(frozen=True)
class LogitBias(Attack):
    """Reads full logits where a server lets clients add a bias to single tokens.

    The adversary raises the bias of one token until it wins, by bisection: the bias at which it
    does is how far its logit lies below the greatest. Whatever keeps the winner keeps this, so no
    shield helps: the server must refuse biases, as ``shieldnet serve`` and its adapters do.

    ``model.logits_by_bias``: the share of logits that are read to within 0.01, if it does not.
    Source: Carlini et al. 2024 (arXiv:2403.06634), section 5.
    """

    at_positions = True
    metrics = (
        Metric(
            "model.logits_by_bias",
            "logits read through a bias",
            "more",
            ungated="it holds of servers that take a bias for each token; refuse these there",
            rows="logits",
        ),
    )

    rows: int = 16
    tokens: int = 16
    steps: int = 20

    def __call__(self, game: Game) -> Outcome:
        extent = extent_of(game)
        if token_columns(game.nonmembers, extent.positions) is None:
            raise NotApplicable("servers take a bias for tokens, and the inputs are no texts")
        if game.shield.chain.layout.row_kind != "logits":
            raise NotApplicable("a bias is added to logits, and the model gives probabilities")
        scores = _true_scores(game, self.rows)
        generator = torch.Generator().manual_seed(game.seed)
        tokens = torch.randperm(extent.classes, generator=generator)[: self.tokens]
        low = torch.zeros(len(scores), len(tokens))
        high = torch.full_like(low, float(scores.max() - scores.min()) + 1.0)
        # One bias an answer: a row for every pair of an answer and a token.
        place = torch.arange(len(tokens)).repeat(len(scores))
        asked = scores.repeat_interleave(len(tokens), 0)
        own = tokens[place]
        with noise_about("logit bias"):
            for _ in range(self.steps):
                middle = (low + high) / 2
                biased = asked.clone()
                biased[torch.arange(len(asked)), own] += middle.flatten()
                won = _winners(game, biased) == own
                won = won.unflatten(0, (len(scores), -1))
                low, high = low.where(won, middle), middle.where(won, high)
        true = scores.amax(1, keepdim=True) - scores[:, tokens]
        right = ((low + high) / 2 - true).abs() <= 0.01  # as the docstring says
        count = right.numel()
        return Outcome(
            findings=(
                Finding.of(
                    "model.logits_by_bias",
                    proportion(int(right.sum()), count),
                    samples=count,
                    baseline=0.0,
                    threat=Threat(queries=self.steps, sees="the winner under a bias of its choice"),
                    source="bisection of the bias at which a token wins",
                    note="the server must refuse a bias for each token",
                ),
            )
        )


def _true_scores(game: Game, count: int) -> Tensor:
    """Returns the bare model's logits at some positions. Shapes: -> (rows, classes) float32."""
    shield = game.shield
    with torch.no_grad():
        inputs = game.nonmembers.inputs[:count]
        first = next(shield.parameters(), None)
        inputs = inputs if first is None else inputs.to(first.device)
        scores = shield.chain.layout.opened(shield.answer_in(shield.model(inputs.clone())))
    return scores.flatten(0, -2)[:: max(1, scores[0, ..., 0].numel())][:count].float().cpu()


def _winners(game: Game, scores: Tensor) -> Tensor:
    return defended(game.shield, scores, game.nonmembers.inputs[:1]).distribution.argmax(-1)
