"""A request is read into tensors or refused with 400 or 413, whatever its bytes."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from serving_parts import ROWS, infer
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from shieldnet.serving.app.answers import written_infer, written_predict
from shieldnet.serving.app.datatypes import DATATYPES, OF_DTYPE
from shieldnet.serving.app.protocol import InferRequest, PredictRequest
from shieldnet.serving.app.refusals import Refused
from shieldnet.serving.app.requests import Asked, Form, read_infer, read_predict
from shieldnet.shipping.description import TensorFacts

FORM = Form((TensorFacts("x", (None, 6), "float32"),), ("answer", "boxes"), 64)
ARRAYS = [name for name in DATATYPES if name != "BF16"]


def of_type(dtype: str, *sizes: int | None) -> Form:
    return Form((TensorFacts("x", (None, *sizes), dtype),), ("answer",), 64)


def refused(body: object, form: Form = FORM, header: str | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        read_infer(body if isinstance(body, bytes) else json.dumps(body).encode(), header, form)
    return caught.value


def changed(**fields: object) -> dict:
    request = infer()
    request["inputs"][0] |= fields
    return request


@pytest.mark.parametrize("data", [ROWS, [number for row in ROWS for number in row]])
def test_numbers_are_read_flat_and_nested(data) -> None:
    asked = read_infer(json.dumps(changed(data=data)).encode(), None, FORM)
    assert torch.equal(asked.inputs["x"], torch.tensor(ROWS))
    assert asked.rows == 2
    assert asked.outputs == ("answer", "boxes")
    assert not asked.binary


@pytest.mark.parametrize("name", DATATYPES)
def test_what_the_real_client_sends_in_binary_arrives_to_the_last_bit(name) -> None:
    kind = DATATYPES[name]
    numbers = torch.arange(12).reshape(2, 6).to(kind.dtype)
    array = numbers.float().numpy() if name == "BF16" else numbers.numpy()
    given = InferInput("x", [2, 6], name).set_data_from_numpy(array)
    body, length = InferenceServerClient.generate_request_body([given], request_id="7")
    asked = read_infer(body, str(length), of_type(str(kind.dtype).removeprefix("torch."), 6))
    assert torch.equal(asked.inputs["x"], numbers)
    assert asked.id == "7"
    assert asked.binary == {"answer"}


@pytest.mark.parametrize("name", ARRAYS)
def test_what_the_real_client_sends_as_json_arrives(name) -> None:
    kind = DATATYPES[name]
    numbers = torch.arange(12).reshape(2, 6).to(kind.dtype)
    given = InferInput("x", [2, 6], name).set_data_from_numpy(numbers.numpy(), binary_data=False)
    body, length = InferenceServerClient.generate_request_body([given])
    asked = read_infer(
        body, length and str(length), of_type(str(kind.dtype).removeprefix("torch."), 6)
    )
    assert torch.equal(asked.inputs["x"], numbers)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("binary", [(), ("answer",), ("second",), ("answer", "second")])
def test_the_real_client_reads_answers_in_either_form(name, binary) -> None:
    numbers = torch.arange(6).reshape(2, 3).to(DATATYPES[name].dtype)
    answers = {"answer": numbers, "second": numbers[:, :1]}
    asked = Asked({}, 2, "7", ("second", "answer"), frozenset(binary))
    body, length = written_infer(asked, answers, "m", "1")
    result = InferResult.from_response_body(body, header_length=length)
    for output, answer in answers.items():
        assert np.array_equal(result.as_numpy(output), answer.numpy())
    assert result.get_response()["id"] == "7"


def test_what_kserves_client_and_others_add_is_read() -> None:
    request = changed(parameters=None) | {"model_name": "model", "model_version": None, "id": None}
    request |= {"parameters": {"content_type": "np"}, "outputs": []}
    assert read_infer(json.dumps(request).encode(), None, FORM).rows == 2


def test_outputs_may_be_named_each_in_its_form() -> None:
    given = InferInput("x", [2, 6], "FP32").set_data_from_numpy(np.array(ROWS, np.float32))
    wanted = [
        InferRequestedOutput("boxes", binary_data=False),
        InferRequestedOutput("answer", binary_data=True),
    ]
    body, length = InferenceServerClient.generate_request_body([given], outputs=wanted)
    asked = read_infer(body, str(length), FORM)
    assert asked.outputs == ("boxes", "answer")
    assert asked.binary == {"answer"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shape": [2, 5]}, "Expected the shape [-1, 6] of x"),
        ({"shape": [2, -6]}, "inputs.0.shape.1 is not"),
        ({"shape": [0, 6]}, "inputs.0.shape.0 is not"),
        ({"shape": [2] * 9}, "inputs.0.shape is not"),
        ({"shape": [2, 2**70]}, "inputs.0.shape.1 is not"),
        ({"shape": []}, "inputs.0.shape is not"),
        ({"shape": [True, 6]}, "inputs.0.shape.0 is not"),
        ({"shape": [2**31 - 1, 6]}, "Expected at most 64 rows."),
        ({"shape": [3, 6]}, "Expected data of x"),
        ({"data": [*ROWS, ROWS[0]]}, "Expected data of x"),
        ({"data": [ROWS[0], ROWS[1][:5]]}, "Expected data of x"),
        ({"data": [ROWS[0], 6.0]}, "Expected data of x"),
        ({"data": [[[1.0]] * 6] * 2}, "Expected every number of FP32 as float or int."),
        ({"data": [["1"] * 6] * 2}, "Expected every number of FP32 as float or int."),
        ({"data": [[True] * 6] * 2}, "Expected every number of FP32 as float or int."),
        ({"data": [[None] * 6] * 2}, "Expected every number of FP32 as float or int."),
        ({"data": [[1e39] * 6] * 2}, "Expected numbers that FP32 can hold."),
        ({"data": [[10**400] * 6] * 2}, "Expected numbers that FP32 can hold."),
        ({"data": [[math.nan] * 6] * 2}, "Expected numbers that FP32 can hold."),
        ({"data": [[math.inf] * 6] * 2}, "Expected numbers that FP32 can hold."),
        ({"data": None}, "Expected data or binary_data_size for x."),
        ({"data": "text"}, "inputs.0.data is not"),
        ({"datatype": "FP64"}, "Expected the datatype FP32 of x."),
        ({"datatype": "BYTES"}, "Expected the datatype FP32 of x; BYTES and unknown types"),
        ({"name": "y"}, "Expected each input of the model once: x."),
        ({"secret": 1}, "inputs.0 is not"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory"),
        ({"parameters": {"binary_data_size": 48}}, "Expected no data beside"),
    ],
)
def test_an_input_of_another_form_is_refused_in_words(fields, words) -> None:
    error = refused(changed(**fields))
    assert words in error.message
    assert error.status == (413 if "at most" in words else 400)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "inputs is not"),
        ([], "Expected InferRequest as JSON; it is not."),
        (b"{", "Expected InferRequest as JSON; it is not."),
        (b"\xff\xfe", "Expected InferRequest as JSON; it is not."),
        (b"[" * 9_000, "Expected InferRequest as JSON; it is not."),
        (b"[" * 100_000, "no lists and names beside theirs"),
        (b'{"inputs":[' + b"[]," * 2**20 + b"[]]}", "no lists and names beside theirs"),
        (b"{" + b'"":0,' * 2**20 + b"}", "no lists and names beside theirs"),
        ({"inputs": []}, "inputs is not"),
        ({"inputs": infer()["inputs"] * 2}, "Expected each input of the model once: x."),
        (infer(outputs=[{"name": "hidden"}]), "Expected outputs of the model, each once: answer"),
        (infer(outputs=[{"name": "answer"}] * 2), "Expected outputs of the model, each once"),
        (infer(parameters={"sequence_id": 7}), "sequences are not served"),
        (infer(parameters={"binary_data_output": 1}), "Expected binary_data_output to be true"),
        (infer(outputs=[{"name": "answer", "parameters": {"classification": 3}}]), "tensors in"),
        (infer(id="x" * 201), "id is not"),
        (infer(model_name="other"), "Expected model_name and model_version as in the address"),
        (infer(model_version="2"), "Expected model_name and model_version as in the address"),
        (infer(more=1), "Expected InferRequest as JSON; it is not."),
    ],
)
def test_a_request_of_another_form_is_refused_in_words(request_, words) -> None:
    error = refused(request_)
    assert words in error.message
    assert error.status == (413 if "beside theirs" in words else 400)


@pytest.mark.parametrize(
    ("size", "tail", "header"),
    [(48, 47, None), (48, 49, None), (47, 47, None), (-1, 0, None), (2**70, 48, None)]
    + [(48, 48, header) for header in ("", "-1", "99999", "1e3", "٣", "9" * 30, "0")],
)
def test_bytes_that_are_not_as_declared_are_refused(size, tail, header) -> None:
    head = json.dumps(changed(data=None, parameters={"binary_data_size": size})).encode()
    length = str(len(head)) if header is None else header
    assert refused(head + b"\0" * tail, header=length).status == 400


def test_a_byte_that_is_no_truth_is_refused() -> None:
    head = {"name": "x", "shape": [2, 1], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    text = json.dumps({"inputs": [head]}).encode()
    form, length = of_type("bool", 1), str(len(text))
    assert read_infer(text + b"\1\0", length, form).inputs["x"].tolist() == [[True], [False]]
    assert "0 or 1" in refused(text + b"\1\2", form, length).message


@pytest.mark.parametrize("number", [-1, 256, 1.0, True])
def test_a_number_that_the_datatype_cannot_hold_is_refused(number) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [number]}]}
    assert refused(body, of_type("uint8", 1)).status == 400


def test_rows_of_plain_json_take_the_shape_that_they_have() -> None:
    asked = read_predict(json.dumps({"inputs": ROWS}).encode(), FORM)
    assert torch.equal(asked.inputs["x"], torch.tensor(ROWS))
    two = Form((*FORM.inputs, TensorFacts("n", (None,), "int64")), ("answer",), 64)
    asked = read_predict(json.dumps({"inputs": {"n": [1, 2], "x": ROWS}}).encode(), two)
    assert list(asked.inputs) == ["x", "n"]
    with pytest.raises(Refused, match="Expected inputs by name"):
        read_predict(json.dumps({"inputs": ROWS}).encode(), two)
    with pytest.raises(Refused, match="Expected as many rows"):
        read_predict(json.dumps({"inputs": {"n": [1], "x": ROWS}}).encode(), two)


@pytest.mark.parametrize(
    "inputs", [[], [[]], {}, {"x": []}, 1, None, [ROWS], [[1.0] * 6, []], [[1.0] * 7], ["text"]]
)
def test_other_rows_of_plain_json_are_refused(inputs) -> None:
    with pytest.raises(Refused) as caught:
        read_predict(json.dumps({"inputs": inputs}).encode(), FORM)
    assert caught.value.status == 400


def test_several_outputs_are_answered_by_name() -> None:
    one = {"answer": torch.tensor([[1.0]])}
    assert json.loads(written_predict(one)) == {"outputs": [[1.0]]}
    two = {**one, "boxes": torch.tensor([2])}
    assert json.loads(written_predict(two)) == {"outputs": {"answer": [[1.0]], "boxes": [2]}}


def test_the_same_inputs_have_one_digest_in_every_form() -> None:
    given = InferInput("x", [2, 6], "FP32").set_data_from_numpy(np.array(ROWS, np.float32))
    body, length = InferenceServerClient.generate_request_body([given])
    asked = [
        read_infer(body, str(length), FORM),
        read_infer(json.dumps(infer()).encode(), None, FORM),
        read_predict(json.dumps({"inputs": ROWS}).encode(), FORM),
    ]
    assert len({one.digest() for one in asked}) == 1
    other = read_predict(json.dumps({"inputs": ROWS[::-1]}).encode(), FORM)
    assert len({other.digest(), asked[0].digest()}) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
NUMBERS = st.lists(st.floats() | st.integers() | JSON, max_size=13)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y"]) | JSON,
        "shape": st.lists(st.integers(0, 7), max_size=4) | st.just([2, 6]) | JSON,
        "datatype": st.sampled_from([*DATATYPES, "BYTES"]) | JSON,
    },
    optional={
        "data": NUMBERS | st.lists(NUMBERS, max_size=3) | JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "content_type"]), st.sampled_from([12, 48]) | JSON
        )
        | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, min_size=1, max_size=2) | JSON},
    optional={
        "id": JSON,
        "parameters": JSON,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["answer"]) | JSON}))
        | JSON,
    },
)


@given(
    request=REQUEST | JSON,
    tail=st.binary(max_size=50) | st.just(b"\0" * 48),
    length=st.none() | st.text("0123456789- ", max_size=4) | st.just("exact"),
    dtype=st.sampled_from([*OF_DTYPE]),
    cut=st.integers(0, 3),
)
def test_whatever_is_sent_is_read_or_refused(request, tail, length, dtype, cut) -> None:
    head = json.dumps(request).encode()
    body = head[: len(head) - cut] + tail
    form = Form((TensorFacts("x", (None, 6), dtype),), ("answer",), 5)
    length = str(len(head)) if length == "exact" else length
    for read in (lambda: read_infer(body, length, form), lambda: read_predict(body, form)):
        status = 200
        try:
            asked = read()
        except Refused as error:
            status = error.status
        assert status in (200, 400, 413)
        if status == 200:
            assert asked.inputs["x"].shape == (asked.rows, 6)
            assert 1 <= asked.rows <= 5


MANY = {f"name{place}": None for place in range(1000)}


@pytest.mark.parametrize(
    "request_",
    [
        MANY,
        {"inputs": MANY},
        {"inputs": [MANY] * 2},
        {"inputs": [1] * 1000},
        {"inputs": [{}] * 1000},
        changed(shape=["1"] * 1000),
        changed(parameters=MANY),
        infer(parameters=MANY),
        infer(outputs=[1] * 1000),
        infer(outputs=[MANY]),
        infer(outputs=[{"name": "answer", "parameters": MANY}]),
    ],
)
def test_the_mistakes_of_a_request_are_not_all_collected(request_) -> None:
    with pytest.raises(ValidationError) as wrong:
        InferRequest.model_validate(request_)
    assert wrong.value.error_count() < 10
    assert refused(request_).status == 400


@pytest.mark.parametrize("request_", [MANY, {"inputs": MANY}])
def test_the_mistakes_of_a_plain_request_are_not_all_collected(request_) -> None:
    with pytest.raises(ValidationError) as wrong:
        PredictRequest.model_validate(request_)
    assert wrong.value.error_count() < 10


@pytest.mark.parametrize("token", [-1, 20])
def test_a_token_that_the_model_does_not_have_is_refused(token) -> None:
    facts = TensorFacts("input_ids", (None, 3), "int64")
    form = Form((facts,), ("answer",), 64, ids={"input_ids": 20})
    right = {
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [0, 19, 3]}]
    }
    assert read_infer(json.dumps(right).encode(), None, form).rows == 1
    right["inputs"][0]["data"][1] = token
    for read in (
        lambda: read_infer(json.dumps(right).encode(), None, form),
        lambda: read_predict(json.dumps({"inputs": [[0, token, 3]]}).encode(), form),
    ):
        with pytest.raises(Refused, match="from 0 to 19 in input_ids"):
            read()
