"""Holds the models that the benchmarks time; imports torch alone, so that any environment can."""

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


def mlp(classes: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Returns a model and the shape of one input."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, classes)), (64,)


def resnet(classes: int, width: int = 16) -> tuple[nn.Module, tuple[int, ...]]:
    """Returns a model and the shape of one input."""
    blocks = (Block(width) for _ in range(3))
    body = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), *blocks)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return nn.Sequential(body, head), (3, 32, 32)
