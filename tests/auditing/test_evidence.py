import math

import pytest
from by_hand import GUARANTEE, finding, made

from shieldnet.auditing.evidence import evidence
from shieldnet.price import Price


def by_item(*found, price=None, guarantee=None, **more) -> dict:
    said = evidence(found, Price() if price is None else price, guarantee, **more)
    assert len({one.item for one in said}) == len(said)
    return {one.item: one for one in said}


def test_without_a_finding_nothing_is_evidenced() -> None:
    assert {one.status for one in by_item().values()} == {"not evidenced"}


def test_a_finding_speaks_to_its_items_and_says_where_it_is_above_its_baseline() -> None:
    found = by_item(finding("membership.auc", 0.58, 0.66, baseline=0.5))
    assert found["11.2.5"].status == "evidence"
    assert found["11.2.5"].findings == ("membership.auc",)
    assert "above its baseline of 0.500" in found["11.2.5"].words
    assert found["AML.T0024.000"].status == "evidence"
    assert found["AML.T0024.002"].status == "not evidenced"
    chance = by_item(finding("membership.auc", 0.45, 0.55, baseline=0.5))
    assert "above" not in chance["11.2.5"].words


def test_a_proof_is_never_rounded_below_itself() -> None:
    said = evidence([], Price(bits=math.log2(12)), None, is_table=False, has_classes=True)
    assert "proven: at most 3.59 bits an answer" in str(said)


def test_proofs_count_as_evidence_of_what_they_are_about() -> None:
    found = by_item(price=Price(bits=5.3), guarantee=GUARANTEE)
    assert "at most 5.30 bits an answer" in found["11.3.2"].words
    assert GUARANTEE.words in found["11.2.4"].words
    assert by_item(price=Price(bits=math.inf))["11.3.2"].status == "not evidenced"


@pytest.mark.parametrize("item", ["11.1.4", "11.3.1", "11.3.4", "AML.T0043", "11.2.3"])
def test_what_no_attack_here_looks_at_says_so(item) -> None:
    every = [finding(name, 0, 1) for name in ("inversion", "membership.auc", "extraction.fidelity")]
    found = by_item(*every, price=Price(bits=1), guarantee=GUARANTEE)[item]
    assert found.status == "not evidenced"
    assert found.words


def test_what_cannot_apply_says_why() -> None:
    assert by_item(is_table=False)["11.2.1"].status == "not applicable"
    assert by_item(is_table=True)["11.2.1"].status == "not evidenced"
    assert "no scores of classes" in by_item(has_classes=False)["11.2.5"].words
    assert {one.item: one for one in made(kind="values").evidence()}["11.2.5"].status == "evidence"
