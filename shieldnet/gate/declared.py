"""Every kind of finding that there is, from whatever measures it."""

from collections.abc import Iterator, Sequence

from shieldnet.attacks import ATTACKS, Attack
from shieldnet.attacks.membership.blind import METRICS as OF_BLIND_TESTS
from shieldnet.checks import CHECKS
from shieldnet.checks.utility import METRICS as OF_USE
from shieldnet.findings.metrics import Metric, Metrics
from shieldnet.privacy.one_run_bounds import METRICS as OF_TRAININGS


def declared() -> Metrics:
    """Returns what all attacks and checks declare, a user's own among them, in reading order."""
    ours = (*ATTACKS, *CHECKS)
    theirs = (attack for attack in _kinds_of(Attack) if attack not in ours)
    metrics: list[Metric] = [*OF_USE, *OF_BLIND_TESTS, *OF_TRAININGS]
    for attack in (*ours, *theirs):
        metrics += attack.metrics
    return Metrics(tuple(dict.fromkeys(metrics)))


def _kinds_of(attack: type) -> Iterator[type[Attack]]:
    kinds: Sequence[type[Attack]] = attack.__subclasses__()
    for kind in kinds:
        yield kind
        yield from _kinds_of(kind)
