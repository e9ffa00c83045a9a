"""What is left of the answers' use stands in the first table, whatever the answers are."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

import shieldnet as sn
from shieldnet.core.statistics import mean
from shieldnet.outputs.mistaken import noise_beside

X = torch.randn(240, 12, generator=torch.Generator().manual_seed(0))


class Embedder(nn.Module):
    def __init__(self, dimensions: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(12, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.layer(x), dim=-1)


def audit(shield: sn.Shield, labels: Tensor | None = None) -> sn.Report:
    sets = {"members": X[:120], "nonmembers": X[120:]}
    if labels is not None:
        sets = {name: (rows, labels[:120]) for name, rows in sets.items()}
    return sn.audit(shield, tier="quick", shadows=0, **sets)


def shielded(scale: float) -> sn.Shield:
    return sn.Shield(Embedder(), sn.ClipNorm(1.0), sn.GaussianNoise(scale), outputs="embeddings")


def test_an_embedders_report_has_the_cosine_in_every_form(tmp_path) -> None:
    report = audit(shielded(0.05))
    cosines = [report[name]["cosine"] for name in ("bare", "shield")]
    assert (cosines[0].value, cosines[0].high) == (1, 1)
    assert 0.85 < cosines[1].low < cosines[1].value < cosines[1].high < 0.98
    headers, _ = report.rows()
    assert "cosine ↑" in headers
    assert "agreement ↑" not in headers
    for name in ("report.md", "report.html"):
        report.save(tmp_path / name)
        assert "cosine" in (tmp_path / name).read_text()
    assert not report.verdict(sn.Policy({"min_cosine": 0.99}))
    assert report.verdict(sn.Policy({"min_cosine": 0.85}))


def test_signs_agree_as_far_as_their_directions_do() -> None:
    signs = audit(sn.Shield(Embedder(), sn.Sign(), outputs="embeddings"))["shield"]
    assert 0.3 < signs["agreement"].low <= signs["agreement"].high < 1
    nothing = audit(shielded(100.0))["shield"]
    assert nothing["agreement"].value == pytest.approx(0.0, abs=0.2)


def test_a_regression_has_its_agreement_and_a_classifier_its_accuracy_alone() -> None:
    values = sn.Shield(nn.Linear(12, 2), sn.ClipRange(-2, 2), sn.RoundTo(0.5), outputs="values")
    assert "agreement ↑" in audit(values).rows()[0]
    labeled, plain = (
        audit(sn.harden(nn.Linear(12, 3)), labels).rows()[0]
        for labels in (torch.randint(3, (240,)), None)
    )
    assert "accuracy ↑" in labeled
    assert "agreement ↑" not in labeled
    assert "agreement ↑" in plain


@pytest.mark.parametrize("dimensions", [8, 64, 384, 1024])
def test_the_noise_that_a_refusal_names_leaves_unit_vectors_of_use(dimensions) -> None:
    """GaussianNoise(1.0) left a cosine of 0.05 at 384 dimensions."""
    model = Embedder(dimensions)
    with pytest.raises(sn.errors.AnswerError, match="outputs='embeddings'") as refused:
        sn.harden(model)(X)
    line = re.findall(r"sn\.Shield\(.*?'embeddings'\)", str(refused.value))[0]
    shield = eval(line, {"sn": sn, "model": model})  # noqa: S307  # our own line
    close = cosine_similarity(shield(X), model(X), dim=1).mean()
    assert 0.8 < close < 0.97
    assert f"GaussianNoise({noise_beside(dimensions)})" in line


def test_the_interval_of_a_cosine_ends_at_1() -> None:
    cosines = torch.tensor([1.0, 1.0, 1.0, 0.9], dtype=torch.float64)
    assert mean(cosines).high > 1
    interval = mean(cosines, within=(-1.0, 1.0))
    assert (interval.value, interval.high) == (mean(cosines).value, 1)
    exact = mean(torch.full((4,), 1 + 1e-15, dtype=torch.float64), within=(-1.0, 1.0))
    assert (exact.value, exact.low, exact.high) == (1, 1, 1)
