"""Whoever serves a graph draws its noise with one file that needs numpy alone."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet import runtime
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import replayed_noise
from shieldnet.exporting.line import Line

CHAINS = {
    "noise": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0)),
    "laplace": (sn.ClipNorm(10.0), sn.LaplaceNoise(2.0)),
    "response": (sn.RandomizedResponse(3.0, bins=2),),
    "flip": (sn.PermuteAndFlip(4.0),),
    "two": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0), sn.RandomizedResponse(3.0)),
}
ROWS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))


class Scores(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * 1.0


@pytest.mark.parametrize("name", CHAINS)
def test_the_runtime_draws_what_the_defenses_draw(name, tmp_path) -> None:
    """From the same random bytes come the same numbers, so the law is the same, too."""
    shield = sn.Shield(Scores().eval(), *CHAINS[name])
    sn.export(shield, ROWS, tmp_path / "model.pt2")
    line = Line(shield, ROWS)
    noise = runtime.Noise.of_program(tmp_path / "model.pt2", np.random.default_rng(5).bytes)
    assert noise.names == tuple(one.name for one in line.noise)
    for rows in (3, 40):
        with replayed_noise(5):
            wanted = {one.name: one.draw(rows) for one in line.noise}
        source = np.random.default_rng(5).bytes
        found = runtime.Noise.of_program(tmp_path / "model.pt2", source).draw(rows)
        assert {name: one.dtype.name for name, one in found.items()} == {
            name: str(one.dtype).removeprefix("torch.") for name, one in wanted.items()
        }
        assert all(np.array_equal(found[name], one.numpy()) for name, one in wanted.items())


def test_noise_that_is_left_out_is_refused_by_every_runtime(tmp_path) -> None:
    shield = sn.Shield(Scores().eval(), *CHAINS["noise"])
    for ending in (".pt2", ".onnx"):
        sn.export(shield, ROWS, tmp_path / f"model{ending}")
    with pytest.raises((TypeError, ValueError), match="noise"):
        torch.export.load(tmp_path / "model.pt2").module()(ROWS)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match="noise"):
        session.run(None, {"rows": ROWS.numpy()})


def test_files_of_others_are_told_from_ours(tmp_path) -> None:
    program = torch.export.export(Scores().eval(), (ROWS,))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(ValueError, match="no graph that shieldnet exported"):
        runtime.Noise.of_program(tmp_path / "other.pt2")
    for facts in ("[]", '{"shieldnet": 2, "noise": {}}'):
        with pytest.raises(ValueError, match="version 1"):
            runtime.Noise(facts)
    unknown = (
        '{"shieldnet": 1, "noise": {"n": {"sizes": [], "dtype": "int32", "laws": [{"law": "?"}]}}}'
    )
    with pytest.raises(ValueError, match="a law that is not known"):
        runtime.Noise(unknown)
    assert runtime.Noise('{"shieldnet": 1, "noise": {}}').draw(4) == {}


def test_noise_of_ones_own_has_no_law_for_a_server(tmp_path) -> None:
    from shieldnet.defenses.heuristics import RankSwap

    shield = sn.Shield(Scores().eval(), RankSwap())
    with pytest.raises(ConfigError, match="a law that a graph's server would not know"):
        sn.export(shield, ROWS, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
