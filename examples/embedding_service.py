"""An embedding service: what a search still finds behind each preset, and what vectors tell."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import shieldnet as sn


def trained(images: torch.Tensor) -> nn.Module:
    """Trains an encoder to give two noisy copies of an image vectors that point the same way."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    for _ in range(60):
        first, second = (
            normalize(encoder(images + 0.3 * torch.randn_like(images)), dim=1) for _ in range(2)
        )
        optimizer.zero_grad()
        cross_entropy(first @ second.T / 0.1, torch.arange(len(images))).backward()
        optimizer.step()
    return encoder.eval()


def main() -> None:
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    private, new, owned, public = (images[rows] for rows in order[:600].split(150))
    encoder = trained(private)

    # The range comes from public images: a range of private ones would reveal them.
    shields = {
        preset: sn.harden(encoder, preset, outputs="embeddings", calibrate=public)
        for preset in ("open", "balanced", "strict")
    }
    tier = sn.Tier("short", (sn.attacks.Search(queries=40), sn.attacks.Membership()))
    report = sn.audit(
        shields, members=private, nonmembers=new, auxiliary=owned, tier=tier, shadows=0
    )
    names = ("retrieval.recall", "inversion.search", "membership.auc")
    print(f"{'shield':>9}  " + "  ".join(f"{name:>20}" for name in names))
    for subject in report.subjects:
        values = "  ".join(f"{subject[name]!s:>20}" for name in names)
        print(f"{subject.name:>9}  {values}")
    print("recall: higher is better. The others: lower is better; membership by chance is 0.5.")
    print(sn.dump_shield(shields["open"]))


if __name__ == "__main__":
    main()
