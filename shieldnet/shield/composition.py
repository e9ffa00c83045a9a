"""Epsilon of many answers, composed exactly by Google's dp-accounting."""

import math
from typing import Any

from shieldnet.core.checks import fraction, optional, whole
from shieldnet.core.errors import ConfigError
from shieldnet.defenses import Chain
from shieldnet.defenses.base import UNBOUNDED
from shieldnet.privacy.events import Event, GaussianEvent, PureEvent, RandomizedResponseEvent
from shieldnet.shield.module import Shield

_MIN_LOSS, _MAX_LOSS = 1e-6, 40.0  # mu or epsilon of one answer
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
    extent = shield.seen.extent(classes)
    if shield.others or math.prod(extent.positions) != 1 or extent.any_number:
        raise ConfigError("Expected a shield with one row an answer and no other fields.")
    events = events_of(shield.chain, extent.classes)
    if not events:
        raise ConfigError(
            f"Nothing is proven of {shield.describe()} but bits, so no epsilon can be composed: it "
            "takes a mechanism, such as RandomizedResponse(6.0) or ClipNorm followed by "
            "GaussianNoise."
        )
    closed = (shield.settings.cost(extent) * queries).epsilon(delta)
    composed = (loss_of(event) for event in events if _is_counted(event))
    epsilons = (float(loss.self_compose(queries).get_epsilon_for_delta(delta)) for loss in composed)
    return min([closed, *epsilons])


def events_of(chain: Chain, classes: int) -> tuple[Event, ...]:
    """Lists what the stages of a chain did to one row, as far as it is proven.

    What reads the inputs again undoes what was proven of the stages before it.
    """
    events: list[Event] = []
    reach = UNBOUNDED
    for stage in chain.stages:
        if stage.reads_inputs:
            events = []
        event = stage.event(classes, reach)
        if event is not None:
            events.append(event)
        reach = stage.reach(classes, reach)
    return tuple(events)


def _is_counted(event: Event) -> bool:
    """Returns whether dp-accounting can hold a loss; beyond, the closed form is as good."""
    size = event.mu if isinstance(event, GaussianEvent) else event.epsilon
    return _MIN_LOSS <= size <= _MAX_LOSS


def loss_of(event: Event) -> Any:
    """Returns the privacy loss distribution of one event."""
    pld = optional(_LOSSES, extra="accounting")
    common = optional("dp_accounting.pld.common", extra="accounting")
    match event:
        case GaussianEvent(mu):
            return pld.from_gaussian_mechanism(1 / mu)
        case RandomizedResponseEvent(epsilon, symbols):
            kept = symbols / (math.exp(epsilon) + symbols - 1)  # dp-accounting's p: a uniform draw
            return pld.from_randomized_response(kept, symbols)
        case PureEvent(epsilon):
            return pld.from_privacy_parameters(common.DifferentialPrivacyParameters(epsilon, 0.0))
