"""What a change costs: answers and the import, of this working tree beside another commit.

Both are run in turns, each in a process of its own, on one thread, in CPU time; the other commit
runs twice a turn, and what its two columns differ by is noise.

    python benchmarks/versions.py --before adfbc28           # about three minutes
    python benchmarks/versions.py --before adfbc28 --large   # the same of large batches
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TURNS, LARGE_TURNS = 8, 1


def answers() -> dict[str, float]:
    """Returns the median microseconds that each shield adds to a model that does nothing."""
    import torch
    from overhead import SHIELDS
    from torch import nn

    import shieldnet as sn

    torch.set_num_threads(1)
    shields = {name: sn.Shield(nn.Identity(), *chain) for name, chain in SHIELDS.items()}
    x = torch.randn(1, 10, generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {name: [] for name in shields}
    for shield in shields.values():
        shield(torch.randn(4, 10))  # rows are tried once
    for _ in range(300):
        for name, shield in shields.items():
            begun = time.process_time_ns()
            for _ in range(5):
                shield(x)
            taken[name].append((time.process_time_ns() - begun) / 5e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def large() -> dict[str, float]:
    """Returns the median microseconds of a hardened answer, of large batches of numbers."""
    import torch
    from overhead import SHIELDS
    from torch import nn

    import shieldnet as sn

    torch.set_num_threads(1)
    found = {}
    for name, batch, classes, calls in (
        ("balanced", 1000, 10, 300),
        ("Round(2)", 1000, 50_000, 5),
        ("open, compiled", 64, 1000, 100),
    ):
        ask = shield = sn.Shield(nn.Identity(), *SHIELDS[name.partition(",")[0]])
        x = torch.randn(batch, classes, generator=torch.Generator().manual_seed(0)) * 0.1
        shield(x[:4])  # rows are tried once
        if "compiled" in name:
            ask = torch.compile(shield, fullgraph=True)
        ask(x)
        taken = []
        for _ in range(calls):
            begun = time.process_time_ns()
            ask(x)
            taken.append((time.process_time_ns() - begun) / 1e3)
        found[f"{name}, {batch} x {classes:,}"] = statistics.median(taken)
    return found


def cpu_s(tree: Path, *arguments: str) -> tuple[float, str]:
    """Runs Python on a tree; returns its CPU seconds and what it printed."""
    paths = os.pathsep.join((str(tree), str(ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,  # where Python looks before PYTHONPATH
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, done.stdout


def measured(tree: Path, is_large: bool) -> dict[str, float]:
    """Measures one tree once."""
    what = "large" if is_large else "answers"
    program = f"import json, versions; print(json.dumps(versions.{what}()))"
    times: dict[str, float] = json.loads(cpu_s(tree, "-c", program)[1])
    if is_large:
        return times
    loaded = cpu_s(tree, "-c", "import shieldnet; shieldnet.harden")[0]
    return {
        **times,
        "import, beyond torch's (ms)": 1e3 * (loaded - cpu_s(tree, "-c", "import torch")[0]),
    }


def main() -> None:
    """Compares, and writes the section of RESULTS.md."""
    from results import write_section

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True, help="a commit")
    parser.add_argument("--large", action="store_true", help="large batches, and no import")
    given = parser.parse_args()
    commit, is_large = given.before, given.large
    turns = LARGE_TURNS if is_large else TURNS
    with tempfile.TemporaryDirectory() as name:
        old = Path(name) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(old), commit], check=True)
        try:
            runs = [[measured(tree, is_large) for tree in (old, ROOT, old)] for _ in range(turns)]
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    lines = [
        "Microseconds of CPU time that a shield adds to a model that does nothing, "
        f"{'batch x classes' if is_large else '1 x 10'}; medians of {turns} turns. "
        "The last column is the other commit against itself: noise.",
        "",
        "| what | before | after | after / before | before / before |",
        "|---|---|---|---|---|",
    ]
    for what in runs[0][0]:
        before, after, again = (
            statistics.median(run[place][what] for run in runs) for place in range(3)
        )
        lines.append(
            f"| {what} | {before:.1f} | {after:.1f} | {after / before:.2f} | {again / before:.2f} |"
        )
    command = f"python benchmarks/versions.py --before {commit}{' --large' * is_large}"
    write_section(
        "versions of large batches" if is_large else "versions", command, "\n".join(lines)
    )


if __name__ == "__main__":
    main()
