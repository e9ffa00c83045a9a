"""Is a zero attribution privacy, or only a masked gradient?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.answers import Behind, in_batches, one_row_each
from shieldnet.attacks.base import Game
from shieldnet.checks.attribution import require_gradient
from shieldnet.checks.base import Check
from shieldnet.core.statistics import Interval, mean
from shieldnet.data.examples import reference_rows
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Metric
from shieldnet.shield.module import Shield

_PROBES = 12
_PAIRS = 500
_MAX_FEATURES = 20_000
_STEPS = (0.1, 0.3, 1.0)  # in standard deviations of the inputs
ROWS_ASKED = _PROBES * len(_STEPS) * 2 * _PAIRS
"""How many rows a shield is asked about."""


@dataclass(frozen=True)
class Masking(Check):
    """Compares what Captum reads through the shield with what plain queries recover.

    Rounding has a zero gradient almost everywhere, so Captum through a rounding shield reads 0,
    which says nothing of privacy: an adversary who only asks differences finds the gradient of
    the winner's probability all the same. The probes are the nonmembers of which the model is
    least sure; the width of the differences is chosen by how well they fit held-back queries.

    ``masking`` is the mean cosine between that gradient and the true one (0: nothing recovered,
    1: all of it); ``masking.captum`` is the size of what Captum reads, relative to the bare model.
    Source: straight-through and query attacks on masked gradients, Athalye et al. 2018.
    """

    metrics = (
        Metric("masking", "gradient recovered by queries", "neither"),
        Metric("masking.captum", "gradient read by Captum", "neither"),
    )

    def __call__(self, game: Game) -> Outcome:
        game.require_classes()
        if not game.shield.defenses:
            raise NotApplicable("there is no defense that could mask a gradient")
        features = game.nonmembers.inputs[0].numel()
        if features > _MAX_FEATURES:
            raise NotApplicable(f"it fits at most {_MAX_FEATURES} features, there are {features}")
        require_gradient(game, game.nonmembers.inputs)
        probes, winners = _least_sure(game)
        bare = game.shield.bare(release="probabilities")
        true = _captum_gradient(bare, probes, winners)
        steep = true.norm(dim=1) > 0
        if int(steep.sum()) < 2:
            raise NotApplicable("the model is so sure that its own gradient is 0 everywhere")
        probes, winners, true = probes[steep], winners[steep], true[steep]
        reading = _captum_gradient(game.shield, probes, winners).norm(dim=1) / true.norm(dim=1)
        queries = _Queries.of(game)
        cosines = torch.stack(
            [
                torch.cosine_similarity(queries.gradient(*probe), gradient, dim=0)
                for *probe, gradient in zip(probes, winners, true, strict=True)
            ]
        )
        recovered = mean(cosines, within=(-1.0, 1.0))
        read = mean(reading, within=(0.0, math.inf))
        threat = Threat(queries=2 * _PAIRS * len(_STEPS))
        return Outcome(
            findings=(
                Finding.of(
                    "masking",
                    recovered,
                    samples=len(probes),
                    baseline=0.0,
                    threat=threat,
                    source=f"least squares over {_PAIRS} query pairs a width",
                    note=_verdict(read, recovered),
                ),
                Finding.of(
                    "masking.captum",
                    read,
                    samples=len(probes),
                    baseline=0.0,
                    threat=Threat(white_box=True),
                    source="Captum Saliency through the shield",
                ),
            )
        )


class _Through(nn.Module):
    """Runs the whole shield with a graph, so that Captum can try to look through it."""

    def __init__(self, shield: Shield) -> None:
        super().__init__()
        self.shield = shield

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.shield.answer_in(self.shield.model(inputs.clone()))
        stated = one_row_each(self.shield.distribution(self.shield.chain(scores, (inputs,))))
        # Whole ticks have no graph at all; a zero keeps Captum from stopping there.
        return stated + 0 * inputs.flatten(1).sum(1, keepdim=True)


def _captum_gradient(shield: Shield, probes: Tensor, winners: Tensor) -> Tensor:
    """Returns the gradient of each winner's released probability. Shapes: -> (rows, features)."""
    from captum.attr import Saliency

    saliency = Saliency(_Through(shield))
    point = probes.clone().requires_grad_()
    scores: Tensor = saliency.attribute(point, target=winners.to(probes.device), abs=False)
    return scores.detach().flatten(1).cpu().double().nan_to_num()


@dataclass(frozen=True)
class _Queries:
    """The random steps around a probe, and the least squares that every probe and width share.

    Shapes: steps (pairs, features); some and all (features, rows): of the first half, and of all.
    """

    game: Game
    steps: Tensor
    some: Tensor
    all: Tensor

    @classmethod
    def of(cls, game: Game) -> "_Queries":
        reference = reference_rows(game.members, game.nonmembers, game.auxiliary)
        generator = torch.Generator().manual_seed(game.seed)
        steps = torch.randn(_PAIRS, reference[0].numel(), generator=generator).double()
        steps = steps * Scale.of(reference).deviation
        first = steps[: _PAIRS // 2]
        return cls(game, steps, torch.linalg.pinv(first), torch.linalg.pinv(steps))

    def gradient(self, probe: Tensor, winner: Tensor) -> Tensor:
        """Fits the winner's released probability to the steps, by queries alone.

        Shapes: probe, one input -> (features,) float64.
        """
        half, fits = _PAIRS // 2, list[tuple[float, Tensor]]()
        for width in _STEPS:
            both = torch.cat([self.steps, -self.steps]) * width
            perturbed = both.reshape(-1, *probe.shape).to(probe) + probe
            answers = self.game.shield.distribution(in_batches(self.game.shield, perturbed))
            stated = one_row_each(answers)[:, winner].double()
            change = (stated[:_PAIRS] - stated[_PAIRS:]) / (2 * width)
            missed = (change[half:] - self.steps[half:] @ (self.some @ change[:half])).square()
            fit = 1 - float(missed.sum() / change[half:].square().sum().clamp_min(1e-30))
            fits.append((fit, self.all @ change))
        return max(fits, key=lambda pair: pair[0])[1]


def _least_sure(game: Game) -> tuple[Tensor, Tensor]:
    scores = in_batches(Behind(game.shield), game.nonmembers.inputs)
    if game.shield.chain.layout.row_kind == "logits":
        scores = scores.softmax(-1)
    top, winners = scores.max(-1)
    places = top.argsort()[:_PROBES]
    return game.nonmembers.inputs[places], winners[places]


def _verdict(read: Interval, recovered: Interval) -> str:
    if read.value > 0:
        return "Captum sees through this shield"
    if recovered.low > 0:
        return "Captum reads 0, queries recover the gradient: a masked gradient, not privacy"
    return "Captum reads 0; these queries recovered nothing, others may"
