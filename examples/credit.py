"""Hardens a credit scorer: an applicant hears one of eight answers instead of an exact score.

The applicants are drawn here, unless the path of UCI's german_credit.data is given.
"""

import sys

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

import shieldnet as sn

PURPOSES = 5  # car, furniture, appliances, education, business


def applicants(path: str | None = None) -> tuple[Tensor, Tensor]:
    """Returns a table (rows, columns) and who paid back (rows,), 1 or 0."""
    if path is None:
        return drawn(2000)
    with open(path) as file:
        rows = [line.split() for line in file if line.strip()]
    columns = []
    for values in list(zip(*rows, strict=True))[:-1]:
        if values[0].startswith("A"):  # a category: one column for each of its codes
            columns += [[float(one == code) for one in values] for code in sorted(set(values))]
        else:
            columns.append([float(one) for one in values])
    return torch.tensor(columns).T, torch.tensor([float(row[-1] == "1") for row in rows])


def drawn(count: int) -> tuple[Tensor, Tensor]:
    """Draws applicants, and by chance who of them pays back."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(count, generator=generator)

    months = (18 + 12 * normal()).clamp(4, 72).round()
    amount = (7.3 + 0.02 * months + 0.6 * normal()).exp().round()
    age = (35 + 11 * normal()).clamp(19, 75).round()
    employed = ((age - 19) * torch.rand(count, generator=generator)).floor()
    savings = (5.5 + 0.05 * employed + 1.5 * normal()).exp().round()
    late = torch.poisson(torch.full((count,), 0.4), generator=generator)
    purpose = one_hot(torch.randint(PURPOSES, (count,), generator=generator), PURPOSES).float()
    score = 1.6 - 0.04 * months - amount / 6000 + 0.02 * (age - 35) + 0.07 * employed
    score += 0.4 * (savings.log() - 5.5) - 1.0 * late
    score += purpose @ torch.tensor([0.0, 0.2, 0.3, -0.6, -0.3])
    paid = torch.rand(count, generator=generator) < torch.sigmoid(score)
    table = torch.stack([months, amount, age, employed, savings.log(), late], 1)
    return torch.cat([table, purpose], 1), paid.float()


def main() -> None:
    table, paid = applicants(*sys.argv[1:2])
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    train, test = order.tensor_split([len(order) * 7 // 10])
    table = (table - table[train].mean(0)) / table[train].std(0).clamp_min(1e-3)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(table.shape[1], 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(table[train]), paid[train]).backward()
        optimizer.step()
    model.eval()

    shield = sn.harden(model, outputs="binary_logits")

    for name, one in (("bare", shield.bare()), ("hardened", shield)):
        chance = one(table[test]).sigmoid()
        right = ((chance > 0.5) == (paid[test] == 1)).float().mean()
        print(
            f"{name:>8}: accuracy {right:.3f}, AUC {roc_auc_score(paid[test], chance):.3f} "
            f"on {len(test)} new applicants; {len(chance.unique())} different answers"
        )
    print("What five of them see:")
    five = table[test][:5]
    for bare, seen in zip(model(five).sigmoid(), shield(five).sigmoid(), strict=True):
        verdict = "granted" if seen > 0.5 else "refused"
        print(f"  {verdict}, chance of paying back {seen:.4f} (the model says {bare:.4f})")
    print(shield.certificate())

    print("What an adversary makes of it, who has data of 200 other applicants:")
    rows = {"members": train, "nonmembers": test[:-200], "auxiliary": test[-200:]}
    sets = {name: (table[chosen], paid[chosen].long()) for name, chosen in rows.items()}
    report = sn.audit({"hardened": shield}, **sets, tier="quick", shadows=8)
    for name in ("bare", "hardened"):
        for finding in ("accuracy", "inversion", "membership.auc"):
            print(f"{name:>8}: {finding} {report[name][finding]}")


if __name__ == "__main__":
    main()
