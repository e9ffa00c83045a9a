"""Taking noise off answers: by moving the input a little, or by learning what the noise was."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.adversary.decoders import Decoder, KernelRidge, Network, Ridge
from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.adversary.selection import MIN_ROWS, choose
from shieldnet.attacks.answers import Behind, in_batches, one_row_each
from shieldnet.attacks.base import Attack, Game
from shieldnet.core.statistics import saved_share
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Metric

_MAX_TARGETS = 200


_METRICS = (
    Metric(
        "noise_removed.*",
        "noise removed",
        "more",
        ungated="what lies under the noise is judged by what it tells: inversion and averaging",
    ),
)


@dataclass(frozen=True)
class JitterAveraging(Attack):
    """Averages answers to inputs a little off the one that is meant.

    Noise that is keyed on the input, or on the answer's cell, is fresh for each of them, while
    the scores hardly move: pairs of opposite steps cancel what they move by. The width of the
    steps is the best of ``widths`` on the auxiliary rows, judged by the true scores there.

    ``noise_removed.jitter`` is the share of the noise's squared error that is gone: 0 for one
    plain answer, 1 for the scores before the noise.
    queries: about each target. widths: in standard deviations of the inputs.
    """

    metrics = _METRICS
    queries: int = 256
    widths: tuple[float, ...] = (1e-3, 1e-2, 3e-2, 1e-1)

    def __call__(self, game: Game) -> Outcome:
        noise_of(game)
        targets, owned = _some(game.nonmembers), _some(game.owned())
        game.require_rows(MIN_ROWS, owned)
        if not targets.inputs.is_floating_point():
            raise NotApplicable(f"inputs of {targets.inputs.dtype} cannot be moved a little")
        unit = Scale.of(owned.inputs).deviation.reshape(owned.inputs.shape[1:])
        answers, known = (clean_scores(game, examples) for examples in (targets, owned))
        errors = {
            width: float((self._averaged(game, owned, width * unit) - known).square().sum())
            for width in self.widths
        }
        width = min(self.widths, key=lambda width: errors[width])
        left = (self._averaged(game, targets, width * unit) - answers).square().sum(1)
        return _outcome(
            game,
            "jitter",
            left,
            (answers_about(game, targets) - answers).square().sum(1),
            Threat(self.queries, len(owned)),
            f"mean over steps of {width:g} standard deviations",
        )

    def _averaged(self, game: Game, targets: Examples, width: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(game.seed)
        inputs = targets.inputs
        total = torch.zeros(())
        for _ in range(self.queries // 2):
            step = (torch.randn(inputs.shape, generator=generator) * width).to(inputs.dtype)
            for shifted in (inputs + step, inputs - step):
                total = total + answers_about(game, Examples(targets.name, shifted))
        return total / (self.queries // 2 * 2)


@dataclass(frozen=True)
class TableLearning(Attack):
    """Learns scores from ordinary answers, and the noise of the cells that come again.

    A surrogate learns answers from inputs, which averages the noise of all rows away; it is
    chosen by answers held back, with no look at a true score. Equal answers share a cell, and the
    surrogate's mean over the cell, weighed against the answer itself, gives the scores.

    ``noise_removed.table`` as in ``JitterAveraging``, with one query about each target.
    """

    metrics = _METRICS
    decoders: tuple[Decoder, ...] = (Ridge(), KernelRidge(), Network())

    def __call__(self, game: Game) -> Outcome:
        noise = noise_of(game)
        targets, owned = _some(game.nonmembers), game.owned()
        game.require_rows(MIN_ROWS, owned)
        scale = Scale.of(owned.inputs)
        view = {"inputs": scale.apply(owned.inputs)}
        known, seen = answers_about(game, owned), answers_about(game, targets)
        chosen = choose(self.decoders, view, known, seed=game.seed)
        everyone = {"inputs": torch.cat([view["inputs"], scale.apply(targets.inputs)])}
        guess = chosen.predict(view, known, everyone)
        released = torch.cat([known, seen])
        _, cell = released.unique(dim=0, return_inverse=True)
        counts = torch.bincount(cell).to(guess.dtype).unsqueeze(1)
        means = torch.zeros(len(counts), guess.shape[1]).index_add_(0, cell, guess) / counts
        spread = max(0.0, chosen.error - noise**2)  # of the surrogate about the scores
        own = spread / counts[cell] / (spread / counts[cell] + noise**2)
        cleaned = (own * released + (1 - own) * means[cell])[len(owned) :]
        clean = clean_scores(game, targets)
        return _outcome(
            game,
            "table",
            (cleaned - clean).square().sum(1),
            (seen - clean).square().sum(1),
            Threat(auxiliary=len(owned)),
            f"surrogate: {chosen}",
        )


def noise_of(game: Game) -> float:
    """Returns the deviation of the noise that the last defense adds to scores.

    Errors: NotApplicable where there is none: there is nothing to take off.
    """
    stages = game.shield.chain.stages
    deviation = stages[-1].noise_deviation if stages else None
    if deviation is None:
        raise NotApplicable("the shield releases no scores with noise")
    return deviation


def answers_about(game: Game, examples: Examples) -> Tensor:
    """Asks once about each row. Shapes: -> (rows, classes)."""
    return one_row_each(game.shield.chain.rows(in_batches(game.shield, examples.inputs))).float()


def clean_scores(game: Game, examples: Examples) -> Tensor:
    """Returns the scores just before the noise. Shapes: -> (rows, classes)."""
    scores = in_batches(Behind(game.shield), examples.inputs)
    for stage in game.shield.chain.stages[:-1]:
        scores = stage(scores)
    return scores.float()


def _some(examples: Examples) -> Examples:
    return Examples(examples.name, examples.inputs[:_MAX_TARGETS])


def _outcome(
    game: Game, name: str, left: Tensor, noise: Tensor, threat: Threat, source: str
) -> Outcome:
    finding = Finding.of(
        f"noise_removed.{name}",
        saved_share(left, noise, seed=game.seed),
        samples=len(left),
        baseline=0.0,
        threat=threat,
        source=source,
    )
    return Outcome(findings=(finding,))
