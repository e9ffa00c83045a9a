"""Decoders on answers that many rows share, and units of a model's several inputs."""

import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Inversion
from shieldnet.attacks.adversary.decoders import NearestNeighbors, Ridge


def test_rows_as_near_as_the_nearest_count_alike() -> None:
    answers = torch.tensor([[0.0]] * 90 + [[1.0]] * 10)
    values = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    guess = NearestNeighbors().predict(answers, values, torch.tensor([[0.0], [1.0]]), (3.0,))
    torch.testing.assert_close(guess, torch.stack([values[:90].mean(0), values[90:].mean(0)]))


def test_a_number_a_record_beside_an_image_is_a_column() -> None:
    def records(rows: int, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        debt = (3 * torch.randn(rows, generator=generator)).exp()
        return {"debt": debt, "image": torch.randn(rows, 1, 4, 4, generator=generator)}

    class SaysDebt(nn.Module):
        def forward(self, debt: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            said = debt.log() / 3
            return torch.stack([said, -said], 1)

    report = sn.audit(
        sn.Shield(SaysDebt().eval()),
        members=records(60, 0),
        nonmembers=records(100, 1),
        auxiliary=records(200, 2),
        tier=sn.Tier("inverts", (Inversion(decoders=(Ridge(),), pictures=False),)),
        engine="inline",
    )
    assert report["bare"]["inversion.column.debt"].low > 0.5
    assert report["bare"]["inversion.column.image"].low <= 0
