from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import shieldnet as sn
from shieldnet.core.randomness import bernoulli, replayed_noise
from shieldnet.privacy.steps import Steps
from shieldnet.training.private.sampling import Sampler

SAMPLERS = [
    (sn.PoissonSampling(), None),
    (sn.PoissonSampling(), 600),
    (sn.AllRecords(), None),
    (sn.AllRecords(), 2500),
]


@pytest.mark.parametrize(("sampler", "batch_size"), SAMPLERS)
def test_every_record_is_drawn_with_the_chance_of_the_event(sampler, batch_size) -> None:
    rate = sampler.size(2000, batch_size) / 2000
    event = sampler.event(2.0, rate, 40)
    assert (event.noise, event.count) == (2.0, 40)
    with replayed_noise(0):
        drawn = torch.stack([sampler.draw(2000, rate) for _ in range(40)])
    assert drawn.dtype == torch.bool
    assert float(drawn.double().mean()) == pytest.approx(event.rate, abs=0.01)


def test_poisson_draws_are_independent_between_steps_and_records() -> None:
    with replayed_noise(0):
        drawn = torch.stack([sn.PoissonSampling().draw(500, 0.3) for _ in range(400)]).double()
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.01)
    for sums, count in ((drawn.sum(0), 400), (drawn.sum(1), 500)):
        assert float(sums.var()) == pytest.approx(count * 0.3 * 0.7, rel=0.2)


def test_poisson_sampling_is_the_default_and_asks_for_the_words_that_it_always_did() -> None:
    with replayed_noise(7):
        expected = [bernoulli(100, 0.2), bernoulli(100, 1.0), bernoulli(3, 0.5)]
    sampler = sn.DPSGD(8.0, 1e-3).sampler
    assert sampler == sn.PoissonSampling()
    with replayed_noise(7):
        drawn = [sampler.draw(100, 0.2), sampler.draw(100, 1.0), sampler.draw(3, 0.5)]
    assert all(torch.equal(*pair) for pair in zip(drawn, expected, strict=True))


def test_the_event_comes_from_the_sampler_and_the_noise() -> None:
    private = sn.DPSGD(noise_multiplier=2.0, delta=1e-3)
    assert private.event(0.1, 50) == Steps(2.0, 0.1, 50)
    everyone = sn.DPSGD(noise_multiplier=2.0, delta=1e-3, sampler=sn.AllRecords())
    assert everyone.event(1.0, 50) == Steps(2.0, 1.0, 50)
    calibrated = sn.DPSGD(4.0, 1e-3).event(0.1, 50)
    assert sn.Guarantee(calibrated.noise, 0.1, 50, 100, 1e-3).epsilon <= 4


def test_all_records_are_worth_as_much_as_a_batch_of_all(table, mlp) -> None:
    settings = {"epochs": 20, "learning_rate": 0.5, "seed": 0}
    everyone = sn.DPSGD(8.0, 1e-3, sampler=sn.AllRecords(), canaries=40)
    result = sn.finetune(mlp, table, everyone, **settings)
    poisson = sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), **settings)
    assert result.guarantee.epsilon == poisson.guarantee.epsilon
    assert (result.guarantee.sample_rate, result.steps) == (1.0, 20)
    assert not any(finding.crosses_proof for finding in result.findings)
    inputs, labels = table
    right = (result.model(inputs).argmax(1) == labels).double().mean()
    assert right > (mlp(inputs).argmax(1) == labels).double().mean() + 0.1


def test_a_batch_size_that_would_be_ignored_is_refused(table, mlp) -> None:
    private = sn.DPSGD(8.0, 1e-3, sampler=sn.AllRecords())
    with pytest.raises(sn.errors.ConfigError, match="draws all 120 records .* got a batch size"):
        sn.finetune(mlp, table, private, batch_size=20)
    loader = DataLoader(TensorDataset(*table), batch_size=20)
    with pytest.raises(sn.errors.ConfigError, match="pass the data without a loader"):
        sn.finetune(mlp, loader, private)


@dataclass(frozen=True)
class Cyclic(Sampler):
    """Takes one record in three, in turn: a toy of one's own, of which nothing is proven."""

    def size(self, records: int, batch_size: int | None) -> int:
        return max(1, records // 3)

    def draw(self, records: int, rate: float) -> torch.Tensor:
        DRAWN.append(records)
        return torch.arange(records) % 3 == len(DRAWN) % 3


DRAWN: list[int] = []


def test_a_sampler_whose_event_is_unknown_states_no_guarantee(table, mlp) -> None:
    private = sn.DPSGD(8.0, 1e-3, sampler=Cyclic())
    with pytest.raises(sn.errors.ConfigError, match=r"Nothing is proven about Cyclic\(\)"):
        sn.finetune(mlp, table, private, epochs=1)
    assert not DRAWN
    empirical = sn.DPSGD(noise_multiplier=0.1, mode="empirical", sampler=Cyclic())
    assert sn.finetune(mlp, table, empirical, epochs=1).guarantee is None
    assert DRAWN == [120, 120, 120]


@dataclass(frozen=True)
class Half(Sampler):
    """Draws half of the records, whatever the batch size: a toy of one's own."""

    wrong: str = ""

    def size(self, records: int, batch_size: int | None) -> int:
        return {"size": 2 * records, "none": None, "few": 1}.get(self.wrong, records // 2)

    def draw(self, records: int, rate: float) -> torch.Tensor:
        drawn = bernoulli(records, 0.5)
        wrong = {"shape": drawn[1:], "type": drawn.double(), "list": drawn.tolist()}
        return wrong.get(self.wrong, drawn)

    def event(self, noise: float, rate: float, steps: int) -> Steps:
        if self.wrong == "kind":
            return (noise, rate, steps)
        if self.wrong in ("rare", "varies", "few"):
            known = {"rare": 0.001, "few": rate, "varies": 0.5 if noise == 1.0 else 0.9}
            return Steps(noise, known[self.wrong], steps)
        return Steps(noise, 0.5, steps // 2 if self.wrong == "steps" else steps)


def test_a_sampler_of_ones_own_is_trained_with_and_proven_for(table, mlp) -> None:
    own, poisson = sn.DPSGD(8.0, 1e-3, sampler=Half()), sn.DPSGD(8.0, 1e-3)
    results = [
        sn.finetune(mlp, table, private, batch_size=60, epochs=2, seed=0)
        for private in (own, poisson)
    ]
    guarantees = [result.guarantee for result in results]
    assert guarantees[0].epsilon == guarantees[1].epsilon
    assert guarantees[0].weights == guarantees[1].weights  # the same draws: the same model
    word = "Half(wrong='') draws as its event says"
    assert word in guarantees[0].premises
    assert word in str(guarantees[0])
    assert not any("draws as its event" in premise for premise in guarantees[1].premises)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("size", "Expected Half.* to draw 1 to 120 records per step, got 240"),
        ("none", "Expected Half.* to draw 1 to 120 records per step, got None"),
        ("list", r"Expected Half.* to draw \(120,\) bool, got \["),
        ("rare", "Expected the event of Half.* to have a rate of at least 0.5"),
        ("varies", "to have the same rate for any noise, got 0.5 and 0.9"),
        ("few", r"drew \d\d of 120 records in a step, but its event states a rate of 0.00833"),
        ("shape", r"Expected Half.* to draw \(120,\) bool, got \(119,\) torch.bool"),
        ("type", r"Expected Half.* to draw \(120,\) bool, got \(120,\) torch.float64"),
        ("kind", r"Expected the event of Half.* to be 4 Steps .* got \(1.0, 0.5, 4\)"),
        ("steps", r"Expected the event of Half.* to be 4 Steps .* got Steps"),
    ],
)
def test_a_sampler_that_contradicts_itself_is_refused(wrong, message, table, mlp) -> None:
    private = sn.DPSGD(8.0, 1e-3, sampler=Half(wrong))
    with pytest.raises(sn.errors.ConfigError, match=message):
        sn.finetune(mlp, table, private, epochs=2)


def test_a_sampler_that_is_none_is_refused() -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected a sampler such as sn.AllRecords"):
        sn.DPSGD(8.0, 1e-3, sampler="poisson")
