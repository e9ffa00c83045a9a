from dataclasses import dataclass

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.training.losses import Criterion


def accuracy(model, data) -> float:
    return float((model(data[0]).argmax(-1) == data[1]).double().mean())


def finetune(model, data, *countermeasures, **settings):
    return sn.finetune(model, data, *countermeasures, seed=0, progress=False, **settings)


ALL = [
    sn.countermeasures.Augment(noise=0.1),
    sn.countermeasures.WeightDecay(1e-2),
    sn.countermeasures.LabelSmoothing(0.2),
    sn.countermeasures.LabelSmoothing(-0.05),
    sn.countermeasures.Adversarial(0.1, steps=3, low=-5, high=5),
    sn.countermeasures.Adversarial(0.1, steps=3, low=-5, high=5, trades=2.0),
    sn.countermeasures.AntiAdversarial(0.1, low=-5, high=5),
    sn.countermeasures.TransferFreeze(1),
    sn.countermeasures.BiDO(("1",)),
    sn.countermeasures.MID("1"),
]


@pytest.mark.parametrize("countermeasure", ALL, ids=str)
def test_every_countermeasure_trains_a_model(countermeasure, table, mlp) -> None:
    found = finetune(mlp, table, countermeasure, epochs=15)
    assert accuracy(found.model, table) > 0.8
    assert found.guarantee is None
    assert list(found.model.state_dict()) == list(mlp.state_dict())
    assert all(one.requires_grad for one in found.model.parameters())


@pytest.mark.parametrize("countermeasure", [one for one in ALL if one.private], ids=str)
def test_what_composes_with_dp_is_private(countermeasure, table, mlp) -> None:
    found = finetune(mlp, table, countermeasure, sn.DPSGD(8.0, 1e-3), epochs=3)
    assert found.preflight.sensitivity <= 1
    assert found.guarantee.epsilon <= 8


@pytest.mark.parametrize("countermeasure", [one for one in ALL if not one.private], ids=str)
def test_what_mixes_records_does_not_compose_with_dp(countermeasure, table, mlp) -> None:
    with pytest.raises(sn.errors.ConfigError, match="does not compose with DPSGD"):
        finetune(mlp, table, countermeasure, sn.DPSGD(8.0, 1e-3))


def test_an_augmentation_that_mixes_records_is_caught_by_preflight(table, mlp) -> None:
    mixing = sn.countermeasures.Augment(transform=lambda inputs: inputs - inputs.mean(0))
    with pytest.raises(sn.errors.PreflightFailed, match="mixed records in the countermeasures"):
        finetune(mlp, table, mixing, sn.DPSGD(8.0, 1e-3))


def test_all_of_them_compose(table, mlp) -> None:
    found = finetune(
        mlp,
        table,
        sn.countermeasures.Augment(noise=0.05),
        sn.countermeasures.WeightDecay(1e-3),
        sn.countermeasures.LabelSmoothing(0.1),
        sn.countermeasures.Adversarial(0.05, steps=2, low=-5, high=5, trades=1.0),
        epochs=15,
    )
    assert accuracy(found.model, table) > 0.8


def test_shifts_and_flips_keep_pixels_and_move_each_picture_by_itself() -> None:
    images = torch.arange(1.0, 51).reshape(2, 1, 5, 5).repeat(40, 1, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moved = sn.countermeasures.Augment(shift=1).move(images, None, None, None)
    assert moved.shape == images.shape
    centers = {float(one[0, 2, 2]) for one in moved[::2]}
    assert centers == {7.0, 8.0, 9.0, 12.0, 13.0, 14.0, 17.0, 18.0, 19.0}
    flipped = sn.countermeasures.Augment(flip=True).move(images, None, None, None)
    kept = [torch.equal(one, other) for one, other in zip(flipped, images, strict=True)]
    assert 0 < sum(kept) < 80
    assert all(
        torch.equal(one, other) or torch.equal(one, other.flip(-1))
        for one, other in zip(flipped, images, strict=True)
    )


def test_views_without_augmentation_are_refused(table, mlp) -> None:
    with pytest.raises(sn.errors.ConfigError, match="needs Augment"):
        finetune(mlp, table, sn.DPSGD(8.0, 1e-3, augmentations=4))
    found = finetune(
        mlp,
        table,
        sn.countermeasures.Augment(noise=0.1),
        sn.DPSGD(8.0, 1e-3, augmentations=4),
        epochs=2,
    )
    assert found.guarantee.epsilon <= 8


def test_smoothing_is_the_field_s_own() -> None:
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    right = nn.functional.cross_entropy(scores, labels, label_smoothing=0.3, reduction="none")
    assert torch.allclose(Criterion(smoothing=0.3)(scores, labels), right)


def test_positions_are_averaged_within_their_record_and_some_count_for_nothing() -> None:
    scores = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, -100], [2, 3, 1]])
    each = Criterion(axis=-1)(scores, labels)
    right = nn.functional.cross_entropy(scores[0, :2], labels[0, :2])
    assert float(each[0]) == pytest.approx(float(right))


def test_adversarial_inputs_stay_in_the_ball_and_raise_the_loss(table, mlp) -> None:
    inputs, labels = table
    loss = Criterion()
    attack = sn.countermeasures.Adversarial(0.2, low=-5, high=5)
    moved = attack.move(inputs, labels, mlp, loss)
    assert float((moved - inputs).abs().max()) <= 0.2 + 1e-6
    assert (loss(mlp(moved), labels) > loss(mlp(inputs), labels)).double().mean() > 0.95
    easier = sn.countermeasures.AntiAdversarial(0.2, low=-5, high=5).move(inputs, labels, mlp, loss)
    assert (loss(mlp(easier), labels) < loss(mlp(inputs), labels)).double().mean() > 0.95


def test_adversarial_training_makes_robust(table, mlp) -> None:
    attack = sn.countermeasures.Adversarial(0.3, low=-5, high=5)
    plain, robust = (finetune(mlp, table, *chosen, epochs=30).model for chosen in ((), (attack,)))
    right = [
        accuracy(one, (attack.move(*table, one, Criterion()), table[1])) for one in (plain, robust)
    ]
    assert right[1] > right[0]


def test_a_frozen_layer_stays_as_it_came(table, mlp) -> None:
    found = finetune(mlp, table, sn.countermeasures.TransferFreeze(1), epochs=2).model
    assert torch.equal(found[0].weight, mlp[0].weight)
    assert not torch.equal(found[2].weight, mlp[2].weight)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sn.countermeasures.Augment(), "changes nothing"),
        (lambda: sn.countermeasures.Augment(noise=-1.0), "Expected noise >= 0"),
        (lambda: sn.countermeasures.WeightDecay(0.0), "Expected a finite rate > 0"),
        (lambda: sn.countermeasures.LabelSmoothing(0.0), "Expected amount between"),
        (lambda: sn.countermeasures.Adversarial(0.0), "Expected a finite epsilon > 0"),
        (lambda: sn.countermeasures.Adversarial(0.1, low=1.0, high=0.0), "Expected low < high"),
        (lambda: sn.countermeasures.TransferFreeze(0), "Expected layers >= 1"),
        (lambda: sn.countermeasures.BiDO("1"), "Expected names of hidden modules"),
        (lambda: sn.countermeasures.MID(""), "Expected names of hidden modules"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        make()


def test_what_does_not_fit_the_data_is_said(table, mlp) -> None:
    for countermeasure, words in (
        (sn.countermeasures.Augment(shift=1), "Only images"),
        (sn.countermeasures.BiDO(("nowhere",)), "has no module 'nowhere'"),
        (sn.countermeasures.TransferFreeze(2), "Expected layers below 2"),
        ("WeightDecay", "Expected countermeasures such as"),
    ):
        with pytest.raises(sn.errors.ConfigError, match=words):
            finetune(mlp, table, countermeasure)
    with pytest.raises(
        sn.errors.ConfigError, match="LabelSmoothing needs the built-in classification loss"
    ):
        finetune(mlp, table, sn.countermeasures.LabelSmoothing(0.1), loss=nn.CrossEntropyLoss())


@dataclass(frozen=True)
class Shrink(sn.countermeasures.Countermeasure):
    """Learns from smaller inputs: a toy of one's own."""

    by: float = 0.5

    def move(self, inputs, labels, predict, loss) -> torch.Tensor:
        return inputs * self.by


@pytest.mark.parametrize("more", [(), (sn.DPSGD(8.0, 1e-3),)], ids=["plain", "private"])
def test_a_countermeasure_of_ones_own_is_trained_with(more, table, mlp) -> None:
    inputs, labels = table
    shrunk = sn.finetune(mlp, table, Shrink(), *more, epochs=2, seed=0).model
    same = sn.finetune(mlp, (inputs * 0.5, labels), *more, epochs=2, seed=0).model
    for one, other in zip(shrunk.parameters(), same.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
