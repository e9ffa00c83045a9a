"""A hundred audits of nothing, of answers that are no scores: texts, maps, values, embeddings.

Every run has its own data, models and seed. The target learned records that are not scored; shadows
were trained on those that are. Inversion: the answers do not depend on the input.

    python benchmarks/nulls_of_kinds.py      # half an hour on two cores
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from embeddings import contrastive
from nulls import Found, asked_for, cascade, judged
from results import write_section
from tabulate import tabulate
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import (
    Game,
    MapInversion,
    MapMembership,
    MapProbing,
    Membership,
    Search,
    SequenceMembership,
)
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.attacks.positions.position_shadows import train_position_shadows
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding
from shieldnet.shield.settings import Extent

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from language import LENGTH, VOCABULARY, fitted, story, texts
from maps import SIDE, game_of, nudged, squares
from regressions import least_squares

ROWS, COLUMNS, WIDTH = 100, 12, 8
HEADLINES = (
    "membership.auc",
    "membership.cascade.auc",
    "membership.sequences.auc",
    "membership.maps.auc",
)
SETS = ("members", "nonmembers", "auxiliary")


def of_membership(findings: tuple[Finding, ...], shown: str) -> Iterator[Found]:
    """Judges areas and rates of membership; pooled ones attack shadows, which did see records."""
    for finding in findings:
        if "pooled" not in finding.name and (".auc" in finding.name or ".tpr" in finding.name):
            chance = 0.01 if ".tpr" in finding.name else 0.5
            yield judged(finding, chance, f"{finding.name}, {shown}")


def of_inversion(findings: tuple[Finding, ...], shown: str) -> Iterator[Found]:
    """Judges what is leaked of the input."""
    for finding in findings:
        yield judged(finding, finding.baseline, f"{finding.name}, {shown}")


def of_texts(seed: int) -> Iterator[Found]:
    """Attacks a model that was fine-tuned on other texts, with its base and shadows."""
    first, base = 10_000 + 20 * seed, story(rows=ROWS).base
    own = {name: Examples(name, texts(ROWS, first + place)) for place, name in enumerate(SETS)}
    target = fitted(base, texts(ROWS, first + 9), 40, first)

    def train(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        return fitted(base, data[0], 40, seed)

    chains = {"bare": (), "top-5 rounded": (sn.TopK(5), sn.Round(1)), "label": (sn.Label(),)}
    shields = {shown: sn.Shield(target, *chain, axis=-1) for shown, chain in chains.items()}
    extent = Extent(VOCABULARY, (LENGTH,))
    game = Game(shields["bare"], **own, extent=extent, base=sn.Shield(base, axis=-1), seed=first)
    shadows = train_position_shadows(game, shields, train, 4, engine="inline")
    for shown, shield in shields.items():
        behind = replace(game.behind(shield), position_shadows=shadows)
        yield from of_membership(SequenceMembership()(behind).findings, f"texts, {shown}")


class Deaf(nn.Module):
    """Answers every image with the same map. Shapes: (n, 1, 8, 8) -> (n, 2, 8, 8)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("map", torch.randn(2, SIDE, SIDE, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.map.expand(len(x), -1, -1, -1) + 0 * x


def of_maps(seed: int) -> Iterator[Found]:
    """Attacks a segmentation that holds other images, and one that looks at none."""
    first = 20_000 + 20 * seed
    for chain in ((), (sn.Label(),)):
        shown = f"maps, {' -> '.join(map(str, chain)) or 'bare'}"
        game = game_of(nudged(squares(60, first + 9), 0), *chain, seed=first)
        shadows = train_position_shadows(game, {"s": game.shield}, nudged, 4, engine="inline")
        game = replace(game, position_shadows=shadows)
        yield from of_membership(MapMembership()(game).findings, shown)
        deaf = game_of(Deaf(first), *chain, seed=first)
        for attack in (MapInversion(), MapProbing(queries=32)):
            yield from of_inversion(attack(deaf).findings, shown)


def of_values(seed: int) -> Iterator[Found]:
    """Attacks a regression of other records, whose targets have heavy tails."""
    first = 30_000 + 20 * seed
    own = {}
    for place, name in enumerate((*SETS, "others")):
        generator = torch.Generator().manual_seed(first + place)
        inputs = torch.randn(ROWS, 4 * COLUMNS, generator=generator)
        targets = inputs.sum(1, keepdim=True) + 5 * torch.randn(ROWS, 1, generator=generator) ** 3
        own[name] = Examples(name, inputs, targets, has_targets=True)
    others = own.pop("others")
    model = least_squares((others.inputs, others.labels), 0)
    for chain in ((), (sn.ClipRange(-12.0, 12.0), sn.RoundTo(6.0))):
        shield = sn.Shield(model, *chain, outputs="values")
        shadows = train_shadows(ShadowPlan(least_squares, 8, shield, **own), engine="inline")
        game = Game(shield, **own, shadows=shadows, seed=first)
        shown = f"values, {' -> '.join(map(str, chain)) or 'bare'}"
        yield from of_membership(Membership()(game).findings, shown)


class Same(nn.Module):
    """Gives every row the same embedding. Shapes: (n, COLUMNS) -> (n, WIDTH)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linspace(-1, 1, WIDTH).expand(len(x), WIDTH) + 0 * x[:, :1]


def of_embeddings(seed: int) -> Iterator[Found]:
    """Attacks an encoder of other records, and one that looks at none."""
    first = 40_000 + 20 * seed
    own = {}
    for place, name in enumerate((*SETS, "others")):
        generator = torch.Generator().manual_seed(first + place)
        inputs = torch.randn(ROWS, COLUMNS, generator=generator)
        own[name] = Examples(name, inputs, torch.zeros(ROWS, dtype=torch.int64))
    others = own.pop("others")
    model = contrastive((others.inputs, others.labels), first)
    for chain in ((), (sn.Sign(),)):
        shown = f"embeddings, {' -> '.join(map(str, chain)) or 'bare'}"
        shield = sn.Shield(model, *chain, outputs="embeddings")
        shadows = train_shadows(ShadowPlan(contrastive, 4, shield, **own), engine="inline")
        game = Game(shield, **own, shadows=shadows, seed=first)
        yield from of_membership(Membership()(game).findings, shown)
        same = Game(sn.Shield(Same(), *chain, outputs="embeddings"), **own, seed=first)
        yield from of_inversion(Search()(same).findings, shown)


STUDIES: dict[str, Callable[[int], Iterator[Found]]] = {
    "texts": of_texts,
    "maps": of_maps,
    "values": of_values,
    "embeddings": of_embeddings,
    "cascade": cascade,
}

READING = """
{runs} runs each, {rows} records a set. "holds" counts intervals that hold chance, "alarms" those
that lie above it, of which a two-sided 95 % interval allows 2.5 in a hundred; the worst of several
attacks is widened for that. Of the single attacks below a headline (how many) the fewest that hold
and the most alarms of one are shown. Chance is .5 for an AUC, .01 for a rate at 1 % false
positives, and the baseline for what is leaked of an input. "in stages" is the cascade, whose second
shadows are trained on what the first ones say; its data are those of the study "nulls".
"""


def played(study: str, seed: int) -> list[Found]:
    """Plays one run of a study."""
    torch.set_num_threads(1)
    return list(STUDIES[study](seed))


def summary(found: list[Found]) -> str:
    """Writes a line for each headline, and one for the worst of the attacks below it."""
    by_name: dict[str, list[Found]] = {}
    for one in found:
        by_name.setdefault(one.name, []).append(one)
    lines: dict[str, list[tuple[int, int, int]]] = {}
    for name, own in by_name.items():
        finding, _, shown = name.partition(", ")
        is_single = finding.startswith("membership.") and finding not in HEADLINES
        line = f"{shown}: {'each single attack' if is_single else finding}"
        counts = (len(own), sum(one.holds for one in own), sum(one.alarm for one in own))
        lines.setdefault(line, []).append(counts)
    rows = []
    for line, counts in lines.items():
        runs, holds, alarms = zip(*counts, strict=True)
        many = f" ({len(counts)})" if line.endswith("attack") else ""
        rows.append((f"{line}{many}", min(runs), min(holds), max(alarms)))
    return tabulate(rows, ("finding", "runs", "holds chance", "alarms"), "pipe")


def main() -> None:
    """Plays all runs and writes the table."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # workers import nulls, too
    found, given = asked_for(STUDIES, played, __doc__)
    text = summary(found)
    if given.only:
        print(text)
        return
    reading = READING.format(runs=given.runs, rows=ROWS).strip()
    write_section("nulls_of_kinds", "python benchmarks/nulls_of_kinds.py", f"{reading}\n\n{text}")


if __name__ == "__main__":
    main()
