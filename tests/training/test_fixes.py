"""What fix=True changed is said, recorded beside the weights, and made again when they are read."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shell import shieldnet
from torch import nn

import shieldnet as sn
from shieldnet.data.hashing import weights_hash
from shieldnet.files.group_norms import METADATA, metadata_of, norms_in
from shieldnet.files.weights import (
    load_exactly,
    load_weights,
    parse_weights,
    read_weights,
    weights_bytes,
)
from shieldnet.training.result import Finetuned

PRIVATE = sn.DPSGD(epsilon=8.0, delta=1e-3)
FACTORY = """
import torch
from torch import nn

def net(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 3), norm(16), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Linear(256, 3))

def own():
    return net(lambda channels: nn.GroupNorm(16, channels))
"""


def net(norm=nn.BatchNorm2d) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 16, 3), norm(16), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Linear(256, 3))


def own() -> nn.Module:
    return net(lambda channels: nn.GroupNorm(16, channels))


@pytest.fixture(scope="module")
def private(images) -> Finetuned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = net()
    settings = {"epochs": 2, "fix": True, "seed": 0, "progress": False}
    return sn.finetune(model, images, PRIVATE, start="public", **settings)


def test_the_applied_fixes_are_listed_in_preflight_and_in_the_result(private) -> None:
    fixed = "replaced layer 0.1 (BatchNorm2d) by GroupNorm(2, 16)"
    assert private.preflight.fixes == (fixed,)
    for text in (str(private.preflight), str(private)):
        assert f"fix=True has {fixed}" in text


def test_a_fix_is_said_before_the_training(images, caplog) -> None:
    with caplog.at_level(logging.INFO, "shieldnet"):
        sn.finetune(net(), images, PRIVATE, start="public", epochs=1, fix=True, seed=0)
    fixed = "fix=True has replaced layer 0.1 (BatchNorm2d) by GroupNorm(2, 16)"
    assert caplog.messages[0] == fixed


def test_every_kind_of_fix_is_listed(table, make_model) -> None:
    class Forgetting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.forgotten = nn.Linear(12, 3), nn.Linear(2, 2, bias=False)
            self.norm = nn.BatchNorm1d(12, affine=False)

        def forward(self, x):
            return self.used(self.norm(x))

    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    found = sn.finetune(
        make_model(Forgetting), table, PRIVATE, epochs=1, fix=True, loss=weighted, seed=0
    )
    listed = "\n".join(found.preflight.fixes)
    assert "kept layer norm (BatchNorm1d) in evaluation mode" in listed
    assert "froze forgotten.weight" in listed
    assert "class weights divided by their mean" in listed


def test_a_hazard_says_which_fix_is_made(images, make_model) -> None:
    with pytest.raises(sn.errors.PreflightFailed) as refused:
        sn.finetune(make_model(net), images, PRIVATE)
    assert "Replace it by nn.GroupNorm(2, 16)" in str(refused.value)
    assert "(fix=True puts GroupNorm(2, 16) in its place)" in str(refused.value)


def test_saved_weights_load_into_the_model_that_was_given(private, tmp_path, make_model) -> None:
    private.save(tmp_path)
    model = make_model(net)
    load_weights(model, tmp_path / "model.safetensors", "net")
    guarantee = sn.Guarantee.read(json.loads((tmp_path / "guarantee.json").read_text()))
    assert isinstance(model[0][1], nn.GroupNorm)
    assert guarantee.weights == weights_hash(model)


def test_weights_for_another_group_norm_name_the_one_that_was_trained(
    private, tmp_path, make_model
) -> None:
    private.save(tmp_path)
    with pytest.raises(
        sn.errors.DataError,
        match=r"trained with nn.GroupNorm\(2, 16, eps=1e-05\) as 0.1, and the model has nn.Group"
        r"Norm\(16, 16",
    ):
        load_weights(make_model(own), tmp_path / "model.safetensors", "own")


def test_weights_without_the_record_name_the_layer_to_put_in(private, tmp_path, make_model) -> None:
    path = tmp_path / "plain.pt"
    torch.save(private.model.state_dict(), path)
    with pytest.raises(sn.errors.DataError, match=r"put nn.GroupNorm\(2, 16\) in place of 0.1"):
        load_weights(make_model(net), path, "net")


@pytest.mark.parametrize(
    "entry",
    ['{"0.1": {"groups": 3, "channels": 16}}', '{"0.1": {"kind": "eval"}}', '{"0.1": 7}', "[]"],
)
def test_a_record_that_no_training_writes_is_refused(entry, private) -> None:
    from safetensors.torch import save

    content = save({"x": torch.zeros(1)}, {METADATA: entry})
    with pytest.raises(sn.errors.DataError, match="GroupNorm"):
        norms_in(content, "w.safetensors")


def test_weights_without_group_norm_have_no_record(mlp) -> None:
    assert parse_weights(weights_bytes(mlp), "mlp").norms == {}
    assert b"__metadata__" not in weights_bytes(mlp)


def test_a_fixed_model_is_audited_hardened_and_verified_by_its_factory(tmp_path, images) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    inputs, labels = images
    for name, rows in (("members", slice(0, 24)), ("others", slice(24, 48))):
        np.savez(tmp_path / f"{name}.npz", x=inputs[rows].numpy(), y=labels[rows].numpy())
    trained = shieldnet(
        tmp_path, "finetune", "mine:net", "--data", "members.npz", "-o", "private",
        "--epsilon", "8", "--delta", "1e-3", "--epochs", "2", "--start", "public", "--fix",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "--fix has replaced layer 0.1 (BatchNorm2d) by GroupNorm(2, 16)" in trained.stdout
    weights = ("--weights", "private/model.safetensors")
    audited = shieldnet(
        tmp_path, "audit", "mine:net", *weights, "--guarantee", "private/guarantee.json",
        "--members", "members.npz", "--nonmembers", "others.npz", "--tier", "quick",
        "--shadows", "0", "-o", "report.json",
    )  # fmt: skip
    assert audited.returncode == 0, audited.stderr
    assert "training: epsilon 8.00 at delta 0.001, proven." in audited.stdout
    hardened = shieldnet(
        tmp_path, "harden", "mine:net", *weights, "-o", "hardened", "--report", "report.json"
    )
    assert hardened.returncode == 0, hardened.stderr
    verified = shieldnet(tmp_path, "verify", "hardened", "--model", "mine:net")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    other = shieldnet(
        tmp_path, "audit", "mine:own", *weights, "--members", "members.npz",
        "--nonmembers", "others.npz",
    )  # fmt: skip
    assert other.returncode == 2
    assert "trained with nn.GroupNorm(2, 16" in other.stderr


def test_saved_weights_bring_their_group_norms_into_a_new_model(private, tmp_path) -> None:
    folder = private.save(tmp_path / "private")
    model = sn.load_weights(net(), folder / "model.safetensors")
    assert weights_hash(model) == weights_hash(private.model)
    state = weights_bytes(private.model)
    lying = {name: tensor for name, tensor in parse_weights(state, "w").items() if name[0] != "1"}
    save_file(lying, folder / "less.safetensors", metadata_of(private.model))
    other = net().eval()
    before = weights_hash(other)
    with pytest.raises(sn.errors.DataError, match="it lacks"):
        sn.load_weights(other, folder / "less.safetensors")
    assert weights_hash(other) == before
    with pytest.raises(sn.errors.DataError, match="it lacks"):
        load_exactly(other, read_weights(folder / "less.safetensors"), "less", "net")
    assert weights_hash(other) == before
    with pytest.raises(sn.errors.DataError, match="put the former into the factory"):
        sn.load_weights(net(lambda n: nn.GroupNorm(16, n)), str(folder / "model.safetensors"))
