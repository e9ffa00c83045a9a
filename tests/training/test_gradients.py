import copy
import math

import pytest
import torch
from torch import nn

from shieldnet.training.gradients import WAYS, clipped_sum
from shieldnet.training.losses import Criterion

CRITERION = Criterion()


def losses(predict, inputs, labels):
    return CRITERION(predict(inputs), labels)


def one_by_one(model, inputs, labels, clip) -> list[torch.Tensor]:
    """Clips and sums record by record, in double precision: the definition."""
    model = model.double()
    weights = list(model.parameters())
    total = [torch.zeros_like(one) for one in weights]
    for place in range(len(inputs)):
        loss = losses(model, inputs[place : place + 1].double(), labels[place : place + 1])
        found = torch.autograd.grad(loss.sum(), weights)
        norm = math.sqrt(sum(float(one.square().sum()) for one in found))
        for one, add in zip(total, found, strict=True):
            one += add * min(1.0, clip / norm)
    return total


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clip", [0.05, 1.0, 100.0])
def test_every_way_is_the_definition(way, clip, pictures, make_model) -> None:
    def model() -> nn.Module:
        return make_model(
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
            )
        )

    inputs, labels = (one[:7] for one in pictures)
    used = WAYS[way](model(), losses, clip)
    found = used(inputs, labels)
    for one, right in zip(found, one_by_one(model(), inputs, labels, clip), strict=True):
        assert torch.allclose(one.double(), right, rtol=1e-3, atol=1e-5 * clip)
    used.release()
    assert list(used.model.state_dict()) == list(model().state_dict())
    assert not any(one._forward_hooks or one._backward_hooks for one in used.model.modules())


@pytest.mark.parametrize("way", [name for name, one in WAYS.items() if one.takes_views])
def test_views_are_averaged_before_they_are_clipped(way, table, mlp) -> None:
    inputs, labels = (one[:4] for one in table)
    used = WAYS[way](copy.deepcopy(mlp), losses, 1e-2, views=2)
    twice = [one.repeat_interleave(2, 0) for one in (inputs, labels)]
    twice[0][1::2] *= -1
    found = used(*twice)
    each = [WAYS["functional"](mlp, losses, 1e9).each(half, labels) for half in (inputs, -inputs)]
    mean = [(one + other) / 2 for one, other in zip(*each, strict=True)]
    for one, right in zip(found, clipped_sum(mean, 1e-2), strict=True):
        assert torch.allclose(one, right, atol=1e-6)
    used.release()


def test_one_record_never_moves_the_sum_by_more_than_the_clip_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,)]
    for scale in (1e-30, 1e-3, 1.0, 1e3, 1e15):
        each = [scale * torch.randn(6, *shape, generator=generator) for shape in shapes]
        for one in clipped_sum([part[:1] for part in each], 2.0):
            assert torch.isfinite(one).all()
        moved = torch.cat([one.flatten() for one in clipped_sum([p[:1] for p in each], 2.0)])
        assert float(moved.double().norm()) <= 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_what_has_no_finite_norm_counts_as_nothing(bad) -> None:
    each = [torch.ones(3, 4), torch.ones(3, 2)]
    each[0][1, 2] = bad
    found = clipped_sum(each, 1.0)
    right = clipped_sum([one[[0, 2]] for one in each], 1.0)
    assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [math.nan, 1e30])
def test_a_broken_record_counts_as_nothing_in_every_way(way, bad, table, mlp) -> None:
    inputs, labels = (one[:4].clone() for one in table)
    inputs[2] = bad
    used = WAYS[way](nn.Sequential(nn.Linear(12, 3)), losses, 1.0)
    found, right = used(inputs, labels), used(inputs[[0, 1, 3]], labels[[0, 1, 3]])
    assert all(torch.allclose(one, other) for one, other in zip(found, right, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_no_records_ask_nothing(way, table, mlp) -> None:
    inputs, labels = (one[:0] for one in table)
    used = WAYS[way](mlp, losses, 1.0)
    assert all(float(one.abs().sum()) == 0 for one in used(inputs, labels))
