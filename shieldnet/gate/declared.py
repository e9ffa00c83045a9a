"""All metrics that attacks and checks declare."""

import math
from collections.abc import Collection, Iterator, Sequence

from shieldnet.attacks import ATTACKS
from shieldnet.attacks.base import Measurement
from shieldnet.attacks.membership.blind import METRICS as OF_BLIND_TESTS
from shieldnet.checks import CHECKS
from shieldnet.checks.utility import METRICS as OF_USE
from shieldnet.core.errors import ConfigError
from shieldnet.findings.metrics import RELEASE_LESS, Limit, Metric, Metrics
from shieldnet.privacy.one_run_bounds import METRICS as OF_TRAININGS

PROVEN = (
    Limit(
        "max_bits_per_answer",
        20,
        "Proven, not measured: the privacy cost of one answer, and the guarantee of the "
        "training (--guarantee).",
        is_set=True,
        most=math.inf,
        helps=RELEASE_LESS,
    ),
    Limit(
        "max_mu_per_answer",
        1.0,
        "",
        most=math.inf,
        helps="Add noise with a proven bound: ClipNorm and GaussianNoise, or the preset certified.",
    ),
    Limit(
        "max_epsilon",
        8.0,
        "",
        most=math.inf,
        helps="Train again with DPSGD (shieldnet finetune), from a fresh or public model, at an "
        "epsilon within the limit.",
        needs="Pass the guarantee of the training, --guarantee (finetuned=). If it has none, train "
        "with DPSGD (shieldnet finetune).",
    ),
)
"""Limits on the certificate and on the guarantee of the training."""
PROVEN_NAMES = tuple(limit.name for limit in PROVEN)
"""Names that no finding may use."""


def declared() -> Metrics:
    """Returns the metrics of all attacks and checks, including the user's, in reading order.

    Metrics of a user's class are ignored if ``refused`` objects to them, so that defining a class
    never removes a finding from its limit.
    """
    metrics = dict.fromkeys(_ours())
    for kind in _kinds_of(Measurement):
        own = _declared_by(kind)
        if not refused(own, metrics):
            metrics |= dict.fromkeys(own)
    return Metrics(tuple(metrics))


def require_declared(measurement: Measurement) -> None:
    """Raises ConfigError if an attack or check declares invalid metrics or none.

    Called before any attack runs.
    """
    name = type(measurement).__name__
    if not measurement.metrics:
        raise ConfigError(
            f"Expected {name} to declare what it finds: metrics = (Metric(...),), each with limit= "
            "or ungated= (the reason why it has none)."
        )
    own = _declared_by(type(measurement))
    if len(own) < len(measurement.metrics):
        raise ConfigError(
            f"Expected the metrics of {name} as Metric(...), got {measurement.metrics!r}."
        )
    if fault := refused(own, _ours()):
        raise ConfigError(f"{name} cannot declare that: {fault}.")


def refused(own: Sequence[Metric], others: Collection[Metric]) -> str:
    """Returns why metrics conflict with others, or "" if they do not.

    Two metrics must not match the same name: one would remove the other's finding from its limit.
    """
    new = [metric for metric in own if metric not in others]
    known = Metrics(tuple(others) if new else ())
    for metric in new:
        if metric.limit is not None and metric.limit.name in PROVEN_NAMES:
            return f"the limit {metric.limit.name} is about what is proven, not measured"
        clash = known.find(metric.of("x")) or next(
            (other for other in known.every if metric.matches(other.of("x"))), None
        )
        if clash is not None:
            return f"{metric.name} would also match findings of {clash.name}: rename it"
    return ""


def _ours() -> tuple[Metric, ...]:
    metrics: list[Metric] = [*OF_USE, *OF_BLIND_TESTS, *OF_TRAININGS]
    for kind in (*ATTACKS, *CHECKS):
        metrics += kind.metrics
    return tuple(dict.fromkeys(metrics))


def _declared_by(kind: type[Measurement]) -> tuple[Metric, ...]:
    return tuple(metric for metric in kind.metrics if isinstance(metric, Metric))


def _kinds_of(base: type) -> Iterator[type[Measurement]]:
    """Lists the classes of attacks and checks; of several with one name (rerun cells), the last."""
    kinds: dict[str, type[Measurement]] = {}
    subclasses: Sequence[type[Measurement]] = base.__subclasses__()
    for kind in subclasses:
        kinds.pop(f"{kind.__module__}.{kind.__qualname__}", None)
        kinds[f"{kind.__module__}.{kind.__qualname__}"] = kind
    for kind in kinds.values():
        yield kind
        yield from _kinds_of(kind)
