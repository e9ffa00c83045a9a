import math

import pytest
from by_hand import GUARANTEE, finding, made, subject

from shieldnet.gate.policy import Policy
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.reports.evidence import evidence


def by_item(*found, cost=None, guarantee=None, **more) -> dict:
    said = evidence(found, PrivacyCost() if cost is None else cost, guarantee, **more)
    assert len({one.item for one in said}) == len(said)
    return {one.item: one for one in said}


def test_without_a_finding_nothing_is_evidenced() -> None:
    assert {one.status for one in by_item().values()} == {"not evidenced"}


def test_a_finding_speaks_to_its_items_and_says_where_it_is_above_its_baseline() -> None:
    found = by_item(finding("membership.auc", 0.58, 0.66, baseline=0.5))
    assert found["11.2.5"].status == "evidence against"
    assert found["11.2.5"].findings == ("membership.auc",)
    assert "above its baseline of 0.500" in found["11.2.5"].words
    assert found["AML.T0024.000"].status == found["NISTAML.033"].status == "evidence against"
    assert found["11.1.3"].status == "evidence for"  # it asks for the evaluation alone
    assert found["AML.T0024.002"].status == "not evidenced"
    wide = by_item(finding("membership.auc", 0.45, 0.65, baseline=0.5))
    assert wide["11.2.5"].status == "not evidenced"
    assert (
        "consistent with its baseline of 0.500; too few rows to rule out leakage"
        in wide["11.2.5"].words
    )
    chance = by_item(finding("membership.auc", 0.45, 0.55, baseline=0.5))
    assert "above" not in chance["11.2.5"].words
    assert chance["11.2.5"].status == "evidence for"


def test_a_broken_limit_is_evidence_against_its_items() -> None:
    copied = finding("extraction.fidelity", 0.6, 0.8, baseline=0.9)
    report = made(subject("balanced", 0.03, 5.33, findings=(copied,)))
    assert {one.item: one for one in report.evidence()}["NISTAML.031"].status == "evidence for"
    against = {one.item: one for one in report.evidence(Policy({"max_extraction_fidelity": 0.5}))}
    assert against["NISTAML.031"].status == against["11.3.2"].status == "evidence against"
    assert "which breaks max_extraction_fidelity" in against["11.3.2"].words
    assert against["11.2.2"].status == "not evidenced"
    assert "limits on queries are set where the model is served" in against["11.2.2"].words


def test_what_a_training_cannot_have_said_is_evidence_against_its_proof() -> None:
    kept = finding("one_run.epsilon", 1.0, 2.0, ceiling=8.0)
    crossed = finding("one_run.epsilon", 9.0, 10.0, ceiling=8.0)
    assert by_item(kept, guarantee=GUARANTEE)["11.2.4"].status == "evidence for"
    assert by_item(crossed, guarantee=GUARANTEE)["11.2.4"].status == "evidence against"
    assert by_item(kept)["11.2.4"].status == "not evidenced"  # nothing is claimed of the training


def test_both_conditions_of_anonymity_are_seen_person_by_person() -> None:
    found = by_item(
        finding("membership.tpr_at_fpr_1e-2", 0.03, 0.06, baseline=0.01),
        finding("inversion.records", 0.0, 0.01),
        finding("membership.auc", 0.45, 0.55, baseline=0.5),
    )
    assert found["extraction"].status == "evidence against"
    assert found["queries"].status == "evidence for"


def test_a_proof_is_never_rounded_below_itself() -> None:
    said = evidence([], PrivacyCost(bits=math.log2(12)), None, is_table=False, has_classes=True)
    assert "proven: at most 3.59 bits per answer" in str(said)


def test_proofs_count_as_evidence_of_what_they_are_about() -> None:
    found = by_item(cost=PrivacyCost(bits=5.3), guarantee=GUARANTEE)
    assert "at most 5.30 bits per answer" in found["11.3.2"].words
    assert GUARANTEE.words in found["11.2.4"].words
    assert by_item(cost=PrivacyCost(bits=math.inf))["11.3.2"].status == "not evidenced"


@pytest.mark.parametrize("item", ["11.1.4", "11.3.1", "11.3.4", "AML.T0043", "NISTAML.034"])
def test_what_no_attack_here_looks_at_says_so(item) -> None:
    every = [finding(name, 0, 1) for name in ("inversion", "membership.auc", "extraction.fidelity")]
    found = by_item(*every, cost=PrivacyCost(bits=1), guarantee=GUARANTEE)[item]
    assert found.status == "not evidenced"
    assert found.words


def test_what_cannot_apply_says_why() -> None:
    assert by_item(is_table=False)["11.2.1"].status == "not applicable"
    assert by_item(is_table=True)["11.2.1"].status == "not evidenced"
    assert "not class scores" in by_item(has_classes=False)["11.2.5"].words
    (found,) = [one for one in made(kind="values").evidence() if one.item == "11.2.5"]
    assert found.status.startswith("evidence")


def test_the_deciding_finding_comes_first() -> None:
    near = finding("inversion", 0.0, 0.02)
    wide = finding("averaging.64", -0.1, 0.2)
    leak = finding("inversion.search", 0.2, 0.3)
    found = by_item(near, wide, leak, broken={"averaging.64": "max_leakage"})["NISTAML.032"]
    assert found.findings == ("averaging.64", "inversion.search", "inversion")
    assert by_item(near, wide)["NISTAML.032"].findings == ("averaging.64", "inversion")


def test_prompts_that_are_read_say_nothing_of_a_detector() -> None:
    found = by_item(finding("prompts.exact", 0.5, 0.6))
    assert found["11.3.1"].status == "not evidenced"
    assert found["NISTAML.032"].status == "evidence against"


def test_many_columns_near_their_baseline_are_counted_and_others_named() -> None:
    quiet = [finding(f"inversion.column.c{number}", 0.0, 0.01, baseline=0.0) for number in range(5)]
    loud = finding("inversion.column.debt", 0.3, 0.4, baseline=0.0)
    wide = finding("inversion.column.age", 0.0, 0.3, baseline=0.0)
    said = by_item(*quiet, loud, wide)["AML.T0024.001"]
    assert said.status == "evidence against"
    assert said.words.startswith("inversion.column.debt")
    assert "inversion.column.age" in said.words
    assert said.words.endswith("; 5 columns near their baseline")
    assert len(said.findings) == 7
    few = by_item(*quiet[:3])["AML.T0024.001"].words
    assert few.count("inversion.column.c") == 3
