"""Whether a file that was written answers as the shield does."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import random_seed, replayed_noise
from shieldnet.exporting.example import Asked, answered
from shieldnet.exporting.line import Line
from shieldnet.exporting.programs import tensors_of
from shieldnet.outputs.layout import ZERO_LOGIT

Ask = Callable[[Mapping[str, Tensor]], list[Tensor]]
"""Asks a graph by the names of its inputs and returns its answers."""

_NEAR = 1e-4  # of a number: another runtime adds floats in another order
_FLOOR = 1e-5  # of the largest number of its row, or of a typical row


def require_same_answers(asked: Asked, line: Line, ask: Ask, target: Path) -> None:
    """Compares a graph with the shield itself, on the example in batches of several sizes.

    A shield that draws noise and its graph get the same noise.
    Errors: ConfigError where they differ.
    """
    rows = line.example.rows
    parts = [line.example.first(count) for count in dict.fromkeys((rows, 1, rows - 1))]
    if line.example.dynamic:
        parts.append(line.example.shorter().first(rows))
    for inputs in parts:
        count, seed = len(inputs[line.batched]), random_seed()
        with replayed_noise(seed):
            wanted = tensors_of(answered(asked.shield, line.example, inputs))
        with replayed_noise(seed):
            noise = {one.name: one.draw(count) for one in line.noise}
        answers = ask({**inputs, **noise})
        if len(wanted) != len(answers) or not all(map(near, wanted, answers)):
            raise ConfigError(
                f"The graph for {target} answers a batch of {count} rows differently from the "
                "shield; nothing was written. Serve the shield from Python, and report the model's "
                "operators."
            )


def near(wanted: Tensor, answer: Tensor) -> bool:
    """Returns whether two answers are equal up to the order of additions, number by number.

    Released zeros (``ZERO_LOGIT``) must be the same ones, and set no scale.
    """
    if wanted.shape != answer.shape or wanted.dtype != answer.dtype:
        return False
    if not wanted.is_floating_point() or not wanted.numel():
        return torch.equal(wanted, answer)
    zero = wanted == ZERO_LOGIT
    if not torch.equal(zero, answer == ZERO_LOGIT):
        return False
    numbers = wanted.double().masked_fill(zero, 0.0)
    difference = (numbers - answer.double().masked_fill(zero, 0.0)).abs()
    largest = numbers.abs().reshape(len(numbers), -1).amax(1)
    scale = torch.maximum(largest, largest.median()).reshape(-1, *[1] * (wanted.dim() - 1))
    return bool((difference <= _NEAR * numbers.abs() + _FLOOR * scale).all())
