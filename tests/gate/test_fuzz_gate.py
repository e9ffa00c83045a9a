"""Nothing but clear errors, whatever file is taken for a policy or a report.

Ten thousand cases of each: pytest tests -k fuzz --hypothesis-profile=fuzz
"""

import json
from pathlib import Path

import pytest
from by_hand import SAVED
from fuzzing import relaxed, with_another_value
from hypothesis import given
from hypothesis import strategies as st

import shieldnet as sn
from shieldnet.gate.declared import declared
from shieldnet.gate.policy import PROVEN_NAMES, init_text
from shieldnet.reports.report import summary

FIRST = SAVED.read_text()

words = st.text(max_size=12)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, -1, 10**400, 1e308, 2**63, -(2**63)])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
limits = st.one_of(
    st.sampled_from((*declared().limits(), *PROVEN_NAMES, "required", "groups")), words
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "file"


def loaded(path: Path, content: bytes) -> None:
    """Reads a policy; what is read judges a report, and says so."""
    path.write_bytes(content)
    try:
        policy = sn.Policy.load(path)
    except sn.errors.ShieldnetError:
        return
    verdict = policy.judge([], sn.PrivacyCost())
    assert verdict.judgments
    assert policy.hash()


@given(content=st.binary(max_size=200))
@relaxed
def test_fuzz_any_bytes_as_a_policy(path, content) -> None:
    loaded(path, content)


@given(place=st.integers(0, len(init_text())), length=st.integers(0, 30), text=st.text(max_size=20))
@relaxed
def test_fuzz_a_policy_with_a_damaged_place(path, place, length, text) -> None:
    whole = init_text().replace("# max_", "max_")
    loaded(path, (whole[:place] + text + whole[place + length :]).encode("utf-8", "replace"))


@given(
    given_limits=values | st.dictionaries(limits, values, max_size=4),
    required=values,
    groups=values | st.dictionaries(words, st.dictionaries(limits, values), max_size=3),
)
@relaxed
def test_fuzz_any_values_as_a_policy(given_limits, required, groups) -> None:
    try:
        policy = sn.Policy(given_limits, required, groups)
    except sn.errors.ConfigError:
        return
    assert policy.judge([], sn.PrivacyCost(), groups=("a",)).judgments


def report_loaded(path: Path, text: str) -> None:
    """Reads a report; what is read can be judged, printed and written again."""
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        report = sn.Report.load(path)
    except sn.errors.ShieldnetError:
        return
    assert report.verdict().judgments
    assert str(report)
    assert summary([report], sn.Policy())
    again = path.with_suffix(".json")
    report.save(again)
    assert sn.Report.load(again).findings == report.findings


@given(text=st.text(max_size=100) | values.map(lambda value: json.dumps(value)))
@relaxed
def test_fuzz_any_text_as_a_report(path, text) -> None:
    report_loaded(path, text)


@given(place=st.integers(0, len(FIRST)), length=st.integers(0, 30), text=st.text(max_size=10))
@relaxed
def test_fuzz_a_report_with_a_damaged_place(path, place, length, text) -> None:
    report_loaded(path, FIRST[:place] + text + FIRST[place + length :])


def steps(value, path=()):
    """Lists the places of a document, no more than three of a list."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from steps(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value[:3]):
            yield from steps(inner, (*path, place))


PLACES = [path for path in steps(json.loads(FIRST)) if path]


@given(place=st.sampled_from(PLACES), value=values, drop=st.booleans())
@relaxed
def test_fuzz_a_report_with_another_value_somewhere(path, place, value, drop) -> None:
    report_loaded(path, json.dumps(with_another_value(FIRST, place, value, drop)))
