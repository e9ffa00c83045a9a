import pytest

from shieldnet.core.errors import ConfigError
from shieldnet.findings.metrics import Limit, Metric, Metrics

LIMIT = Limit("max_told", 0.1, "what is told")


def test_a_leak_has_a_limit_or_a_reason_why_none_judges_it() -> None:
    for worse in ("more", "less"):
        with pytest.raises(ConfigError, match=r"Expected limit=, or ungated= .* for told"):
            Metric("told", "told", worse)
    with pytest.raises(ConfigError, match=r"Expected limit=, or ungated= .* for told"):
        Metric("told", "told", "more", LIMIT, ungated="both")
    assert Metric("told", "told", "neither").limit is None


def test_a_limit_bounds_the_side_that_is_worse() -> None:
    with pytest.raises(ConfigError, match=r"a limit named min_\.\.\. for kept \(less is worse\)"):
        Metric("kept", "kept", "less", LIMIT)
    with pytest.raises(ConfigError, match="named max_... or min_..., got told"):
        Limit("told", 0.1, "")


def test_a_finding_is_of_the_kind_that_says_most_of_its_name() -> None:
    names = ("told", "told.*", "told.*.gain", "told.group.*.gain")
    metrics = Metrics(tuple(Metric(name, name, "neither") for name in names))
    for name, kind in {
        "told": "told",
        "told.sex": "told.*",
        "told.sex.gain": "told.*.gain",
        "told.group.a.b.gain": "told.group.*.gain",
        "told.gain": "told.*",
    }.items():
        assert getattr(metrics.find(name), "name", None) == kind
    assert metrics.find("tol") is metrics.find("told.") is metrics.find("untold") is None


def test_a_name_is_declared_once() -> None:
    with pytest.raises(ConfigError, match="unique metrics, got told more than once"):
        Metrics((Metric("told", "a", "neither"), Metric("told", "b", "neither")))


def test_a_title_names_the_part_that_a_star_stands_for() -> None:
    assert Metric("told.*.gain", "a column", "neither").titled("told.sex.gain") == "a column: sex"
    assert Metric("told", "a column", "neither").titled("told") == "a column"
