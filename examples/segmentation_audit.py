"""Audits a segmentation: how much of an image its released map tells, and who trained the model.

The model outlines handwritten digits on pages of different shades. The masks do not tell the shade,
but how sure the model is of each pixel does.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import shieldnet as sn


def shaded_digits() -> tuple[Tensor, Tensor]:
    """Returns digits on pages of their own shade, and where the ink is.

    Shapes: (1797, 1, 16, 16), (1797, 16, 16) of 0 and 1.
    """
    ink = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    ink = F.interpolate(ink, scale_factor=2, mode="bilinear", align_corners=False)
    generator = torch.Generator().manual_seed(0)
    shade = torch.rand(len(ink), 1, 1, 1, generator=generator)
    images = shade + ink * (1.5 - shade) + 0.05 * torch.randn(ink.shape, generator=generator)
    return images, (ink > 0.4).squeeze(1).long()


def trained(data: tuple[Tensor, Tensor], seed: int, steps: int = 60) -> nn.Module:
    """Trains on (images, masks); the same seed gives the same model."""
    images, masks = data
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
            nn.Conv2d(16, 2, 1),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            batch = torch.randint(len(images), (24,))
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), masks[batch]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    images, masks = shaded_digits()
    parts = [slice(0, 80), slice(80, 200), slice(200, 500)]
    members, nonmembers, own = ((images[part], masks[part]) for part in parts)
    model = trained(members, seed=0)
    report = sn.audit(
        {
            "rounded": sn.Shield(model, sn.Round(1), axis=1),
            "coarse": sn.Shield(model, sn.Coarsen(4), sn.Round(1), axis=1),
            "labels": sn.Shield(model, sn.Label(), axis=1),
        },
        members=members,
        nonmembers=nonmembers,
        auxiliary=own[0],  # images without masks are enough
        tier="quick",
        train=trained,
        shadows=4,
    )
    for name in ("bare", "rounded", "coarse", "labels"):
        subject = report[name]
        print(
            f"{name:>8}: pixels right {subject['accuracy'].value:.3f}, "
            f"leakage beyond the labels {subject['inversion.map']}, "
            f"membership AUC {subject['membership.maps.auc']}"
        )
    print(report.passes(sn.Policy({"max_leakage": 0.10})))


if __name__ == "__main__":
    main()
