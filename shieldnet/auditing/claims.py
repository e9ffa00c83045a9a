"""What private training proves, put beside what was measured of it."""

from collections.abc import Iterable
from dataclasses import replace

from shieldnet.finding import Finding
from shieldnet.training.accountant import Guarantee

_RATES = {"tpr_at_fpr_1e-2": 1e-2, "tpr_at_fpr_1e-3": 1e-3}
_OTHERS = ("membership.blind", "membership.pooled.")
"""Findings about something else than this model's training."""


def with_ceilings(
    findings: Iterable[Finding], guarantee: Guarantee | None, copies: int
) -> tuple[Finding, ...]:
    """Gives every finding of membership the proven upper bound of the model's training.

    copies: of every canary; the guarantee is for one record alone. A mean over records is bounded
    by what bounds each: the bound is concave in the false-positive rate. A guarantee of steps alone
    bounds nothing that the model says: its start may have known every record.
    """
    if guarantee is None or guarantee.scope == "steps":
        return tuple(findings)
    area = guarantee.auc()

    def bounded(one: Finding) -> Finding:
        canary = one.name.startswith("membership.canaries")
        if not one.name.startswith("membership.") or one.name.startswith(_OTHERS):
            return one
        if canary and copies > 1:
            return one
        rate = _RATES.get(one.name.rpartition(".")[2])
        return replace(one, ceiling=area if rate is None else guarantee.distinguish(rate))

    return tuple(bounded(one) for one in findings)
