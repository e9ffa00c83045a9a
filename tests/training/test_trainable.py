import dataclasses

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.training.trainable import BY_NAME, choose_trainable


def trained(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_only_what_required_a_gradient_is_trained(mlp) -> None:
    mlp[0].bias.requires_grad_(False)
    choose_trainable(mlp, sn.trainable.Full())
    assert trained(mlp) == {"0.weight", "2.weight", "2.bias"}
    choose_trainable(mlp, sn.trainable.Biases())
    assert trained(mlp) == {"2.bias"}


def test_values_are_frozen_and_equal_by_what_they_say() -> None:
    assert sn.trainable.LoRA() == sn.trainable.LoRA(4) != sn.trainable.LoRA(8)
    assert repr(sn.trainable.LoRA(8)) == "LoRA(rank=8)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        sn.trainable.LoRA().rank = 8


@pytest.mark.parametrize("rank", [0, -1, 2.0, True])
def test_a_rank_that_is_none_is_refused(rank) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected rank >= 1"):
        sn.trainable.LoRA(rank)


@pytest.mark.parametrize("name", BY_NAME)
def test_where_nothing_is_left_to_train_the_value_and_the_reason_are_named(name) -> None:
    frozen = nn.Sequential(nn.Embedding(4, 2)).requires_grad_(False)
    with pytest.raises(sn.errors.ConfigError) as refused:
        choose_trainable(frozen, BY_NAME[name])
    assert f"nothing to train with train={BY_NAME[name]!r}" in str(refused.value)


class First(sn.trainable.Trainable):
    """Trains the first layer alone: a toy of one's own."""

    def choose(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        next(model.children()).requires_grad_(True)


def test_a_choice_of_ones_own_is_trained_and_proven_for(table, mlp) -> None:
    result = sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), train=First(), epochs=2, seed=0)
    assert result.guarantee.epsilon <= 8
    assert not torch.equal(result.model[0].weight, mlp[0].weight)
    assert torch.equal(result.model[2].weight, mlp[2].weight)
