"""Whether the reports of a folder are of its model and shield, and whether they meet a policy."""

from collections.abc import Iterator

from torch import nn

from shieldnet.core.errors import VerificationFailed
from shieldnet.data.hashing import state_hash
from shieldnet.gate.judging import Verdict
from shieldnet.gate.policy import Policy
from shieldnet.privacy.cost import rounded_up
from shieldnet.reports.report import Report
from shieldnet.shield.settings import Extent
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.parts import CERTIFICATE, MODEL, POLICY, REPORT
from shieldnet.shipping.proof import extent_of, read_certificate
from shieldnet.shipping.verification import Checked, Result

_CLOSE = 1e-9  # relative: logarithms of another machine may differ in their last digits
_BOUNDS = ("bits", "mu", "pure")


def check_report(contents: Contents, network: nn.Module | None) -> Checked:
    """Checks that every report of this shield is about this model and states what is proven.

    network: the model itself, None if it was not made.
    """
    if REPORT not in contents.files:
        return Checked("report", "not checked", "there is none: nothing was measured")
    gaps: list[str] = []
    for report, name in contents.matches:
        _require_proven(contents, report, name)
        gaps += _gaps(contents, report, network)
    names = ", ".join(dict.fromkeys(name for _, name in contents.matches))
    count = sum(len(report[name].findings) for report, name in contents.matches)
    words = f"of this model and of this shield ({names}), {count} findings"
    if gaps:
        return Checked("report", "not checked", f"{words}, by its own words: {gaps[0]}")
    return Checked("report", "pass", words)


def check_policy(contents: Contents, policy: Policy | None, report: Checked) -> Checked:
    """Judges every report of this shield by the folder's policy and by a given one.

    policy: of the caller, beside the folder's own. report: what was found of the reports.
    """
    limits = [one for one in (policy, contents.policy) if one is not None]
    if not limits:
        return Checked("policy", "not checked", "there is none: nothing is judged")
    if REPORT not in contents.files:
        which = f"a {POLICY}" if policy is None else "a policy"
        raise VerificationFailed(f"There is {which} and no {REPORT} that it could judge.")
    verdicts = [
        (name, _verdict(contents, one, report_, name))
        for one in limits
        for report_, name in contents.matches
    ]
    broken = [
        f"{name}: {judgment.words}" for name, verdict in verdicts for judgment in verdict.broken
    ]
    if broken:
        outcomes = {verdict.outcome for _, verdict in verdicts}
        result: Result = "fail" if "fail" in outcomes else "inconclusive"
        return Checked("policy", result, "; ".join(dict.fromkeys(broken)), judged=True)
    names = ", ".join(dict.fromkeys(name for name, _ in verdicts))
    words = f"{names} meets {' and '.join(map(str, limits))}"
    if report.result == "not checked":
        return Checked("policy", "not checked", f"{words}, by a report that was not checked")
    return Checked("policy", "pass", words)


def _verdict(contents: Contents, policy: Policy, report: Report, name: str) -> Verdict:
    """Judges one shield of a report, by the bounds that the shield proves and not by its word."""
    subject = report[name]
    cost = contents.settings.cost(_extent(contents, report, name))
    return policy.judge(subject.findings, cost, report.guarantee, report.groups)


def _extent(contents: Contents, report: Report, name: str) -> Extent:
    """Returns how large an answer is: as certified, else as declared, else as reported."""
    if CERTIFICATE in contents.files:
        return extent_of(read_certificate(contents.files[CERTIFICATE]))
    return contents.settings.extent or Extent(report[name].certificate.classes)


def _require_proven(contents: Contents, report: Report, name: str) -> None:
    """Raises VerificationFailed where a report is of other answers or states a lower bound."""
    stated = report[name].certificate
    extent = _extent(contents, report, name)
    if stated.classes != extent.classes:
        raise VerificationFailed(
            f"{REPORT} is about answers of {stated.classes} classes, and {CERTIFICATE} or the "
            f"shield about {extent.classes}."
        )
    proven = contents.settings.cost(extent)
    for bound in _BOUNDS:
        said, known = getattr(stated.cost, bound), getattr(proven, bound)
        if said < known * (1 - _CLOSE):
            raise VerificationFailed(
                f"{REPORT} states {bound} {rounded_up(said)} of {name}, and the shield proves "
                f"{rounded_up(known)} of {extent}."
            )


def _gaps(contents: Contents, report: Report, network: nn.Module | None) -> Iterator[str]:
    """Says what cannot be told without the model.

    Errors: VerificationFailed for a guarantee of the training of other weights.
    """
    described = contents.description
    if network is None and described.weights is not None and "weights" not in report.hashes:
        yield "it was written before reports named the weights alone: give --model"
    claimed = report.guarantee
    if claimed is None or not claimed.weights or claimed.weights == described.model:
        return
    # Trainings of version 1 had no run and hashed the state_dict alone.
    if not claimed.run and network is None:
        yield "its guarantee is of version 1, which only the model shows to be of it: give --model"
    elif claimed.run or network is None or claimed.weights != state_hash(network):
        raise VerificationFailed(
            f"The guarantee in {REPORT} is of other weights than {MODEL} names: nothing is proven "
            "of these. Audit the model that finetune returned."
        )
