"""What an audit costs: seconds and memory by rows, features and classes, and what was announced.

Half of the rows train a small network, the rest is never seen by it and divided between nonmembers
and auxiliary rows. The preset is `balanced`, no shadows are trained by a recipe of one's own, the
time that the audit announces stands beside the time that it took. Each audit runs in a process of
its own, whose peak memory is read.

    python benchmarks/cost.py                              # about a quarter of an hour
    python benchmarks/cost.py --one 2000 64 10             # a single one, with its parts
"""

import argparse
import logging
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from results import write_section
from torch import Tensor, nn
from tqdm import tqdm

SIZES = (
    (500, 64, 2),
    (2_000, 64, 2),
    (2_000, 64, 10),
    (8_000, 64, 10),
    (20_000, 64, 10),
    (20_000, 64, 100),
    (500, 784, 10),
    (4_000, 784, 10),
    (20_000, 1_000, 2),
    (20_000, 1_000, 10),
    (20_000, 1_000, 100),
    (500, 3_072, 10),
    (4_000, 3_072, 10),
    (500, 12_288, 2),
    (500, 12_288, 10),
    (2_000, 12_288, 10),
)
"""Rows of all three sets, features, classes, of quick audits."""
STANDARD = ((2_000, 64, 10), (8_000, 64, 10), (500, 784, 10), (4_000, 784, 10), (500, 3_072, 10))


def data(rows: int, features: int, classes: int) -> tuple[Tensor, Tensor]:
    """Makes records around a mean of their class. Shapes: -> (rows, features), (rows,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    basis = torch.randn(30, features, generator=generator) / 30**0.5
    means = torch.randn(classes, 30, generator=generator)
    hidden = means[labels] + torch.randn(rows, 30, generator=generator)
    noise = 0.3 * torch.randn(rows, features, generator=generator)
    inputs = hidden @ basis + noise
    side = round((features / 3) ** 0.5)
    if features >= 3_072 and 3 * side * side == features:
        inputs = inputs.reshape(rows, 3, side, side)
    return inputs, labels


def one(rows: int, features: int, classes: int, tier: str) -> None:
    """Audits once, and prints seconds, megabytes, the seconds announced, and the parts."""
    import shieldnet as sn

    inputs, labels = data(rows, features, classes)
    quarters = torch.arange(rows).tensor_split(4)
    parts = torch.cat(quarters[:2]), *quarters[2:]
    sets = {
        name: (inputs[part], labels[part])
        for name, part in zip(("members", "nonmembers", "auxiliary"), parts, strict=True)
    }

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, classes)
        )

    model = sn.Recipe(network, epochs=10, optimizer="adam", learning_rate=1e-3)(sets["members"], 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    begun = time.monotonic()
    report = sn.audit(sn.harden(model), **sets, tier=tier)
    taken = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"took {taken:.1f} s, {(peak - before) / 1024:.0f} MB more")
    for subject in report.subjects:
        slow = sorted(subject.durations_s.items(), key=lambda pair: -pair[1])
        print(f"{subject.name}: " + ", ".join(f"{name} {spent:.1f}" for name, spent in slow[:7]))


def measured(size: tuple[int, int, int], tier: str, limit_s: float) -> tuple[str, str, str]:
    """Runs one audit in a process of its own; returns seconds, memory, and the time told."""
    command = [sys.executable, __file__, "--tier", tier, "--one", *map(str, size)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {limit_s:.0f} s", "", ""
    told = [line for line in done.stderr.splitlines() if " audit: " in line]
    taken = [line for line in done.stdout.splitlines() if line.startswith("took ")]
    if done.returncode or not taken:
        return f"failed: {done.stderr.strip().splitlines()[-1]}", "", ""
    seconds, memory = taken[0].removeprefix("took ").split(", ")
    return seconds, memory.removesuffix(" more"), told[-1].rpartition("; ")[2] if told else ""


def main() -> None:
    """Measures every size, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", nargs=3, type=int, metavar=("ROWS", "FEATURES", "CLASSES"))
    parser.add_argument("--tier", default="quick", help="of the single one")
    parser.add_argument("--limit", type=float, default=300, help="seconds, for each audit")
    parser.add_argument("--print", action="store_true", help="write nothing")
    given = parser.parse_args()
    if given.one:
        one(*given.one, given.tier)
        return
    lines = [
        "| tier | rows | features | classes | seconds | memory | announced |",
        "|" + "---|" * 7,
    ]
    sizes = [("quick", size) for size in SIZES] + [("standard", size) for size in STANDARD]
    for tier, size in tqdm(sizes):
        rows, features, classes = size
        shown = f"| {tier} | {rows:,} | {features:,} | {classes} |"
        lines.append(f"{shown} {' | '.join(measured(size, tier, given.limit))} |")
        print(lines[-1], flush=True)
        if not given.print:  # at once, so that a stop leaves what was measured
            left = len(sizes) - (len(lines) - 2)
            note = f"\n\nStopped: {left} of {len(sizes)} sizes were not measured." if left else ""
            text = "\n".join(lines) + note
            write_section("cost", "python benchmarks/cost.py", text, is_shown=False)


if __name__ == "__main__":
    main()
