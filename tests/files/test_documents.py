"""Documents: what is wrong with one is the file's fault, in words; what is right is read."""

import json

import pytest
from fuzzing import relaxed
from hypothesis import given
from hypothesis import strategies as st

from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.files.documents import MAX_DEPTH, parse_json, read_json, read_toml

scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=9)
numbers = st.floats(allow_nan=False, allow_infinity=False)
documents = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        scalars | numbers,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=9,
    ),
    max_size=4,
)


@given(document=documents)
@relaxed
def test_fuzz_what_json_writes_is_read(document) -> None:
    assert parse_json(json.dumps(document), "x") == document
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(document).encode(), "x") == document


@given(content=st.binary(max_size=60) | st.text("[]{}\"\\:,.=1aeE+-#'\n ", max_size=60))
@relaxed
def test_fuzz_any_document(tmp_path_factory, content) -> None:
    path = tmp_path_factory.getbasetemp() / "document"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_toml, lambda where: read_json(where, "document")):
        try:
            document = read(path)
        except ShieldnetError:
            continue
        assert isinstance(document, dict)


def test_depth_is_counted_outside_of_strings(tmp_path) -> None:
    words = "[" * 999
    assert parse_json(json.dumps({"a": [words, '"' + words]}), "x")["a"][0] == words
    (tmp_path / "a.toml").write_text(f'a = "{words}"\nb = [0.1, 0.2]\n' + "c.d = 1\n")
    assert read_toml(tmp_path / "a.toml")["a"] == words
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    with pytest.raises(DataError, match="nests more than 200 deep"):
        parse_json(f'{{"a": {deep}}}', "x")


def test_a_file_of_an_editor_on_windows_is_read(tmp_path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_toml(tmp_path / "a.toml") == {"a": 1}


def test_what_is_missing_or_too_long_is_refused(tmp_path, monkeypatch) -> None:
    with pytest.raises(DataError, match="Cannot read .*a.toml: No such file"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(DataError, match="Cannot read"):
        read_json(tmp_path, "report")
    (tmp_path / "a.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(DataError, match="has more than 1048576 bytes"):
        read_toml(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("a = ")
    with pytest.raises(ConfigError, match="is not valid TOML: Invalid value"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(DataError, match="x is not a JSON report: Expecting value: line 1"):
        parse_json("[", "x", "report")
    with pytest.raises(DataError, match="x is not a report: expected a list, got dict"):
        parse_json("{}", "x", "report", kind=list)
