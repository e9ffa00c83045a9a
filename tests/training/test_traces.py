"""The trainer's own log names the records at risk, without a shadow."""

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.training.traces import Traces, Tracing


def records(rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 6, generator=generator)
    inputs[:3, 0] = 3.0
    labels = (inputs[:, 0] > 0).long()
    labels[:3] = 0  # nothing but the records themselves teaches these
    return inputs, labels


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))


def test_records_that_nothing_else_teaches_are_most_at_risk() -> None:
    found = sn.finetune(network(), records(), epochs=20, batch_size=16, seed=0).traces
    assert found.losses.shape == (20, 60)
    assert torch.isfinite(found.losses).all()
    assert set(found.risks.argsort(descending=True)[:3].tolist()) == {0, 1, 2}
    assert set(found.exposed.rows) >= {0, 1, 2}
    assert found.exposed.words.endswith("the trainer's view")


def test_the_result_names_the_rows_and_writes_no_losses(tmp_path) -> None:
    result = sn.finetune(network(), records(), epochs=5, batch_size=16, seed=0)
    listed = ", ".join(map(str, result.traces.exposed.rows))
    assert f"Records most at risk by their losses (the trainer's view): rows {listed}" in str(
        result
    )
    folder = result.save(tmp_path / "model")
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_the_first_epoch_in_one_batch_has_the_losses_before_any_step() -> None:
    result = sn.finetune(network(), records(), epochs=4, batch_size=60, seed=0)
    inputs, labels = records()
    expected = nn.functional.cross_entropy(network()(inputs), labels, reduction="none")
    assert torch.allclose(result.traces.losses[0], expected.detach(), atol=1e-5)


@pytest.mark.parametrize(
    "settings", [(sn.DPSGD(noise_multiplier=1.0, delta=1e-4),), ()], ids=["dp", "short"]
)
def test_there_are_no_traces_with_a_guarantee_or_of_a_short_training(settings) -> None:
    epochs = 6 if settings else 3
    result = sn.finetune(network(), records(), *settings, epochs=epochs, seed=0)
    assert result.traces is None
    assert "at risk" not in str(result)


def test_long_trainings_keep_every_second_epoch_or_fewer(monkeypatch) -> None:
    monkeypatch.setattr("shieldnet.training.traces._MAX_NUMBERS", 50)
    tracing = Tracing(epochs=12, records=10)
    for epoch in range(12):
        tracing.keep(epoch, torch.arange(10), torch.full((10,), float(epoch)))
    assert tracing.traces.losses[:, 0].tolist() == [0.0, 3.0, 6.0, 9.0]


def test_records_that_were_never_seen_stand_last() -> None:
    losses = torch.ones(4, 30)
    losses[:, 5], losses[:, 7] = torch.nan, 2.0
    traces = Traces(losses)
    assert float(traces.risks[5]) == 0.0
    assert traces.exposed.rows == (7,)
