"""Do loss traces name the records at risk? Against what shadows say of the same records.

python benchmarks/traces.py
"""

from functools import partial

import torch
from membership import BATCH, HIDDEN, LR, TASKS, network
from results import write_section
from scipy.stats import spearmanr
from torch import Tensor

import shieldnet as sn
from shieldnet.attacks.membership.borrowing import lira_borrowing
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.attacks.membership.signals import membership_scores
from shieldnet.data.examples import Examples

SHADOWS, SHARE = 16, 0.05
READING = f"""
A network of {HIDDEN} hidden units is trained by `finetune`; {SHADOWS} shadows are trained for the
comparison alone. "found" is the share of the twentieth of members that LiRA (borrowing) scores
highest which is also among the twentieth that the trainer's own losses put first; .05 is chance.
"rank correlation" is Spearman's, over all members. The mean over epochs is what
`Finetuned.traces.risks` gives.
"""


def orders(losses: Tensor) -> dict[str, Tensor]:
    """Returns ways to order records by their losses. Shapes: (epochs, records) -> (records,)."""
    quartiles = losses.quantile(torch.tensor([0.25, 0.75]), dim=0)
    return {
        "mean over epochs": losses.mean(0),
        "range between quartiles": quartiles[1] - quartiles[0],
        "last epoch alone": losses[-1],
    }


def compared(name: str) -> list[str]:
    """Returns the lines of one data set."""
    task = next(task for task in TASKS if task.name == name)
    inputs, labels = task.load()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    picked = order[: task.rows], order[task.rows : 2 * task.rows]
    sets = {
        part: Examples(part, inputs[rows], labels[rows])
        for part, rows in zip(("members", "nonmembers"), picked, strict=True)
    }
    make = partial(network, inputs.shape[1], int(labels.max()) + 1)
    members = sets["members"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = make()
    trained = sn.finetune(
        start,
        (members.inputs, members.labels),
        epochs=task.epochs,
        batch_size=BATCH,
        learning_rate=LR,
        seed=0,
    )
    recipe = sn.Recipe(make, epochs=task.epochs, learning_rate=LR, batch_size=BATCH)
    plan = ShadowPlan(recipe, SHADOWS, sn.Shield(trained.model), **sets, copies=False)
    shadows = train_shadows(plan, engine="inline")
    with torch.no_grad():
        answers = trained.model(members.inputs).unsqueeze(0)
    said = torch.cat([answers, shadows.scores["members"]]).double().log_softmax(-1)
    signals = membership_scores(said, members.labels.expand(len(said), -1))["loss"]
    found = lira_borrowing(signals[0], signals[1:], shadows.trained_on["members"])
    count = int(SHARE * len(found))
    worst = set(found.topk(count).indices.tolist())
    lines = []
    for way, scores in orders(trained.traces.losses).items():
        share = len(worst & set(scores.topk(count).indices.tolist())) / count
        rank = spearmanr(scores, found).statistic
        lines.append(f"| {name} | {way} | {share:.2f} | {rank:.2f} |")
    return lines


def main() -> None:
    """Compares on all data sets and writes the table."""
    torch.set_num_threads(1)
    lines = ["| data | records ordered by | found | rank correlation |", "|---|---|---|---|"]
    lines += [line for task in TASKS for line in compared(task.name)]
    text = "\n\n".join([READING.strip(), "\n".join(lines)])
    write_section("traces", "python benchmarks/traces.py", text)


if __name__ == "__main__":
    main()
