import pickle

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import shieldnet as sn
from shieldnet.attacks import ClassInversion, Inversion, Membership, StraightThrough
from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.checks import Attribution, Masking, Memorization
from shieldnet.core.errors import DataError
from shieldnet.files.onnx_models import load_onnx
from shieldnet.files.sources import load_model


def saved(model: torch.nn.Module, path):
    """Writes a digits network by hand: torch's exporter needs a package of its own."""
    _, first, _, second = model
    weights = {
        "a": first.weight.detach().numpy(),
        "b": first.bias.detach().numpy(),
        "c": second.weight.detach().numpy(),
        "d": second.bias.detach().numpy(),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "a", "b"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "c", "d"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, path)
    return made


@pytest.fixture
def path(digits_model, tmp_path):
    saved(digits_model, tmp_path / "digits.onnx")
    return tmp_path / "digits.onnx"


def test_it_answers_as_its_model_and_has_no_gradients(path, digits_model) -> None:
    loaded = load_onnx(path)
    inputs = torch.rand(5, 1, 8, 8)
    assert torch.allclose(loaded(inputs), digits_model(inputs), atol=1e-5)
    assert not loaded(inputs.requires_grad_()).requires_grad
    assert torch.allclose(loaded(inputs.double()), digits_model(inputs), atol=1e-5)


def test_it_can_be_sent_to_other_processes(path) -> None:
    loaded = load_onnx(path)
    inputs = torch.rand(3, 1, 8, 8)
    assert torch.equal(pickle.loads(pickle.dumps(loaded))(inputs), loaded(inputs))  # noqa: S301


def test_operators_of_scikit_learn_and_branches_of_listed_ones_are_allowed(tmp_path) -> None:
    scaler = helper.make_node(
        "Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=[0.0] * 3, scale=[1.0] * 3
    )
    classifier = helper.make_node(
        "LinearClassifier", ["scaled"], ["label", "y"], domain="ai.onnx.ml",
        classlabels_ints=[0, 1], coefficients=[1.0, 0, 0, 0, 1, 0], intercepts=[0.0, 0],
        post_transform="SOFTMAX",
    )  # fmt: skip
    choice = helper.make_node("Constant", [], ["c"], value_ints=[1])
    truth = helper.make_node("Cast", ["c"], ["b"], to=TensorProto.BOOL)
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Identity", ["y"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])],
        )
        for name in ("then", "else")
    }
    graph = helper.make_graph(
        [scaler, classifier, choice, truth, helper.make_node("If", ["b"], ["z"], **branches)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(made, tmp_path / "m.onnx")
    answers = load_onnx(tmp_path / "m.onnx")(torch.randn(4, 3))
    assert torch.allclose(answers.sum(1), torch.ones(4))


def test_inputs_of_another_shape_are_refused(path) -> None:
    with pytest.raises(DataError, match=r"refuses inputs of shape \(2, 3\) \(it takes \['batch'"):
        load_onnx(path)(torch.rand(2, 3))


def test_data_in_other_files_is_not_followed(digits_model, tmp_path) -> None:
    made = saved(digits_model, tmp_path / "whole.onnx")
    onnx.save(
        made,
        tmp_path / "parts.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    with pytest.raises(DataError, match="has data in other files, which are not read"):
        load_onnx(tmp_path / "parts.onnx")


def test_data_of_a_nodes_own_in_other_files_is_not_followed_either(tmp_path) -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "secret")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=tensor)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(DataError, match="has data in other files"):
        load_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"no", b"\x08\x09" * 20])
def test_what_is_no_onnx_is_refused(tmp_path, content) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(DataError, match="not an ONNX model"):
        load_onnx(tmp_path / "m.onnx")


def test_a_model_without_outputs_is_refused(path, tmp_path) -> None:
    made = onnx.load(path)
    del made.graph.output[:]
    onnx.save(made, tmp_path / "silent.onnx")
    with pytest.raises(DataError, match=r"silent.onnx has no outputs. Export it with"):
        load_model(str(tmp_path / "silent.onnx"))


def test_an_audit_takes_the_black_box_and_says_what_it_could_not_do(
    path, digits_model, digits_split
) -> None:
    tier = sn.Tier(
        "tiny",
        (
            Inversion(decoders=(Ridge(),)),
            Membership(),
            StraightThrough(),
            ClassInversion(),
        ),
        (Attribution(), Masking(), Memorization()),
    )
    sets = {name: getattr(digits_split, name) for name in ("members", "nonmembers", "auxiliary")}
    few = {name: (inputs[:200], labels[:200]) for name, (inputs, labels) in sets.items()}
    black, white = (
        sn.audit(sn.harden(model), **few, tier=tier, shadows=0)
        for model in (load_model(str(path)), digits_model)
    )
    for name in ("inversion", "membership.auc", "accuracy"):
        assert black["shield"][name].value == pytest.approx(white["shield"][name].value, abs=1e-3)
    assert any("gradient" in line for line in black.untested)
    assert black["bare"].certificate.bits == float("inf")


def of_type(kind: int, path):
    """Writes a model that takes two columns of a type and scores by them."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["f", "a"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "typed",
        [helper.make_tensor_value_info("x", kind, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.ones((2, 3), np.float32), "a")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, path)
    return load_onnx(path)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (TensorProto.UINT8, torch.tensor([[0.0, 0.5]]), "takes uint8, and the input 0.5"),
        (TensorProto.UINT8, torch.tensor([[0, 300]]), "0 to 255 for an image"),
        (TensorProto.INT64, torch.tensor([[1.0, 1.5]]), "Pass whole numbers, or export"),
        (TensorProto.FLOAT, torch.tensor([[1.0, 0.1]]).double(), r"Pass inputs.to\(torch.float32"),
        (TensorProto.FLOAT, torch.tensor([[2**24 + 1, 0]]), r"16777217|1.67772e\+07"),
    ],
)
def test_a_cast_that_changes_an_input_is_refused(tmp_path, kind, given, words) -> None:
    """Images in 0..1 became zeros, and a bare model seemed to tell nothing."""
    given = given + (1e-9 if given.dtype == torch.float64 else 0)
    with pytest.raises(DataError, match=words):
        of_type(kind, tmp_path / "typed.onnx")(given)


def test_a_cast_that_changes_nothing_is_made(tmp_path) -> None:
    for kind in (TensorProto.UINT8, TensorProto.INT64, TensorProto.DOUBLE):
        model = of_type(kind, tmp_path / "typed.onnx")
        assert model(torch.tensor([[7.0, 255.0]])).tolist() == [[262.0] * 3]


def test_an_audit_gives_a_model_fractions_of_its_own_type(tmp_path) -> None:
    model = of_type(TensorProto.DOUBLE, tmp_path / "typed.onnx")
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(60, 2, generator=generator, dtype=torch.float32) for _ in range(3)]
    report = sn.audit(
        sn.Shield(model, sn.Round(1)),
        **dict(zip(("members", "nonmembers", "auxiliary"), sets, strict=True)),
        tier=sn.Tier("quick", (Inversion(decoders=(Ridge(),)),)),
        engine="inline",
    )
    assert report["bare"]["inversion"].samples == 60


def classifier(folder):
    """Writes a scaler and a classifier as skl2onnx does: the label comes first."""
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "probabilities"], domain="ai.onnx.ml",
            classlabels_ints=[0, 1], coefficients=[1.0, 0, 0, 0, 1, 0], intercepts=[0.0, 0],
            post_transform="SOFTMAX",
        ),
        helper.make_node(
            "ZipMap", ["probabilities"], ["by_class"], domain="ai.onnx.ml",
            classlabels_int64s=[0, 1],
        ),
    ]  # fmt: skip
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2]),
        helper.make_value_info(
            "by_class",
            helper.make_sequence_type_proto(
                helper.make_map_type_proto(
                    TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
                )
            ),
        ),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "m.onnx")
    return folder / "m.onnx"


def test_of_several_outputs_one_is_named_and_none_is_dropped_in_silence(tmp_path) -> None:
    path = classifier(tmp_path)
    with pytest.raises(
        DataError, match=r"3 outputs: label .tensor\(int64\).* Name the one .*m.onn"
    ):
        load_model(str(path))
    answers = load_model(f"{path}:probabilities")(torch.randn(5, 3))
    assert answers.shape == (5, 2)
    assert torch.allclose(answers.sum(1), torch.ones(5))
    with pytest.raises(DataError, match="has no output 'scores'"):
        load_model(f"{path}:scores")
    with pytest.raises(DataError, match="by_class of .* is a seq.*zipmap"):
        load_model(f"{path}:by_class")
    twin = pickle.loads(pickle.dumps(load_model(f"{path}:probabilities")))  # noqa: S301
    assert twin(torch.randn(5, 3)).shape == (5, 2)
