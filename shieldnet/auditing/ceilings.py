"""What private training proves, put beside what was measured of it."""

from collections.abc import Iterable
from dataclasses import replace

from shieldnet.findings.finding import Finding
from shieldnet.gate.declared import declared
from shieldnet.privacy.guarantee import Guarantee


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
    metrics, area = declared(), guarantee.auc()

    def bounded(finding: Finding) -> Finding:
        metric = metrics.find(finding.name)
        of_copies = finding.name.startswith("membership.canaries") and copies > 1
        if metric is None or not metric.training_bound or of_copies:
            return finding
        if metric.training_bound == "auc":
            return replace(finding, ceiling=area)
        rate = float(finding.name.rpartition("_")[2])
        return replace(finding, ceiling=guarantee.distinguish(rate))

    return tuple(bounded(finding) for finding in findings)
