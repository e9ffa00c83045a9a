"""What a shield adds to the time of the bare model.

Bare model, bare model again (the A/A control: what it differs by is noise) and every shield are
timed in turns, so that a slow moment of the machine falls on all of them; medians are compared.

    python benchmarks/overhead.py            # all sizes, about five minutes
    python benchmarks/overhead.py --quick    # without 50,000 classes
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from results import write_section
from torch import Tensor, nn

import shieldnet as sn

READING = """
Median time of the bare model, the A/A control (the bare model against itself: what it is off 1 is
noise), and for every shield the added microseconds with the ratio to the bare model in brackets.
The MLP has one hidden layer of 256, the ResNet three blocks of 16 channels on 32 x 32. On a model
of some size and up to 1,000 classes the presets cost 1 to 40 % at batch 64 and above; `open`,
rounding and noise at 50,000 classes cost many times a bare model and are still to be made fast.
"""
BATCHES = (1, 64, 1000)
CLASSES = (10, 1000, 50_000)
BUDGET_S = 2.5
LEAST_TURNS, MOST_TURNS = 3, 400
SHIELDS: dict[str, tuple[sn.Defense, ...]] = {
    "strict": (sn.Label(),),
    "balanced": (sn.Confidence(4),),
    "open": (sn.TopK(3), sn.Round(1)),
    "Round(2)": (sn.Round(2),),
    "noise": (sn.ClipNorm(10.0), sn.GaussianNoise(2.0)),
}


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


def mlp(classes: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Returns a model and the shape of one input."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, classes)), (64,)


def resnet(classes: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Returns a model and the shape of one input."""
    body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), Block(16), Block(16), Block(16))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
    return nn.Sequential(body, head), (3, 32, 32)


def medians(calls: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> dict[str, float]:
    """Times the calls in turns; returns each one's median in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for call in calls.values():
            call(x)
        begun = time.perf_counter()
        for turn in range(MOST_TURNS):
            if turn >= LEAST_TURNS and time.perf_counter() - begun > BUDGET_S:
                break
            # In a new order each turn: what runs after a large call finds a cold cache.
            for name, call in random.Random(turn).sample(list(calls.items()), len(calls)):
                start = time.perf_counter()
                call(x)
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) * 1e6 for name, found in times.items()}


def row(name: str, batch: int, classes: int, found: dict[str, float]) -> str:
    """Writes one line of the table: added microseconds, and the ratio to the bare model."""
    bare = found["bare"]
    cells = [f"{found['again'] / bare:.2f}"]
    cells += [f"+{found[name] - bare:,.0f} ({found[name] / bare:.2f})" for name in SHIELDS]
    return f"| {name} | {batch} | {classes:,} | {bare:,.0f} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measures every size and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="leave out 50,000 classes")
    quick = parser.parse_args().quick
    lines = [
        "| model | batch | classes | bare, us | A/A | " + " | ".join(SHIELDS) + " |",
        "|---|---|---|---|---|" + "---|" * len(SHIELDS),
    ]
    for make in (mlp, resnet):
        for batch in BATCHES:
            for classes in CLASSES[: 2 if quick else 3]:
                model, shape = make(classes)
                model.eval()
                calls: dict[str, Callable[[Tensor], Tensor]] = {"bare": model, "again": model}
                calls |= {name: sn.Shield(model, *chain) for name, chain in SHIELDS.items()}
                found = medians(calls, torch.randn(batch, *shape))
                lines.append(row(make.__name__, batch, classes, found))
                print(lines[-1], flush=True)
    table = "\n".join(lines)
    write_section("overhead", "python benchmarks/overhead.py", f"{READING.strip()}\n\n{table}")


if __name__ == "__main__":
    main()
