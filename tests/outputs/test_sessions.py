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


def test_of_several_outputs_one_is_to_be_named() -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"one output .*p0 .*p1.*session.run\(\['p0'\]"):
        sn.harden(session(outputs=2))
