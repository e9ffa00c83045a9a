"""A shield as a graph: the same answers in every runtime, for every batch, without shieldnet."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.defenses import DEFENSES
from shieldnet.exporting.line import NO_LABEL, NO_STEPS, Line
from shieldnet.exporting.writing import graphs_of
from shieldnet.files.sources import load_model

BATCHES = (0, 1, 7, 1000)
CLASSES = 6


class Net(nn.Module):
    """Gives its inputs back as scores, in any type: what a graph changes is then the defenses'."""

    def __init__(self, kind: str = "logits", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.kind, self.dtype = kind, dtype
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, rows: Tensor) -> Tensor:
        scores = (rows * self.scale).to(self.dtype)
        return scores.softmax(-1) if self.kind == "probabilities" else scores


def rows(count: int, classes: int = CLASSES) -> Tensor:
    """Returns rows of many kinds: flat, sure, tied, one-hot, whole numbers."""
    random = torch.randn(count, classes, generator=torch.Generator().manual_seed(count)) * 3
    if count > 4:
        random[0], random[1] = 0.0, torch.arange(classes) == 2
        random[2], random[3] = random[2].round(), 60.0 * (torch.arange(classes) == 1)
    return random


def chain_of(defense: sn.Defense) -> tuple[tuple[sn.Defense, ...], str]:
    """Returns a chain with the defense in it, and the kind of output that it is for."""
    kind = "logits" if "logits" in defense.accepts else defense.accepts[0]
    return (defense,), kind


CHAINS = [
    *[
        chain_of(example)
        for kind in DEFENSES.values()
        for example in kind.examples()
        if example.deterministic and not example.secret and kind is not sn.Coarsen
    ],
    ((sn.TopK(3), sn.Round(1)), "logits"),
    ((sn.TopK(2), sn.Round(2)), "probabilities"),
    ((sn.Temperature(2.0), sn.Confidence(4)), "logits"),
    ((sn.ClipRange(-1.0, 1.0), sn.RoundTo(0.25)), "values"),
    ((), "logits"),
]


EVERY_TYPE = (torch.float32, torch.float64, torch.float16)
WIDE = (sn.TopK, sn.ClipNorm, sn.ClipRange, sn.Sign)
"""Defenses of which one is in a chain that is drawn in every type; elsewhere half precision does,
which is the hardest: a graph of three heads takes three times as long."""


class EveryType(nn.Module):
    """Gives the same scores in several types, as a head each: one graph for all of them."""

    def __init__(self, kind: str, types: tuple[torch.dtype, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({str(dtype)[6:]: Net(kind, dtype) for dtype in types})

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: head(rows) for name, head in self.heads.items()}


@pytest.mark.parametrize(("chain", "kind"), CHAINS, ids=str)
def test_deterministic_chains_answer_alike_in_every_runtime(chain, kind, tmp_path) -> None:
    is_wide = len(chain) > 1 or isinstance((*chain, None)[0], WIDE)
    net = EveryType(kind, EVERY_TYPE if is_wide else (torch.float32, torch.float16)).eval()
    others = dict.fromkeys(list(net.heads)[1:], chain)
    heads = sn.Shield(net, *chain, outputs=dict.fromkeys(net.heads, kind), also=others)
    heads(rows(8))
    sn.export(heads, rows(8), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    read = load_model(str(tmp_path / "model.pt2"))  # our own reader takes what we write
    for count in BATCHES:
        wanted, answers = heads(rows(count)), program(rows(count))
        assert wanted.keys() == answers.keys() == {*net.heads}
        for name, found in answers.items():
            assert torch.equal(found, wanted[name])
            assert torch.equal(found, sn.Shield(net.heads[name], *chain, outputs=kind)(rows(count)))
    assert all(torch.equal(one, heads(rows(7))[name]) for name, one in read(rows(7)).items())
    shield = sn.Shield(net.heads["float32"], *chain, outputs=kind)
    sn.export(shield, rows(8), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for count in BATCHES:
        wanted = shield(rows(count))
        (answer,) = session.run(None, {"rows": rows(count).numpy()})
        if count:
            assert (answer.argmax(-1) == wanted.numpy().argmax(-1)).all()
        assert np.allclose(answer, wanted.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("release", ["labels", "logits"])
@pytest.mark.parametrize("chain", [(sn.Confidence(4),), (sn.TopK(3), sn.Round(1))], ids=str)
def test_ticks_and_winners_are_the_same_bits_in_onnx_runtime(chain, release, tmp_path) -> None:
    shield = sn.Shield(Net().eval(), *chain, release=release)
    sn.export(shield, rows(8), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for count in BATCHES:
        (answer,) = session.run(None, {"rows": rows(count).numpy()})
        assert np.array_equal(answer, shield(rows(count)).numpy())


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_the_top_of_many_classes_is_the_same_in_a_graph(ending, tmp_path) -> None:
    """Where a graph looks for the largest in turns; equals are first come, first served."""
    shield = sn.Shield(Net().eval(), sn.TopK(3), sn.Round(1))
    sn.export(shield, rows(8, 100), tmp_path / f"model{ending}")
    asked = torch.cat([rows(9, 100), rows(9, 100).round()])
    asked[0] = torch.nan
    answer = ask(tmp_path / f"model{ending}", asked)
    assert np.isnan(answer[0]).all()
    assert np.array_equal(answer[1:], shield(asked[1:]).numpy())


NOISY = {
    "noise": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0)),
    "laplace": (sn.ClipNorm(10.0), sn.LaplaceNoise(2.0)),
    "integers": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0, integers=True)),
    "response": (sn.RandomizedResponse(3.0),),
    "bins": (sn.RandomizedResponse(3.0, bins=4),),
    "flip": (sn.PermuteAndFlip(4.0),),
    "two": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0), sn.RandomizedResponse(3.0)),
    "cut": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0), sn.TopK(1), sn.Round(1)),
}


@pytest.mark.parametrize("name", NOISY)
def test_a_graph_takes_its_noise_as_an_input_and_draws_none(name, tmp_path) -> None:
    shield = sn.Shield(Net().eval(), *NOISY[name])
    written = sn.export(shield, rows(8), tmp_path / "model.pt2")
    sn.export(shield, rows(8), tmp_path / "model.onnx")
    line = Line(shield, rows(8))
    assert written.noise == tuple(one.name for one in line.noise) != ()
    program = torch.export.load(tmp_path / "model.pt2").module()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for count in BATCHES:
        noise = {one.name: one.draw(count) for one in line.noise}
        places: list[Tensor | None] = [None] * len(shield.chain.stages)
        for one in line.noise:
            places[one.place] = noise[one.name].to(torch.int64)
        wanted = shield.chain(rows(count), noise=places)
        assert torch.equal(program(rows(count), **noise), wanted)
        arrays = {"rows": rows(count), **noise}
        (answer,) = session.run(None, {name: one.numpy() for name, one in arrays.items()})
        assert np.allclose(answer, wanted.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    ("chain", "release"),
    [
        ((), "logits"),
        ((sn.Confidence(4),), "labels"),
        ((sn.TopK(3), sn.Round(1)), "logits"),
    ],
    ids=str,
)
def test_a_row_that_the_shield_refuses_is_no_ordinary_answer(
    chain, ending, release, tmp_path
) -> None:
    """The rows beside it are answered as always."""
    shield = sn.Shield(Net().eval(), *chain, release=release)
    sn.export(shield, rows(8), tmp_path / f"model{ending}")
    for bad in (torch.nan, torch.inf, -torch.inf):
        asked = rows(9)
        asked[5, 3] = bad
        answer = ask(tmp_path / f"model{ending}", asked)
        is_marked = answer[5] == NO_LABEL if release == "labels" else np.isnan(answer[5]).all()
        assert is_marked
        others = torch.arange(9) != 5
        with pytest.raises(AnswerError):
            shield(asked)
        assert np.allclose(answer[others], shield(asked[others]).numpy(), atol=1e-6)


def ask(path: Path, inputs: Tensor) -> Any:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(inputs).numpy()
    return onnxruntime.InferenceSession(str(path)).run(None, {"rows": inputs.numpy()})[0]


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_overflow_within_a_chain_and_rows_that_are_no_distribution_are_marked(
    ending, tmp_path
) -> None:
    shield = sn.Shield(Net().eval(), sn.Temperature(1e-30), sn.Label())
    sn.export(shield, rows(8) * 1e-30, tmp_path / f"steep{ending}")
    answer = ask(tmp_path / f"steep{ending}", torch.full((2, CLASSES), 1e20))
    assert np.isnan(answer).all()
    flat = sn.Shield(Net().eval(), sn.Label(), outputs="probabilities")
    sn.export(flat, rows(8).softmax(-1), tmp_path / f"flat{ending}")
    answer = ask(tmp_path / f"flat{ending}", rows(9) * 2)
    assert np.isnan(answer).all()


def test_our_own_reader_takes_the_onnx_file_that_we_write(tmp_path) -> None:
    shield = sn.harden(Net().eval(), "open")
    sn.export(shield, rows(8), tmp_path / "model.onnx")
    model = load_model(str(tmp_path / "model.onnx"))
    assert torch.equal(model(rows(9)), shield(rows(9)))


class Heads(nn.Module):
    def forward(self, rows: Tensor, mask: Tensor) -> dict[str, Tensor]:
        kept = rows * mask
        return {"intent": kept[:, :3], "topic": kept[:, 3:], "hidden": rows}


def test_several_inputs_and_heads_keep_their_names(tmp_path) -> None:
    shield = sn.harden(
        Heads().eval(), outputs={"intent": "logits", "topic": "logits"}, drop=("hidden",)
    )
    example = {"rows": rows(8), "mask": torch.ones(8, CLASSES)}
    shield(**example)
    written = sn.export(shield, example, tmp_path / "model.pt2")
    assert written.inputs == ("rows", "mask")
    program = torch.export.load(tmp_path / "model.pt2").module()
    asked = {"rows": rows(9), "mask": (rows(9) > 0).float()}
    answers, wanted = program(**asked), shield(**asked)
    assert answers.keys() == wanted.keys() == {"intent", "topic"}
    assert all(torch.equal(answers[name], wanted[name]) for name in wanted)
    sn.export(shield, example, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [node.name for node in session.get_inputs()] == ["rows", "mask"]
    assert len(session.get_outputs()) == 2  # what is dropped is no output of the graph


class Pixels(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image, image * 2 - 1, 1 - image], 1)


@pytest.mark.parametrize("chain", [(sn.Confidence(4),), (sn.Coarsen(2), sn.Round(1))], ids=str)
def test_a_segmentation_keeps_its_axis(chain, tmp_path) -> None:
    shield = sn.Shield(Pixels().eval(), *chain, axis=1)
    images = torch.rand(5, 4, 6)
    sn.export(shield, images, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 3):
        assert torch.equal(program(images[:count]), shield(images[:count]))
    images[1, 2, 3] = torch.nan
    answer = program(images)
    assert torch.isnan(answer[1]).all()  # as the shield would refuse all of it
    assert not torch.isnan(answer[[0, 2, 3, 4]]).any()


@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("binary_logits", (sn.Round(1),)),
        ("binary_probabilities", (sn.Confidence(2),)),
        ("embeddings", (sn.ClipNorm(1.0), sn.RoundTo(0.125))),
        ("values", (sn.ClipRange(-1.0, 1.0), sn.RoundTo(0.25))),
    ],
)
def test_every_kind_of_output_is_exported(kind, chain, tmp_path) -> None:
    net = nn.Sigmoid() if kind == "binary_probabilities" else nn.Identity()
    shield = sn.Shield(net.eval(), *chain, outputs=kind)
    sn.export(shield, rows(8), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 7):
        assert torch.equal(program(rows(count)), shield(rows(count)))


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("binary_logits", (sn.Round(1),)),
        ("embeddings", (sn.Sign(),)),
        ("values", (sn.ClipRange(-1.0, 1.0), sn.RoundTo(0.25))),
    ],
)
def test_all_of_a_refused_row_is_marked_whatever_its_kind(kind, chain, ending, tmp_path) -> None:
    shield = sn.Shield(Net().eval(), *chain, outputs=kind)
    sn.export(shield, rows(8), tmp_path / f"model{ending}")
    asked = rows(9)
    asked[5, 3] = torch.nan
    answer = ask(tmp_path / f"model{ending}", asked)
    assert np.isnan(answer[5]).all()
    others = torch.arange(9) != 5
    assert np.array_equal(answer[others], shield(asked[others]).numpy())


def test_whole_steps_of_a_refused_row_are_marked_too(tmp_path) -> None:
    shield = sn.Shield(Net().eval(), sn.ClipNorm(5.0), sn.GaussianNoise(2.0, integers=True))
    sn.export(shield, rows(8), tmp_path / "model.pt2")
    asked, line = rows(9), Line(shield, rows(8))
    asked[5, 3] = torch.inf
    noise = {one.name: one.draw(9) for one in line.noise}
    answer = torch.export.load(tmp_path / "model.pt2").module()(asked, **noise)
    assert (answer == NO_STEPS).any(1).tolist() == [row == 5 for row in range(9)]


@dataclass(frozen=True)
class Softer(sn.Defense):
    """A defense of one's own, of plain operators."""

    accepts = ("probabilities",)
    gives = "probabilities"

    def __call__(self, answers: Tensor) -> Tensor:
        softer = answers + 0.01
        return softer / softer.sum(-1, keepdim=True)


def test_a_defense_of_ones_own_and_an_example_of_arrays_are_exported(tmp_path) -> None:
    shield = sn.Shield(Net().eval(), Softer(), sn.Round(1))
    sn.export(shield, rows(8).numpy(), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(program(rows(9)), shield(rows(9)))


def test_half_precision_that_onnx_runtime_cannot_run_is_refused_with_what_to_do(tmp_path) -> None:
    net = nn.Linear(CLASSES, 4).eval().bfloat16()
    with pytest.raises(ConfigError, match=r"cannot run this model on a CPU: .*model.float\(\)"):
        sn.export(sn.harden(net), rows(8).bfloat16(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    sn.export(sn.harden(net, "open"), rows(8).bfloat16(), tmp_path / "model.pt2")
    asked = rows(9).bfloat16()
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(program(asked), sn.harden(net, "open")(asked))


def test_export_changes_nothing_of_how_torch_logs_and_warns(tmp_path) -> None:
    log = logging.getLogger("torch.onnx")
    before, filters = log.level, list(warnings.filters)
    sn.export(sn.harden(Net().eval(), "strict"), rows(8), tmp_path / "model.onnx")
    assert (log.level, warnings.filters) == (before, filters)


class Branches(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows if rows.sum() > 0 else -rows


class Fixed(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return torch.stack([row * 1.0 for row in rows])


class Anonymous(nn.Module):
    def forward(self, *rows: Tensor) -> Tensor:
        return rows[0]


REFUSED = {
    "a branch on numbers": (
        lambda: sn.harden(Branches().eval()),
        rows(8),
        "export could not",
    ),
    "a batch of one size": (lambda: sn.harden(Fixed().eval()), rows(8), "batches of any size"),
    "inputs without names": (lambda: sn.harden(Anonymous().eval()), rows(8), "names its inputs"),
    "training mode": (lambda: sn.harden(Net()), rows(8), "call shield.eval"),
    "one row": (lambda: sn.harden(Net().eval()), rows(1), "at least two rows"),
    "another shape": (lambda: sn.harden(Net().eval()), (rows(8), rows(8)), "the model's arguments"),
    "a model": (lambda: Net().eval(), rows(8), "Expected a Shield, got Net"),
    "a function": (lambda: sn.harden(lambda rows: rows), rows(8), "around a torch module"),
    "a key": (
        lambda: sn.Shield(Net().eval(), sn.KeyedNoise(1.0, key=b"k" * 32)),
        rows(8),
        "holds a key",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(name, tmp_path) -> None:
    make, example, words = REFUSED[name]
    with pytest.raises(ConfigError, match=words):
        sn.export(make(), example, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_paths_and_opsets_that_make_no_sense_are_refused(tmp_path) -> None:
    shield = sn.harden(Net().eval())
    with pytest.raises(ConfigError, match="ends in .pt2 or .onnx, got .*model.bin"):
        sn.export(shield, rows(8), tmp_path / "model.bin")
    with pytest.raises(ConfigError, match="Expected opset as one of"):
        sn.export(shield, rows(8), tmp_path / "model.onnx", opset=99)
    with pytest.raises(ConfigError, match="Expected opset as one of .*, got 20.0"):
        sn.export(shield, rows(8), tmp_path / "model.onnx", opset=20.0)
    with pytest.raises(ConfigError, match="a folder that is there"):
        sn.export(shield, rows(8), tmp_path / "none" / "model.pt2")
    (tmp_path / "model.pt2").write_text("mine")
    with pytest.raises(ConfigError, match="already exists; use force=True"):
        sn.export(shield, rows(8), tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "mine"
    sn.export(shield, rows(8), tmp_path / "model.pt2", force=True)
    assert torch.export.load(tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_the_same_shield_gives_the_same_bytes_and_they_hold_no_example_and_no_path(
    ending, tmp_path
) -> None:
    example = torch.full((3, CLASSES), 0.123456789) * torch.tensor([[1.0], [2.0], [3.0]])
    for name in ("one", "two"):
        sn.export(sn.harden(Net().eval(), "open"), example, tmp_path / f"{name}{ending}")
    one, two = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert example[:1].numpy().tobytes() not in one
    assert str(Path(sn.__file__).parent).encode() not in one
    assert b"site-packages" not in one


def test_export_leaves_the_shield_and_the_model_as_they_were(tmp_path) -> None:
    net = Net().eval()
    shield = sn.harden(net, "open")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sn.export(shield, rows(8), tmp_path / "model.pt2")
    assert net.scale.requires_grad
    assert shield.extent is None
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_one_added_output_gives_the_raw_scores_back(tmp_path) -> None:
    """What SECURITY.md says: a file in the caller's hands protects nothing."""
    import onnx

    net = nn.Linear(CLASSES, 4).eval()
    sn.export(sn.harden(net, "strict"), rows(8), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    raw = next(node.output[0] for node in model.graph.node if node.op_type == "Gemm")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(raw))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (scores,) = session.run([raw], {session.get_inputs()[0].name: rows(9).numpy()})
    assert np.allclose(scores, net(rows(9)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_every_opset_that_is_offered_runs(opset, tmp_path) -> None:
    shield = sn.harden(Net().eval(), "open")
    sn.export(shield, rows(8), tmp_path / "model.onnx", opset=opset)
    assert np.array_equal(ask(tmp_path / "model.onnx", rows(9)), shield(rows(9)).numpy())


def test_a_hardened_folder_holds_the_graphs_that_are_asked_for(tmp_path, monkeypatch) -> None:
    net = nn.Linear(CLASSES, 4).eval()
    shield = sn.harden(net, "open")
    shield(rows(8))
    graphs = graphs_of(shield, rows(8), ("pt2", "onnx"))
    sn.save_hardened(shield, tmp_path / "hardened", model="nets:make", graphs=graphs)
    assert sn.verify(tmp_path / "hardened")
    program = torch.export.load(tmp_path / "hardened" / "model.pt2").module()
    assert torch.equal(program(rows(9)), shield(rows(9)))
    with (tmp_path / "hardened" / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    assert not sn.verify(tmp_path / "hardened")
