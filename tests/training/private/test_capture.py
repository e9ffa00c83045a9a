import numpy as np
import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.training.private.capture import NotCaptured, capture, is_random, with_draws_given


def test_a_graph_depends_on_shapes_alone() -> None:
    seen = []

    def function(x):
        seen.append(x)
        return [x.exp().sum()]

    graph = capture(function, (torch.zeros(3),))
    assert float(graph(torch.ones(3))[0]) == pytest.approx(3 * 2.718281828)
    assert not any(type(tensor) is torch.Tensor for tensor in seen)


def test_writes_into_arguments_are_dropped() -> None:
    def function(buffer, x):
        buffer.add_(x)
        x.mul_(2)
        return [buffer * x]

    buffer, x = torch.ones(2), torch.full((2,), 3.0)
    graph = capture(function, (buffer, x))
    assert graph(buffer, x)[0].tolist() == [24.0, 24.0]
    assert buffer.tolist() == [1.0, 1.0]
    assert x.tolist() == [3.0, 3.0]


def test_gradients_are_part_of_a_graph() -> None:
    def function(weight, x):
        leaf = weight.detach().requires_grad_()
        return list(torch.autograd.grad((leaf * x).square().sum(), [leaf]))

    graph = capture(function, (torch.zeros(3), torch.zeros(3)))
    assert graph(torch.ones(3), torch.full((3,), 2.0))[0].tolist() == [8.0, 8.0, 8.0]


def test_draws_can_be_given() -> None:
    graph = capture(lambda x: [nn.functional.dropout(x) + torch.rand(3)], (torch.zeros(3),))
    assert is_random(graph)
    drawing, given = with_draws_given(graph)
    x = torch.ones(3)
    draws = drawing(x)
    assert len(draws) == 2
    assert torch.equal(given(x, *draws)[0], given(x, *draws)[0])
    assert not torch.equal(given(x, *draws)[0], given(x, *drawing(x))[0])
    assert not is_random(given)


@torch.library.custom_op("shieldnet_tests::remember", mutates_args=())
def remember(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


remember.register_fake(torch.empty_like)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: [x if x.sum() > 0 else -x], "reads the value of a tensor"),
        (lambda x: [x * x.sum().item()], "reads the value of a tensor"),
        (lambda x: [x[x > 0]], "reads the value of a tensor"),
        (lambda x: [torch.from_numpy(x.numpy() * 2)], "reads the value of a tensor|numpy"),
        (lambda x: [x * np.random.rand()], "draws with Python's random or numpy"),
        (lambda x: [remember(x)], "is not a built-in torch operator"),
        (
            lambda x: [x * torch.rand(3, generator=torch.Generator().manual_seed(0))],
            "stateful .*, such as a torch.Generator",
        ),
        (lambda x: [x @ torch.zeros(7, 7)], "tracing it failed with"),
        (
            lambda x: [
                nn.utils.rnn.pack_padded_sequence(x[None, :, None], x[:1].long(), True).data
            ],
            "packs sequences",
        ),
    ],
)
def test_what_is_no_graph_is_refused_with_the_reason(function, words) -> None:
    with pytest.raises(NotCaptured, match=words):
        capture(function, (torch.zeros(3),))


def test_our_own_errors_pass() -> None:
    def function(x):
        raise sn.errors.ConfigError("Expected something else.")

    with pytest.raises(sn.errors.ConfigError, match="something else"):
        capture(function, (torch.zeros(3),))
