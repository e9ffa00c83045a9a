import functools
import importlib
import logging
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.running.fingerprints import fingerprint

FACTOR = 2


def code(text: str, **names: object) -> types.FunctionType:
    """Makes a function whose source is in no file, as in a notebook."""
    module: dict[str, object] = {"__name__": "__main__", **names}
    exec(text, module)  # noqa: S102 - our own text
    return module["train"]


def uses_a_constant(x: int) -> int:
    return FACTOR * x


def helper(x: int) -> int:
    return x


def test_equal_values_have_one_fingerprint_and_others_another() -> None:
    values = [
        1,
        1.0,
        "1",
        (1, 2),
        (2, 1),
        {"a": 1},
        {"a": 2},
        torch.ones(3),
        torch.ones(3, dtype=torch.float64),
        np.ones(3),
        sn.Round(1),
        sn.Round(2),
        helper,
        uses_a_constant,
        functools.partial(helper, 1),
        functools.partial(helper, 2),
        nn.Linear(2, 2, bias=False).requires_grad_(False),
    ]
    prints = [fingerprint(value) for value in values]
    assert len(set(prints)) == len(values)
    assert prints == [fingerprint(value) for value in values]


def test_a_model_counts_with_weights_code_and_plain_attributes() -> None:
    class Scaled(nn.Linear):
        scale = 1.0

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Scaled(2, 2)
    first = fingerprint(model)
    model.scale = 2.0
    second = fingerprint(model)
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert len({first, second, fingerprint(model)}) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (code("def train(x): return x + 1"), code("def train(x): return x + 2")),
        (code("def train(x, y=1): return x"), code("def train(x, y=2): return x")),
        (code("def train(x): return K", K=1), code("def train(x): return K", K=2)),
        (
            code("def part(): return 1\ndef train(x): return part()"),
            code("def part(): return 2\ndef train(x): return part()"),
        ),
        (
            code("def make(k):\n def f(x): return k\n return f\ntrain = make(1)"),
            code("def make(k):\n def f(x): return k\n return f\ntrain = make(2)"),
        ),
    ],
    ids=["body", "default", "constant", "a function that it calls", "what it closes over"],
)
def test_code_that_differs_anywhere_has_another_fingerprint(one, other) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_a_constant_that_changes_changes_the_fingerprint(monkeypatch) -> None:
    before = fingerprint(uses_a_constant)
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert fingerprint(uses_a_constant) != before


def test_another_process_finds_the_same_fingerprint(tmp_path) -> None:
    (tmp_path / "theirs.py").write_text(
        "import torch\nK = {3, 'a', (1, 2)}\n"
        "def train(data, seed):\n    f = lambda x: x in {'p', 'q', 'r'}\n    return K, f\n"
    )
    program = (
        "import theirs; from shieldnet import Recipe; "
        "from shieldnet.running.fingerprints import fingerprint; "
        "print(fingerprint(theirs.train, Recipe(theirs.train)))"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1


def test_what_cannot_be_told_is_refused_not_guessed() -> None:
    with pytest.raises(sn.errors.ConfigError, match="The content of a generator is unknown"):
        fingerprint(x for x in range(3))


def test_objects_that_contain_each_other_end() -> None:
    ring: list[object] = [1]
    ring.append(ring)
    assert fingerprint(ring) == fingerprint(ring)


class Base:
    rate = 0.1


class Child(Base):
    @staticmethod
    def made() -> int:
        return FACTOR


class Stored(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor(value), persistent=False)


def reads_a_class() -> float:
    return Child.rate


def module(name: str, **names: object) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__file__ = f"/nowhere/{name}.py"
    vars(made).update(names)
    return made


def differ(*values: object) -> bool:
    return len({fingerprint(value) for value in values}) == len(values)


def test_what_is_nested_is_told_from_what_follows() -> None:
    assert differ([[1], 2], [[1, 2]], [[], [1, 2]])
    assert differ({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "c": 2}})


def test_what_comes_again_is_named() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    assert differ({"a": one, "b": two, "c": one}, {"a": one, "b": two, "c": two})


def test_buffers_that_are_not_saved_and_modes_count() -> None:
    assert differ(Stored(1.0), Stored(2.0), Stored(1.0).eval())


def test_attributes_of_classes_and_bases_count(monkeypatch) -> None:
    before = [fingerprint(reads_a_class), fingerprint(Child), fingerprint(Child())]
    monkeypatch.setattr(Base, "rate", 0.2)
    after = [fingerprint(reads_a_class), fingerprint(Child), fingerprint(Child())]
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_what_a_static_method_names_and_what_hangs_on_a_function_count(monkeypatch) -> None:
    before = fingerprint(Child)
    monkeypatch.setitem(globals(), "FACTOR", 5)
    assert fingerprint(Child) != before
    before = fingerprint(helper)
    monkeypatch.setattr(helper, "epochs", 5, raising=False)
    assert fingerprint(helper) != before


def test_numbers_of_numpy_and_constants_of_modules_count() -> None:
    text = "def train(): return K"
    numbers = (np.float32(0.1), np.float32(0.9), np.int64(3), np.int64(30), 3)
    assert differ(*(code(text, K=number) for number in numbers))
    text = "def train(): return conf.LR"
    assert differ(*(code(text, conf=module("conf", LR=rate)) for rate in (0.1, 0.5)))


def test_what_is_imported_inside_of_a_function_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    prints = set()
    for width in (3, 4):
        (tmp_path / "their_net.py").write_text(f"WIDTH = {width}\ndef make(): return WIDTH * 1\n")
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, "their_net", raising=False)
        prints.add(fingerprint(code("def train():\n from their_net import make\n return make()")))
    monkeypatch.delitem(sys.modules, "their_net", raising=False)
    assert len(prints) == 2


def test_a_guarded_import_counts_as_soon_as_it_is_there(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (
        "def train():\n try:\n  import their_extra.part as x\n except ImportError: x = 1\n return x"
    )
    without = fingerprint(code(text))
    write(tmp_path, {"their_extra/part": "A = 1"})
    assert fingerprint(code(text)) != without


def write(folder, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    importlib.invalidate_caches()


def test_no_module_of_the_users_is_imported_for_a_fingerprint(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        "their_side": "raise SystemExit('imported')",
        "theirs/layers": "from . import widths\nraise SystemExit('imported')",
        "theirs/widths": "A = 1",
        "theirs/__init__": "raise SystemExit('imported')",
    }
    write(tmp_path, files)
    deep = code("def train():\n from theirs.layers import make\n import their_side\n return make")
    prints = {fingerprint(deep)}
    for name, text in files.items():
        write(tmp_path, {name: f"{text}\nB = 1"})
        prints.add(fingerprint(deep))
    assert len(prints) == 1 + len(files)  # each file counts, however deep it is imported
    assert not {"theirs", "theirs.layers", "their_side"} & sys.modules.keys()


def test_a_module_that_is_loaded_counts_as_it_is_now(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, {"their_loaded": "RATE = 1\ndef make(): return RATE"})
    uses = code("def train():\n import their_loaded\n return their_loaded.make()")
    loaded = importlib.import_module("their_loaded")
    prints = {fingerprint(uses)}
    loaded.RATE = 2
    prints.add(fingerprint(uses))
    loaded.make = code("def train(): return 2")
    prints.add(fingerprint(uses))
    monkeypatch.delitem(sys.modules, "their_loaded")
    assert len(prints) == 3


@pytest.mark.parametrize(
    "text",
    [
        "def train(): return globals()['K']",
        "def train(): return eval('K')",
        "def train(): return (lambda: exec('K = 1'))()",
        "def train(): return __import__('theirs')",
        "import importlib\ndef train(): return importlib.import_module('theirs')",
    ],
)
def test_code_that_reads_what_it_does_not_name_is_refused(text) -> None:
    with pytest.raises(sn.errors.ConfigError, match="is unknown before it runs"):
        fingerprint(code(text, K=1))


def test_a_model_may_be_put_into_evaluation_mode() -> None:
    assert fingerprint(code("def train(model): return model.eval()"))


def test_a_global_that_cannot_be_told_is_refused_too() -> None:
    with pytest.raises(sn.errors.ConfigError, match="The content of a generator is unknown"):
        fingerprint(code("def train(): return next(K)", K=(x for x in range(3))))
    assert fingerprint(code("def train(): log.info('x')", log=logging.getLogger("theirs")))


class Words(dict):
    rate = 1


def decorated(body: str, decorator: str) -> types.FunctionType:
    return code(
        f"import contextlib, functools, torch\n@{decorator}\ndef train(data, seed):\n yield {body}"
    )


@pytest.mark.parametrize(
    "decorator",
    ["torch.no_grad()", "torch.enable_grad()", "contextlib.contextmanager", "functools.lru_cache"],
)
def test_what_stands_under_an_installed_decorator_counts(decorator) -> None:
    assert differ(decorated("1", decorator), decorated("2", decorator))


def made_by(text: str) -> object:
    names: dict[str, object] = {"__name__": "__main__"}
    exec(text, names)  # noqa: S102 - our own text
    return names["made"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("class K(dict):\n a = 1\nmade = K(x=1)", "class K(dict):\n a = 2\nmade = K(x=1)"),
        (
            "import enum\nclass K(enum.IntEnum):\n A = 1\n def f(self): return 1\nmade = K.A",
            "import enum\nclass K(enum.IntEnum):\n A = 1\n def f(self): return 2\nmade = K.A",
        ),
        (
            "from collections import defaultdict\nmade = defaultdict(lambda: 1)",
            "from collections import defaultdict\nmade = defaultdict(lambda: 2)",
        ),
        (
            "from dataclasses import dataclass, field\n@dataclass\nclass K:\n"
            " x: list = field(init=False, default_factory=lambda: [1])\nmade = K()",
            "from dataclasses import dataclass, field\n@dataclass\nclass K:\n"
            " x: list = field(init=False, default_factory=lambda: [1])\nmade = K()\nmade.x[0] = 2",
        ),
        ("import random\nmade = random.Random(1)", "import random\nmade = random.Random(2)"),
        (
            "class B:\n __slots__ = ('x',)\nclass K(B): pass\nmade = K()\nmade.x = 1",
            "class B:\n __slots__ = ('x',)\nclass K(B): pass\nmade = K()\nmade.x = 2",
        ),
        (
            "class M(type):\n def __call__(c): return 1\nclass made(metaclass=M): pass",
            "class M(type):\n def __call__(c): return 2\nclass made(metaclass=M): pass",
        ),
        (
            "class F:\n def __call__(s, *a): return 1\nclass made: __getitem__ = F()",
            "class F:\n def __call__(s, *a): return 2\nclass made: __getitem__ = F()",
        ),
        ("def made(x): return x", "def made(*x): return x"),
        (
            "class made:\n def __hash__(self): return 1",
            "class made:\n def __hash__(self): return 2",
        ),
        (
            "def made(d):\n try:\n  x = g(d)\n  y = h(x)\n except E:\n  y = 1\n return y",
            "def made(d):\n try:\n  x = g(d)\n except E:\n  y = 1\n else:\n  y = h(x)\n return y",
        ),
    ],
)
def test_what_differs_in_behavior_differs_in_its_fingerprint(first, second) -> None:
    assert differ(made_by(first), made_by(second))
    assert fingerprint(made_by(first)) == fingerprint(made_by(first))


def test_frozen_weights_ties_and_hooks_count() -> None:
    def model(tie: bool = False, freeze: bool = False) -> nn.Module:
        layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        for layer in layers:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        if tie:
            layers[1].weight = layers[0].weight
        return layers.requires_grad_(not freeze)

    hooked, full = model(), model()
    hooked[0].weight.register_hook(torch.neg)
    full.register_full_backward_hook(uses_a_constant)
    assert differ(model(), model(tie=True), model(freeze=True), hooked, full)


def test_packages_without_an_init_and_modules_as_values_count(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, {"their_space/cfg": "RATE = 1"})
    module = importlib.import_module("their_space.cfg")
    reads = code("import their_space.cfg\ndef train(): return their_space.cfg.RATE")
    by_name = code("import their_space.cfg as c\ndef train(): return getattr(c, 'RATE')")
    before = [
        fingerprint(reads),
        fingerprint(by_name),
        fingerprint(functools.partial(helper, module)),
    ]
    module.RATE = 2
    after = [
        fingerprint(reads),
        fingerprint(by_name),
        fingerprint(functools.partial(helper, module)),
    ]
    for name in ("their_space.cfg", "their_space"):
        monkeypatch.delitem(sys.modules, name)
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_modules_that_import_each_other_end(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(
        tmp_path,
        {
            "their_a": "import their_b\ndef f(): return their_b.g()",
            "their_b": "import their_a\ndef g(): return 1",
        },
    )
    uses = code("import their_a, their_b\ndef train(): return their_a.f() + their_b.g()")
    assert fingerprint(uses) == fingerprint(uses)
    for name in ("their_a", "their_b"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    "text",
    [
        "def train(d, s, e=eval): return e('K')",
        "e = eval\ndef train(): return e('K')",
        "from importlib import import_module as im\ndef train(): return im('theirs')",
        "def train(): return train.__globals__['K']",
        "def train():\n import sys\n sys.path.insert(0, 'x')\n import theirs",
        "import sys\ndef train():\n sys.path.insert(0, 'x')\n import theirs",
        "def train():\n from sys import path\n path.append('x')\n import theirs",
    ],
)
def test_other_ways_to_read_what_is_not_named_are_refused_too(text) -> None:
    with pytest.raises(sn.errors.ConfigError, match="is unknown before it runs"):
        fingerprint(code(text, K=1))


def test_a_module_that_is_not_loaded_yet_is_held_to_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(
        tmp_path,
        {"their_lazy": "def f():\n import importlib\n return importlib.import_module('b')"},
    )
    lazy = code("def train():\n import their_lazy\n return their_lazy.f()")
    with pytest.raises(sn.errors.ConfigError, match="is unknown before it runs"):
        fingerprint(lazy)
    write(
        tmp_path, {"their_lazy": "import os, sys\ndef f(): return os.path.join('a', sys.argv[0])"}
    )
    assert fingerprint(lazy)
    write(tmp_path, {"their_lazy": "def eval(): return 1\ndef f(): return eval()"})
    assert fingerprint(lazy)
    write(tmp_path, {"their_lazy": "def f("})
    with pytest.raises(sn.errors.ConfigError, match="Cannot read .*their_lazy.py"):
        fingerprint(lazy)


@pytest.mark.parametrize(
    "text",
    [
        "from typing import Optional\nK = Optional[int]",
        "K = list[int]",
        "import re\nK = re.compile('a+')",
        "K = slice(1, 2)",
        "import numpy\nK = numpy.dtype('float32')",
        "import datetime\nK = datetime.date(2020, 1, 1)",
        "import operator\nK = operator.itemgetter(1)",
        "import numpy\nK = numpy.random.default_rng(0)",
        "import torch\nK = torch.Generator().manual_seed(1)",
        "def eval(x): return x\nK = eval",
        "K = (..., NotImplemented)",
        "from typing_extensions import NoDefault as K",
        "class K: __slots__ = ()\nK = K()",
    ],
)
def test_what_is_common_is_told(text) -> None:
    one, two = (code(f"{text}\ndef train(): return K") for _ in range(2))
    assert fingerprint(one) == fingerprint(two)


def test_what_cannot_be_read_is_named_with_the_setting_that_needs_it() -> None:
    reads = code("def part(): return next(K)\ndef train(): return part()", K=(x for x in range(3)))
    with pytest.raises(sn.errors.ConfigError, match=r"\(train\.part\.K\), .*Omit cache="):
        fingerprint(reads)
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    model[0].rows = (x for x in range(3))
    with pytest.raises(
        sn.errors.ConfigError,
        match=r"of a generator is unknown \(Sequential\.0\.rows\), so a checkpoint .*checkpoint=",
    ):
        fingerprint(model, setting="checkpoint")
    with pytest.raises(sn.errors.ConfigError, match=r"train uses eval, .*Omit checkpoint="):
        fingerprint(code("def train(): return eval('K')"), setting="checkpoint")
