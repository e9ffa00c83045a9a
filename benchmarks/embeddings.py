"""What embeddings give away behind each preset, beside what a search among them still finds.

Two encoders: the mean of random word vectors on texts of eight words, and a small network that was
trained contrastively on digits; and the presets of values around a regression. Then the nulls: 100
runs each of a search on answers that tell nothing, and of membership on an encoder that saw neither
set.

    python benchmarks/embeddings.py         # a minute
"""

import time
from collections.abc import Callable

import torch
from results import write_section
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import shieldnet as sn
from shieldnet.attacks import Game, Inversion, Membership, Reidentification, Search
from shieldnet.attacks.adversary.decoders import KernelRidge, Ridge
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.checks.utility import utility
from shieldnet.data.examples import Examples
from shieldnet.demo import digits

WORDS, LENGTH, DIMENSIONS = 300, 8, 64
NAMES = ("members", "nonmembers", "auxiliary", "public")
LEARNED = Inversion(decoders=(Ridge(), KernelRidge()), pictures=False)
PRESETS = ("open", "balanced", "strict", "certified")
RUNS = 100
Sets = dict[str, Examples]


class MeanOfWords(nn.Module):
    """Embeds a text as the mean of its words' vectors, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.vectors = nn.Parameter(torch.randn(WORDS, DIMENSIONS, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (rows, LENGTH) -> (rows, DIMENSIONS)."""
        return normalize(self.vectors[tokens].mean(1), dim=1)


class Hashed(nn.Module):
    """Gives numbers that vary with the row, in no way that anybody could learn."""

    def forward(self, rows: Tensor) -> Tensor:
        """Shapes: (rows, columns) -> (rows, 3)."""
        wide = (rows.double() * 1e4).sin() * 1e4
        return (wide @ torch.linspace(1, 2, rows.shape[1] * 3).double().reshape(-1, 3)).sin()


def contrastive(data: tuple[Tensor, Tensor], seed: int, epochs: int = 60) -> nn.Module:
    """Trains an encoder to give two noisy copies of a record one embedding (SimCLR)."""
    inputs, _ = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs[0].numel(), 128), nn.ReLU(), nn.Linear(128, 32)
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(epochs):
            first, second = (
                normalize(net(inputs + 0.3 * torch.randn_like(inputs)), dim=1) for _ in range(2)
            )
            optimizer.zero_grad()
            cross_entropy(first @ second.T / 0.1, torch.arange(len(inputs))).backward()
            optimizer.step()
    return net.eval()


def texts() -> Sets:
    """Draws texts whose words are as frequent as words are (Zipf)."""
    weights = 1 / torch.arange(1.0, WORDS + 1)
    generator = torch.Generator().manual_seed(0)
    rows = torch.multinomial(weights.expand(4 * 200, WORDS), LENGTH, generator=generator)
    return {name: Examples(name, part) for name, part in zip(NAMES, rows.split(200), strict=True)}


def images() -> Sets:
    """Returns digits: 200 that train the encoder, 200 that do not, and those of the adversary."""
    task = digits()
    order = torch.randperm(len(task.inputs), generator=torch.Generator().manual_seed(0))[:800]
    parts = zip(NAMES, order.split(200), strict=True)
    return {name: Examples(name, task.inputs[rows], task.labels[rows]) for name, rows in parts}


def shields(model: nn.Module, kind: str, public: Tensor) -> dict[str, sn.Shield]:
    """Returns the bare model and every preset."""
    some = {"bare": sn.Shield(model, outputs=kind)}
    for preset in PRESETS:
        some[preset] = sn.harden(model, preset, outputs=kind, calibrate=public)
    return some


def table(title: str, model: nn.Module, sets: Sets, train: Callable[..., nn.Module] | None) -> str:
    """Attacks every shield, and measures what is left to search."""
    sets = dict(sets)
    public = sets.pop("public").inputs
    lines = [
        f"### {title}\n",
        "| shield | bits | mu | recall at 10 | rank correlation | learned | search | words found |"
        " re-identified | membership AUC | search, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    shadows = None
    for name, shield in shields(model, "embeddings", public).items():
        if train is not None and shadows is None:
            plan = ShadowPlan(train, 8, shield, **sets)
            shadows = train_shadows(plan, engine="inline")
        game = Game(shield, **sets, shadows=shadows)
        found = {one.name: one for one in utility(game, [])}
        start = time.process_time()
        search = Search()(game).findings
        spent = time.process_time() - start
        for one in (
            *search,
            *LEARNED(game).findings,
            *Reidentification()(game).findings,
            *(Membership()(game).findings if train is not None else ()),
        ):
            found[one.name] = one
        cost = shield.cost()
        shown = [
            found.get(name)
            for name in (
                *("retrieval.recall", "retrieval.rank_correlation", "inversion"),
                *("inversion.search", "inversion.search.tokens", "reidentification"),
                "membership.auc",
            )
        ]
        cells = ["" if one is None else str(one) for one in shown]
        lines.append(
            f"| {name} | {cost.bits:.0f} | {cost.mu:.1f} | {' | '.join(cells)} | {spent:.1f} |"
        )
    return "\n".join(lines)


def regression() -> str:
    """Attacks a linear regression on diabetes patients behind every preset."""
    data = load_diabetes()
    inputs = torch.tensor(data.data / data.data.std(0), dtype=torch.float32)
    target = torch.tensor(data.target, dtype=torch.float32)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    model = nn.Linear(10, 1)
    rows = torch.cat([inputs[order[:110]], torch.ones(110, 1)], 1)
    weights = torch.linalg.lstsq(rows, target[order[:110], None]).solution[:, 0]
    with torch.no_grad():
        model.weight.copy_(weights[None, :10])
        model.bias.copy_(weights[10:])
    parts = zip(NAMES, order[:440].split(110), strict=True)
    sets = {name: Examples(name, inputs[rows]) for name, rows in parts}
    public = sets.pop("public").inputs
    lines = [
        "### Linear regression\n",
        "| shield | bits | epsilon | R2 | variance released | learned | search |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    truth = target[order[110:220]]
    for name, shield in shields(model, "values", public).items():
        game = Game(shield, **sets)
        answers = game.ask(game.nonmembers).distribution[:, 0]
        missed = (answers - truth).square().sum() / (truth - truth.mean()).square().sum()
        found = {one.name: one for one in (*utility(game, []), *LEARNED(game).findings)}
        found |= {one.name: one for one in Search()(game).findings}
        cells = [str(found[one]) for one in ("agreement", "inversion", "inversion.search")]
        cost = shield.cost()
        lines.append(
            f"| {name} | {cost.bits:.1f} | {cost.pure:.1f} | {1 - missed:.2f} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def nulls() -> str:
    """Counts alarms where there is nothing to find."""
    alarms = {"search": 0, "membership": 0}
    encoder = contrastive((torch.randn(100, 12), torch.empty(0)), 0)
    for seed in range(RUNS):
        rows = torch.randn(240, 12, generator=torch.Generator().manual_seed(seed))
        sets = {
            name: Examples(name, part) for name, part in zip(NAMES, rows.split(80), strict=False)
        }
        game = Game(sn.Shield(Hashed(), outputs="embeddings"), **sets, seed=seed)
        alarms["search"] += Search(queries=40)(game).findings[0].low > 0
        game = Game(sn.Shield(encoder, outputs="embeddings"), **sets, seed=seed)
        finding = next(one for one in Membership()(game).findings if one.name == "membership.auc")
        alarms["membership"] += finding.low > 0.5
    return (
        "### Nulls\n\n"
        f"Alarms in {RUNS} runs: search, on answers that tell nothing, {alarms['search']}; "
        f"membership, on an encoder that saw neither set, {alarms['membership']} (an interval of "
        "95% has up to 2.5 on one side)."
    )


def main() -> None:
    """Writes the section."""
    torch.set_num_threads(1)
    pictures = images()
    encoder = contrastive((pictures["members"].inputs, torch.empty(0)), 0)
    parts = [
        table("Mean of words", MeanOfWords().eval(), texts(), None),
        table("Contrastive encoder of digits", encoder, pictures, contrastive),
        regression(),
        nulls(),
        "learned: leakage that `Inversion` finds with ridge and kernel ridge; search: leakage that "
        "`Search` finds by asking; words found: the share of a text's words among eight guesses "
        "(the commonest eight: see the baseline in the report).",
    ]
    write_section("embeddings", "python benchmarks/embeddings.py", "\n\n".join(parts))


if __name__ == "__main__":
    main()
