from dataclasses import replace

import pytest
import torch

import shieldnet as sn
from shieldnet.training.distributed import Ranks
from shieldnet.training.identity import differences
from shieldnet.training.plan import Plan
from shieldnet.training.records import as_records
from shieldnet.training.settings import FinetuneSettings, Optimization


def settings(**changes) -> FinetuneSettings:
    usual = FinetuneSettings(
        epochs=3.0,
        batch_size=20,
        optimization=Optimization("sgd", 0.1, None),
        train=sn.trainable.Full(),
        outputs="logits",
        axis=None,
        fix=False,
        seed=None,
    )
    return replace(usual, **changes)


def test_steps_and_claim_are_known_before_a_weight_is_copied(table, mlp) -> None:
    plan = Plan.of(mlp, as_records(table), (sn.DPSGD(8.0, 1e-3),), settings())
    assert (plan.size, plan.rate, plan.steps) == (20, 20 / 120, 18)
    assert plan.claimed.steps == 18
    assert plan.noise == plan.claimed.noise_multiplier
    assert plan.claimed.epsilon <= 8


def test_without_a_guarantee_an_epoch_is_whole_batches(table, mlp) -> None:
    plan = Plan.of(mlp, as_records(table), (), settings(batch_size=50))
    assert (plan.size, plan.steps, plan.claimed, plan.noise) == (50, 9, None, 0.0)


def test_whatever_changes_the_training_changes_its_key(table, mlp) -> None:
    records, private = as_records(table), sn.DPSGD(8.0, 1e-3)
    everyone = replace(private, sampler=sn.AllRecords())
    plans = [
        Plan.of(mlp, records, (private,), settings(batch_size=None)),
        Plan.of(mlp, records, (private,), settings(batch_size=None, seed=1)),
        Plan.of(mlp, records, (private,), settings(batch_size=None, epochs=4.0)),
        Plan.of(mlp, records, (private,), settings(batch_size=None, train=sn.trainable.LoRA())),
        Plan.of(mlp, records, (private,), settings(batch_size=None), start="public"),
        Plan.of(mlp, records, (everyone,), settings(batch_size=None)),
        Plan.of(mlp, records, (private, sn.countermeasures.WeightDecay()), settings()),
    ]
    keys = [plan.identity(Ranks()) for plan in plans]
    assert len({key["all"] for key in keys}) == len(keys)
    assert all(differences(keys[0], key) for key in keys[1:])
    assert plans[0].identity(Ranks()) == keys[0] != plans[0].identity(Ranks(0, 2))


@pytest.mark.parametrize(
    ("optimization", "kind", "momentum"),
    [
        (Optimization("sgd", 0.1, None), torch.optim.SGD, 0.9),
        (Optimization("sgd", 0.1, 0.0), torch.optim.SGD, 0.0),
        (Optimization("adam", 0.1, None), torch.optim.AdamW, None),
    ],
)
def test_the_optimizer_gets_the_decay_of_all_countermeasures(
    optimization, kind, momentum, table, mlp
) -> None:
    decays = (sn.countermeasures.WeightDecay(0.25), sn.countermeasures.WeightDecay(0.5))
    plan = Plan.of(mlp, as_records(table), decays, settings(optimization=optimization))
    (group,) = plan.optimizer(mlp).param_groups
    assert isinstance(plan.optimizer(mlp), kind)
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.75)
    assert group.get("momentum") == momentum
