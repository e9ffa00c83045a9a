import copy
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from shieldnet.data.hashing import (
    attribute_hashes,
    is_named_by,
    state_hash,
    unhashed,
    weights_hash,
)


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.scale = scale
        self.settings = {"sizes": [4, 3], "act": torch.relu}
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.itself = [self]

    def forward(self, x):
        return self.body(x) * self.scale * self.mask


def test_a_copy_and_the_same_factory_with_the_same_weights_are_one_model() -> None:
    model = Net()
    other = Net()
    assert weights_hash(other) != weights_hash(model)
    other.load_state_dict(model.state_dict())
    assert weights_hash(other) == weights_hash(model) == weights_hash(copy.deepcopy(model))


def test_modes_and_what_training_froze_do_not_count() -> None:
    model = Net()
    before = weights_hash(model)
    model.eval().requires_grad_(False)
    model(torch.ones(2, 4))
    assert weights_hash(model) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "scale", 2.0),
        lambda model: model.mask.zero_(),
        lambda model: model.settings["sizes"].append(7),
        lambda model: setattr(model.body, "2", nn.Identity()),
        lambda model: setattr(model.body[1], "eps", 1.0),
        lambda model: model.register_forward_hook(lambda *_: None),
        lambda model: model.body[0].weight.data.add_(1e-6),
        lambda model: model.double(),
        lambda model: setattr(model, "act", nn.ReLU()),
        lambda model: model.itself.append(nn.Linear(2, 2)),
    ],
)
def test_whatever_changes_what_it_answers_changes_the_hash(change) -> None:
    model = Net()
    before = weights_hash(model)
    change(model)
    assert weights_hash(model) != before


def test_what_cannot_be_hashed_is_named() -> None:
    model = Net()
    assert unhashed(model) == ()
    model.lock = threading.Lock()
    assert unhashed(model) == ("lock (lock)",)


def test_models_of_every_make_have_a_hash() -> None:
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    tied[1].weight = tied[0].weight
    normed = parametrizations.weight_norm(nn.Linear(3, 3))
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    for model in (tied, normed, traced, nn.LSTM(3, 3), nn.MultiheadAttention(4, 2)):
        assert weights_hash(model) == weights_hash(copy.deepcopy(model))
        assert len(state_hash(model)) == 64


def test_forests_are_told_apart_by_their_trees() -> None:
    from sklearn.ensemble import RandomForestClassifier

    import shieldnet as sn

    draw = np.random.default_rng(0)
    inputs, labels = draw.normal(size=(40, 3)), draw.integers(0, 2, (2, 40))
    forests = [
        RandomForestClassifier(3, random_state=0).fit(inputs, y) for y in (*labels, labels[0])
    ]
    hashes = [weights_hash(sn.harden(forest).model, compiled=True) for forest in forests]
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_hash_that_python_makes_anew_in_every_process_does_not_count() -> None:
    hashes = set()
    for own in (1, 2):
        model = nn.Linear(2, 3)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        model.generation = SimpleNamespace(temperature=1.0, _original_object_hash=own)
        hashes.add(weights_hash(model))
    assert len(hashes) == 1


def test_gradients_that_a_training_left_do_not_count() -> None:
    model = Net().eval()  # no statistics of batches
    before = weights_hash(model), state_hash(model)
    model(torch.randn(3, 4)).sum().backward()
    model.mask.grad = torch.ones(3)
    assert model.body[0].weight.grad is not None
    assert (weights_hash(model), state_hash(model)) == before
    model.body[0].weight.grad_sample = torch.ones(3, 3, 4)  # as opacus leaves them
    model.body[0].weight.summed_grad = torch.ones(3, 4)
    with_samples = weights_hash(model)
    del model.body[0].weight.grad_sample, model.body[0].weight.summed_grad
    model.zero_grad()
    assert with_samples == weights_hash(model) == before[0]
    model.body[0].weight.kept = torch.ones(3)
    assert weights_hash(model) != before[0]


class Switched(nn.Module):
    """Answers by a path, which is no mere trace of where its weights came from."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.name_or_path = path

    def forward(self, x):
        return x.sin() if self.name_or_path == "sin" else x.cos()


def test_a_path_counts_where_it_is_the_users_own() -> None:
    assert weights_hash(Switched("sin")) != weights_hash(Switched("cos"))
    assert is_named_by(Switched("sin"), weights_hash(Switched("sin")))
    assert not is_named_by(Switched("sin"), weights_hash(Switched("cos")))
    assert not is_named_by(Switched("sin"), None)


def test_attributes_are_told_apart_by_name_and_cannot_be_guessed_by_their_hash() -> None:
    first, second = Net(), Net()
    second.load_state_dict(first.state_dict())
    assert attribute_hashes(first) == attribute_hashes(second)
    second.scale = 2.0
    hashes = attribute_hashes(first), attribute_hashes(second)
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == {"scale"}
    assert {len(one) for one in hashes[0].values()} == {2}
    for model in (first, second):
        nn.Linear(1, 1).register_forward_hook(print)  # counts the hooks of all models
        model.register_forward_hook(print)
    assert attribute_hashes(first)["_forward_hooks"] == attribute_hashes(second)["_forward_hooks"]
