"""How soon the extraction watch sees crafted queries, and how often it is wrong about others.

Digits of scikit-learn, and MNIST. What counts is the first query after which the default policy
logs, answers by the harder shield, or refuses.

    python benchmarks/watch.py --mnist ../shared/data/mnist.npz     # ten minutes; digits alone: two
"""

import argparse
import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from results import write_section
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.attacks.extraction import Extraction, synthetic_queries
from shieldnet.data.examples import Examples
from shieldnet.demo import digits
from shieldnet.serving.query_patterns import Profile
from shieldnet.serving.watch import Watch, WatchPolicy

ACTIONS = ("log", "harder", "refuse")
ASKED = 500  # queries of a subject
FALSE_ALARM_SUBJECTS, ATTACKERS = 100, 5


@dataclass(frozen=True)
class World:
    """One data set: the model behind its shield, what the operator and clients own."""

    name: str
    shield: sn.Shield
    profile: Profile
    inputs: Tensor
    labels: Tensor

    def answers(self, queries: Tensor) -> Tensor:
        """Returns what is released, as distributions. Shapes: (n, ...) -> (n, classes)."""
        return self.shield.distribution(self.shield(queries))


def mlp(inputs: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Trains a small MLP."""
    width = inputs[0].numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()


def world(name: str, inputs: Tensor, labels: Tensor) -> World:
    """Trains on a third, learns what is ordinary from up to 1,000, leaves the rest to clients."""
    torch.manual_seed(0)
    order = torch.randperm(len(inputs))
    inputs, labels = inputs[order], labels[order]
    third = len(inputs) // 3
    natural = slice(third, third + min(third, 1000))
    shield = sn.harden(mlp(inputs[:third], labels[:third], 1000))
    released = shield.distribution(shield(inputs[natural]))
    profile = Profile.of(inputs[natural], released, seed=0)
    return World(name, shield, profile, inputs[natural.stop :], labels[natural.stop :])


def drawn(world: World, count: int, seed: int) -> Tensor:
    """Draws inputs of clients. Shapes: -> (count, ...)."""
    generator = torch.Generator().manual_seed(seed)
    return world.inputs[torch.randperm(len(world.inputs), generator=generator)[:count]]


def noise(like: Tensor, size: float, seed: int) -> Tensor:
    """Draws Gaussian noise. Shapes: as ``like``."""
    return size * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def ordinary(world: World) -> dict[str, Callable[[int], Tensor]]:
    """Lists subjects that mean no harm, by what they ask."""
    common = world.labels.mode().values
    of_one = replace(world, inputs=world.inputs[world.labels == common])
    darker = torch.linspace(1, 0.6, ASKED).reshape(-1, *[1] * (world.inputs.dim() - 1))

    def drifting(seed: int) -> Tensor:
        queries = drawn(world, ASKED, seed)
        return queries * darker[: len(queries)]

    def sensor(seed: int) -> Tensor:
        queries = drawn(world, ASKED, seed)
        return (queries + noise(queries, 0.05, seed)).clamp(0, 1)

    return {
        "natural inputs": lambda seed: drawn(world, ASKED, seed),
        "natural, of one class": lambda seed: drawn(of_one, ASKED, seed),
        "each asked five times": lambda seed: drawn(world, ASKED // 5, seed).repeat(5, 1, 1, 1),
        "drifting: ever darker": drifting,
        "another sensor: noise of 0.05": sensor,
    }


def jacobian(world: World, step: float, seed: int) -> Tensor:
    """Asks as PRADA's attacker: seeds, then steps along a student's gradient, doubled each round.

    Source: Papernot et al. 2017; Juuti et al. 2019.
    """
    torch.manual_seed(seed)
    known = drawn(world, 100, seed)
    asked = [known]
    while sum(map(len, asked)) < ASKED:
        labels = world.answers(known).argmax(1)
        student = mlp(known, labels, 100)
        moved = known.clone().requires_grad_(True)
        student(moved).gather(1, labels.unsqueeze(1)).sum().backward()
        new = (known + step * moved.grad.sign()).clamp(0, 1)
        asked.append(new)
        known = torch.cat([known, new])
    return torch.cat(asked)[:ASKED]


def crafted(world: World) -> dict[str, Callable[[int], Tensor]]:
    """Lists attackers by what they ask."""

    def jittered(size: float) -> Callable[[int], Tensor]:
        def asked(seed: int) -> Tensor:
            queries = drawn(world, 20, seed).repeat(ASKED // 20, 1, 1, 1)
            return queries + noise(queries, size, seed)

        return asked

    def walks(seed: int) -> Tensor:
        ends = drawn(world, 2 * (ASKED // 8), seed).split(2)
        shares = torch.linspace(0.125, 1, 8).reshape(-1, *[1] * (world.inputs.dim() - 1))
        return torch.cat([shares * pair[0] + (1 - shares) * pair[1] for pair in ends])

    def unsure(seed: int) -> Tensor:
        pool = drawn(world, 4000, seed)
        return pool[world.answers(pool).amax(1).argsort()[:ASKED]]

    def made(seed: int) -> Tensor:
        queries = synthetic_queries(drawn(world, ASKED // 3, seed), seed).inputs
        return queries[torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))]

    return {
        "Jacobian steps of 0.02": lambda seed: jacobian(world, 0.02, seed),
        "Jacobian steps of 0.1": lambda seed: jacobian(world, 0.1, seed),
        "Jacobian steps of 0.3": lambda seed: jacobian(world, 0.3, seed),
        "uniform noise": lambda seed: torch.rand(
            ASKED, *world.inputs.shape[1:], generator=torch.Generator().manual_seed(seed)
        ),
        "20 inputs, jitter of 0.001": jittered(0.001),
        "20 inputs, jitter of 0.05": jittered(0.05),
        "walks between two inputs": walks,
        "the least sure of 4,000": unsure,
        "Extraction's own mixes and moves": made,
        "Extraction on natural inputs": lambda seed: drawn(world, ASKED, seed),
    }


def first_actions(world: World, queries: Tensor, at_once: int) -> dict[str, int]:
    """Returns after how many queries each action is first reached. at_once: queries a call."""
    watch, first = Watch(world.profile, WatchPolicy()), {}
    answers = world.answers(queries)
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        suspicion = watch.note("subject", queries[part], answers[part])
        action = watch.policy.action(suspicion.score)
        for reached in ACTIONS[: ACTIONS.index(action) + 1] if action != "answer" else ():
            first.setdefault(reached, start + at_once)
        if "refuse" in first:
            break
    return first


def cells(found: list[dict[str, int]]) -> list[str]:
    """Writes for each action how many subjects reached it, and after how many queries (median)."""
    line = []
    for action in ACTIONS:
        after = [first[action] for first in found if action in first]
        when = f", after {statistics.median(after):.0f}" if after else ""
        line.append(f"{len(after)} of {len(found)}{when}")
    return line


def copied(world: World) -> str:
    """Measures what a copy that the watch does not see is worth."""
    rows = drawn(world, 2 * ASKED, 0)
    game = Game(
        world.shield,
        *(Examples(name, rows[ASKED:]) for name in ("members", "nonmembers")),
        Examples("auxiliary", rows[:ASKED]),
    )
    natural = Extraction(budgets=(100, 400))(game).findings
    return ", ".join(f"`{finding.name}` {finding}" for finding in natural)


def main() -> None:
    """Measures every subject on every data set and writes the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", type=Path, help="a file with Xtr (n, 28, 28) and ytr (n,)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("shieldnet").setLevel(logging.ERROR)
    task = digits()
    worlds = [world("digits", task.inputs.reshape(-1, 1, 8, 8), task.labels)]
    if options.mnist:
        with np.load(options.mnist) as file:
            chosen = np.random.default_rng(0).permutation(len(file["Xtr"]))[:15_000]
            inputs = torch.from_numpy(file["Xtr"][chosen]).float().unsqueeze(1)
            labels = torch.from_numpy(file["ytr"][chosen]).long()
        worlds.append(world("MNIST", inputs / inputs.max(), labels))
    parts = [READING]
    for place in worlds:
        rows = [["subjects", *ACTIONS], ["---"] * 4]
        for subjects, count, at_once in (
            (ordinary(place), FALSE_ALARM_SUBJECTS, 10),
            (crafted(place), ATTACKERS, 1),
        ):
            for name, asks in subjects.items():
                found = [first_actions(place, asks(seed), at_once) for seed in range(count)]
                rows.append([name, *cells(found)])
                print(place.name, *rows[-1], sep=" | ", flush=True)
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"### {place.name}\n\n{table}\n\nNot seen, and worth: {copied(place)}.")
    command = f"python benchmarks/watch.py{' --mnist PATH' if options.mnist else ''}"
    write_section("watch", command, "\n\n".join(parts))


READING = f"""
Each subject asks {ASKED} queries (fewer where there are not as many), attackers one at a time and
others ten, behind the preset `balanced`, and the default policy looks at the last 256: how many
subjects reach an action, and the median number of queries after which they first do. The first five
rows of a table are ordinary subjects, of whom none should; the others copy the model. The last is
the attack that the watch does not see: queries that look ordinary. Nor does it see several subjects
who share the others' queries (Sybils), each below the number that is needed.
Subjects draw from one pool (about 600 digits), so they overlap. Neither data set is held out: the
policy's limits were set on digits, and distances are learned per class since MNIST's subjects of
one class had all raised an alarm without it.
""".strip()

if __name__ == "__main__":
    main()
