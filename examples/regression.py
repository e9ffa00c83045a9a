"""Hardens a linear regression on patients: whole steps inside a range, or noise with a proof."""

import torch
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from torch import nn

import shieldnet as sn
from shieldnet.privacy.cost import rounded_up


def audited(shield: sn.Shield, sets: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Prints how well the shield answers, and what an adversary learns of the patients."""

    def train(data: tuple[torch.Tensor, torch.Tensor], seed: int) -> nn.Module:
        inputs, target = data
        columns = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
        fitted = torch.linalg.lstsq(columns, target.unsqueeze(1)).solution
        copy = nn.Linear(inputs.shape[1], 1)
        copy.load_state_dict({"weight": fitted[:-1].T, "bias": fitted[-1]})
        return copy

    names = {"columns": tuple(load_diabetes().feature_names), "sensitive": ("sex",)}
    report = sn.audit(shield, **sets, **names, train=train, shadows=16, tier="quick")
    for name in ("bare", "shield"):
        for finding in ("r2", "mae", "membership.auc", "attribute.sex.gain"):
            print(f"{name:>8}: {finding} {report[name][finding]}")


def main() -> None:
    data = load_diabetes()  # 442 patients, 10 columns; how far diabetes went a year later
    inputs = torch.tensor(data.data, dtype=torch.float32)
    target = torch.tensor(data.target, dtype=torch.float32)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = order[:300], order[300:]

    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = nn.functional.mse_loss(model(inputs[train]).squeeze(1), target[train])
        error.backward()
        return error

    optimizer.step(loss)

    # The range is what everybody knows of the scale, not what these patients happen to have.
    shield = sn.Shield(model, sn.ClipRange(25, 350), sn.RoundTo(25), outputs="values")

    for name, one in (("bare", shield.bare()), ("hardened", shield)):
        answers = one(inputs[test]).squeeze(1)
        print(
            f"{name:>8}: R2 {r2_score(target[test], answers):.3f} on {len(test)} new patients, "
            f"the first hears {answers[0]:.2f}, at most {rounded_up(one.cost().bits)} bits an "
            "answer"
        )
    print(shield.certificate())

    print("\nWhat an adversary makes of it, who has data of 71 other patients:")
    rows = {"members": train, "nonmembers": test[:71], "auxiliary": test[71:]}
    audited(shield, {name: (inputs[chosen], target[chosen]) for name, chosen in rows.items()})

    print("\nOr noise with a proof, inside a narrower range. It is drawn afresh for every answer:")
    for noise in (sn.GaussianNoise(25.0), sn.LaplaceNoise(25.0), sn.LaplaceNoise(50.0)):
        private = sn.Shield(model, sn.ClipRange(75, 275), noise, outputs="values")
        answers = private(inputs[test]).squeeze(1)
        proven = private.cost()
        print(
            f"{type(noise).__name__}({noise.scale:g}): R2 {r2_score(target[test], answers):.2f}, "
            f"the first hears {answers[0]:.0f}; proven pure epsilon {rounded_up(proven.pure)}, "
            f"mu {rounded_up(proven.mu, 3)}, {rounded_up(proven.bits, 3)} bits"
        )


if __name__ == "__main__":
    main()
