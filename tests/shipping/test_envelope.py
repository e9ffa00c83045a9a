"""A signature is of this manifest and of this key, or it is none."""

import base64
import json
from pathlib import Path

import pytest
from artifacts import content, keys, made, rewritten
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import shieldnet as sn
from shieldnet.shipping.parts import MANIFEST, SIGNATURE


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return keys(tmp_path)


@pytest.fixture
def folder(tmp_path, pair) -> Path:
    return made(tmp_path / "hardened", key=pair[0])


def refused(folder: Path, public: Path) -> str:
    checked = sn.verify(folder, public_key=public)
    assert checked["files"].result == "pass", checked
    assert checked["signature"].result == "fail"
    assert {one.result for one in checked.checks[2:]} == {"not checked"}
    with pytest.raises(sn.errors.VerificationFailed):
        checked.require()
    with pytest.raises(sn.errors.VerificationFailed):
        sn.load_hardened(folder, lambda: pytest.fail("the model was made"), public_key=public)
    return checked["signature"].words


def changed(folder: Path, **fields: object) -> None:
    document = json.loads((folder / SIGNATURE).read_bytes())
    text = json.dumps({**document, **fields}, indent=1, sort_keys=True) + "\n"
    (folder / SIGNATURE).write_text(text)


def test_a_signed_folder_verifies_with_its_public_key(folder, pair) -> None:
    checked = sn.verify(folder, public_key=pair[1])
    assert checked, checked
    assert checked["signature"].result == "pass"
    assert sn.verify(folder, public_key=pair[1].read_bytes())
    assert sn.verify(folder, public_key=str(pair[1]))


def test_the_signature_is_dsse_over_the_manifest(folder, pair) -> None:
    """What is signed is written out here by hand, as the DSSE protocol says."""
    envelope = json.loads((folder / SIGNATURE).read_bytes())
    manifest = (folder / MANIFEST).read_bytes()
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert base64.b64decode(envelope["payload"]) == manifest
    length = str(len(manifest)).encode()
    encoded = b"DSSEv1 28 application/vnd.in-toto+json " + length + b" " + manifest
    public = serialization.load_pem_public_key(pair[1].read_bytes())
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), encoded)


def test_an_unsigned_folder_says_so_and_fails_where_a_key_is_given(tmp_path, pair) -> None:
    folder = made(tmp_path / "unsigned")
    checked = sn.verify(folder)
    assert checked
    assert checked["signature"].words == (
        "unsigned: whoever can write this folder can also write its manifest"
    )
    assert "a public key was given: the folder is unsigned" in refused(folder, pair[1])


def test_a_signature_without_a_key_is_said_and_not_believed(folder) -> None:
    checked = sn.verify(folder)
    assert checked
    assert checked["signature"].result == "not checked"
    assert "the signature names the key" in checked["signature"].words
    assert str(checked).endswith("verifies, except for the signature, which was not checked.")
    assert not sn.verify(folder, require=("signature",))


def test_a_signature_that_was_taken_away_fails_where_a_key_is_given(folder, pair) -> None:
    (folder / SIGNATURE).unlink()
    assert "there is no manifest.sig" in refused(folder, pair[1])


def test_another_key_fails(folder, tmp_path) -> None:
    assert "is of another key" in refused(folder, keys(tmp_path, "other")[1])


def test_a_folder_that_was_written_anew_and_signed_by_another_key_fails(
    folder, tmp_path, pair
) -> None:
    other = keys(tmp_path, "other")
    rewritten(folder, other[0], README__md=b"mine\n")
    assert sn.verify(folder, public_key=other[1])["signature"].result == "pass"
    assert "is of another key" in refused(folder, pair[1])


def test_another_keys_signature_under_this_keys_name_fails(folder, tmp_path, pair) -> None:
    own = json.loads((folder / SIGNATURE).read_bytes())["signatures"][0]["keyid"]
    rewritten(folder, keys(tmp_path, "other")[0])
    envelope = json.loads((folder / SIGNATURE).read_bytes())
    changed(folder, signatures=[{**envelope["signatures"][0], "keyid": own}])
    assert "is not the signature of manifest.json by the given key" in refused(folder, pair[1])


def test_a_signature_of_an_older_manifest_fails_with_and_without_a_key(folder, pair) -> None:
    old = (folder / SIGNATURE).read_bytes()
    rewritten(folder, README__md=b"mine\n")
    (folder / SIGNATURE).write_bytes(old)
    assert "is the signature of another manifest" in refused(folder, pair[1])
    assert not sn.verify(folder)


def test_an_envelope_whose_payload_was_exchanged_fails(folder, pair) -> None:
    rewritten_manifest = base64.b64encode(b"{}").decode()
    changed(folder, payload=rewritten_manifest)
    assert "is the signature of another manifest" in refused(folder, pair[1])


def test_a_signature_over_another_type_of_payload_fails(folder, pair, tmp_path) -> None:
    """The same key signed something else: the type is part of what is signed."""
    manifest = (folder / MANIFEST).read_bytes()
    private = serialization.load_pem_private_key(pair[0].read_bytes(), None)
    encoded = b"DSSEv1 10 text/plain %d %s" % (len(manifest), manifest)
    envelope = json.loads((folder / SIGNATURE).read_bytes())
    sig = base64.b64encode(private.sign(encoded)).decode()
    signatures = [{**envelope["signatures"][0], "sig": sig}]
    changed(folder, payloadType="text/plain", signatures=signatures)
    assert "is over another type" in refused(folder, pair[1])
    changed(folder, payloadType="application/vnd.in-toto+json", signatures=signatures)
    assert "is not the signature of manifest.json" in refused(folder, pair[1])


@pytest.mark.parametrize("place", range(0, 1800, 97))
def test_a_flipped_bit_anywhere_in_the_envelope_fails(folder, pair, place) -> None:
    data = bytearray((folder / SIGNATURE).read_bytes())
    data[place % len(data)] ^= 2
    (folder / SIGNATURE).write_bytes(data)
    refused(folder, pair[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signatures", []),
        ("signatures", None),
        ("signatures", [{}]),
        ("signatures", [{"keyid": 1, "sig": 2}]),
        ("signatures", [{"keyid": "a" * 64, "sig": "!!"}]),
        ("payload", 3),
        ("payload", "é"),
        ("payloadType", None),
        ("more", 1),
    ],
)
def test_what_is_no_envelope_fails(folder, pair, name, value) -> None:
    changed(folder, **{name: value})
    refused(folder, pair[1])


def test_a_second_signature_beside_the_first_fails(folder, pair) -> None:
    envelope = json.loads((folder / SIGNATURE).read_bytes())
    changed(folder, signatures=envelope["signatures"] * 2)
    assert "not exactly one Ed25519 signature" in refused(folder, pair[1])


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 10_000, b"\0" * 64])
def test_an_empty_or_deep_envelope_fails(folder, pair, data) -> None:
    (folder / SIGNATURE).write_bytes(data)
    refused(folder, pair[1])


def pem(key, kind=serialization.PrivateFormat.PKCS8, secret=None) -> bytes:
    how = serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, kind, how)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (pem(ec.generate_private_key(ec.SECP256R1())), "Expected an Ed25519 key, got EC"),
        (pem(Ed25519PrivateKey.generate(), secret=b"words"), "openssl pkey -in key.pem"),
        (b"no key", "Make a pair with: openssl genpkey"),
        (b"", "Make a pair with: openssl genpkey"),
        (Path("nowhere.pem"), "Cannot read the key nowhere.pem"),
    ],
)
def test_what_is_no_private_key_is_bad_input_and_nothing_is_written(tmp_path, key, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words) as refused:
        made(tmp_path / "hardened", key=key)
    assert "BEGIN" not in str(refused.value)
    assert not (tmp_path / "hardened").exists()


def test_keys_that_were_exchanged_are_told_apart(folder, pair, tmp_path) -> None:
    with pytest.raises(sn.errors.ConfigError, match="got a private one, which stays where"):
        sn.verify(folder, public_key=pair[0])
    with pytest.raises(sn.errors.ConfigError, match="to sign with, got a public one"):
        made(tmp_path / "other", key=pair[1])


def test_a_private_key_is_nowhere_in_the_folder(folder, pair) -> None:
    secret = pair[0].read_bytes().splitlines()[1]
    assert not any(secret in data for data in content(folder).values())


def test_a_key_that_is_given_as_text_is_read(tmp_path, pair) -> None:
    folder = made(tmp_path / "hardened", key=pair[0].read_text())
    assert sn.verify(folder, public_key=pair[1].read_text())["signature"].result == "pass"


@pytest.mark.parametrize("form", ["path", "cut", "line", "hex", "zero", "public"])
def test_no_error_shows_a_key_that_was_given_in_place_of_its_file(tmp_path, pair, form) -> None:
    text = pair[0].read_text()
    body = text.splitlines()[1]
    given = {
        "path": Path(text),
        "cut": f"{body}\n",
        "line": body,
        "hex": body.encode().hex(),
        "zero": f"{body}\0",
        "public": Path(text),
    }[form]
    folder = made(tmp_path / "other", key=pair[0])
    with pytest.raises(sn.errors.ConfigError) as refused:
        sn.verify(folder, public_key=given) if form == "public" else made(
            tmp_path / "hardened", key=given
        )
    error: BaseException | None = refused.value
    while error is not None:
        assert "BEGIN" not in str(error)
        assert body[:16] not in str(error)
        assert body.encode().hex()[:16] not in str(error)
        error = error.__cause__ or error.__context__
    assert not (tmp_path / "hardened").exists()
