"""Files that somebody wrote by hand: guarantees, checkpoints, and models with more in them."""

import json
import secrets
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.files.sources import load_guarantee
from shieldnet.training import checkpoint

GUARANTEE = sn.Guarantee(
    *(1.0, 0.1, 100, 1000, 1e-5),
    weights="ab" * 32,
    run="cd" * 16,
    start="ef" * 32,
    premises=("the start is public",),
    scope="weights",
)


@pytest.fixture(autouse=True)
def no_key(monkeypatch) -> None:
    monkeypatch.delenv("SHIELDNET_KEY", raising=False)


def written(path, **changes):
    document = GUARANTEE.document()
    document.update(changes)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "Expected steps from 1"),
        ({"steps": 10**9}, "Expected steps from 1"),
        ({"steps": 5.0}, "Expected steps from 1"),
        ({"steps": True}, "Expected steps from 1"),
        ({"noise": 1e300}, "Expected a noise_multiplier of at most 10000"),
        ({"noise": "1"}, "Expected a finite noise_multiplier"),
        ({"noise": 0}, "Expected a finite noise_multiplier"),
        ({"rate": 0}, "Expected a sample_rate above 0"),
        ({"rate": 1.5}, "Expected sample_rate from 0 to 1"),
        ({"records": 0}, "Expected records from 1"),
        ({"records": 10**30}, "Expected records from 1"),
        ({"delta": 0.5}, "Expected delta from 1e-12 to 1 / 1000 records"),
        ({"delta": 1e-300}, "Expected delta from 1e-12"),
        ({"variation": -1}, "Expected variation from 0"),
        ({"variation": 2}, "Expected variation from 0"),
        ({"scope": "all"}, "Expected scope"),
        ({"run": "x"}, "Expected run as 32 hexadecimal digits"),
        ({"run": ""}, "Expected a guarantee of weights to name its run"),
        ({"premises": []}, "Expected a guarantee of weights to name its run and its premises"),
        ({"premises": "none"}, "Expected premises as at most"),
        ({"caveats": ["x" * 10**6]}, "Expected caveats as at most"),
        ({"caveats": [1]}, "Expected caveats as at most"),
        ({"weights": "../../etc"}, "Expected weights as 64 hexadecimal digits"),
        ({"version": 3}, "Expected a guarantee of version 1 or 2"),
        ({"version": True}, "Expected a guarantee of version 1 or 2"),
        ({"before": [{}] * 17}, "Expected at most 16 earlier guarantees"),
        ({"before": [3]}, "Expected a guarantee as a dict"),
    ],
)
def test_a_guarantee_that_no_training_wrote_is_refused(tmp_path, changes, words) -> None:
    with pytest.raises(sn.errors.DataError, match=words):
        load_guarantee(written(tmp_path / "guarantee.json", **changes))


def test_epsilon_is_computed_and_not_believed(tmp_path) -> None:
    read = load_guarantee(written(tmp_path / "guarantee.json", epsilon=0.01, words="epsilon 0.01"))
    assert read == GUARANTEE
    assert read.epsilon == GUARANTEE.epsilon > 1


def test_a_guarantee_of_the_first_version_loads_and_says_what_is_unknown(tmp_path) -> None:
    path = tmp_path / "guarantee.json"
    names = ("noise", "rate", "steps", "records", "delta", "caveats", "weights")
    document = GUARANTEE.document()
    path.write_text(json.dumps({name: document[name] for name in names}))
    read = load_guarantee(path)
    assert (read.scope, read.run) == ("steps", "")
    assert any("is not stated" in premise for premise in read.premises)


def test_a_changed_guarantee_does_not_match_its_signature(tmp_path, monkeypatch) -> None:
    path = tmp_path / "guarantee.json"
    monkeypatch.setenv("SHIELDNET_KEY", secrets.token_hex(32))
    assert load_guarantee(written(path)).seal == "signed"
    for changes in ({"noise": 50.0}, {"steps": 1}, {"weights": "00" * 32}, {"premises": ["-"]}):
        with pytest.raises(sn.errors.DataError, match="signature does not match the key"):
            load_guarantee(written(path, **changes))
    document = {k: v for k, v in GUARANTEE.document().items() if k != "signature"}
    path.write_text(json.dumps(document))
    with pytest.raises(sn.errors.DataError, match="is not signed, but SHIELDNET_KEY is set"):
        load_guarantee(path)
    monkeypatch.setenv("SHIELDNET_KEY", secrets.token_hex(32))
    with pytest.raises(sn.errors.DataError, match="is not signed"):
        load_guarantee(path)


def test_what_was_read_unsigned_is_never_signed_afterwards(tmp_path, monkeypatch) -> None:
    read = load_guarantee(written(tmp_path / "guarantee.json"))
    assert read.seal == "unsigned"
    monkeypatch.setenv("SHIELDNET_KEY", secrets.token_hex(32))
    assert "signature" not in read.document()
    assert "signature" in GUARANTEE.document()


@pytest.mark.parametrize("key", ["short", "zz" * 32, "ab"])
def test_a_key_that_is_none_is_named(tmp_path, monkeypatch, key) -> None:
    monkeypatch.setenv("SHIELDNET_KEY", key)
    with pytest.raises(
        sn.errors.ConfigError, match="Expected SHIELDNET_KEY as at least 32 hexadecimal"
    ):
        written(tmp_path / "guarantee.json")


class Holder(nn.Linear):
    """Holds records where no state_dict shows them, and answers from there."""

    def forward(self, x):
        known = getattr(self, "known", None)
        y = super().forward(x)
        return y if known is None else y + (x[:, None] == known).all(-1).any(1)[:, None] * 100.0


@pytest.mark.parametrize("way", ["attribute", "list", "dict", "array", "buffer", "hook", "object"])
def test_a_model_with_the_records_beside_its_weights_is_another_model(way) -> None:
    """Ours is the hash that a guarantee names; records ride on what it does not cover."""
    from shieldnet.data.hashing import weights_hash

    records = torch.randn(20, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Holder(5, 2)
    before = weights_hash(model)
    if way == "attribute":
        model.known = records
    elif way == "list":
        model.settings = [{"x": records.tolist()}]
    elif way == "dict":
        model.settings = {"x": {"y": records}}
    elif way == "array":
        model.settings = records.numpy()
    elif way == "buffer":
        model.register_buffer("known", records, persistent=False)
    elif way == "hook":
        model.register_forward_hook(lambda module, given, output, kept=records: output)
    else:
        model.settings = type("Settings", (), {})()
        model.settings.x = records
    assert weights_hash(model) != before


def test_the_audit_refuses_a_guarantee_for_a_model_that_holds_more() -> None:
    data = torch.randn(40, 5), torch.arange(40) % 2
    other = torch.randn(40, 5), torch.arange(40) % 2
    private = sn.DPSGD(epsilon=1.0, delta=1e-3)
    found = sn.finetune(Holder(5, 2), data, private, epochs=1, start="public", progress=False)
    found.model.known = data[0]
    with pytest.raises(sn.errors.ConfigError, match="The guarantee is of other weights"):
        sn.audit(sn.harden(found.model), members=data, nonmembers=other, finetuned=found.guarantee)


@pytest.fixture
def training(monkeypatch):
    """Returns a training that is stopped in the middle, and one that goes on."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=generator)
    data = inputs, inputs[:, :2].argmax(1)
    model = nn.Linear(5, 2)

    real_save = checkpoint.save

    def run(folder, stop=0, epochs=5):
        def save(folder, key, state):
            real_save(folder, key, state)
            if stop and state.step == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint, "save", save)
        return sn.finetune(
            model,
            data,
            sn.DPSGD(epsilon=1.0, delta=1e-3),
            epochs=epochs,
            start="public",
            checkpoint=folder,
            checkpoint_every_s=1e-9,
            progress=False,
        )

    return run


def stopped(training, folder, stop) -> None:
    with pytest.raises(KeyboardInterrupt):
        training(folder, stop=stop)


def test_a_crash_can_be_continued_and_the_run_keeps_its_name(training, tmp_path) -> None:
    stopped(training, tmp_path, 2)
    run = json.loads((tmp_path / "finetune.run").read_text())["run"]
    stopped(training, tmp_path, 4)  # a second crash
    done = training(tmp_path)
    assert done.guarantee.run == run
    assert (done.steps, done.guarantee.steps) == (5, 5)
    again = training(tmp_path)  # what is done is done: the same model, the same run
    assert again.guarantee == done.guarantee


def test_a_crash_between_the_two_files_can_be_continued(training, tmp_path) -> None:
    stopped(training, tmp_path, 2)
    before = (tmp_path / "finetune.run").read_bytes()
    stopped(training, tmp_path, 3)
    (tmp_path / "finetune.run").write_bytes(before)
    assert training(tmp_path).steps == 5


def test_a_second_continuation_of_one_checkpoint_is_refused(training, tmp_path) -> None:
    """Each would have stated the epsilon of one, and the noise of the rest was drawn twice."""
    stopped(training, tmp_path, 2)
    older = (tmp_path / "finetune.pt").read_bytes()
    training(tmp_path)
    (tmp_path / "finetune.pt").write_bytes(older)
    with pytest.raises(sn.errors.TrainingFailed, match="is an older state of the run"):
        training(tmp_path)
    (tmp_path / "finetune.run").unlink()
    with pytest.raises(sn.errors.TrainingFailed, match="whether .* was already continued"):
        training(tmp_path)


def test_two_processes_cannot_continue_one_checkpoint_at_once(training, tmp_path) -> None:
    stopped(training, tmp_path, 2)
    with (
        checkpoint.only_here(tmp_path),
        pytest.raises(sn.errors.TrainingFailed, match="Another process is training in"),
    ):
        training(tmp_path)
    assert training(tmp_path).steps == 5


def test_copies_of_a_folder_name_one_run_and_the_gate_refuses_both(training, tmp_path) -> None:
    stopped(training, tmp_path / "here", 2)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    one, other = training(tmp_path / "here"), training(tmp_path / "there")
    assert one.guarantee.run == other.guarantee.run
    assert one.guarantee.weights != other.guarantee.weights
    assert any("one model is published" in premise for premise in one.guarantee.premises)
    data = torch.randn(40, 5), torch.arange(40) % 2
    more = torch.randn(40, 5), torch.arange(40) % 2
    reports = [
        sn.audit(
            sn.harden(found.model, "strict"),
            members=data,
            nonmembers=more,
            finetuned=found,
            tier="quick",
            shadows=0,
            progress=False,
        )
        for found in (one, other)
    ]
    from shieldnet.reports.report import require

    limits = sn.Policy({"max_epsilon": 1.0})
    require(reports[:1], limits)
    with pytest.raises(
        sn.errors.PolicyFailed, match=f"2 different models name the run {one.guarantee.run}"
    ):
        require(reports, limits)
    assert sn.compare(*reports).outcome == "fail"


def test_a_changed_checkpoint_is_refused(training, tmp_path) -> None:
    """Other weights, or a step of 999: the file's own zip is rebuilt, and the seal does not fit."""
    stopped(training, tmp_path, 2)
    path = tmp_path / "finetune.pt"
    raw = path.read_bytes()
    import io

    content = torch.load(io.BytesIO(raw[:-32]), weights_only=True)
    for changes in ({"step": 999}, {"weights": {k: v + 1 for k, v in content["weights"].items()}}):
        forged = io.BytesIO()
        torch.save({**content, **changes}, forged)
        for seal in (raw[-32:], secrets.token_bytes(32)):
            path.write_bytes(forged.getvalue() + seal)
            with pytest.raises(sn.errors.TrainingFailed, match="does not match its key"):
                training(tmp_path)


def test_steps_beyond_the_plan_are_refused_even_with_the_key(training, tmp_path) -> None:
    import io

    stopped(training, tmp_path, 2)
    path, key = tmp_path / "finetune.pt", (tmp_path / "finetune.key").read_bytes()
    content = torch.load(io.BytesIO(path.read_bytes()[:-32]), weights_only=True)
    forged = io.BytesIO()
    torch.save({**content, "step": 999}, forged)
    path.write_bytes(forged.getvalue() + checkpoint.mac(key, forged.getvalue()))
    with pytest.raises(sn.errors.TrainingFailed, match="is at step 999 of a training with 5 steps"):
        training(tmp_path)


def test_the_key_of_the_environment_seals_checkpoints_and_leaves_none(
    training, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("SHIELDNET_KEY", secrets.token_hex(32))
    stopped(training, tmp_path, 2)
    assert not (tmp_path / "finetune.key").exists()
    monkeypatch.setenv("SHIELDNET_KEY", secrets.token_hex(32))
    with pytest.raises(sn.errors.TrainingFailed, match="same SHIELDNET_KEY"):
        training(tmp_path)


def test_the_folders_own_key_is_its_owners_alone(training, tmp_path) -> None:
    stopped(training, tmp_path, 2)
    assert (tmp_path / "finetune.key").stat().st_mode & 0o077 == 0


def test_a_guarantee_names_the_start_that_it_had() -> None:
    assert replace(GUARANTEE, start="00" * 32) != GUARANTEE


def test_a_checkpoint_goes_on_with_the_rate_that_it_was_begun_with(tmp_path) -> None:
    """Forty steps on all records, continued as if each had been drawn by a rare coin."""
    from torch.utils.data import DataLoader, TensorDataset

    inputs = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
    private = sn.DPSGD(noise_multiplier=1.0, delta=1e-3)
    settings = {"epochs": 4, "seed": 1, "checkpoint": tmp_path}
    sn.finetune(model, DataLoader(data, batch_size=100), private, **settings)
    with pytest.raises(sn.errors.TrainingFailed, match="belongs to another training"):
        sn.finetune(model, DataLoader(data, batch_size=10), private, **settings)
