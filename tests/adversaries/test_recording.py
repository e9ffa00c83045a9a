"""The adversary waits for a graph that keeps its noise: one draw for all answers is no noise."""

import io
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core import opaque_ops as _compiled
from shieldnet.core import randomness
from shieldnet.core.randomness import coin_reach, random_words, rounded_gaussian, rounded_laplace

X = torch.ones(4, 6)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.(jit|onnx)", "ignore:.*legacy TorchScript")
Call = Callable[[Tensor], Tensor]


def _traced(shield: sn.Shield) -> Call:
    return torch.jit.trace(shield, X, check_trace=False)


def _exported_by_tracing(shield: sn.Shield) -> Call:
    torch.onnx.export(shield, (X,), io.BytesIO(), dynamo=False)
    return shield


def _exported(shield: sn.Shield, strict: bool = False) -> Call:
    return torch.export.export(shield, (X,), strict=strict).module()


def _saved_and_loaded(shield: sn.Shield) -> Call:
    file = io.BytesIO()
    torch.export.save(torch.export.export(shield, (X,)), file)
    return torch.export.load(io.BytesIO(file.getvalue())).module()


def _compiled_by(**settings: Any) -> Callable[[sn.Shield], Call]:
    def make(shield: sn.Shield) -> Call:
        torch._dynamo.reset()
        return torch.compile(shield, fullgraph=True, **settings)

    return make


def _made_by_fx(shield: sn.Shield) -> Call:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(shield)(X)


def _vmapped(shield: sn.Shield) -> Call:
    return lambda x: torch.vmap(shield)(x.unsqueeze(1)).squeeze(1)


def _traced_after_export(shield: sn.Shield) -> Call:
    return torch.jit.trace(_exported(shield), X, check_trace=False)


def _fx_after_export(shield: sn.Shield) -> Call:
    return torch.fx.symbolic_trace(_exported(shield))


def _vmapped_after_export(shield: sn.Shield) -> Call:
    program = _exported(shield)
    return lambda x: torch.vmap(program)(x.unsqueeze(0).repeat(3, 1, 1))[0]


def _cuda_graph(shield: sn.Shield) -> Call:
    if not torch.cuda.is_available():
        pytest.skip("CUDA graphs need a GPU")
    x, graph = X.cuda(), torch.cuda.CUDAGraph()
    shield.cuda()(x)
    with torch.cuda.graph(graph):
        answers = shield(x)

    def replay(_: Tensor) -> Tensor:
        graph.replay()
        return answers

    return replay


def _ahead_of_time(shield: sn.Shield) -> Call:
    if "SHIELDNET_SLOW_TESTS" not in os.environ or not shutil.which("g++"):
        pytest.skip("AOTInductor needs g++ and half a minute: SHIELDNET_SLOW_TESTS=1")
    package = torch._inductor.aoti_compile_and_package(torch.export.export(shield, (X,)))
    return torch._inductor.aoti_load_package(package)


WAYS: dict[str, Callable[[sn.Shield], Call]] = {
    "eager": lambda shield: shield,
    "torch.jit.trace": _traced,
    "torch.jit.trace of a program": _traced_after_export,
    "torch.jit.script": torch.jit.script,
    "torch.onnx.export by tracing": _exported_by_tracing,
    "torch.export": _exported,
    "torch.export, strict": lambda shield: _exported(shield, strict=True),
    "torch.export, saved": _saved_and_loaded,
    "torch.compile": _compiled_by(backend="aot_eager"),
    "make_fx": _made_by_fx,
    "torch.fx.symbolic_trace": torch.fx.symbolic_trace,
    "torch.fx.symbolic_trace of a program": _fx_after_export,
    "torch.vmap": _vmapped,
    "torch.vmap of a program": _vmapped_after_export,
    "CUDA graph": _cuda_graph,
    "AOTInductor": _ahead_of_time,
}
REFUSED = {
    "torch.jit.trace": "torch.jit.trace.* cannot record a Shield.*Use torch.compile",
    "torch.jit.trace of a program": "torch.jit.trace.* cannot record the draw of noise",
    "torch.jit.script": "torch.jit.script cannot compile a Shield.*Use torch.compile",
    "torch.onnx.export by tracing": r"torch.onnx.export\(dynamo=False\).* cannot record a Shield",
    "torch.fx.symbolic_trace": "torch.fx.symbolic_trace cannot record a Shield.*torch.export",
    "torch.fx.symbolic_trace of a program": "fx.symbolic_trace cannot record the draw of noise",
    "torch.vmap of a program": "torch.vmap cannot run the draw of noise",
    "torch.vmap": "torch.vmap cannot run a Shield.*Call it on the whole batch",
    "CUDA graph": "A CUDA graph cannot record",
}


def _distinct(call: Call, draws: int) -> int:
    """Counts the different answers, and requires the rows and halves of each to differ."""
    with torch.no_grad():
        answers = [call(X) for _ in range(draws)]
    assert all(not torch.equal(answer[:2], answer[2:]) for answer in answers), "one draw for two"
    return len({answer.numpy().tobytes() for answer in answers})


@pytest.fixture
def noisy() -> sn.Shield:
    """A shield with micro-batches: two draws of one shape in one graph."""
    return sn.Shield(
        nn.Linear(6, 40).eval(),
        sn.ClipNorm(10.0),
        sn.GaussianNoise(2.0),
        micro_batch=2,
        example=torch.randn(4, 6),
    )


@pytest.mark.parametrize("way", WAYS)
def test_noise_is_fresh_in_every_draw_or_the_capture_is_refused_by_name(way, noisy) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what is deprecated in it
        if way in REFUSED and way != "CUDA graph":
            with pytest.raises(sn.errors.ConfigError, match=REFUSED[way]):
                WAYS[way](noisy)(X)
            return
        if way == "CUDA graph":
            with pytest.raises((sn.errors.ConfigError, RuntimeError)):
                WAYS[way](noisy)(X)
            return
        assert _distinct(WAYS[way](noisy), draws=12) == 12


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
def test_inductor_draws_twice_under_freezing() -> None:
    """An environment variable that guides recommend, TORCHINDUCTOR_FREEZING, folds what is pure."""
    torch._dynamo.reset()
    shield = sn.Shield(nn.Identity(), sn.RandomizedResponse(0.5), micro_batch=2)
    rows = torch.zeros(4, 40)
    shield(rows)
    with torch._inductor.config.patch(freezing=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(shield, fullgraph=True)
        with torch.no_grad():
            answers = [compiled(rows).argmax(-1) for _ in range(20)]
    same = sum(torch.equal(answer[:2], answer[2:]) for answer in answers)
    assert same < 5, "two micro-batches got one draw"
    assert len({tuple(answer.tolist()) for answer in answers}) > 15


def test_every_operator_that_draws_is_an_ordered_effect() -> None:
    from torch._higher_order_ops.effects import _EffectType, _get_effect

    drawing = {"random_words", "rounded_gaussian", "rounded_laplace", "coin_reach"}
    assert {f"shieldnet::{name}" for name in drawing} <= _compiled.DRAWS
    for name in _compiled.DRAWS:
        operation = getattr(torch.ops.shieldnet, name.partition("::")[2]).default
        assert _get_effect(operation) == _EffectType.ORDERED


def test_every_use_of_the_source_stands_behind_a_drawing_operator() -> None:
    """A function that draws without being one is found by its name in this table."""
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(randomness))
    users = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(use in ast.unparse(node) for use in ("_source.get()", "_random_bytes"))
    }
    drawn_inside_operators = {*("random_words", "_random_bytes", "_drawn")}
    of_training = {name for name in users if "lattice" in name} | {"_from_table"}
    assert users <= drawn_inside_operators | of_training


DRAWS: dict[str, Callable[[], Tensor]] = {
    "random_words": lambda: random_words(8),
    "rounded_gaussian": lambda: rounded_gaussian((8,), 300.0),
    "rounded_laplace": lambda: rounded_laplace((8,), 60.0),
    "coin_reach": lambda: coin_reach((64,), 2.0),
    "bernoulli": lambda: randomness.bernoulli(64, 0.5),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("way", ["jit", "fx", "vmap", "make_fx"])
def test_a_draw_by_itself_is_not_kept_either(name, way) -> None:
    """Whoever calls a defense or a draw without its shield."""
    from torch.fx.experimental.proxy_tensor import make_fx

    draw, operator = DRAWS[name], "random_words" if name == "bernoulli" else name

    def moved(x: Tensor) -> Tensor:
        return x + draw().sum()

    if way == "make_fx":
        graph = make_fx(lambda x: draw() + x)(torch.zeros(1))
        assert len({tuple(graph(torch.zeros(1)).tolist()) for _ in range(12)}) == 12
        return
    record: dict[str, Callable[[], object]] = {
        "jit": lambda: torch.jit.trace(moved, torch.zeros(1), check_trace=False),
        "fx": lambda: torch.fx.symbolic_trace(moved),
        "vmap": lambda: torch.vmap(moved)(torch.zeros(3)),
    }
    with pytest.raises(sn.errors.ConfigError, match=f"draw of noise {operator}"):
        record[way]()


def test_a_capturing_cuda_stream_is_refused_by_name(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(sn.errors.ConfigError, match="A CUDA graph cannot record the draw of noise"):
        random_words(2)


def test_deterministic_shields_are_not_traced_either() -> None:
    """A trace keeps the branches of one batch: whether rows were tied, broken, many or few."""
    shield = sn.harden(nn.Linear(6, 4))
    with pytest.raises(
        sn.errors.ConfigError, match="the noise, checks and branches of this one call"
    ):
        torch.jit.trace(shield, X)


def test_a_logits_processor_is_not_traced() -> None:
    process = sn.LogitsProcessor(sn.RandomizedResponse(1.0))
    with pytest.raises(sn.errors.ConfigError, match="torch.jit.trace"):
        torch.jit.trace(lambda x: process(x, x), X, check_trace=False)


def test_a_graph_refuses_a_broken_row_as_eager_answers_do() -> None:
    shield = _exported(sn.Shield(nn.Identity(), sn.Round(1)))
    broken = X.clone()
    broken[2, 0] = torch.nan
    with pytest.raises(sn.errors.AnswerError, match="NaN or Inf in row 2"):
        shield(broken)
    from torch.fx.experimental.proxy_tensor import make_fx

    with pytest.raises(sn.errors.AnswerError, match="NaN or Inf in row 2"):
        make_fx(sn.Shield(nn.Identity(), sn.Round(1)))(X)(broken)
