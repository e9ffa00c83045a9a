import re

import numpy as np
import pytest
import torch

import shieldnet as sn

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def session(outputs: int = 1, inputs: int = 1):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    names = [f"x{number}" for number in range(inputs)]
    nodes = [helper.make_node("Sum", names, ["sum"])]
    nodes += [helper.make_node("Softmax", ["sum"], [f"p{number}"]) for number in range(outputs)]
    nodes += [helper.make_node("ArgMax", ["sum"], ["label"], axis=1, keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "softmax",
        [helper.make_tensor_value_info(name, kind, [None, 3]) for name in names],
        [
            helper.make_tensor_value_info("label", onnx.TensorProto.INT64, [None]),
            *(helper.make_tensor_value_info(f"p{n}", kind, [None, 3]) for n in range(outputs)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return runtime.InferenceSession(model.SerializeToString())


INPUTS = np.random.default_rng(0).normal(size=(6, 3))


def test_a_session_is_hardened_as_it_is() -> None:
    shield = sn.harden(session())
    answers = shield(INPUTS)  # of float64, which the session does not take
    assert isinstance(answers, np.ndarray)
    assert (answers.argmax(1) == INPUTS.argmax(1)).all()
    assert "Session(x0 -> p0) -> Confidence" in repr(shield)
    assert shield.model.dtype == torch.float32
    assert shield(x0=INPUTS).shape == (6, 3)


def test_a_session_of_two_inputs_takes_both() -> None:
    shield = sn.Shield(session(inputs=2), sn.Label())
    assert (shield(INPUTS, INPUTS).argmax(1) == INPUTS.argmax(1)).all()
    with pytest.raises(sn.errors.AnswerError, match=r"each input of the session \(x0, x1\), got 1"):
        shield(INPUTS)


def test_several_outputs_are_heads_by_their_names() -> None:
    outputs = {"p0": "probabilities", "p1": "probabilities"}
    with pytest.raises(sn.errors.AnswerError) as refused:
        sn.harden(session(outputs=2))(INPUTS)
    (line,) = re.findall(r"sn\.harden\(.*\)", str(refused.value))
    assert line == f"sn.harden(model, outputs={outputs!r})"
    answers = sn.harden(session(outputs=2), outputs=outputs)(INPUTS)
    assert list(answers) == ["p0", "p1"]
    assert all(len(np.unique(answers[name].max(1))) <= 4 for name in outputs)
    one = sn.harden(session(outputs=2), outputs={"p1": "probabilities"}, drop=["p0"])(INPUTS)
    assert list(one) == ["p1"]


def test_inputs_in_a_dict_are_taken_by_name() -> None:
    shield = sn.Shield(session(inputs=2), sn.Label())
    assert (shield({"x0": INPUTS, "x1": INPUTS}).argmax(1) == INPUTS.argmax(1)).all()
    with pytest.raises(sn.errors.AnswerError, match=r"each input of the session \(x0, x1\)"):
        shield({"x0": INPUTS})


@pytest.mark.parametrize("name", ["run", "get_inputs", "get_outputs"])
def test_the_methods_of_a_session_are_refused_with_the_call_that_works(name) -> None:
    shield = sn.harden(session())
    with pytest.raises(sn.errors.BypassError, match=rf"shield\(\.\.\.\).*shield.model.{name}"):
        getattr(shield, name)
    assert shield.model.run(None, {"x0": INPUTS.astype("float32")})[1].shape == (6, 3)
    assert [entry.name for entry in shield.model.get_inputs()] == ["x0"]
    assert [entry.name for entry in shield.model.get_outputs()] == ["label", "p0"]


def test_a_session_without_scores_is_refused() -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"floating-point.*label.*'zipmap': False"):
        sn.harden(session(outputs=0))
