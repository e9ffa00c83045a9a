"""What a shield does depends on shapes alone: its time tells nothing that the answer does not."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import shieldnet as sn
from shieldnet.core.randomness import replayed_noise
from shieldnet.shield.preset_chains import PRESETS

CHAINS = {
    **PRESETS,
    "two decimals": (sn.Round(2),),
    "six decimals": (sn.Round(6),),
    "top 20, two decimals": (sn.TopK(20, or_all=True), sn.Round(2)),
    "top 2": (sn.TopK(2),),
    "noise": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0)),
    "noise in constant time": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0, constant_time=True)),
    "Laplace": (sn.ClipNorm(10.0), sn.LaplaceNoise(2.0)),
    "permute and flip": (sn.PermuteAndFlip(2.0),),
}


def rows_of(classes: int) -> dict[str, Tensor]:
    """Returns rows of logits that differ in all that a route could be chosen by."""
    flat, generator = torch.zeros(classes), torch.Generator().manual_seed(classes)
    one_hot, last, tied, near = flat.clone(), flat.clone(), flat.clone(), flat.clone()
    one_hot[0] = last[-1] = 200.0  # all others underflow to the same zero
    tied[0] = tied[-1] = 8.0
    near[classes // 2] = 1e-3
    return {
        "uniform": flat,
        "one-hot": one_hot,
        "the last class": last,
        "tied": tied,
        "nearly uniform": near,
        "unsure": torch.randn(classes, generator=generator),
        "confident": 8 * torch.randn(classes, generator=generator),
        "steps": torch.arange(classes, dtype=torch.float32).clamp_max(5.0),
    }


def instructions(call: Callable[[], object]) -> list[tuple[str, int]]:
    """Lists every instruction of our own code that a call executes, one by one."""
    executed: list[tuple[str, int]] = []

    def inside(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            executed.append((frame.f_code.co_name, frame.f_lasti))
        return inside

    def enter(frame: FrameType, _: str, __: Any) -> Any:
        if "shieldnet" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return inside

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    return executed


class Operators(TorchDispatchMode):
    """Lists the operators of torch that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def settled(defenses: tuple[sn.Defense, ...], rows: list[Tensor]) -> sn.Shield:
    """Returns a shield that has looked at its first answers in full."""
    shield = sn.Shield(nn.Identity(), *defenses)
    for row in (torch.cat(rows), *rows, *rows):
        shield(row)
    return shield


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("count", "classes"), [(1, 3), (1, 10), (1, 100), (40, 10), (40, 100)])
def test_every_row_runs_the_same_instructions_and_operators(name, count, classes) -> None:
    rows = {kind: row.repeat(count, 1) for kind, row in rows_of(classes).items()}
    shield = settled(CHAINS[name], list(rows.values()))
    done, operators = {}, {}
    for kind, row in rows.items():
        with replayed_noise(0):
            done[kind] = instructions(lambda row=row: shield(row))
    for kind, row in rows.items():
        with replayed_noise(0), Operators() as ran:
            shield(row)
        operators[kind] = ran.names
    assert len(done["uniform"]) > 100
    assert len(operators["uniform"]) > 2
    assert [kind for kind in rows if done[kind] != done["uniform"]] == []
    assert [kind for kind in rows if operators[kind] != operators["uniform"]] == []


def test_a_route_by_value_would_be_found() -> None:
    row = torch.zeros(1, 3)

    def by_value(row: Tensor) -> Tensor:
        return sn.Round(1)(row.softmax(-1)) if row.any() else row

    assert instructions(lambda: by_value(row)) != instructions(lambda: by_value(row + 1))
