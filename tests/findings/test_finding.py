import pytest
import torch

import shieldnet as sn
from shieldnet.findings.finding import Exposed, Outcome


def exposed(scores) -> Exposed:
    scores = torch.tensor(scores)
    return Exposed.of("f", "members", torch.arange(len(scores)), scores, 2 * scores, "a share")


def test_the_ten_greatest_are_exposed_worst_first() -> None:
    found = exposed([float(place) for place in range(30)])
    assert found.rows == tuple(range(29, 19, -1))
    assert found.values[0] == 58


def test_who_stands_out_from_nobody_is_not_exposed() -> None:
    assert exposed([1.0] * 30).rows == ()
    assert exposed([2.0, *[1.0] * 30]).rows == (0,)
    assert exposed([1.0] * 10).rows == tuple(range(10))


def test_a_finding_lies_between_its_bounds() -> None:
    with pytest.raises(
        sn.errors.ConfigError, match="Expected f between its bounds, got 0.6 above 0.4"
    ):
        sn.Finding("f", 0.5, 0.6, 0.4, 10, 0.0, sn.Threat(), "by hand")


def test_outcomes_are_added_and_the_later_image_counts() -> None:
    image, other = torch.zeros(2), torch.ones(2)
    first = Outcome(untested=("a: why",), reconstructions=image, features={"map": image})
    second = Outcome(untested=("b: why",), features={"map": other, "more": image})
    both = first + second
    assert both.untested == ("a: why", "b: why")
    assert both.features == {"map": other, "more": image}
    assert both.reconstructions is image
    assert (both + Outcome(reconstructions=other)).reconstructions is other
