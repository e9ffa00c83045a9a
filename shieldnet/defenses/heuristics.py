"""Published heuristics, for comparison only: no preset contains one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.core.checks import positive
from shieldnet.core.randomness import rounded_gaussian
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.defenses.labels import Label
from shieldnet.privacy.cost import PrivacyCost, Reach

_EDGE = 1e-7
_GRID = 1024  # steps of a standard deviation


@dataclass(frozen=True)
class ReverseSigmoid(Defense):
    """Perturbs probabilities so that several scores give the same answer.

    beta: size of the perturbation, above 0, default 1. gamma: steepness of the sigmoid, above 0,
        default 0.1.
    Published against model extraction. Nothing is proven: the cost is infinite. It may change the
    winner, and measured it leaves more information on the input than ``TopK(3)``.
    Source: Lee, Edwards, Molloy, Su 2018 (arXiv:1806.00054), equation 2.
    """

    beta: float = 1.0
    gamma: float = 0.1
    accepts = ("probabilities",)
    gives = "probabilities"
    keeps_argmax = False

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        positive("gamma", self.gamma)

    def __call__(self, answers: Tensor) -> Tensor:
        bend = (self.gamma * answers.clamp(_EDGE, 1 - _EDGE).logit()).sigmoid() - 0.5
        bent = (answers - self.beta * bend).clamp_min(_EDGE)
        return bent / bent.sum(-1, keepdim=True)


@dataclass(frozen=True)
class WorstCaseMemGuard(Defense):
    """Moves every row toward one fixed row of its class, by at most ``distortion``.

    distortion: largest L1 distance, above 0, default 1.
    MemGuard searches for a distortion within its budget that makes a membership classifier guess;
    the worst case for that classifier is that all answers of a class are equal. With 2 or more they
    are; below, real numbers are released, and the cost is infinite.
    Source: Jia, Salem, Backes, Zhang, Gong 2019 (arXiv:1909.10594), with its phase I idealized.
    """

    distortion: float = 1.0
    accepts = ("probabilities",)
    gives = "probabilities"

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(0.5),)

    def __post_init__(self) -> None:
        positive("distortion", self.distortion)

    def __call__(self, answers: Tensor) -> Tensor:
        goal = (Label()(answers) + 1 / answers.shape[-1]) / 2
        direction = goal - answers
        length = direction.abs().sum(-1, keepdim=True).clamp_min(_EDGE)
        shifted: Tensor = answers + direction * (self.distortion / length).clamp_max(1.0)
        return shifted


@dataclass(frozen=True)
class RankSwap(Defense):
    """Replaces the probabilities by random ones in the same order of classes.

    sharpness: factor of the random scores, above 0, default 2; larger gives surer answers.
    The order of all K classes is released, so the cost is log2 K! bits: for ten classes more than
    that of ``Round(1)``.
    Source: Chen and Pattabiraman 2024 (HAMP, arXiv:2307.01610), its output modification; the
    confidences come from random scores instead of the model's answers to random inputs.
    """

    sharpness: float = 2.0
    accepts = ("probabilities",)
    gives = "probabilities"
    deterministic = False

    def __post_init__(self) -> None:
        positive("sharpness", self.sharpness)

    def __call__(self, answers: Tensor) -> Tensor:
        return self.with_noise(answers, self.draw(answers.shape).to(answers.device))

    def draw(self, shape: torch.Size) -> Tensor:
        return rounded_gaussian(shape, float(_GRID))

    def with_noise(self, answers: Tensor, noise: Tensor) -> Tensor:
        scores = (noise / _GRID).sort(dim=-1, descending=True).values
        scores[..., 0] += 0.5 / _GRID  # the winner stays strictly first
        order = answers.argsort(dim=-1, descending=True, stable=True)
        ranked = (self.sharpness * scores).softmax(-1).to(answers.dtype)
        return torch.empty_like(answers).scatter_(-1, order, ranked)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=math.lgamma(classes + 1) / math.log(2))


BASELINES: dict[str, type[Defense]] = {
    kind.__name__: kind for kind in (RankSwap, ReverseSigmoid, WorstCaseMemGuard)
}
"""Every baseline by its name; the contract test covers them, too."""

__all__ = ["BASELINES", "RankSwap", "ReverseSigmoid", "WorstCaseMemGuard"]
