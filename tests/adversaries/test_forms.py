"""The adversary reads what stands around the numbers: names, containers, memory, strides."""

import io
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

Scored = namedtuple("Scored", ["logits", "extra"])


@dataclass
class Answer:
    logits: Tensor
    extra: Tensor | None = None


class Says(nn.Module):
    """Answers as the test decides, from the input alone."""

    def __init__(self, say: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.say = say

    def forward(self, x: Tensor) -> Any:
        return self.say(x)


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "output",
    [
        lambda x: {1: x, "1": x},
        lambda x: {"logits": x, 1: x, "1": x},
        lambda x: {"a.b": x, "a": {"b": x}},
        lambda x: {"a": [x], "a.0": x},
    ],
)
@pytest.mark.parametrize("also", [(), (sn.Sign(),)])
def test_two_fields_of_one_name_are_refused(output, also) -> None:
    """Both were released; one was counted."""
    names = ("1", "a.b", "a.0")
    shield = sn.Shield(
        Says(output),
        sn.Sign(),
        outputs=dict.fromkeys(("logits", *names), "embeddings"),
        also=dict.fromkeys(names, also),
    )
    with pytest.raises(
        sn.errors.AnswerError, match="two fields that are both named|Expected to find"
    ):
        shield(X)
    shield = sn.harden(Says(output), "strict", outputs={"1": "logits"}, also={"a": ()})
    with pytest.raises(sn.errors.AnswerError, match="two fields that are both named"):
        shield(X)


@pytest.mark.parametrize("key", [True, 1.0, (1, 2), b"logits", torch.float32])
def test_a_key_that_is_no_word_and_no_whole_number_is_refused(key) -> None:
    shield = sn.harden(Says(lambda x: {"logits": x, key: x}), drop=(str(key),))
    with pytest.raises(
        sn.errors.AnswerError, match="strings or integers as keys of a dict, got a key of type"
    ):
        shield(X)


FORMS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]] = {
    "list or tuple": (lambda x: [x], lambda x: (x,)),
    "dict or OrderedDict": (lambda x: {"logits": x}, lambda x: OrderedDict(logits=x)),
    "tensor or tuple": (lambda x: x, lambda x: (x,)),
    "tensor or dict": (lambda x: x, lambda x: {"logits": x}),
    "nested list or tuple": (lambda x: {"logits": [x]}, lambda x: {"logits": (x,)}),
    "namedtuple or tuple": (lambda x: Scored(x, None), lambda x: (x, None)),
    "dataclass or dict": (lambda x: Answer(x), lambda x: {"logits": x}),
    "None or left out": (lambda x: (x, None), lambda x: (x,)),
    "key 1 or key '1'": (lambda x: {1: x}, lambda x: {"1": x}),
    "names": (lambda x: {"logits_a": x}, lambda x: {"logits_b": x}),
    "order of keys": (
        lambda x: {"logits": x, "free": x},
        lambda x: {"free": x, "logits": x},
    ),
    "how many there are": (
        lambda x: {"logits": x, "free": [x]},
        lambda x: {"logits": x, "free": [x, x]},
    ),
    "type of a free field": (
        lambda x: {"logits": x, "free": 1},
        lambda x: {"logits": x, "free": True},
    ),
    "dtype": (lambda x: x, lambda x: x.double()),
    "a field that is None": (lambda x: Answer(x, x), lambda x: Answer(x, None)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("turned", [False, True])
def test_the_form_of_an_answer_carries_no_bit(name, turned) -> None:
    """The secret chooses the container; the label that is released is the same."""
    usual, other = FORMS[name][::-1] if turned else FORMS[name]
    model = Says(lambda x: other(x) if float(x[0, 0]) > 100 else usual(x))
    shield = sn.harden(model, "strict", also={"free": (), "extra": ()})
    shield(X)
    secret = X.clone()
    secret[0, 0] = 101
    with pytest.raises(
        sn.errors.AnswerError, match="Expected an answer of the form of the first one"
    ):
        shield(secret)
    shield(X)


def test_the_caller_may_choose_the_form_by_how_it_asks() -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor, *, return_dict: bool = False) -> Any:
            return {"logits": x} if return_dict else (x,)

    shield = sn.harden(Chosen())
    for _ in range(2):
        assert isinstance(shield(X), tuple)
        assert isinstance(shield(X, return_dict=True), dict)
    assert shield(X.double())[0].dtype == torch.float64


def test_a_cast_by_the_owner_begins_anew() -> None:
    shield = sn.harden(nn.Embedding(5, 4))
    tokens = torch.arange(5)
    assert shield(tokens).dtype == torch.float32
    assert shield.double()(tokens).dtype == torch.float64


WIDE = torch.randn(4, 10, generator=torch.Generator().manual_seed(2))


def _stored(released: Tensor) -> int:
    """Counts the numbers that the memory of a tensor holds, as whoever pickles it sends them."""
    return released.untyped_storage().nbytes() // released.element_size()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("chain", [(), (sn.Label(),), (sn.TopK(2), sn.Round(1))], ids=str)
@pytest.mark.parametrize(
    "say",
    [
        lambda x: x[:, :3],
        lambda x: x.T[:3].T,
        lambda x: x[::2, ::3],
        lambda x: x.narrow(1, 4, 3),
        lambda x: x[:, :1].expand(-1, 3),
        lambda x: x.as_strided((4, 3), (1, 2)),
    ],
)
def test_a_released_tensor_holds_nothing_but_what_it_shows(mode, chain, say) -> None:
    with mode():
        answer = say(WIDE)
        released = sn.Shield(Says(lambda x: say(WIDE)), *chain)(torch.zeros(1))
    assert _stored(released) == answer.numel()
    assert released.is_contiguous()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fields_that_were_dropped_are_in_no_memory(mode) -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            both = torch.cat([x, 1000 + x], 1)
            return {"logits": both[:, :3], "free": both[:, :3], "hidden": both[:, 3:]}

    shield = sn.Shield(Joined(), outputs={"logits": "logits"}, also={"free": ()}, drop=("hidden",))
    with mode():
        released = shield(X)
    for field in ("logits", "free"):
        file = io.BytesIO()
        torch.save(released[field], file)
        assert _stored(released[field]) == 12
        assert not (torch.load(io.BytesIO(file.getvalue())).flatten() > 500).any()
    assert released["logits"].data_ptr() != released["free"].data_ptr()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_answer_is_not_the_callers_input_nor_a_weight_nor_another_field(mode) -> None:
    x = X.clone()
    weight = X.clone()
    answers = [
        (sn.Shield(nn.Identity())(x), x),
        (sn.Shield(nn.Identity(), sn.TopK(9, or_all=True))(x.softmax(-1).log()), x),
        (sn.Shield(Says(lambda _: weight))(torch.zeros(1)), weight),
        (sn.Shield(Says(lambda x: (x, x)), outputs={"0": "logits"}, also={"1": ()})(x)[1], x),
        (sn.Shield(nn.Identity(), outputs="values")(x[:, 0]), x),
        (sn.Shield(nn.Identity(), outputs="binary_logits")(x), x),
    ]
    for released, other in answers:
        before = other.clone()
        released.add_(1e3)
        assert torch.equal(other, before)


def test_an_array_of_a_function_is_copied_and_a_view_of_more_is_too() -> None:
    table = np.arange(24, dtype=np.float64).reshape(4, 6) / 400
    table[:, 0] = 1 - table[:, 1]

    def function(x: np.ndarray) -> np.ndarray:
        return table[:, :2]

    released = sn.Shield.around(function)(np.zeros((1, 2)))
    before = table.copy()
    released += 7
    assert (table == before).all()
    base = released
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert base.size == released.size


def test_strides_say_nothing_of_the_model() -> None:
    image = torch.randn(2, 5, 4, 4)
    last = image.contiguous(memory_format=torch.channels_last)
    strides = {
        sn.Shield(Says(lambda x, y=y: y), *chain, axis=1)(torch.zeros(1)).stride()
        for y in (image, last, image.transpose(2, 3).contiguous().transpose(2, 3))
        for chain in ((), (sn.Temperature(2.0),))
    }
    assert len(strides) == 1


def test_a_subclass_with_more_than_numbers_is_released_as_numbers() -> None:
    class Carries(Tensor):
        secret: Tensor

    def say(x: Tensor) -> Any:
        answer = x.as_subclass(Carries)
        answer.secret = x * 2
        return {"logits": answer, "free": answer}

    plain = X.clone()
    plain.secret = X * 2  # type: ignore[attr-defined]
    released = sn.Shield(Says(say), outputs={"logits": "logits"}, also={"free": ()})(X)
    tagged = sn.Shield(Says(lambda x: plain))(torch.zeros(1))
    for answer in (*released.values(), tagged):
        assert type(answer) is Tensor
        assert not hasattr(answer, "secret")


def test_a_compiled_answer_has_memory_of_its_own() -> None:
    torch._dynamo.reset()
    shield = sn.Shield(Says(lambda x: torch.cat([x, 1000 + x], 1)[:, :3]))
    compiled = torch.compile(shield, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        released = compiled(X)
    assert _stored(released) == 12
