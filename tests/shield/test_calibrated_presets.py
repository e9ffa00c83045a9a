"""Presets of embeddings and values, whose range is measured on what is public."""

import math

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core.errors import AnswerError, ConfigError, DataError

PUBLIC = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
NAMES = ("strict", "balanced", "open", "certified")


class Unit(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows, dim=-1)


class Line(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return 100 + 10 * rows[:, 0]


@pytest.mark.parametrize("preset", NAMES)
def test_a_preset_of_embeddings_has_a_finite_cost(preset) -> None:
    shield = sn.harden(Unit(), preset, outputs="embeddings", calibrate=PUBLIC)
    assert shield(PUBLIC[:50]).shape == (50, 8)
    assert math.isfinite(min(shield.cost().bits, shield.cost().mu))


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("model", [Line(), nn.Identity()])
def test_a_preset_of_values_keeps_to_the_public_range(model, preset) -> None:
    shield = sn.harden(model, preset, outputs="values", calibrate=PUBLIC)
    clip = shield.settings.defenses[0]
    answers = model(PUBLIC)
    inside = (answers >= clip.low) & (answers <= clip.high)
    assert 0.97 < float(inside.double().mean()) < 1
    shield(PUBLIC)
    assert math.isfinite(min(shield.cost().bits, shield.cost().mu)) or preset == "certified"


@pytest.mark.parametrize("rows", [100, 400])
@pytest.mark.parametrize("width", [1e-3, 1.0, 400.0])
@pytest.mark.parametrize("center", [0.0, 1000.0, -12345.0])
def test_the_range_holds_nearly_all_public_values_wherever_they_lie(center, width, rows) -> None:
    values = center + width * PUBLIC[:rows, :1].double()
    for preset in ("open", "certified"):
        shield = sn.harden(nn.Identity(), preset, outputs="values", calibrate=values)
        clip = shield.settings.defenses[0]
        inside = (values >= clip.low) & (values <= clip.high)
        assert float(inside.double().mean()) >= 0.99
        assert clip.high - clip.low < 1.02 * float(values.max() - values.min())


def test_the_bound_holds_nearly_all_public_embeddings() -> None:
    for rows in (PUBLIC, 1.2341 * Unit()(PUBLIC), PUBLIC * PUBLIC.relu()):
        clip = sn.harden(nn.Identity(), "open", outputs="embeddings", calibrate=rows).defenses[0]
        lengths = rows.norm(dim=1)
        assert float((lengths <= clip.bound * (1 + 1e-6)).double().mean()) >= 0.99
        assert clip.bound < 1.02 * float(lengths.max())


def test_what_is_measured_is_written_and_read_back(tmp_path) -> None:
    shield = sn.harden(Line(), outputs="values", calibrate=PUBLIC)
    (tmp_path / "shield.toml").write_text(sn.dump_shield(shield))
    read = sn.load_shield(Line(), tmp_path / "shield.toml")
    assert read.settings.defenses == shield.settings.defenses
    assert torch.equal(read(PUBLIC), shield(PUBLIC))


def test_balanced_keeps_directions_and_strict_gives_less() -> None:
    rows = torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
    public = torch.randn(300, 64, generator=torch.Generator().manual_seed(2))
    clean = Unit()(rows)
    near = {}
    for preset in NAMES:
        shield = sn.harden(Unit(), preset, outputs="embeddings", calibrate=public)
        near[preset] = float(nn.functional.cosine_similarity(shield(rows), clean).mean())
    assert near["open"] > 0.9 > near["balanced"] > 0.75 > near["strict"] > near["certified"]


def test_certified_values_have_the_epsilon_that_they_say() -> None:
    shield = sn.harden(nn.Identity(), "certified", outputs="values", calibrate=PUBLIC)
    clip, noise = shield.settings.defenses
    half = 8 * (clip.high - clip.low) / 2  # the L1 distance of a row to the center, at most
    assert 2 * half / noise.scale == pytest.approx(6)
    embeddings = sn.harden(Unit(), "certified", outputs="embeddings", calibrate=PUBLIC)
    embeddings(PUBLIC)
    assert embeddings.cost().mu == pytest.approx(6, rel=0.05)


@pytest.mark.parametrize("kind", ["embeddings", "values"])
def test_without_public_rows_the_line_that_works_is_named(kind) -> None:
    with pytest.raises(ConfigError, match="calibrate=public_rows") as refused:
        sn.harden(nn.Identity(), "open", outputs=kind)
    line = str(refused.value).partition("public rows: ")[2].partition(". Or choose")[0]
    names = {"sn": sn, "model": nn.Identity(), "public_rows": PUBLIC}
    shield = eval(line, names)  # noqa: S307 - our own message
    assert shield(PUBLIC).shape == PUBLIC.shape


def test_rows_that_measure_nothing_are_refused() -> None:
    def harden(rows: Tensor, model: nn.Module | None = None) -> None:
        sn.harden(model or nn.Identity(), outputs="embeddings", calibrate=rows)

    with pytest.raises(DataError, match="at least 100 public rows.*got 99"):
        harden(PUBLIC[:99])
    with pytest.raises(DataError, match="the same embeddings for all 400 public rows"):
        harden(torch.ones(400, 8))
    with pytest.raises(AnswerError, match="NaN or Inf"):
        harden(torch.full((400, 8), torch.nan))
    with pytest.raises(AnswerError, match="Dropout"):
        harden(PUBLIC, nn.Dropout(0.5))
    with pytest.raises(DataError, match="differ in range"):
        sn.harden(nn.Identity(), outputs="values", calibrate=PUBLIC * torch.logspace(0, 3, 8))
    far = PUBLIC[:, :2] + torch.tensor([0.0, 1000.0])
    with pytest.raises(DataError, match="differ in range"):
        sn.harden(nn.Identity(), outputs="values", calibrate=far)
    rare = (torch.arange(400) == 7).float().unsqueeze(1)
    with pytest.raises(DataError, match="same values for nearly all 400 public rows"):
        sn.harden(nn.Identity(), outputs="values", calibrate=rare)
    with pytest.raises(DataError, match="of 99% of the 400 public rows are zeros"):
        harden(rare.expand(400, 3))


@pytest.mark.parametrize("kind", [None, "logits", {"vectors": "embeddings"}])
def test_public_rows_beside_other_kinds_are_refused(kind) -> None:
    with pytest.raises(ConfigError, match="with outputs='embeddings' or outputs='values'"):
        sn.harden(nn.Identity(), outputs=kind, calibrate=PUBLIC)
    with pytest.raises(ConfigError, match="strict, balanced, open, certified"):
        sn.harden(nn.Identity(), "loose", outputs="values", calibrate=PUBLIC)


def test_inputs_come_as_the_model_takes_them_and_positions_count() -> None:
    class Two(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first + second

    for rows in ((PUBLIC, PUBLIC), {"first": PUBLIC, "second": PUBLIC}):
        assert sn.harden(Two(), "open", outputs="embeddings", calibrate=rows)
    tokens = PUBLIC.reshape(200, 2, 8)
    shield = sn.harden(Unit(), "open", outputs="embeddings", axis=-1, calibrate=tokens)
    assert shield.settings.defenses[0].bound == 1.0
