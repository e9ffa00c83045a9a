"""What must stand beside a number."""

import pytest
from by_hand import finding

from shieldnet.findings.finding import NO_USE
from shieldnet.findings.reading import BY_LABEL, BY_MEAN, caveat, group_of, guess, worst_group

OLD = "no decoder was surely better than the label alone, so the adversary uses the label"


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (finding("inversion", 0.1, 0.2), ""),
        (finding("inversion", 0.0, 0.0, note=OLD), BY_LABEL),
        (finding("inversion", 0.0, 0.0, note=f"few rows; {BY_MEAN}"), BY_MEAN),
        (finding("inversion", 0.0, 0.0), "the answers add nothing in any of the 400 rows"),
        (
            finding("attribute.sex.gain", 0.0, 0.0),
            "the answers add nothing to the guess without them in any of the 400 rows",
        ),
        (finding("attribute.sex.gain", 0.0, 0.0, note=NO_USE), NO_USE),
        (finding("inversion", 0.0001, 0.0003), "the answers add less than 0.001, on 400 rows"),
        (finding("extraction.verbatim", 0.0001, 0.0003), "the interval is narrower than 0.001"),
        (
            finding("attribute.sex.gain", 0.5, 0.5),
            "the answers give the column away in every row, or nearly",
        ),
        (finding("attribute.sex.gain", 0.5, 0.54), ""),
        (finding("attribute.sex.gain", 0.3, 0.3), "it is the same in every resample"),
        (finding("membership.auc", 1.0, 1.0), "it is the same in every resample"),
    ],
)
def test_an_interval_of_width_zero_has_its_reason(one, words) -> None:
    assert caveat(one) == words


@pytest.mark.parametrize(
    "group",
    [
        *("class a on call", "place = inn on sea", "sex = 1"),
        *("quarter 4 of the targets", "quarter 1 of the targets of output 2"),
    ],
)
@pytest.mark.parametrize("attack", ["LiRA", "entropy", "quantile regression on entropy"])
def test_a_group_is_told_from_the_attack_on_it(group, attack) -> None:
    source = f"{attack} on {group}, of 4 groups"
    assert group_of(finding("membership.worst_group.auc", 0.7, 0.9, source=source)) == group


def test_the_worst_group_is_read_from_its_source() -> None:
    source = "LiRA on class fire on ice, of 3 groups"
    worst = finding("membership.worst_group.auc", 0.7, 0.9, baseline=0.5, source=source)
    assert group_of(worst) == "class fire on ice"
    assert worst_group((worst,)).startswith("worst group: class fire on ice, membership AUC 0.800")
    whole = finding("membership.auc", 0.9, 0.95, baseline=0.5)
    assert worst_group((worst, whole)) == ""
    assert group_of(finding("membership.auc", 0.7, 0.9, source=source)) == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("accuracy", "always naming the most frequent class: 0.850"),
        ("accuracy.group.sex=1", "always naming the most frequent class: 0.850"),
        ("r2", "always giving the mean target: 0.850"),
        ("r2.inversion", ""),
        ("cosine", ""),
    ],
)
def test_what_guessing_reaches(name, words) -> None:
    assert guess(finding(name, 0.8, 0.9, baseline=0.85)) == words
