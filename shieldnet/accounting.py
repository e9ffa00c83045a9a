"""Epsilon of many answers, composed exactly by Google's dp-accounting."""

import math
from typing import Any

from shieldnet._validate import fraction, optional, whole
from shieldnet.defenses import GaussianNoise, LaplaceNoise, PermuteAndFlip, RandomizedResponse
from shieldnet.defenses.base import UNBOUNDED
from shieldnet.errors import ConfigError
from shieldnet.shield import Shield

_LOSSES = "dp_accounting.pld.privacy_loss_distribution"


def composed_epsilon(
    shield: Shield, *, queries: int, delta: float, classes: int | None = None
) -> float:
    """Returns epsilon of (epsilon, delta)-differential privacy after ``queries`` answers.

    ``certificate(queries=...).epsilon(delta)`` composes in closed form: exactly for Gaussian
    noise, from above for the rest. This composes the privacy losses themselves and is far lower
    for many answers of randomized response. The answers may be about one input or many: what is
    bounded is what all of them say of any two worlds that differ in all of them.

    classes: of the model; needed only before the first answer.
    Guarantee: an upper bound; dp-accounting's estimates are pessimistic, to 1e-4 of a loss.
    Errors: ConfigError for a shield without a mechanism; MissingDependency without dp-accounting.
    Source: Koskela et al. 2020; Doroshenko et al. 2022; pip: dp-accounting.
    """
    whole("queries", queries, low=1)
    fraction("delta", delta)
    price = shield.price(classes)
    if math.isinf(price.mu) and math.isinf(price.pure):
        raise ConfigError(
            "Expected a shield with a mechanism, such as RandomizedResponse(6.0) or ClipNorm "
            f"followed by GaussianNoise; got {shield.describe()}."
        )
    if shield.others or math.prod((shield.sizes or (0, ()))[1]) != 1:
        raise ConfigError("Expected a shield with one row an answer and no other fields.")
    return float(_losses(shield, classes).self_compose(queries).get_epsilon_for_delta(delta))


def _losses(shield: Shield, classes: int | None) -> Any:
    """Returns the privacy loss distribution of one answer: the least of the chain's mechanisms."""
    pld = optional(_LOSSES, extra="accounting")
    common = optional("dp_accounting.pld.common", extra="accounting")
    count = classes or shield.classes or 0
    found: list[tuple[float, Any]] = []
    reach = UNBOUNDED
    for stage in shield.chain.stages:
        price = stage.price(count, reach)
        if isinstance(stage, GaussianNoise) and math.isfinite(price.mu):
            loss = pld.from_gaussian_mechanism(1 / price.mu)
            found.append((price.mu, loss))
        elif isinstance(stage, RandomizedResponse):
            symbols = count * stage.bins
            kept = symbols / (math.exp(stage.epsilon) + symbols - 1)
            found.append((price.mu, pld.from_randomized_response(kept, symbols)))
        elif isinstance(stage, LaplaceNoise | PermuteAndFlip) and math.isfinite(price.pure):
            pure = common.DifferentialPrivacyParameters(price.pure, 0.0)
            found.append((price.mu, pld.from_privacy_parameters(pure)))
        reach = stage.reach(count, reach)
    return min(found, key=lambda one: one[0])[1]
