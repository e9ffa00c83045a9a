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
    with pytest.raises(sn.errors.ConfigError, match="Cannot tell what is in a generator"):
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
    with pytest.raises(sn.errors.ConfigError, match="Cannot find the module nowhere_at_all"):
        fingerprint(code("def train():\n import nowhere_at_all.part\n return 1"))


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
    with pytest.raises(sn.errors.ConfigError, match="cannot be told before it runs"):
        fingerprint(code(text, K=1))


def test_a_model_may_be_put_into_evaluation_mode() -> None:
    assert fingerprint(code("def train(model): return model.eval()"))


def test_a_global_that_cannot_be_told_is_refused_too() -> None:
    with pytest.raises(sn.errors.ConfigError, match="Cannot tell what is in a generator"):
        fingerprint(code("def train(): return next(K)", K=(x for x in range(3))))
    assert fingerprint(code("def train(): log.info('x')", log=logging.getLogger("theirs")))
