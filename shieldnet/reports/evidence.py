"""What a report has to say on the items that auditors ask about: evidence, never compliance."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shieldnet.findings.finding import Finding
from shieldnet.findings.reading import OF_COLUMNS
from shieldnet.gate.declared import declared
from shieldnet.privacy.cost import PrivacyCost, rounded_up
from shieldnet.privacy.guarantee import Guarantee

Status = Literal["evidence for", "evidence against", "not evidenced", "not applicable"]

AISVS = "OWASP AISVS 1.0"
ATLAS = "MITRE ATLAS"
NIST = "NIST AI 100-2e2025"
EDPB = "EDPB Opinion 28/2024"

_NEAR = 0.05
_MAX_QUIET = 3  # columns near their baseline that are named
_SERVED = "it depends on how the model is served, which an audit of answers cannot see"
_EVASION = "no attack here changes inputs to be misclassified; finetune measures robust accuracy"


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
    """An item of a standard; which findings speak to it, their metrics say.

    missing: why, where there are none. asks_to_measure: whether it asks for no more than a
    measurement, whatever that says. asks_of_serving: whether it is about how the model is served,
    of which a measurement tells the size of the threat at most.
    """

    standard: str
    item: str
    asks: str
    missing: str = "no attack or check that bears on it was run"
    asks_to_measure: bool = False
    asks_of_serving: bool = False

    @property
    def called(self) -> str:
        """Returns what a ``Metric`` calls it: ids that say their standard stand alone."""
        short = {AISVS: "AISVS ", EDPB: "EDPB "}.get(self.standard, "")
        return f"{short}{self.item}"


_ITEMS = (
    _Item(
        AISVS,
        "11.1.3",
        "the model is evaluated against the known attacks on its kind of data",
        asks_to_measure=True,
    ),
    _Item(AISVS, "11.1.4", "the model withstands adversarial inputs", _EVASION),
    _Item(
        AISVS,
        "11.2.1",
        "sensitive attributes that can be inferred are not returned",
        "no sensitive column was named: --sensitive (sensitive=)",
    ),
    _Item(
        AISVS,
        "11.2.2",
        "limits on queries, for each caller and in all, are sized to the extraction threat",
        "limits on queries are set where the model is served; an audit without them cannot show "
        "that they are well sized",
        asks_of_serving=True,
    ),
    _Item(
        AISVS,
        "11.2.3",
        "outputs are calibrated against overconfidence",
        "calibration of the released confidences was not measured",
    ),
    _Item(
        AISVS,
        "11.2.4",
        "models of sensitive data are trained with differential privacy",
        "no guarantee of the training was given: --guarantee (finetuned=)",
    ),
    _Item(
        AISVS,
        "11.2.5",
        "simulated membership inference does no better than random guessing",
        "membership was not measured",
    ),
    _Item(AISVS, "11.3.1", "patterns of queries feed a detector of extraction", _SERVED),
    _Item(
        AISVS,
        "11.3.2",
        "raw outputs are not exposed; answers are as coarse as the extraction risk asks",
        "the answers are not bounded, and extraction was not measured",
    ),
    _Item(AISVS, "11.3.4", "a detection triggers a response", _SERVED),
    _Item(ATLAS, "AML.T0005", "no proxy of the model can be created"),
    _Item(ATLAS, "AML.T0024.000", "membership in the training data cannot be inferred"),
    _Item(ATLAS, "AML.T0024.001", "the model cannot be inverted"),
    _Item(ATLAS, "AML.T0024.002", "the model cannot be extracted"),
    _Item(ATLAS, "AML.T0043", "adversarial data cannot be crafted", _EVASION),
    _Item(NIST, "NISTAML.031", "the model is not extracted"),
    _Item(NIST, "NISTAML.032", "data are not reconstructed"),
    _Item(NIST, "NISTAML.033", "membership is not inferred"),
    _Item(
        NIST,
        "NISTAML.034",
        "properties of the training data are not inferred",
        "no attack here infers properties of the training set as a whole",
    ),
    _Item(
        EDPB,
        "extraction",
        "personal data in the training set cannot be extracted from the model, not even with "
        "some probability",
        "300 nonmembers with labels are needed to measure the share of persons who are singled out",
    ),
    _Item(EDPB, "queries", "personal data cannot be obtained through queries, on purpose or not"),
)
ITEMS = frozenset(item.called for item in _ITEMS)
"""What a ``Metric`` names in its standards."""


def evidence(
    findings: Sequence[Finding],
    cost: PrivacyCost,
    guarantee: Guarantee | None,
    *,
    is_table: bool = True,
    has_classes: bool = True,
    broken: Mapping[str, str] | None = None,
) -> tuple[Evidence, ...]:
    """Lists every item with the findings that speak for or against it, or with why there are none.

    Against it speaks an attack that surely did better than its baseline, a limit that is broken,
    and a measurement above its own proven bound. Evidence for it is that no attack succeeded, by
    whole intervals within ``_NEAR`` of the baseline, or what is proven.
    is_table: whether the inputs have columns that could be sensitive. has_classes: whether answers
    are scores of classes, without which there is no membership by scores and no extraction.
    broken: the limits that the policy found broken, by the names of findings.
    Source: OWASP AISVS 1.0, chapter C11; MITRE ATLAS; NIST AI 100-2e2025; EDPB Opinion 28/2024,
        both conditions of anonymity. Items in our own words.
    """
    return tuple(
        _spoken_to(item, findings, cost, guarantee, is_table, has_classes, broken or {})
        for item in _ITEMS
    )


def _spoken_to(
    item: _Item,
    findings: Sequence[Finding],
    cost: PrivacyCost,
    guarantee: Guarantee | None,
    is_table: bool,
    has_classes: bool,
    broken: Mapping[str, str],
) -> Evidence:
    metrics = declared()
    measured = [
        finding
        for finding in findings
        if (metric := metrics.find(finding.name)) and item.called in metric.standards
    ]
    measured.sort(key=lambda finding: _rank(finding, finding.name in broken))
    claims = []
    if item.item == "11.2.4":
        if guarantee is None:
            measured = []
        else:
            claims.append(f"proven of the training: {guarantee.words}")
    if item.item == "11.3.2" and cost.bits < float("inf"):
        claims.append(f"proven: at most {rounded_up(cost.bits)} bits per answer")
    spoken = [*claims, *_all_in_words(item, measured, broken)]
    reason = _inapplicable(item, is_table, has_classes)
    status: Status = "not applicable" if reason else "not evidenced"
    if any(_against(item, finding, finding.name in broken) for finding in measured):
        status = "evidence against"
    elif spoken and (claims or item.asks_to_measure or all(map(_is_near, measured))):
        status = "evidence for"
    words = "; ".join(spoken) or reason or item.missing
    if item.asks_of_serving and not reason:
        status, words = "not evidenced", "; ".join([item.missing, *spoken])
    names = tuple(finding.name for finding in measured)
    return Evidence(item.standard, item.item, item.asks, status, words, names)


def _all_in_words(
    item: _Item, measured: Sequence[Finding], broken: Mapping[str, str]
) -> Iterator[str]:
    """Writes every finding; of many columns those near their baseline are counted."""
    quiet = [
        finding
        for finding in measured
        if finding.name.startswith(OF_COLUMNS)
        and _is_near(finding)
        and not _against(item, finding, finding.name in broken)
    ]
    folded = quiet if len(quiet) > _MAX_QUIET else []
    for finding in measured:
        if finding not in folded:
            yield _in_words(finding, broken.get(finding.name, ""))
    if folded:
        yield f"{len(folded)} columns near their baseline"


def _against(item: _Item, finding: Finding, is_broken: bool) -> bool:
    """Returns whether a finding speaks against what an item asks."""
    if finding.crosses_proof:
        return True
    if item.asks_to_measure:
        return False
    # A lower bound on the training's epsilon says nothing against it below the proven one.
    is_bound = finding.ceiling is not None and finding.name.startswith("one_run.")
    return is_broken or (finding.low > finding.baseline and not is_bound)


def _rank(finding: Finding, is_broken: bool) -> int:
    """Ranks findings by how far they decide: what speaks against an item comes first."""
    signs = (finding.crosses_proof, is_broken, finding.low > finding.baseline)
    first = next((place for place, sign in enumerate(signs) if sign), len(signs))
    return first + (first == len(signs) and _is_near(finding))


def _is_near(finding: Finding) -> bool:
    """Returns whether the whole interval lies near the baseline: what is wide shows nothing."""
    return finding.high <= finding.baseline + _NEAR


def _in_words(finding: Finding, broken: str) -> str:
    beyond = ""
    if finding.low > finding.baseline:
        beyond = f", above its baseline of {finding.baseline:.3f}"
    elif not _is_near(finding):
        beyond = (
            f", consistent with its baseline of {finding.baseline:.3f}; too few rows to rule out "
            "leakage"
        )
    return f"{finding.name} {finding}{beyond}{f', which breaks {broken}' if broken else ''}"


def _inapplicable(item: _Item, is_table: bool, has_classes: bool) -> str:
    if item.item == "11.2.1" and not is_table:
        return "the inputs are not a table, so no column could be sensitive"
    about_classes = {
        "11.2.2",
        "11.2.3",
        "11.2.5",
        "AML.T0005",
        "AML.T0024.000",
        "AML.T0024.002",
        "NISTAML.031",
        "NISTAML.033",
        "extraction",
    }
    if item.item in about_classes and not has_classes:
        return "the answers are not class scores, which these attacks need"
    return ""
