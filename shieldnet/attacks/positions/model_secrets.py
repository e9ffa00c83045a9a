"""What released scores give away of the model itself: its hidden size, and its full logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.answers import defended
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.positions.readings import extent_of, released
from shieldnet.attacks.positions.truth import token_columns
from shieldnet.core.randomness import noise_about
from shieldnet.core.statistics import proportion, random_sums
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import RELEASE_LESS, Limit, Metric
from shieldnet.shield.module import Shield

_MAX_ANSWERS = 1024  # of one trial: more would take a hidden size above it to pay
_MAX_TRIALS = 10
_MAX_FEATURES = 2 * _MAX_ANSWERS  # of an answer: random sums keep the rank
_MIN_GAP = 2.0  # between neighboring singular values, of a rank that an adversary believes
_EXACT = 1e-6  # of the greatest singular value: the arithmetic of float32


@dataclass(frozen=True)
class HiddenSize(Attack):
    """Counts the dimensions of the last hidden layer from released scores.

    Logits are a matrix of weights times a hidden vector, so those of many answers, each less its
    own mean, have the rank of the hidden layer, whatever the softmax took away. The adversary takes
    the singular values of as many answers as the vocabulary has words (at most 1,024) and looks for
    the widest gap between neighbors.

    ``model.hidden_size``: the share of trials, each on other answers, that name the true rank, that
    of the bare model's logits. A bias of the last layer adds one to the hidden size.
    Errors: NotApplicable where the hidden layer is as wide as the vocabulary or as a trial.
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
        classes = extent_of(game).classes
        size = min(classes, _MAX_ANSWERS)
        true = _scores(game, game.shield.bare(), size * _MAX_TRIALS)
        size = min(size, len(true))
        trials = [part for part in true.split(size) if len(part) == size]
        actual = [_rank(part, _EXACT) for part in trials]
        hidden = max(actual)
        if hidden >= min(size, classes) - 1:
            raise NotApplicable(
                f"the logits of {size} answers have full rank: the hidden layer is not narrower "
                "than the vocabulary, or than a trial"
            )
        answers = _scores(game, game.shield, size * _MAX_TRIALS)
        found = [_widest_gap(part) == hidden for part in answers.split(size)[: len(trials)]]
        return Outcome(
            findings=(
                Finding.of(
                    "model.hidden_size",
                    proportion(sum(found), len(found)),
                    samples=len(found),
                    baseline=0.0,
                    threat=Threat(queries=size),
                    source=f"widest gap between the singular values of {size} answers",
                    note=f"rank {hidden}, of which 1 may be a bias" if sum(found) else "",
                ),
            )
        )


def _scores(game: Game, shield: Shield, count: int) -> Tensor:
    """Returns log p at random positions, each row less its mean. Shapes: -> (rows, features)."""
    rows: list[Tensor] = []
    classes, taken = extent_of(game).classes, 0
    generator = torch.Generator().manual_seed(game.seed)
    with noise_about("hidden size"):
        for part in game.nonmembers.inputs.split(16):
            p = released(shield, part, classes).flatten(0, -2)
            least = float(p[p > 0].min()) / 2
            log_p = p.clamp_min(least).log()
            rows.append(random_sums(log_p - log_p.mean(1, keepdim=True), _MAX_FEATURES))
            taken += len(p)
            if taken >= count:
                break
    scores = torch.cat(rows)
    return scores[torch.randperm(len(scores), generator=generator)][:count]


def _rank(scores: Tensor, smallest: float) -> int:
    values = torch.linalg.svdvals(scores)
    return int((values > smallest * values[0]).sum())


def _widest_gap(scores: Tensor) -> int:
    """Returns where singular values fall off most; 0 where no gap stands out.

    The last value is that of the mean, which was taken away.
    """
    values = torch.linalg.svdvals(scores)[: min(scores.shape) - 1].clamp_min(1e-12)
    gaps = (values[:-1] / values[1:]).log()
    place = int(gaps.argmax())
    return place + 1 if float(gaps[place]) > math.log(_MIN_GAP) else 0


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
