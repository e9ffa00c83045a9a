"""Hardens a segmentation of driving scenes: a class and a confidence for every pixel.

The scenes are drawn here. Given a path, such as scene.png, the answers are drawn there.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shieldnet as sn

CLASSES = ("sky", "green", "road", "lane mark", "car")
COLORS = torch.tensor([[5, 7, 9], [2, 5, 2], [4, 4, 4], [9, 9, 8], [0, 0, 0]]) / 10


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws noisy images (count, 3, 48, 64) and the class of each pixel (count, 48, 64)."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    y, x = torch.arange(48.0).reshape(1, 48, 1), torch.arange(64.0).reshape(1, 1, 64)
    horizon, vanishing = between(14, 22), between(24, 40)
    depth = ((y - horizon) / (48 - horizon)).clamp(min=0)  # 0 at the horizon, 1 at the bottom
    labels = (y >= horizon).long().repeat(1, 1, 64)
    for _ in range(3):
        aside, above = x - between(0, 64), y - horizon + between(2, 6)
        labels[(aside / between(3, 6)) ** 2 + (above / between(4, 10)) ** 2 < 1] = 1  # a tree
    from_middle = (x - vanishing - (32 - vanishing) * depth).abs()
    road = (y > horizon) & (from_middle < 2 + between(22, 30) * depth)
    labels[road] = 2
    dashes = torch.sin(between(0, 6) + 12 * depth.sqrt()) > -0.3
    labels[road & dashes & (from_middle < 0.5 + 1.5 * depth)] = 3
    for side in (-13, 13):
        near = between(0.25, 0.9)
        bottom, size = horizon + (48 - horizon) * near, 2 + 10 * near
        beside = (x - vanishing - (32 + side - vanishing) * near).abs() < size / 2
        labels[beside & (y <= bottom) & (y > bottom - 0.7 * size)] = 4  # a car
    paint = torch.rand(count, 3, 1, 1, generator=generator)
    images = COLORS[labels].movedim(-1, 1) + (labels == 4).unsqueeze(1) * paint
    return images + 0.15 * torch.randn(images.shape, generator=generator), labels


def mean_iou(predicted: Tensor, truth: Tensor) -> float:
    """Averages over the classes what prediction and truth share of what either covers."""
    pairs = [(predicted == one, truth == one) for one in range(len(CLASSES))]
    return sum(float((p & t).sum() / (p | t).sum()) for p, t in pairs) / len(pairs)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=2, dilation=2), nn.ReLU()),
        *(nn.Conv2d(32, 4 * len(CLASSES), 3, padding=1), nn.PixelShuffle(2)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    images, labels = scenes(960, seed=1)
    for batch in torch.arange(960).repeat(2).split(16):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    images, labels = scenes(100, seed=2)  # the model has seen none of them
    model.eval()

    balanced = sn.harden(model, "balanced", axis=1)  # the class and 4 bins of confidence
    coarse = sn.Shield(model, sn.Coarsen(4), sn.Label(), axis=1)  # one class for 4 x 4 pixels

    bare = balanced.bare()
    for name, shield in (("bare", bare), ("balanced", balanced), ("coarse", coarse)):
        answers = shield(images)
        pixel = " ".join(f"{one:.4f}" for one in answers[0, :, 40, 32].softmax(0))
        print(f"{name:>8}: mean IoU {mean_iou(answers.argmax(1), labels):.3f}, one pixel {pixel},")
        print(f"          at most {shield.cost().bits:.0f} bits an answer")
    print("One scene, coarse, each square by its initial:")
    for line in coarse(images)[0].argmax(0)[::4, ::4]:
        print("  ", *(CLASSES[one][0] for one in line))
    print(coarse.certificate())

    if len(sys.argv) > 1:
        from matplotlib.figure import Figure

        panels = {"image": images[0].movedim(0, -1).clamp(0, 1), "truth": labels[0]}
        panels["bare: labels"] = bare(images)[0].argmax(0)
        panels["balanced: confidence"] = balanced(images)[0].softmax(0).amax(0)
        panels["coarse: labels"] = coarse(images)[0].argmax(0)
        figure = Figure(figsize=(15, 2.6), layout="constrained")
        for axes, (title, panel) in zip(figure.subplots(1, 5), panels.items(), strict=True):
            top, colors = (1, "gray") if panel.is_floating_point() else (4, "viridis")
            axes.imshow(panel.numpy(), vmin=0, vmax=top, cmap=colors)
            axes.set(title=title, xticks=[], yticks=[])
        figure.savefig(sys.argv[1])


if __name__ == "__main__":
    main()
