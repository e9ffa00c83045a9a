"""What is written is all that was audited, the same bytes every time, whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from artifacts import FAILS, UNSURE, Two, content, keys, made, report_of, shield_of
from safetensors.torch import load
from torch import nn

import shieldnet as sn
from shieldnet.defenses import DEFENSES
from shieldnet.privacy.certificate import NOT_COVERED
from shieldnet.shipping import writing
from shieldnet.shipping.policies import policy_text


def test_two_runs_give_the_same_bytes(tmp_path) -> None:
    private, _ = keys(tmp_path)
    report = report_of(shield_of())
    one = made(tmp_path / "one", key=private, report=report)
    other = made(tmp_path / "other", key=private, report=report)
    assert content(one) == content(other)


def test_a_report_and_its_file_give_folders_that_verify(tmp_path) -> None:
    report_of(shield_of()).save(tmp_path / "report.json")
    one = made(tmp_path / "one", report=tmp_path / "report.json")
    assert (one / "report.json").read_bytes() == (tmp_path / "report.json").read_bytes()
    assert sn.verify(one)["policy"].result == "pass"
    with pytest.raises(sn.errors.PolicyFailed, match="(?s)Nothing was written. .*membership.auc"):
        made(tmp_path / "two", report=tmp_path / "report.json", policy="default")
    assert not (tmp_path / "two").exists()


def test_the_default_policy_and_policies_of_every_form_read_as_they_were(tmp_path) -> None:
    policies = (
        sn.Policy(),
        sn.Policy({"max_leakage": 0.3, "min_accuracy": 1}, ("inversion.", "accuracy")),
        sn.Policy({}, (), {"*": {"max_membership_auc": 0.6}}),
    )
    for number, policy in enumerate(policies):
        path = tmp_path / f"{number}.toml"
        path.write_text(policy_text(policy))
        assert sn.Policy.load(path) == policy
        assert sn.Policy.load(path).hash() == policy.hash()
    with pytest.raises(sn.errors.ConfigError, match="leave it out"):
        policy_text(sn.Policy.unjudged())


def test_the_words_of_a_certificate_are_those_of_the_shield(tmp_path) -> None:
    """Each head by its name, and why a bound is infinite."""

    class Heads(nn.Module):
        def forward(self, x):
            return {"topic": x, "intent": x[:, :3], "box": x}

    extent = sn.Extent(5, fields={"intent": sn.Extent(3), "box": sn.Extent(1)})
    shield = sn.Shield(
        Heads().eval(),
        sn.Label(),
        outputs={"topic": "logits", "intent": "logits"},
        also={"intent": (sn.Label(),), "box": ()},
        extent=extent,
    )
    folder = sn.save_hardened(shield, tmp_path / "hardened", model="heads:Heads")
    assert (folder / "certificate.txt").read_text() == f"{shield.certificate()}\n"
    assert "3 classes of intent" in (folder / "certificate.txt").read_text()
    assert json.loads((folder / "model.json").read_bytes())["answers"] == [
        {"name": "topic", "kind": "logits", "released": "logits"},
        {"name": "box", "kind": "unknown", "released": "as it is"},
        {"name": "intent", "kind": "logits", "released": "logits"},
    ]


def test_the_certificate_is_in_numbers_formulas_and_words(tmp_path) -> None:
    folder = made(tmp_path / "hardened")
    document = json.loads((folder / "certificate.json").read_bytes())
    certificate = shield_of().certificate()
    assert document["bounds"]["bits"] == certificate.bits
    assert document["bounds"]["mu"] == "infinite"
    assert document["not_covered"] == list(NOT_COVERED)
    assert document["extent"]["classes"] == 3
    assert "prior * 2^bits" in document["formulas"]["reconstruction"]
    assert (folder / "certificate.txt").read_text() == f"{certificate}\n"


def test_the_page_says_how_to_load_and_what_a_file_does_not_protect(tmp_path) -> None:
    text = (made(tmp_path / "hardened") / "README.md").read_text()
    assert 'sn.load_hardened("hardened/", model="two:Two")' in text
    assert "A file in the hands of a caller protects nothing" in text
    assert "add one output to a graph of it" in text
    assert "read the raw scores" in text
    assert "It is not signed" in text
    signed = made(tmp_path / "signed", key=keys(tmp_path)[0])
    assert "--public-key public.pem" in (signed / "README.md").read_text()


@pytest.mark.parametrize("kind", DEFENSES.values(), ids=list(DEFENSES))
def test_every_defense_without_a_secret_is_read_back_with_its_settings(tmp_path, kind) -> None:
    for number, defense in enumerate(kind.examples()):
        outputs = {"labels": "logits"}.get(defense.accepts[0], defense.accepts[0])
        shield = sn.Shield(Two().eval(), defense, outputs=outputs, extent=sn.Extent(3))
        folder = tmp_path / f"{number}"
        if kind.secret:
            with pytest.raises(sn.errors.ConfigError, match="is secret"):
                sn.save_hardened(shield, folder)
            continue
        sn.save_hardened(shield, folder, report=report_of(shield))
        assert sn.verify(folder)
        assert sn.load_hardened(folder, Two).settings == shield.settings


class Mixed(nn.Module):
    """Tied weights, a scalar, half floats, a turned and an empty buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.words.weight
        self.scale = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
        self.register_buffer("turned", torch.arange(15.0).reshape(3, 5).T)
        self.register_buffer("empty", torch.empty(0, 2, dtype=torch.float64))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(x).mean(1)) * self.scale.float()


def test_tied_weights_and_buffers_of_every_kind_come_back(tmp_path) -> None:
    model = Mixed().eval()
    folder = sn.save_hardened(sn.harden(model), tmp_path / "mixed", classes=9)
    again = sn.load_hardened(folder, Mixed)
    state = again.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert again.model.head.weight is again.model.words.weight
    assert sn.verify(folder, model=Mixed)


def test_a_model_without_weights_is_written_too(tmp_path) -> None:
    folder = sn.save_hardened(sn.harden(nn.Flatten()), tmp_path / "flat", classes=3)
    assert load((folder / "weights.safetensors").read_bytes()) == {}
    assert sn.verify(folder, model=nn.Flatten)


def test_an_example_says_how_large_answers_are_and_is_not_written(tmp_path) -> None:
    example = torch.randn(4, 3)
    shield = sn.harden(Two().eval())
    folder = sn.save_hardened(shield, tmp_path / "hardened", example=example)
    inputs = json.loads((folder / "model.json").read_bytes())["inputs"]
    assert inputs == [{"name": "x", "shape": [None, 3], "dtype": "float32"}]
    assert json.loads((folder / "certificate.json").read_bytes())["extent"]["classes"] == 3
    values = [example[0].numpy().tobytes(), str(example[0, 0].item())[:7].encode()]
    assert not any(value in data for data in content(folder).values() for value in values)


def test_examples_of_several_arguments_are_described_by_name(tmp_path) -> None:
    class Pair(nn.Module):
        def forward(self, x, y):
            return x + y

    for number, example in enumerate(
        [
            (torch.randn(4, 3), np.ones((4, 1), np.float32)),
            {"x": torch.randn(4, 3), "y": torch.ones(4, 1)},
        ]
    ):
        folder = tmp_path / f"{number}"
        if number == 0:
            example = tuple(map(torch.as_tensor, example))
        sn.save_hardened(sn.harden(Pair()), folder, example=example)
        inputs = json.loads((folder / "model.json").read_bytes())["inputs"]
        assert [one["shape"] for one in inputs] == [[None, 3], [None, 1]]
        assert [one["name"] for one in inputs] == ["x", "y"]


def test_gradients_of_a_training_are_in_no_file_and_stay_with_the_model(tmp_path) -> None:
    shield = shield_of()
    plain = sn.save_hardened(shield, tmp_path / "plain")
    first = next(shield.model.parameters())
    first.grad = torch.full_like(first, 7.0)
    folder = sn.save_hardened(shield, tmp_path / "h")
    assert (first.grad == 7.0).all()
    sn.verify(folder).require()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            assert path.read_bytes() == (plain / path.name).read_bytes()


def test_an_example_that_the_model_cannot_read_is_bad_input(tmp_path) -> None:
    with pytest.raises(sn.errors.DataError, match="cannot read the example"):
        sn.save_hardened(sn.harden(Two()), tmp_path / "hardened", example=torch.ones(4, 7))
    assert list(tmp_path.iterdir()) == []


def test_without_an_extent_there_is_no_certificate_and_a_report_gives_one(tmp_path) -> None:
    shield = sn.harden(Two().eval())
    folder = sn.save_hardened(shield, tmp_path / "plain")
    assert not (folder / "certificate.json").exists()
    assert sn.verify(folder)["certificate"].result == "not checked"
    asked = sn.harden(Two().eval())
    asked(torch.randn(4, 3))
    folder = sn.save_hardened(shield, tmp_path / "reported", report=report_of(asked))
    assert json.loads((folder / "certificate.json").read_bytes())["extent"]["classes"] == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile, of its own code
def test_what_only_a_pickle_holds_is_refused_with_what_works(tmp_path) -> None:
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(sn.errors.ConfigError, match="LogisticRegression is scikit-learn's.*skl2on"):
        sn.save_hardened(sn.harden(fitted), tmp_path / "hardened")
    around = sn.Shield.around(lambda x: x, sn.TopK(1))
    with pytest.raises(sn.errors.ConfigError, match="is a function of arrays"):
        sn.save_hardened(around, tmp_path / "hardened")
    with pytest.raises(sn.errors.ConfigError, match=r"Put one around it: shieldnet.harden\(model"):
        sn.save_hardened(Two(), tmp_path / "hardened")
    compiled = torch.compile(Two().eval())
    with pytest.raises(sn.errors.ConfigError, match="model._orig_mod"):
        sn.save_hardened(sn.harden(compiled), tmp_path / "hardened")
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_another_model_or_shield_is_bad_input(tmp_path) -> None:
    for other in (Two(seed=1), Two(temperature=3.0)):
        with pytest.raises(sn.errors.DataError, match=r"report.json is of another model"):
            made(tmp_path / "hardened", report=report_of(shield_of(other)))
    strict = sn.harden(Two().eval(), "strict", extent=sn.Extent(3))
    with pytest.raises(sn.errors.DataError, match=r"Audit this shield, or harden with the one"):
        made(tmp_path / "hardened", report=report_of(strict))
    assert not (tmp_path / "hardened").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [(FAILS, sn.errors.PolicyFailed), (UNSURE, sn.errors.PolicyInconclusive)],
)
def test_a_report_that_does_not_meet_the_policy_writes_nothing(tmp_path, text, error) -> None:
    policy = tmp_path / "harsh.toml"
    policy.write_text(text)
    with pytest.raises(error, match="Nothing was written"):
        made(tmp_path / "hardened", policy=policy)
    assert not (tmp_path / "hardened").exists()


def test_a_policy_without_a_report_is_refused(tmp_path) -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"A policy judges a report: give --report"):
        sn.save_hardened(shield_of(), tmp_path / "hardened", policy="default")


def test_a_folder_that_is_not_empty_is_refused(tmp_path) -> None:
    folder = made(tmp_path / "hardened")
    before = content(folder)
    with pytest.raises(sn.errors.ConfigError, match=r"is not empty.*--force"):
        made(folder)
    assert content(folder) == before
    (tmp_path / "empty").mkdir()
    assert sn.verify(made(tmp_path / "empty"))


def test_force_replaces_a_hardened_folder_even_a_damaged_one(tmp_path) -> None:
    folder = made(tmp_path / "hardened")
    (folder / "weights.safetensors").write_bytes(b"damaged")
    strict = sn.harden(Two().eval(), "strict", extent=sn.Extent(3))
    made(folder, shield=strict, force=True)
    assert sn.verify(folder)
    assert 'name = "TopK"' in (folder / "shield.toml").read_text() or strict
    assert sn.load_hardened(folder, Two).settings == strict.settings
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "names", [["notes.txt"], [".git/"], ["manifest.json"], ["manifest.json", "notes.txt"]]
)
def test_force_never_deletes_anything_else(tmp_path, names) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        path = folder / name
        path.mkdir() if name.endswith("/") else path.write_text("mine")
    with pytest.raises(sn.errors.ConfigError, match="--force does not delete these"):
        made(folder, force=True)
    assert {path.name for path in folder.iterdir()} == {name.rstrip("/") for name in names}


@pytest.mark.parametrize("name", ["notes.txt", ".git", "model.onnx"])
def test_force_never_deletes_what_somebody_put_beside_the_files(tmp_path, name) -> None:
    folder = made(tmp_path / "hardened")
    (folder / name).write_text("mine")
    with pytest.raises(sn.errors.ConfigError, match="--force does not delete these"):
        made(folder, force=True)
    assert (folder / name).read_text() == "mine"


def test_a_file_in_the_folders_place_is_refused(tmp_path) -> None:
    (tmp_path / "hardened").write_text("mine")
    for force in (False, True):
        with pytest.raises(sn.errors.ConfigError, match="is a file"):
            made(tmp_path / "hardened", force=force)


@pytest.mark.parametrize("function", ["Path.rename", "os.fsync", "_write", "require_free"])
def test_a_run_that_fails_leaves_nothing_and_the_old_folder_whole(
    tmp_path, monkeypatch, function
) -> None:
    folder = made(tmp_path / "hardened")
    before, around = content(folder), {path.name for path in tmp_path.iterdir()}
    calls = []

    def fails(*given, **_):
        calls.append(given)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"shieldnet.shipping.writing.{function}", fails)
    strict = sn.harden(Two().eval(), "strict", extent=sn.Extent(3))
    with pytest.raises(OSError, match="No space"):
        made(folder, shield=strict, force=True)
    with pytest.raises(OSError, match="No space"):
        made(tmp_path / "new" / "deep" / "hardened")
    assert calls
    monkeypatch.undo()
    assert content(folder) == before
    left = {path.name for path in tmp_path.rglob("*") if not path.is_relative_to(folder)}
    assert left - around <= {"hardened-policy.toml"}


def test_a_rename_that_fails_in_the_middle_brings_the_old_folder_back(
    tmp_path, monkeypatch
) -> None:
    folder = made(tmp_path / "hardened")
    before, real, calls = content(folder), Path.rename, []

    def second_fails(path, target):
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(KeyboardInterrupt):
        made(folder, shield=sn.harden(Two().eval(), "strict", extent=sn.Extent(3)), force=True)
    assert len(calls) == 3
    assert content(folder) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["precious.txt", "model.onnx"])
def test_a_file_that_arrives_between_the_check_and_the_replacement_is_kept(
    tmp_path, monkeypatch, name
) -> None:
    folder = made(tmp_path / "hardened")
    put = writing._put

    def arrives(beside, target) -> None:
        (target / name).write_text("mine")
        put(beside, target)

    monkeypatch.setattr(writing, "_put", arrives)
    with pytest.raises(sn.errors.ConfigError, match="--force does not delete these"):
        made(folder, force=True)
    assert (folder / name).read_text() == "mine"
    assert (folder / "manifest.json").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("place", [f"new/{'n' * 300}/hardened", "file/hardened", "n" * 300])
def test_a_name_that_cannot_be_is_bad_input_and_leaves_nothing(tmp_path, place) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(sn.errors.ConfigError, match="Cannot write"):
        sn.save_hardened(shield_of(), tmp_path / place)
    with pytest.raises(sn.errors.ConfigError, match="Cannot write"):
        writing.write_folder({}, tmp_path / place, force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_long_name_that_can_be_is_written(tmp_path) -> None:
    assert sn.verify(sn.save_hardened(shield_of(), tmp_path / ("n" * 250)))


def test_force_keeps_who_may_read_the_folder(tmp_path) -> None:
    folder = made(tmp_path / "hardened")
    folder.chmod(0o700)
    made(folder, force=True)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_link_to_the_folder_stays_a_link(tmp_path) -> None:
    folder = made(tmp_path / "one")
    (tmp_path / "current").symlink_to(folder)
    made(tmp_path / "current", force=True)
    assert (tmp_path / "current").is_symlink()
    assert sn.verify(tmp_path / "current")


def test_a_defense_of_ones_own_is_named_where_it_is_written_and_read(tmp_path) -> None:
    from own_defense import Halve

    shield = sn.Shield(Two().eval(), Halve(0.5), extent=sn.Extent(3))
    with pytest.raises(sn.errors.ConfigError, match="known="):
        sn.save_hardened(shield, tmp_path / "hardened")
    folder = sn.save_hardened(shield, tmp_path / "hardened", known=(Halve,))
    assert sn.verify(folder, known=(Halve,))
    assert sn.load_hardened(folder, Two, known=(Halve,)).settings == shield.settings
    assert not sn.verify(folder)
    assert replace(shield.settings) == shield.settings
