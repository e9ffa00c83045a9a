"""Models that write into what they are asked: no row of the caller changes, and no measurement."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

WEIGHTS = nn.Linear(6, 3).requires_grad_(False)


class InPlace(nn.Module):
    """Scales the caller's own tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.layer.load_state_dict(WEIGHTS.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sub_(1.0).mul_(2.0))


class OutOfPlace(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - 1.0) * 2.0)


def records(seed: int, rows: int = 120) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 6, generator=generator)
    return inputs, torch.randint(0, 3, (rows,), generator=generator)


def found(shield: sn.Shield, sets: list, **settings) -> dict[str, float]:
    report = sn.audit(
        shield,
        **dict(zip(("members", "nonmembers", "auxiliary"), sets, strict=True)),
        engine="inline",
        shadows=0,
        **settings,
    )
    return {finding.name: finding.value for finding in report["shield"].findings}


@pytest.mark.usefixtures("brief_networks")
@pytest.mark.parametrize(
    "chain", [(sn.Round(3),), (sn.ClipNorm(5.0), sn.KeyedNoise(0.5, bytes(32)))]
)
def test_an_audit_measures_what_it_measures_of_the_twin(chain) -> None:
    """It read .000 where the twin read .816, or ended."""
    measured = []
    for kind in (InPlace, OutOfPlace):
        sets = [records(seed) for seed in range(3)]
        before = copy.deepcopy(sets)
        measured.append(found(sn.Shield(kind().eval(), *chain), sets, tier="standard"))
        for (inputs, _), (kept, _) in zip(sets, before, strict=True):
            assert torch.equal(inputs, kept)
    assert measured[0].keys() == measured[1].keys()
    for name, value in measured[1].items():
        assert measured[0][name] == pytest.approx(value, abs=0.02), name


@pytest.mark.parametrize("form", ["array", "table", "tensor"])
def test_a_function_gets_copies(form) -> None:
    def scales(x):
        x -= 1.0
        chance = 1 / (1 + np.exp(-np.asarray(x)[:, 0]))
        return np.stack([chance, 1 - chance], 1)

    def asked():
        inputs = records(0)[0]
        if form == "tensor":
            return inputs
        table = inputs.numpy()
        return table if form == "array" else pytest.importorskip("pandas").DataFrame(table)

    given, kept = asked(), asked()
    sn.Shield.around(scales, sn.Label())(given)
    assert np.array_equal(np.asarray(given), np.asarray(kept))


def test_a_pipeline_that_scales_in_place_is_audited_like_its_twin() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sets = [(inputs.numpy(), labels.numpy()) for inputs, labels in map(records, range(3))]
    measured = []
    for copies in (True, False):
        pipeline = make_pipeline(StandardScaler(copy=copies), LogisticRegression())
        pipeline.fit(sets[0][0].copy(), sets[0][1])
        given = copy.deepcopy(sets)
        shield = sn.Shield.around(pipeline.predict_proba, sn.Round(3))
        measured.append(found(shield, given, tier="quick"))
        for (inputs, _), (kept, _) in zip(given, sets, strict=True):
            assert np.array_equal(inputs, kept)
    assert measured[0] == measured[1]


@pytest.mark.parametrize(
    "first", [InPlace, lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))]
)
@pytest.mark.parametrize("private", [False, True])
def test_training_changes_no_record(first, private) -> None:
    data, heldout = records(0), records(1)
    before = copy.deepcopy((data, heldout))
    settings = {"start": "public", "heldout": heldout} if private else {}
    way = [sn.DPSGD(8.0, 1e-3)] if private else []
    sn.finetune(first(), data, *way, epochs=2, learning_rate=0.1, progress=False, **settings)
    for (inputs, _), (kept, _) in zip((data, heldout), before, strict=True):
        assert torch.equal(inputs, kept)
