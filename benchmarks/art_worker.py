"""Times what the postprocessors of the Adversarial Robustness Toolbox (ART) add to a model call.

Runs in an environment of its own, without shieldnet, and prints JSON, times in microseconds:

    python3 -m venv art-venv
    art-venv/bin/pip install torch==2.13.0 adversarial-robustness-toolbox==1.20.1 packaging
    art-venv/bin/python benchmarks/art_worker.py '[{"model": "mlp", "batch": 1, "classes": 10}]'
    art-venv/bin/python benchmarks/art_worker.py --failures  # what it answers in hard cases

The postprocessors, each with its defaults, take probabilities: every model ends in a softmax.
"""

import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from art.defences import postprocessor as art
from art.estimators.classification import PyTorchClassifier
from art.estimators.regression.pytorch import PyTorchRegressor
from models import mlp, resnet
from torch import Tensor, nn

LEAST_TURNS, MOST_TURNS = 3, 400
NAMES = ("ClassLabels", "HighConfidence", "Rounded", "GaussianNoise", "ReverseSigmoid")
CLASSIFIER = partial(PyTorchClassifier, nb_classes=2)  # a number that predict does not read
Call = Callable[[], Any]


def predictor(model: nn.Module, x: Tensor, *chain: Any, kind: Any = CLASSIFIER) -> Call:
    """Returns a call of ART's ``predict`` for the whole of ``x`` in one chunk."""
    more = {"postprocessing_defences": list(chain), "device_type": "cpu"}
    estimator = kind(model, loss=nn.CrossEntropyLoss(), input_shape=x.shape[1:], **more)
    array = x.numpy()
    return lambda: estimator.predict(array, batch_size=max(len(array), 1))


def medians(calls: dict[str, Call], budget_s: float) -> dict[str, float | None]:
    """Times the calls in turns; returns each one's median in microseconds, None if it raises."""
    times: dict[str, list[float]] = {}
    for name, call in calls.items():
        try:
            call()
            times[name] = []
        except Exception as error:
            print(f"{name}: {error!r}", file=sys.stderr)
    begun = time.perf_counter()
    for turn in range(MOST_TURNS):
        if turn >= LEAST_TURNS and time.perf_counter() - begun > budget_s:
            break
        # In a new order each turn: what runs after a large call finds a cold cache.
        for name in random.Random(turn).sample(list(times), len(times)):
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return {n: statistics.median(times[n]) * 1e6 if n in times else None for n in calls}


@torch.no_grad()
def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Times one cell: a model, its batch and its number of classes."""
    body, shape = {"mlp": mlp, "resnet": resnet}[cell["model"]](cell["classes"])
    model, x = nn.Sequential(body, nn.Softmax(dim=1)).eval(), torch.randn(cell["batch"], *shape)
    calls: dict[str, Call] = {"bare": lambda: model(x), "again": lambda: model(x)}
    calls |= {"plain": predictor(model, x)}
    calls |= {name: predictor(model, x, getattr(art, name)()) for name in NAMES}
    kept = {key: cell[key] for key in ("model", "batch", "classes")}
    return kept | medians(calls, cell.get("budget_s", 1.5))


def told(call: Call) -> str:
    """Returns what a call answers, or the error that it raises."""
    try:
        return str(call().astype(float).round(4).tolist())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def failures() -> dict[str, Any]:
    """Puts ART's postprocessors before the hard cases and returns what they answer."""
    softmax, same, found = nn.Softmax(dim=1), nn.Identity(), dict[str, Any]()
    for std in (1.0, 4.0):
        logits, of = std * torch.randn(1000, 1000), f"K=1000, logit std {std:g}"
        rounded = predictor(softmax, logits, art.Rounded(2))()
        sums = np.quantile(rounded.sum(axis=1), (0, 0.5, 1))
        found[f"Rounded(2), {of}: least, mid, most row sum"] = sums.round(2).tolist()
        found[f"Rounded(2), {of}: share of classes at 0"] = float((rounded == 0).mean())
        zero = (predictor(softmax, logits, art.HighConfidence(0.1))() == 0).all(axis=1)
        found[f"HighConfidence(0.1), {of}: share of rows all zero"] = float(zero.mean())
    nan = np.isnan(predictor(softmax, torch.randn(10_000, 2), art.GaussianNoise(1.0))())
    found["GaussianNoise(1), K=2: share of rows with NaN"] = float(nan.any(axis=1).mean())
    two = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]])
    found["ClassLabels, rows of classes 0 and 2"] = told(predictor(same, two, art.ClassLabels()))
    found["plain, empty batch"] = told(predictor(softmax, two[:0]))
    for name in NAMES:
        post = getattr(art, name)()
        found[f"{name}, empty batch"] = told(predictor(softmax, two[:0], post))
        for x in ([[-1.2345], [-0.5], [2.3456]], [[-1.2345, 2.3456], [-0.5, -3.0]]):
            call = predictor(same, torch.tensor(x), post, kind=PyTorchRegressor)
            found[f"{name}, regression {x}"] = told(call)
    for kind, make in {"bf16": Tensor.bfloat16, "dict": lambda out: {"out": out}}.items():
        other = nn.Identity()
        other.register_forward_hook(lambda _model, _x, out, make=make: make(out))
        found[f"plain, {kind} output"] = told(predictor(other, two))
    return found


def main() -> None:
    """Prints one line for each cell of the first argument, or the failures."""
    torch.manual_seed(0)
    np.random.seed(0)
    warnings.simplefilter("ignore")
    if sys.argv[1] == "--failures":
        print(json.dumps(failures(), indent=1))
    else:
        for cell in json.loads(sys.argv[1]):
            print(json.dumps(measure(cell)), flush=True)


if __name__ == "__main__":
    main()
