"""Programs are written without what is no graph, and torch's talk of its own code is silent."""

import logging

import pytest
import sympy
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.exporting import programs
from shieldnet.exporting.line import Line

ROWS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
LOG = logging.getLogger("torch._export.serde.serialize")
LINE = "Symbol %s did not appear in the graph that was deserialized"


class Scores(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows * 1.0


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def logged():
    handler = Kept()
    LOG.addHandler(handler)
    yield handler.lines
    LOG.removeHandler(handler)


def test_a_file_names_no_size_that_no_value_has(tmp_path, logged, monkeypatch) -> None:
    decomposed = torch.export.ExportedProgram.run_decompositions

    def with_a_size_of_its_own(program, table):
        found = decomposed(program, table)
        ranges = found.range_constraints
        ranges[sympy.Symbol("s86", positive=True, integer=True)] = next(iter(ranges.values()))
        return found

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", with_a_size_of_its_own)
    program = programs.drawn_as_graph(Line(sn.harden(Scores().eval(), "open"), ROWS))
    programs.save_program(program, tmp_path / "model.pt2", {})
    read = torch.export.load(tmp_path / "model.pt2")
    assert len(read.range_constraints) == 1
    assert logged == []


def test_exactly_that_line_of_torch_is_silent(logged) -> None:
    with programs.quiet():
        LOG.warning(LINE, "s86")
        LOG.warning("something else")
    LOG.warning(LINE, "s87")
    assert logged == ["something else", LINE % "s87"]


def test_a_graph_is_drawn_with_a_batch_that_no_other_size_equals() -> None:
    line = Line(sn.harden(Scores().eval(), "open"), ROWS)
    assert line.example.for_drawing().rows == 11
    wide = torch.randn(4, 11)
    assert Line(sn.harden(Scores().eval(), "open"), wide).example.for_drawing().rows == 13
