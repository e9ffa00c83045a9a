"""A folder's graphs are of its shield, and answer as it does."""

import json
import os
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from artifacts import Two, changed_json, made, rewritten, shield_of
from torch import nn

import shieldnet as sn
from shieldnet.exporting.writing import graphs_of
from shieldnet.runtime import FACTS

ROWS = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def noisy() -> sn.Shield:
    chain = (sn.ClipNorm(2.0), sn.GaussianNoise(1.0), sn.TopK(1))
    return sn.Shield(Two().eval(), *chain, extent=sn.Extent(3))


@pytest.fixture(scope="module")
def graphs() -> Mapping[str, bytes]:
    return graphs_of(shield_of(), ROWS, ("pt2", "onnx"))


@pytest.fixture
def folder(tmp_path, graphs) -> Path:
    return made(tmp_path / "hardened", graphs=graphs)


def renamed_facts(program: bytes, path: Path, **changes: object) -> bytes:
    """Returns a .pt2 that says something else of itself."""
    path.write_bytes(program)
    other = path.with_suffix(".other")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(FACTS):
                data = json.dumps({**json.loads(data), **changes}).encode()
            new.writestr(zipfile.ZipInfo(name), data)
    return other.read_bytes()


def test_graphs_are_asked_the_same_as_the_shield_where_the_model_is_given(folder) -> None:
    checked = sn.verify(folder, model=Two)
    assert checked["graphs"].result == "pass"
    assert checked["graphs"].words == (
        "model.onnx, model.pt2: answers generated inputs as the shield does"
    )
    assert sn.load_hardened(folder, Two).settings == shield_of().settings


def test_without_the_model_it_is_said_that_graphs_were_not_asked(folder) -> None:
    checked = sn.verify(folder)
    assert checked["graphs"].result == "not checked"
    assert "only read and hashed, not asked (--model two:Two asks)" in checked["graphs"].words
    assert "the signature and the graphs, which were not checked" in checked.conclusion
    assert not sn.verify(folder, require=("graphs",))


def test_model_json_says_what_a_server_asks_a_graph(tmp_path) -> None:
    shield = noisy()
    held = graphs_of(shield, {"x": ROWS}, ("pt2", "onnx"))
    folder = made(tmp_path / "hardened", shield=shield, graphs=held, example={"x": ROWS})
    described = json.loads((folder / "model.json").read_bytes())
    for name in ("model.onnx", "model.pt2"):
        graph = described["graphs"][name]
        assert graph["weights"] == described["weights"]
        assert graph["shield"] == shield.settings.digest()
        assert graph["noise"] == ["noise"]
        assert graph["inputs"] == [
            {"name": "x", "shape": [None, 3], "dtype": "float32"},
            {"name": "noise", "shape": [None, 3], "dtype": "int32"},
        ]
        assert [one["shape"] for one in graph["outputs"]] == [[None, 3]]
    assert sn.verify(folder, model=Two)["graphs"].result == "pass"


def test_a_model_of_several_inputs_and_heads_is_described_by_their_names(tmp_path) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.topic, self.intent = nn.Linear(7, 4), nn.Linear(7, 2)

        def forward(self, text, image):
            return {"topic": self.topic(text + image), "intent": self.intent(text)}

    torch.manual_seed(0)
    model = Several().eval()
    kinds = {"topic": "logits", "intent": "logits"}
    also = {"intent": (sn.Label(),)}
    shield = sn.Shield(model, sn.TopK(2), sn.Round(1), outputs=kinds, also=also)
    example = {"text": torch.randn(4, 7), "image": torch.randn(4, 7)}
    for number, given in enumerate((example, tuple(example.values()))):
        held = graphs_of(shield, given, ("pt2", "onnx"))
        folder = tmp_path / f"{number}"
        sn.save_hardened(shield, folder, model="s:Several", graphs=held, example=given)
        described = json.loads((folder / "model.json").read_bytes())
        names = [one["name"] for one in described["inputs"]]
        assert names == ["text", "image"]
        assert [one["name"] for one in described["answers"]] == ["topic", "intent"]
        for graph in described["graphs"].values():
            assert [one["name"] for one in graph["inputs"]] == names
        outputs = described["graphs"]["model.pt2"]["outputs"]
        assert [(one["name"], one["shape"][1]) for one in outputs] == [("topic", 4), ("intent", 2)]
        checked = sn.verify(folder, model=lambda: Several())
        assert checked["graphs"].result == "pass", checked


def test_inputs_that_are_named_as_python_names_things_keep_their_names(tmp_path) -> None:
    shield = sn.harden(nn.Linear(3, 3).eval(), extent=sn.Extent(3))
    folder = tmp_path / "hardened"
    sn.save_hardened(shield, folder, graphs=graphs_of(shield, ROWS, ("pt2", "onnx")))
    for graph in json.loads((folder / "model.json").read_bytes())["graphs"].values():
        assert [one["name"] for one in graph["inputs"]] == ["input"]


def bare_program() -> bytes:
    import io

    batch = ({0: torch.export.Dim("batch", min=1)},)
    buffer = io.BytesIO()
    program = torch.export.export(Two().eval(), (ROWS,), dynamic_shapes=batch)
    torch.export.save(program, buffer)
    return buffer.getvalue()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("model.pt2", pickle.dumps(Bomb()), "is not a readable archive"),
        ("model.onnx", b"\x80\x04K\x01.", "is not an ONNX model"),
        ("model.pt2", b"a graph", "is not a readable archive"),
        ("model.pt2", bare_program, "is no graph that shieldnet.export wrote"),
    ],
)
def test_what_graphs_of_did_not_write_is_never_a_shields_graph(
    tmp_path, folder, graphs, name, data, words
) -> None:
    content = data() if callable(data) else data
    with pytest.raises(sn.errors.DataError, match=words):
        made(tmp_path / "other", graphs={name: content})
    assert not (tmp_path / "other").exists()
    rewritten(folder, **{name.replace(".", "__"): content})
    for model in (None, Two):
        checked = sn.verify(folder, model=model)
        assert words in checked["graphs"].words
        assert checked["graphs"].result == "fail"


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_the_graph_of_another_model_or_shield_under_this_ones_name_fails(
    tmp_path, folder, ending
) -> None:
    name = f"model.{ending}"
    other = graphs_of(shield_of(Two(seed=1)), ROWS, (ending,))
    with pytest.raises(sn.errors.VerificationFailed, match="does not answer as the shield does"):
        made(tmp_path / "other", graphs=other)
    rewritten(folder, **{f"model__{ending}": other[name]})
    assert "does not answer as the shield does" in sn.verify(folder, model=Two)["graphs"].words
    weaker = graphs_of(sn.harden(Two().eval(), "open", extent=sn.Extent(3)), ROWS, (ending,))
    rewritten(folder, **{f"model__{ending}": weaker[name]})
    words = sn.verify(folder)["graphs"].words
    assert f"{name} says that it holds another shield than shield.toml" in words


def test_a_bare_graph_that_says_it_is_a_shields_is_found_by_its_answers(
    tmp_path, graphs, folder
) -> None:
    bare = sn.Shield(Two().eval(), extent=sn.Extent(3))
    (program,) = graphs_of(bare, ROWS, ("pt2",)).values()
    forged = renamed_facts(program, tmp_path / "f.pt2", shield=shield_of().describe())
    rewritten(folder, model__pt2=forged)
    checked = sn.verify(folder, model=Two)
    assert checked["graphs"].result == "fail"
    assert "does not answer as the shield does" in checked["graphs"].words


def test_noise_by_another_law_fails(tmp_path) -> None:
    shield = noisy()
    held = dict(graphs_of(shield, ROWS, ("pt2",)))
    law = {"noise": {"law": "none", "sizes": [3], "dtype": "int32"}}
    held["model.pt2"] = renamed_facts(held["model.pt2"], tmp_path / "f.pt2", noise=law)
    with pytest.raises(sn.errors.VerificationFailed, match="draws its noise by other laws"):
        made(tmp_path / "hardened", shield=shield, graphs=held)


@pytest.mark.parametrize("field", ["weights", "shield", "inputs", "outputs", "noise"])
def test_what_model_json_says_of_a_graph_is_held_to_it(folder, field) -> None:
    document = json.loads((folder / "model.json").read_bytes())
    graph = document["graphs"]["model.pt2"]
    one = {"name": "y", "shape": [None, 4], "dtype": "float32"}
    graph[field] = {"weights": "f" * 64, "shield": "f" * 64, "noise": ["x"]}.get(field, [one])
    rewritten(folder, model__json=json.dumps(document).encode())
    assert "model.json says of model.pt2 other weights" in sn.verify(folder)["graphs"].words


def test_a_shield_that_refuses_generated_inputs_asks_for_an_example(tmp_path) -> None:
    class Rows(nn.Module):
        def forward(self, rows):
            return rows * 1.0

    shield = sn.Shield(Rows().eval(), sn.TopK(2), outputs="probabilities", extent=sn.Extent(3))
    rows = ROWS.softmax(-1)
    held = graphs_of(shield, rows, ("pt2",))
    with pytest.raises(sn.errors.ConfigError, match="Give example="):
        sn.save_hardened(shield, tmp_path / "hardened", graphs=held)
    folder = sn.save_hardened(shield, tmp_path / "hardened", graphs=held, example=rows)
    checked = sn.verify(folder, model=Rows)
    assert checked["graphs"].result == "not checked"
    assert "the shield refuses the inputs" in checked["graphs"].words


def test_a_graph_is_a_file_like_any_other(folder, tmp_path) -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"Expected graphs as model.onnx and model.pt2"):
        made(tmp_path / "other", graphs={"graph.so": b""})
    rewritten(folder, model__onnx=None)
    assert "model.json describes" in sn.verify(folder)["model"].words
    assert not sn.verify(folder)


def test_without_the_packages_of_onnx_a_graph_does_not_pass(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(sn.errors.MissingDependency, match="onnx"):
        sn.verify(folder)


def test_a_folder_without_graphs_says_so(tmp_path) -> None:
    checked = sn.verify(made(tmp_path / "hardened"))["graphs"]
    assert (checked.result, checked.words) == ("pass", "there is none, as described")
    data = changed_json((tmp_path / "hardened" / "model.json").read_bytes(), graphs={"x": 1})
    rewritten(tmp_path / "hardened", model__json=data)
    assert not sn.verify(tmp_path / "hardened")
