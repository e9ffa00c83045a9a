from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks.membership.perturbations import COPIES
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.data.examples import Canaries, Examples
from shieldnet.findings.finding import NotApplicable
from shieldnet.running.store import Cache


def examples(name: str, rows: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 6, generator=generator)
    return Examples(name, inputs, torch.randint(0, 3, (rows,), generator=generator))


SETS = {
    "members": examples("members", 60, 1),
    "nonmembers": examples("nonmembers", 40, 2),
    "auxiliary": examples("auxiliary", 50, 3),
}


def make() -> nn.Module:
    return nn.Linear(6, 3)


def train(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    return model


def plan(train=train, count: int = 4, **more) -> ShadowPlan:
    return ShadowPlan(train, count, sn.Shield(make()), **{**SETS, **more})


def test_shadows_answer_about_every_set_and_know_what_trained_them() -> None:
    found = train_shadows(plan(), engine="inline")
    assert found.scores["members"].shape == (4, 60, 3)
    assert found.perturbed["nonmembers"].shape == (4, COPIES, 40, 3)
    assert found.trained_on["members"].float().mean() == pytest.approx(0.6, abs=0.1)
    assert not found.trained_on["auxiliary"].any()
    assert not found.weaker
    assert found.how == "4 shadows trained by train"


def test_a_shadow_is_what_train_makes_of_its_records() -> None:
    found = train_shadows(plan(), engine="inline")
    pool = [SETS["members"], SETS["nonmembers"]]
    inputs = torch.cat([one.inputs[found.trained_on[one.name][2]] for one in pool])
    labels = torch.cat([one.labels[found.trained_on[one.name][2]] for one in pool])
    seed = int(np.random.SeedSequence(0).generate_state(4)[2]) >> 1
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        with torch.enable_grad():
            model = train((inputs, labels), seed)
        assert torch.allclose(model(pool[0].inputs), found.scores["members"][2], atol=1e-5)


def test_every_engine_trains_the_same_shadows() -> None:
    here = train_shadows(plan(sn.Recipe(make, epochs=3), 16), engine="inline")
    there = train_shadows(plan(sn.Recipe(make, epochs=3), 16), engine="processes", workers=2)
    for name in here.scores:
        assert torch.equal(here.scores[name], there.scores[name])


def test_without_train_small_networks_stand_for_the_target_and_say_so() -> None:
    found = train_shadows(plan(None), engine="inline")
    assert found.weaker
    assert "small networks stand for them, the weaker form" in found.how
    assert found.scores["members"].shape == (4, 60, 3)


def test_reference_networks_speak_as_the_target_does() -> None:
    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3].softmax(-1)

    shield = sn.Shield(Says(), outputs="probabilities")
    found = train_shadows(ShadowPlan(None, 4, shield, **SETS), engine="inline")
    assert torch.allclose(found.scores["members"].sum(-1), torch.ones(4, 60))


def test_planted_duplicates_train_a_shadow_as_often_as_the_target() -> None:
    counts = []

    def counting(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        counts.append(int((data[0][:, 0] == 7).sum()))
        return train(data, seed)

    planted, held_out = (
        Examples(name, torch.full((3, 6), 7.0), torch.zeros(3, dtype=torch.int64))
        for name in ("canaries", "held-out canaries")
    )
    canaries = Canaries("duplicated", planted, held_out, copies=5)
    found = train_shadows(plan(counting, canaries=canaries), engine="inline")
    trained_on = torch.cat([found.trained_on["canaries"], found.trained_on["held-out canaries"]], 1)
    assert counts[-4:] == (5 * trained_on.sum(1)).tolist()


@dataclass(frozen=True)
class Counting:
    """Trains, counts in a file, and stops as if it had been killed where a second file says so."""

    folder: Path

    def __call__(self, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        with (self.folder / "log").open("a") as log:
            log.write(f"{seed}\n")
        if self.calls() > int((self.folder / "limit").read_text()):
            raise KeyboardInterrupt
        return train(data, seed)

    def calls(self) -> int:
        return len((self.folder / "log").read_text().splitlines())


def test_a_killed_run_goes_on_where_it_was(tmp_path) -> None:
    cache, counting = Cache(tmp_path / "cache"), Counting(tmp_path)
    (tmp_path / "limit").write_text("6")
    with pytest.raises(KeyboardInterrupt):
        train_shadows(plan(counting), engine="inline", cache=cache)
    done = len(list(cache.folder.iterdir()))
    assert 0 < done < 4
    (tmp_path / "limit").write_text("99")
    before = counting.calls()
    found = train_shadows(plan(counting), engine="inline", cache=cache)
    # Three probes, and the shadows that were not there yet.
    assert counting.calls() - before == 3 + 4 - done
    fresh = train_shadows(plan(counting), engine="inline")
    assert torch.equal(found.scores["members"], fresh.scores["members"])


def test_another_recipe_or_seed_is_never_answered_from_the_cache(tmp_path) -> None:
    cache = Cache(tmp_path)
    one = train_shadows(plan(sn.Recipe(make, epochs=3)), engine="inline", cache=cache)
    two = train_shadows(plan(sn.Recipe(make, epochs=4)), engine="inline", cache=cache)
    three = train_shadows(plan(sn.Recipe(make, epochs=3), seed=1), engine="inline", cache=cache)
    scores = [found.scores["members"] for found in (one, two, three)]
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    again = train_shadows(plan(sn.Recipe(make, epochs=3)), engine="inline", cache=cache)
    assert torch.equal(scores[0], again.scores["members"])


def ignores_its_seed(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    return train(data, int(torch.randint(0, 10**6, ())))


def nothing_random(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """As a logistic regression or boosting: the same data give the same model."""
    return train(data, 0)


def ignores_its_data(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def too_wide(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(6, 4)


def diverges(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    model = train(data, seed)
    model.weight.data.fill_(float("nan"))
    return model


def breaks(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    raise ValueError("no such layer")


def test_shadows_of_a_training_without_chance_differ_by_their_data() -> None:
    shadows = train_shadows(plan(nothing_random), engine="inline")
    scores = shadows.scores["members"]
    assert all(not torch.equal(scores[0], other) for other in scores[1:])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (ignores_its_seed, "ignores its seed: the same data and seed gave two different models"),
        (ignores_its_data, "ignores its data: two sets of records gave the same model"),
        (too_wide, "a model of 3 classes like the target, got 4"),
        (diverges, "answers that cannot be used: The model returned NaN"),
        (breaks, "failed on 100 rows: ValueError: no such layer"),
        (lambda data, seed: 3, "to return an nn.Module, got int"),
        (lambda data, seed: nn.Linear(7, 3), "cannot read the members: RuntimeError"),
        (sn.Recipe(lambda: nn.Linear(6, 4)), "a model of 3 classes like the target, got 4"),
        (sn.Recipe(lambda: nn.Linear(7, 3)), "failed on 100 rows: RuntimeError"),
        (7, "Expected train as a function"),
    ],
)
def test_a_train_function_that_is_wrong_is_named(wrong, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        train_shadows(plan(wrong), engine="inline")


def test_too_few_shadows_and_missing_labels_are_said() -> None:
    with pytest.raises(sn.errors.ConfigError, match="at least 4 shadows, got 3"):
        plan(count=3)
    bare = Examples("members", SETS["members"].inputs)
    with pytest.raises(NotApplicable, match="needs labels: pass members="):
        train_shadows(plan(members=bare), engine="inline")


def test_tokens_need_a_train_function() -> None:
    sets = {
        name: Examples(name, (one.inputs * 10).long(), one.labels) for name, one in SETS.items()
    }
    embed = nn.Sequential(nn.Embedding(100, 2), nn.Flatten(), nn.Linear(12, 3))

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return embed(x.clamp(0, 99))

    with pytest.raises(
        NotApplicable, match="cannot read torch.int64 inputs, such as tokens: pass train="
    ):
        train_shadows(ShadowPlan(None, 4, sn.Shield(Reads()), **sets), engine="inline")


@pytest.mark.parametrize("seed", [0, 20240601, 2**45, 2**63 - 1])
def test_every_generator_takes_a_shadows_seed(seed) -> None:
    def seeded(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        np.random.seed(seed)
        return train(data, seed)

    train_shadows(plan(seeded, seed=seed), engine="inline")
    train_shadows(plan(sn.Recipe(make, epochs=1), seed=seed), engine="inline")
