"""An export refuses what the shield refuses, and what no graph can hold, and leaves nothing."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core.errors import AnswerError, ConfigError, ShieldnetError
from shieldnet.exporting import onnx_graph

ENDINGS = (".pt2", ".onnx")
ROWS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Scores(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows * 1.0


class Remembers(nn.Module):
    """Adds the last row of the batch before to each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(6))

    def forward(self, rows: Tensor) -> Tensor:
        out = rows + self.last
        self.last.copy_(rows[-1])
        return out


class Records(nn.Module):
    """Keeps its last input where a file would hold it, without using it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.register_buffer("last", torch.zeros(8, 6))

    def forward(self, rows: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.last = rows.detach().clone()
        return self.layer(rows)


class Writes(Records):
    """Writes to its buffer in place, also while it is traced."""

    def forward(self, rows: Tensor) -> Tensor:
        self.last.copy_(rows.sum() * torch.ones(8, 6))
        return self.layer(rows)


class Notes(nn.Module):
    """Keeps its last input as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.last: Tensor | None = None

    def forward(self, rows: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.last = rows
        return self.layer(rows)


class Mixes(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return (rows - rows.mean(0, keepdim=True)) * 3


class Branches(nn.Module):
    """Decides for the whole batch at once, by a row that is seldom there."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cond(rows.sum() > 1e6, lambda x: x * 1.0, lambda x: -x, (rows,))


class Draws(nn.Module):
    """Adds noise too small for a trial of rows."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows + torch.randn_like(rows) * 1e-7


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.norm(rows) * 3


class Softmaxed(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows.softmax(-1)


class Aged(nn.Module):
    def forward(self, rows: Tensor, age: int = 0, name: str = "") -> Tensor:
        return rows + age * 1e-9


class Detects(nn.Module):
    def forward(self, rows: Tensor) -> list[dict[str, Tensor]]:
        return [{"scores": rows[:1]}, {"scores": rows[1:2]}]


class Flags(nn.Module):
    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return {"logits": rows * 1.0, "flag": rows[:, :1] > 0}


@torch.library.custom_op("shieldnet_tests::doubled", mutates_args=())
def doubled(rows: Tensor) -> Tensor:
    return rows * 2


@doubled.register_fake
def _(rows: Tensor) -> Tensor:
    return torch.empty_like(rows)


class Foreign(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return torch.ops.shieldnet_tests.doubled(rows)


def opened(model: nn.Module, **settings: Any) -> sn.Shield:
    return sn.harden(model.eval(), "open", **settings)


REFUSED: dict[str, tuple[Any, Any, type[ShieldnetError], str]] = {
    "state": (lambda: opened(Remembers()), ROWS, AnswerError, "differently when it is asked"),
    "a recorded input": (lambda: opened(Records()), ROWS, ConfigError, "changes last while it"),
    "a written buffer": (lambda: opened(Writes()), ROWS, ConfigError, "changes last while it"),
    "rows that mix": (lambda: opened(Mixes()), ROWS, AnswerError, "change each other"),
    "a branch of the batch": (lambda: opened(Branches()), ROWS, ConfigError, "calls cond"),
    "noise of the model": (lambda: opened(Draws()), ROWS, ConfigError, "calls aten.rand"),
    "statistics of the batch": (lambda: opened(Statistics()), ROWS, AnswerError, "statistics"),
    "one row at a time": (
        lambda: sn.Shield(Mixes().eval(), sn.Confidence(4), micro_batch=1),
        ROWS,
        ConfigError,
        "without micro_batch, got micro_batch=1: .* Leave micro_batch out",
    ),
    "a smaller extent": (
        lambda: opened(Scores(), extent=sn.Extent(3)),
        ROWS,
        AnswerError,
        "exactly 3 classes",
    ),
    "probabilities": (lambda: opened(Softmaxed()), ROWS, AnswerError, "seem to be probabilities"),
    "equal rows": (lambda: opened(Scores()), ROWS[:1].repeat(8, 1), ConfigError, "two different"),
    "a number": (
        lambda: opened(Aged()),
        {"rows": ROWS, "age": 190377123},
        ConfigError,
        "got age as int: its value would be fixed in the file. Leave it out",
    ),
    "a word": (
        lambda: opened(Aged()),
        {"rows": ROWS, "name": "Doe"},
        ConfigError,
        "got name as str",
    ),
    "a list of boxes": (
        lambda: sn.Shield(Detects().eval(), sn.Round(1), outputs={"scores": "logits"}),
        ROWS,
        ConfigError,
        "Serve this shield from Python",
    ),
    "a field without a mark": (
        lambda: opened(Flags(), outputs={"logits": "logits"}, also={"flag": ()}),
        ROWS,
        ConfigError,
        "flag is released as it is, of torch.bool",
    ),
    "an operator of others": (
        lambda: opened(Foreign()),
        ROWS,
        ConfigError,
        "calls shieldnet_tests.doubled.default",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_shield_or_a_graph_refuses_is_not_exported(name, ending, tmp_path) -> None:
    make, example, error, words = REFUSED[name]
    shield = make()
    before = {key: value.clone() for key, value in shield.state_dict().items()}
    with pytest.raises(error, match=words):
        sn.export(shield, example, tmp_path / f"model{ending}")
    assert list(tmp_path.iterdir()) == []
    now = shield.state_dict()
    assert all(torch.equal(now[key], value) for key, value in before.items())


def test_a_shield_that_has_refused_rows_before_is_not_exported(tmp_path) -> None:
    shield = opened(Mixes())
    with pytest.raises(AnswerError, match="change each other"):
        shield(ROWS)
    shield.model.forward = lambda rows: rows * 1.0  # such rows as the example's do not show it
    with pytest.raises(AnswerError, match="change each other"):
        sn.export(shield, ROWS, tmp_path / "model.pt2")


def test_what_a_shield_refused_in_training_mode_is_exported_in_evaluation_mode(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    shield = sn.harden(model.train(), "open")
    with pytest.raises(AnswerError):
        shield(ROWS)
    sn.export(shield.eval(), ROWS, tmp_path / "model.pt2")


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_attribute_that_a_model_sets_is_as_before_and_not_in_the_file(ending, tmp_path) -> None:
    model = Notes()
    sn.export(opened(model), ROWS, tmp_path / f"model{ending}")
    assert model.last is None
    assert ROWS[0].numpy().tobytes() not in contents(tmp_path / f"model{ending}")


def contents(path: Path) -> bytes:
    if path.suffix == ".onnx":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(map(archive.read, archive.namelist()))


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_bytes_depend_neither_on_the_rows_of_the_example_nor_on_earlier_answers(
    ending, tmp_path
) -> None:
    shield = opened(nn.Linear(6, 4))
    for count in (8, 5):
        sn.export(shield, ROWS[:count], tmp_path / f"{count}{ending}")
        shield(ROWS)
    assert (tmp_path / f"8{ending}").read_bytes() == (tmp_path / f"5{ending}").read_bytes()


def test_errors_of_others_are_told_in_our_words(tmp_path, monkeypatch) -> None:
    (tmp_path / "model.pt2").mkdir()
    with pytest.raises(ConfigError, match="is a folder: give the name of a file"):
        sn.export(opened(Scores()), ROWS, tmp_path / "model.pt2", force=True)
    with pytest.raises(ConfigError, match=r"BFloat16 .*model.float\(\), or a .pt2"):
        sn.export(opened(Scores()), ROWS.bfloat16(), tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="fails on a batch of 8 rows of the example: RuntimeErr"):
        sn.export(opened(nn.Linear(5, 4)), ROWS, tmp_path / "other.pt2")
    monkeypatch.setattr(onnx_graph, "_MAX_BYTES", 50)
    with pytest.raises(ConfigError, match="holds 2 GB at most, .* Export a .pt2"):
        sn.export(opened(nn.Linear(6, 4)), ROWS, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
