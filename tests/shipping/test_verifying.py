"""Whoever can write the folder writes a manifest that fits: what else is caught."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artifacts import (
    FAILS,
    UNSURE,
    Two,
    changed_json,
    content,
    keys,
    made,
    measured,
    report_of,
    rewritten,
    shield_of,
)
from safetensors.torch import load, save

import shieldnet as sn
from shieldnet.reports.report import as_json_of


@pytest.fixture
def folder(tmp_path) -> Path:
    return made(tmp_path / "hardened")


def failing(folder: Path, name: str, **settings) -> str:
    checked = sn.verify(folder, **settings)
    assert checked["files"].result == "pass", checked
    assert checked[name].result == "fail", checked
    assert not checked
    with pytest.raises(sn.errors.VerificationFailed, match=f"{name}: "):
        checked.require()
    return checked[name].words


def swapped(data: bytes) -> bytes:
    state = load(data)
    names = ("first.weight", "second.weight")
    state[names[0]], state[names[1]] = state[names[1]], state[names[0]]
    return save(state)


def test_a_whole_folder_verifies_and_says_what_was_checked(folder) -> None:
    checked = sn.verify(folder, model=Two)
    assert checked
    assert checked.outcome == "pass"
    assert {one.name: one.result for one in checked.checks} == {
        "files": "pass",
        "signature": "not checked",
        "model": "pass",
        "graphs": "pass",
        "certificate": "pass",
        "report": "pass",
        "policy": "pass",
    }
    assert "unsigned" in str(checked)
    assert str(checked).endswith("verifies, except for the signature, which was not checked.")
    assert checked.require() is None


def test_no_code_of_the_model_is_run_unless_it_is_named(folder, monkeypatch) -> None:
    monkeypatch.setattr(
        "shieldnet.files.named_objects.importlib.import_module", lambda name: pytest.fail(name)
    )
    checked = sn.verify(folder)
    assert checked
    assert "its code was not run (--model two:Two does)" in checked["model"].words


def test_two_swapped_weights_of_one_shape_are_caught(folder) -> None:
    """Names, shapes and types are as they were; and so is the manifest."""
    data = swapped((folder / "weights.safetensors").read_bytes())
    rewritten(folder, weights__safetensors=data)
    assert "other weights than model.json names" in failing(folder, "model")
    with pytest.raises(sn.errors.VerificationFailed, match="other weights than model.json names"):
        sn.load_hardened(folder, Two)


def test_swapped_weights_that_model_json_names_too_are_no_longer_the_reports(folder) -> None:
    from shieldnet.data.hashing import tensors_hash

    data = swapped((folder / "weights.safetensors").read_bytes())
    described = changed_json((folder / "model.json").read_bytes(), weights=tensors_hash(load(data)))
    rewritten(folder, weights__safetensors=data, model__json=described)
    assert "report.json is of other weights" in failing(folder, "report")
    assert "is not the model that was audited" in failing(folder, "model", model=Two)
    with pytest.raises(sn.errors.VerificationFailed, match="is of other weights"):
        sn.load_hardened(folder, Two)
    rewritten(folder, report__json=None, policy__toml=None)
    with pytest.raises(sn.errors.VerificationFailed, match="is not the model that was audited"):
        sn.load_hardened(folder, Two)


def test_the_report_of_another_model_is_caught(folder) -> None:
    other = report_of(shield_of(Two(seed=1)))
    rewritten(folder, report__json=as_json_of([other]).encode())
    assert "report.json is of another model" in failing(folder, "report")
    assert sn.verify(folder)["policy"].result == "fail"


def test_the_report_of_another_shield_is_caught(folder) -> None:
    other = report_of(sn.harden(Two().eval(), "strict", extent=sn.Extent(3)))
    rewritten(folder, report__json=as_json_of([other]).encode())
    assert "report.json is of other shields than shield.toml" in failing(folder, "report")


def test_the_bare_models_findings_are_never_the_shields(folder) -> None:
    """A report in which only the bare model is measured, under the name of the shield."""
    report = report_of(shield_of())
    bare = replace(report, subjects=(report["bare"],))
    rewritten(folder, report__json=as_json_of([bare]).encode())
    assert "none of bare has its settings" in failing(folder, "report")


def test_a_report_that_states_less_than_the_shield_proves_is_caught(folder) -> None:
    report = report_of(shield_of())
    one = report["balanced"]
    less = replace(one, certificate=replace(one.certificate, cost=sn.PrivacyCost(bits=0.1)))
    forged = replace(report, subjects=(report["bare"], less))
    rewritten(folder, report__json=as_json_of([forged]).encode())
    assert "report.json states bits 0.10 of balanced" in failing(folder, "report")


def test_a_weaker_shield_is_caught(folder) -> None:
    weaker = sn.dump_shield(sn.Shield(Two(), sn.TopK(3), sn.Round(5), extent=sn.Extent(3)))
    rewritten(folder, shield__toml=weaker.encode())
    assert "is not what shield.toml proves" in failing(folder, "certificate")
    assert "none of bare, balanced has its settings" in failing(folder, "report")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("bounds", "bits"), 0.5),
        (("bounds", "bits"), "infinite"),
        (("bounds", "bits"), True),
        (("bounds", "mu"), 0.0),
        (("not_covered",), []),
        (("formulas", "reconstruction"), "0"),
        (("shield",), "a better one"),
        (("text",), "all is proven"),
        (("more",), 1),
    ],
)
def test_a_certificate_that_says_anything_else_is_caught(folder, path, value) -> None:
    document = json.loads((folder / "certificate.json").read_bytes())
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    rewritten(folder, certificate__json=json.dumps(document).encode())
    assert "is not what shield.toml proves" in failing(folder, "certificate")


@pytest.mark.parametrize(
    "extent",
    [
        None,
        {},
        {"classes": 3},
        {"classes": 2, "positions": [], "fields": {}, "any_number": False},
        {"classes": 10**400, "positions": [], "fields": {}, "any_number": False},
        {"classes": True, "positions": [], "fields": {}, "any_number": False},
        {"classes": 3, "positions": [2**40], "fields": {}, "any_number": False},
        {"classes": 3, "positions": [1] * 5000, "fields": {}, "any_number": False},
        {"classes": 3, "positions": [], "fields": {"a": 3}, "any_number": False},
    ],
)
def test_a_certificate_of_another_extent_is_caught(folder, extent) -> None:
    document = changed_json((folder / "certificate.json").read_bytes(), extent=extent)
    rewritten(folder, certificate__json=document)
    failing(folder, "certificate")


def test_words_that_the_certificate_does_not_say_are_caught(folder) -> None:
    rewritten(folder, certificate__txt=b"bits 0.00\n")
    assert "certificate.txt does not say" in failing(folder, "certificate")
    rewritten(folder, certificate__json=None)
    assert "There is a certificate.txt and no" in failing(folder, "certificate")


@pytest.mark.parametrize(
    ("text", "result", "error"),
    [
        (FAILS, "fail", sn.errors.PolicyFailed),
        (UNSURE, "inconclusive", sn.errors.PolicyInconclusive),
        ("max_bits_per_answer = 1\n", "fail", sn.errors.PolicyFailed),
        ("max_epsilon = 4.0\n", "fail", sn.errors.PolicyFailed),
    ],
)
def test_a_policy_that_the_report_does_not_meet_is_told_from_a_broken_folder(
    folder, text, result, error
) -> None:
    rewritten(folder, policy__toml=text.encode())
    checked = sn.verify(folder)
    assert checked["policy"].result == result
    assert checked.outcome == result
    with pytest.raises(error, match="policy: balanced: "):
        checked.require()


@pytest.mark.parametrize("text", [b"", b"max_leek = 1", b"= ", b"\xff", b"version = 9"])
def test_what_is_no_policy_is_a_broken_folder(folder, text) -> None:
    rewritten(folder, policy__toml=text)
    failing(folder, "policy")


def test_a_policy_without_the_report_it_judges_is_a_broken_folder(folder) -> None:
    rewritten(folder, report__json=None)
    assert "no report.json that it could judge" in failing(folder, "policy")


def test_a_crossed_proof_fails_whatever_the_policy_asks(folder) -> None:
    report = report_of(shield_of())
    one = report["balanced"]
    crossed = tuple(replace(finding, ceiling=0.001) for finding in one.findings[:1])
    forged = replace(report, subjects=(report["bare"], replace(one, findings=crossed)))
    rewritten(folder, report__json=as_json_of([forged]).encode())
    assert sn.verify(folder)["policy"].result == "fail"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("file", "model.onnx"),
        ("file", "../weights.safetensors"),
        ("graphs", {"model.pt2": "shield"}),
        ("graphs", {"model.pt2": "model"}),
        ("graphs", {"weights.safetensors": "shield"}),
        ("graphs", []),
        ("inputs", [{"name": 1}]),
        ("inputs", [{"name": "x", "shape": [-1], "dtype": "float32"}]),
        ("kind", "x" * 10_000),
        ("kind", ["Two"]),
        ("model", "ab"),
        ("model", None),
        ("weights", None),
        ("answers", "embeddings"),
        ("answers", []),
        ("answers", [{"name": "", "kind": "embeddings", "released": "logits"}]),
        ("answers", [{"name": "other", "kind": "logits", "released": "logits"}]),
        ("source", "x\x1b[2J"),
        ("inputs", [{"name": "\x1b[2J", "shape": [1], "dtype": "float32"}]),
        ("graphs", {"model.pt2": {"holds": "shield"}}),
        ("schema", "shieldnet.model/2"),
        ("more", 1),
    ],
)
def test_another_model_json_is_caught(folder, name, value) -> None:
    document = changed_json((folder / "model.json").read_bytes(), **{name: value})
    rewritten(folder, model__json=document)
    failing(folder, "model")
    with pytest.raises(sn.errors.ShieldnetError):
        sn.load_hardened(folder, "two:Two")


def test_a_graph_that_model_json_does_not_describe_is_caught(folder) -> None:
    rewritten(folder, model__pt2=b"a graph without defenses")
    assert "model.json describes weights.safetensors" in failing(folder, "model")


@pytest.mark.parametrize("name", ["shield__toml", "model__json", "weights__safetensors"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 10_000, b'{"a": 1}', b"a = 1"])
def test_no_file_of_another_kind_is_a_defect_of_ours(folder, name, data) -> None:
    rewritten(folder, **{name: data})
    assert not sn.verify(folder)
    with pytest.raises(sn.errors.ShieldnetError):
        sn.load_hardened(folder, Two)


def test_a_pickle_in_place_of_the_weights_is_never_unpickled(folder, tmp_path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    rewritten(folder, weights__safetensors=pickle.dumps(Bomb()))
    assert not sn.verify(folder)
    with pytest.raises(sn.errors.VerificationFailed):
        sn.load_hardened(folder, Two)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (lambda: Two(temperature=2.0), "the attributes temperature differ"),
        (lambda: torch.nn.Linear(3, 3), "does not fit the model of Linear: it lacks weight, bias"),
        (lambda: Two().double(), "is torch.float32, the model's is torch.float64"),
    ],
)
def test_another_network_is_not_the_audited_one(folder, factory, words) -> None:
    assert words in failing(folder, "model", model=factory)


@pytest.mark.parametrize("model", ["nowhere:Two", "two", 3, lambda: 3])
def test_a_model_that_is_none_is_bad_input_and_no_broken_folder(folder, model) -> None:
    with pytest.raises((sn.errors.ConfigError, sn.errors.DataError)):
        sn.verify(folder, model=model)


def test_a_report_of_an_older_version_names_no_weights_and_it_is_said(folder) -> None:
    report = report_of(shield_of())
    old = replace(report, hashes={"model": report.hashes["model"]})
    rewritten(folder, report__json=as_json_of([old]).encode())
    checked = sn.verify(folder)
    assert checked
    assert "before reports named the weights alone: give --model" in checked["report"].words


def test_of_several_reports_and_shields_the_one_of_this_folder_is_judged(folder) -> None:
    right = report_of(shield_of())
    leaky = report_of(sn.harden(Two().eval(), "open", extent=sn.Extent(3)), leak=0.9, name="open")
    both = replace(right, subjects=(*right.subjects, leaky["open"]))
    other = measured(leaky, model="0" * 64)
    rewritten(folder, report__json=as_json_of([other, both]).encode())
    checked = sn.verify(folder)
    assert checked, checked
    assert "of this shield (balanced)" in checked["report"].words


def test_nothing_is_left_of_the_copies_that_are_parsed(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    assert sn.verify(folder)
    rewritten(folder, shield__toml=b"broken")
    words = sn.verify(folder)["model"].words
    assert "shield.toml" in words
    assert str(tmp_path) not in words
    assert list((tmp_path / "temp").iterdir()) == []


@pytest.mark.parametrize("is_changed", [False, True])
def test_without_a_package_that_a_check_needs_nothing_passes(
    folder, monkeypatch, is_changed
) -> None:
    if is_changed:
        data = bytearray((folder / "weights.safetensors").read_bytes())
        data[-1] ^= 1
        rewritten(folder, weights__safetensors=bytes(data))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(sn.errors.MissingDependency, match="safetensors"):
        sn.verify(folder)


def test_another_code_of_the_same_name_is_not_compared_and_it_is_said(folder) -> None:
    class Other(Two):
        def forward(self, x):
            return x * 1000

    Other.__qualname__ = Other.__name__ = "Two"
    words = sn.verify(folder, model=Other)["model"].words
    assert words.endswith(
        "as audited: weights, buffers, structure and attributes; its code is not compared"
    )
    assert "its code is not compared" in sn.load_hardened.__doc__


def test_what_verify_calls_broken_is_not_loaded(folder, tmp_path) -> None:
    weaker = sn.dump_shield(sn.Shield(Two(), sn.TopK(3), sn.Round(5), extent=sn.Extent(3)))
    rewritten(folder, shield__toml=weaker.encode())
    with pytest.raises(sn.errors.VerificationFailed, match="certificate.json is not what shield"):
        sn.load_hardened(folder, lambda: pytest.fail("the model was made"))
    signed = made(tmp_path / "signed", key=keys(tmp_path)[0])
    (signed / "manifest.sig").write_bytes(b"garbage")
    with pytest.raises(sn.errors.VerificationFailed, match="manifest.sig is not a JSON envelope"):
        sn.load_hardened(signed, lambda: pytest.fail("the model was made"))


def test_a_check_is_found_by_its_name(folder) -> None:
    with pytest.raises(KeyError, match="There are: files, signature"):
        sn.verify(folder)["manifest"]
    assert repr(sn.verify(folder)) == f"<{folder}: pass>"
    assert content(folder)
