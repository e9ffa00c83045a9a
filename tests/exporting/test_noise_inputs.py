"""Noise that is fed to a graph: one draw for each row, of its type, from its law."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet import runtime

CHAINS = {
    "noise": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0)),
    "response": (sn.RandomizedResponse(3.0),),
    "bins": (sn.RandomizedResponse(3.0, bins=4),),
    "flip": (sn.PermuteAndFlip(4.0),),
}
ROWS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))


class Scores(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows * 1.0


def session_of(path, **options) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(str(path), settings)


@pytest.mark.parametrize("name", CHAINS)
def test_a_batch_with_another_number_of_draws_fails(name, tmp_path) -> None:
    """Else one draw would be spread over all rows, and whoever compares two rows takes it off."""
    shield = sn.Shield(Scores().eval(), *CHAINS[name])
    sn.export(shield, ROWS, tmp_path / "model.onnx")
    for options in ({}, {"enable_mem_reuse": False}):
        session = session_of(tmp_path / "model.onnx", **options)
        noise = runtime.Noise.of_session(session)
        for rows, draws in ((40, 1), (40, 8), (1, 5)):
            asked = {"rows": ROWS[:rows].numpy(), **noise.draw(draws)}
            with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="Reshape"):
                session.run(None, asked)
        for rows in (0, 1, 40):
            session.run(None, {"rows": ROWS[:rows].numpy(), **noise.draw(rows)})


@pytest.mark.parametrize("name", CHAINS)
def test_a_program_takes_noise_of_its_size_and_type_only(name, tmp_path) -> None:
    shield = sn.Shield(Scores().eval(), *CHAINS[name])
    sn.export(shield, ROWS, tmp_path / "model.pt2")
    noise = runtime.Noise.of_program(tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    (drawn,) = noise.draw(40).values()
    assert program(ROWS, noise=torch.from_numpy(drawn)).shape == ROWS.shape
    with pytest.raises(RuntimeError, match="to be equal to 40, but got 1"):
        program(ROWS, noise=torch.from_numpy(drawn[:1]))
    with pytest.raises(RuntimeError, match="dtype mismatch"):
        program(ROWS, noise=torch.from_numpy(drawn).float())


@pytest.mark.parametrize("name", CHAINS)
def test_numbers_that_are_never_drawn_mark_their_row_alone(name, tmp_path) -> None:
    shield = sn.Shield(Scores().eval(), *CHAINS[name])
    for ending in (".pt2", ".onnx"):
        sn.export(shield, ROWS, tmp_path / f"model{ending}")
    program = torch.export.load(tmp_path / "model.pt2").module()
    session = session_of(tmp_path / "model.onnx")
    noise = runtime.Noise.of_session(session)
    drawn = noise.draw(3)["noise"]
    limits = np.iinfo(drawn.dtype)
    for wrong in (limits.min, limits.max):
        fed = drawn.copy()
        fed[1] = wrong
        (found,) = session.run(None, {"rows": ROWS[:3].numpy(), "noise": fed})
        for answer in (found, program(ROWS[:3], noise=torch.from_numpy(fed)).numpy()):
            assert np.isnan(answer).all(1).tolist() == [False, True, False]


def test_noise_shows_its_inputs(tmp_path) -> None:
    shield = sn.Shield(Scores().eval(), *CHAINS["flip"])
    sn.export(shield, ROWS, tmp_path / "model.pt2")
    noise = runtime.Noise.of_program(tmp_path / "model.pt2")
    assert repr(noise) == "Noise(noise: int64 (rows, 5, 2))"
