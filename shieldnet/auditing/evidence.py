"""What a report has to say on the items that auditors ask about: evidence, never compliance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shieldnet.finding import Finding, goes_by
from shieldnet.price import Price, rounded_up
from shieldnet.training.accountant import Guarantee

Status = Literal["evidence", "not evidenced", "not applicable"]

AISVS = "OWASP AISVS 1.0"
ATLAS = "MITRE ATLAS"

_SERVED = "it is a matter of where the model is served, which an audit of answers cannot see"
_EVASION = "no attack here changes an input to be misread; see the robust accuracy of finetune"


@dataclass(frozen=True)
class Evidence:
    """Says what a report has to say on one item. findings: names of those that speak to it."""

    standard: str
    item: str
    asks: str
    status: Status
    words: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Item:
    """An item of a standard. speaks: names of findings, or beginnings that end in a dot."""

    standard: str
    item: str
    asks: str
    speaks: tuple[str, ...] = ()
    missing: str = "nothing that speaks to it was measured"


_MEMBERSHIP = (
    "membership.auc",
    "membership.tpr_at_fpr_1e-2",
    "membership.tpr_at_fpr_1e-3",
    "membership.worst_group.auc",
    "membership.canaries.auc",
    "membership.blind",
)
_INVERSION = ("inversion", "averaging.", "white_box.inversion", "reidentification")

_ITEMS = (
    _Item(
        AISVS,
        "11.1.3",
        "the model is evaluated against the known attacks on its kind of data",
        (*_INVERSION, "membership.auc", "attribute.", "extraction.fidelity", "class_inversion"),
    ),
    _Item(AISVS, "11.1.4", "the model withstands adversarial inputs", missing=_EVASION),
    _Item(
        AISVS,
        "11.2.1",
        "sensitive attributes that can be inferred are not returned",
        ("attribute.",),
        "no column was named in sensitive=",
    ),
    _Item(
        AISVS,
        "11.2.2",
        "limits on queries, for each caller and in all, are sized to the extraction threat",
        ("extraction.fidelity", "extraction.fidelity."),
        "extraction was not measured; and the limits are set where the model is served",
    ),
    _Item(
        AISVS,
        "11.2.3",
        "outputs are calibrated against overconfidence",
        missing="calibration of the released confidences is not measured",
    ),
    _Item(
        AISVS,
        "11.2.4",
        "models of sensitive data are trained with differential privacy",
        ("one_run.epsilon", "one_run.mu", "one_run.records.epsilon"),
        "no guarantee of the training was given: finetuned= or --guarantee",
    ),
    _Item(
        AISVS,
        "11.2.5",
        "simulated membership inference does no better than random guessing",
        _MEMBERSHIP,
        "membership was not measured",
    ),
    _Item(AISVS, "11.3.1", "patterns of queries feed a detector of extraction", missing=_SERVED),
    _Item(
        AISVS,
        "11.3.2",
        "raw outputs are not exposed; answers are as coarse as the extraction risk asks",
        ("extraction.fidelity",),
        "the answers are not bounded, and extraction was not measured",
    ),
    _Item(AISVS, "11.3.4", "a detection triggers a response", missing=_SERVED),
    _Item(
        ATLAS, "AML.T0005", "create a proxy of the model", ("extraction.", "extraction.fidelity.")
    ),
    _Item(ATLAS, "AML.T0024.000", "infer membership in the training data", _MEMBERSHIP),
    _Item(ATLAS, "AML.T0024.001", "invert the model", (*_INVERSION, "class_inversion")),
    _Item(ATLAS, "AML.T0024.002", "extract the model", ("extraction.",)),
    _Item(ATLAS, "AML.T0043", "craft adversarial data", missing=_EVASION),
)


def evidence(
    findings: Sequence[Finding],
    price: Price,
    guarantee: Guarantee | None,
    *,
    is_table: bool = True,
    has_classes: bool = True,
) -> tuple[Evidence, ...]:
    """Lists every item with the findings that speak to it, or with why there are none.

    is_table: whether the inputs have columns that could be sensitive. has_classes: whether answers
    are scores of classes, without which there is no membership by scores and no extraction.
    Source: OWASP AISVS 1.0, chapter C11; MITRE ATLAS. Items in our own words.
    """
    return tuple(
        _spoken_to(item, findings, price, guarantee, is_table, has_classes) for item in _ITEMS
    )


def _spoken_to(
    item: _Item,
    findings: Sequence[Finding],
    price: Price,
    guarantee: Guarantee | None,
    is_table: bool,
    has_classes: bool,
) -> Evidence:
    found = [one for one in findings if any(goes_by(one.name, name) for name in item.speaks)]
    claims = []
    if item.item == "11.2.4" and guarantee is not None:
        claims.append(f"proven of the training: {guarantee.words}")
    if item.item == "11.3.2" and price.bits < float("inf"):
        claims.append(f"proven: at most {rounded_up(price.bits)} bits an answer")
    said = [*claims, *(_said(one) for one in found)]
    if said:
        status: Status = "evidence"
        return Evidence(
            item.standard,
            item.item,
            item.asks,
            status,
            "; ".join(said),
            tuple(one.name for one in found),
        )
    reason = _inapplicable(item, is_table, has_classes)
    status = "not applicable" if reason else "not evidenced"
    return Evidence(item.standard, item.item, item.asks, status, reason or item.missing)


def _said(finding: Finding) -> str:
    beyond = ""
    if finding.low > finding.baseline:
        beyond = f", above its baseline of {finding.baseline:.3f}"
    return f"{finding.name} {finding}{beyond}"


def _inapplicable(item: _Item, is_table: bool, has_classes: bool) -> str:
    if item.item == "11.2.1" and not is_table:
        return "the inputs are no table: no column could be sensitive"
    about_classes = {"11.2.5", "11.2.2", "AML.T0005", "AML.T0024.000", "AML.T0024.002"}
    if item.item in about_classes and not has_classes:
        return "the answers are no scores of classes, which these attacks read"
    return ""
