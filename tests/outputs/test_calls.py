"""A call that a model cannot answer is refused with the one that works."""

import collections

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

INPUTS = {"input_ids": torch.randint(0, 9, (4, 3)), "attention_mask": torch.ones(4, 3)}


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones(input_ids.shape) if attention_mask is None else attention_mask
        return self.head((self.words(input_ids) * mask.unsqueeze(-1)).mean(1))


class OfDict(nn.Module):
    """Takes a dict in the place of its only argument."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = Texts()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.texts(**inputs)


@pytest.mark.parametrize("container", [dict, collections.UserDict])
@pytest.mark.parametrize("names", [("input_ids",), ("input_ids", "attention_mask")])
def test_a_dict_in_place_of_named_arguments_is_refused_with_the_call(container, names) -> None:
    shield = sn.harden(Texts())
    inputs = container({name: INPUTS[name] for name in names})
    with pytest.raises(sn.errors.AnswerError, match=r"one dict of input_ids.*shield\(\*\*inputs\)"):
        shield(inputs)
    assert shield(**inputs).shape == (4, 2)


@pytest.mark.parametrize("container", [tuple, list])
def test_a_tuple_in_place_of_arguments_is_refused_with_the_call(container) -> None:
    shield = sn.harden(Texts())
    with pytest.raises(sn.errors.AnswerError, match=r"takes input_ids, attention_mask: shield\(\*"):
        shield(container(INPUTS.values()))
    assert shield(*INPUTS.values()).shape == (4, 2)


def test_a_model_of_one_dict_is_asked_by_it() -> None:
    assert sn.harden(OfDict())(INPUTS).shape == (4, 2)


def test_what_else_fails_is_the_models_own_error() -> None:
    shield = sn.harden(Texts())
    with pytest.raises(TypeError, match="token_type_ids"):
        shield(**INPUTS, token_type_ids=INPUTS["input_ids"])
    with pytest.raises((TypeError, AttributeError)):
        shield({"pixels": INPUTS["input_ids"]})
    with pytest.raises(KeyError):
        sn.harden(Broken())({"input_ids": INPUTS["input_ids"]})


class Broken(nn.Module):
    """Takes a dict and looks for what is not in it."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["missing"]
