"""What a private training finds of itself by canaries, sound and with faults planted."""

import pytest
import torch

import shieldnet as sn
from shieldnet.training.private import canaries, lattice, sampling

NAMES = ["one_run.epsilon", "one_run.mu", "one_run.independent.mu", "one_run.gaussian.epsilon"]


def crossed(found) -> set[str]:
    return {one.name for one in found.findings if one.crosses_proof}


@pytest.mark.parametrize("batch", [None, 24])
def test_canaries_find_what_is_claimed_and_no_more(batch, table, mlp) -> None:
    found = sn.finetune(
        mlp, table, sn.DPSGD(4.0, 1e-3, canaries=600), batch_size=batch, epochs=4, seed=0
    )
    assert [one.name for one in found.findings] == NAMES
    epsilon, mu, independent, gaussian = found.findings
    assert epsilon.ceiling == gaussian.ceiling == found.guarantee.epsilon
    assert mu.ceiling == independent.ceiling == found.guarantee.mu
    assert 0.5 < epsilon.low < gaussian.low < epsilon.ceiling
    assert 0.2 < mu.low < independent.low < mu.ceiling
    assert "assumes" not in epsilon.note + mu.note
    assert "assumes that no canary's sums depend on another's" in independent.note
    assert "assumes independent canaries, Gaussian noise" in gaussian.note
    assert not crossed(found)


def plant(fault: str, patch: pytest.MonkeyPatch) -> None:
    """Plants a fault that the guarantee does not know of."""
    clipped_sum, noise, drawn = canaries.clipped_sum, lattice.lattice_gaussian, sampling.bernoulli

    def longer(times: float):
        return lambda gradients, clip, totals: clipped_sum(gradients, times * clip, totals)

    def clipped_as_one(gradients, clip, totals):
        each = gradients[0].parts[0].each
        mean = each.sum(0) / max(1, len(each))
        totals[0].add_(len(each) * mean * (clip / mean.norm().clamp_min(1e-12)).clamp(max=1))
        return torch.tensor(len(each))

    if fault == "noise":
        patch.setattr(lattice, "lattice_gaussian", lambda count, wide: noise(count, wide / 1.5))
    elif fault == "rate":
        patch.setattr(sampling, "bernoulli", lambda count, rate: drawn(count, 2 * rate))
    else:
        clip = {
            "layers clipped apart": longer(2**0.5),
            "weighted mean loss": longer(1.4),
            "batch clipped as one": clipped_as_one,
        }
        patch.setattr(canaries, "clipped_sum", clip[fault])


@pytest.mark.parametrize(
    "fault",
    ["noise", "rate", "layers clipped apart", "weighted mean loss", "batch clipped as one"],
)
def test_a_fault_is_caught_by_the_run_itself(fault, table, mlp, monkeypatch) -> None:
    plant(fault, monkeypatch)
    found = sn.finetune(
        mlp, table, sn.DPSGD(4.0, 1e-3, canaries=2000), batch_size=24, epochs=1, seed=0
    )
    assert "one_run.gaussian.epsilon" in crossed(found)
