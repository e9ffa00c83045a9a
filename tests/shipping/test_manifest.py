"""A manifest is what shieldnet writes, byte for byte, or it is refused."""

import json
from hashlib import sha256

import pytest
from artifacts import made

from shieldnet.core.errors import VerificationFailed
from shieldnet.shipping.manifest import digests_of, listed, statement

DIGESTS = digests_of({"README.md": b"a", "model.json": b"b", "shield.toml": b"c"})
WHOLE = json.loads(statement(DIGESTS))


def written(document: object) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def with_resources(*resources: object) -> bytes:
    predicate = {**WHOLE["predicate"], "resources": list(resources)}
    return written({**WHOLE, "predicate": predicate})


RESOURCES = WHOLE["predicate"]["resources"]


def test_a_manifest_reads_as_it_was_written() -> None:
    assert listed(statement(DIGESTS)) == DIGESTS


def test_it_is_a_statement_as_openssf_model_signing_signs_it() -> None:
    """The subject's hash is that of the hashes' bytes, in the order in which they stand."""
    assert WHOLE["_type"] == "https://in-toto.io/Statement/v1"
    assert WHOLE["predicateType"] == "https://model_signing/signature/v1.0"
    digests = [bytes.fromhex(one["digest"]) for one in RESOURCES]
    assert [one["name"] for one in RESOURCES] == sorted(DIGESTS)
    assert WHOLE["subject"][0]["digest"]["sha256"] == sha256(b"".join(digests)).hexdigest()
    serialization = WHOLE["predicate"]["serialization"]
    assert serialization["ignore_paths"] == ["manifest.json", "manifest.sig"]
    assert serialization["allow_symlinks"] is False


def test_its_bytes_depend_on_the_hashes_alone() -> None:
    turned = dict(reversed(DIGESTS.items()))
    assert statement(turned) == statement(DIGESTS)
    assert b"\r" not in statement(DIGESTS)
    assert statement(DIGESTS).endswith(b"}\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a JSON manifest"),
        (b"{}", "is no manifest of a hardened folder"),
        (b"[]", "expected an object, got list"),
        (b"\xff", "expected UTF-8"),
        (b"[" * 100_000, "nests more than 200 deep"),
        (b'{"a": ' * 5_000 + b"1" + b"}" * 5_000, "nests more than 200 deep"),
        (statement(DIGESTS).replace(b'"_type"', b'"predicateType": 1, "_type"'), "occurs twice"),
        (statement(DIGESTS).replace(b'"digest"', b'"digest": "x", "digest"', 1), "occurs twice"),
        (statement(DIGESTS)[:-1], "is not as shieldnet writes it"),
        (statement(DIGESTS) + b" ", "is not as shieldnet writes it"),
        (statement(DIGESTS).replace(b"\n", b"\r\n"), "is not as shieldnet writes it"),
        (b"\xef\xbb\xbf" + statement(DIGESTS), "is not as shieldnet writes it"),
        (json.dumps(WHOLE).encode(), "is not as shieldnet writes it"),
        (written({**WHOLE, "more": 1}), "is not as shieldnet writes it"),
        (written({**WHOLE, "_type": "x"}), "is not as shieldnet writes it"),
        (written({**WHOLE, "subject": []}), "is not as shieldnet writes it"),
        (written({**WHOLE, "predicateType": "https://model_signing/Digests/v0.1"}), "is no manif"),
        (written({**WHOLE, "predicate": []}), "is no manifest of a hardened folder"),
        (with_resources(*reversed(RESOURCES)), "is not as shieldnet writes it"),
        (with_resources(*RESOURCES, RESOURCES[0]), "lists README.md twice"),
        (with_resources(*RESOURCES[:-1]), "does not list shield.toml"),
        (with_resources(), "does not list"),
        (with_resources(*RESOURCES, 3), "a resource that is not name, algorithm and digest"),
        (with_resources(*RESOURCES, {**RESOURCES[0], "size": 1}), "a resource that is not name"),
        (with_resources({**RESOURCES[0], "algorithm": "md5"}), "no SHA-256 of README.md"),
        (with_resources({**RESOURCES[0], "digest": "ab"}), "no SHA-256 of README.md"),
        (with_resources({**RESOURCES[0], "digest": "A" * 64}), "no SHA-256 of README.md"),
        (with_resources({**RESOURCES[0], "digest": ["a"]}), "no SHA-256 of README.md"),
        (with_resources({**RESOURCES[0], "name": ["a"]}), "which no hardened folder has"),
    ],
)
def test_another_manifest_is_refused(content, words) -> None:
    with pytest.raises(VerificationFailed, match=words):
        listed(content)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "/etc/passwd", "a/b", "a\\b", ".", "..", "", "manifest.json"),
        *("manifest.sig", "README.md/", "./README.md", "readme.md", "x.pkl", "\0", "e" * 10_000),
    ],
)
def test_a_name_that_no_hardened_folder_has_is_never_listed(name) -> None:
    with pytest.raises(VerificationFailed, match="which no hardened folder has"):
        listed(with_resources(*RESOURCES, {**RESOURCES[0], "name": name}))


def test_a_folders_manifest_lists_every_file_but_itself(tmp_path) -> None:
    folder = made(tmp_path / "hardened")
    names = {path.name for path in folder.iterdir()}
    assert listed((folder / "manifest.json").read_bytes()).keys() == names - {"manifest.json"}
