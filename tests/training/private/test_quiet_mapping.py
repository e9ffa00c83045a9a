"""Nothing is printed of how torch maps an operator over records."""

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.core.mapping import quiet_mapping


class Bag(nn.Module):
    """Sums the rows of words; torch has no rule to map that over records."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(8, 2)

    def forward(self, rows):
        return self.head(self.words(rows))


@pytest.mark.parametrize("train", [sn.trainable.Full(), sn.trainable.LastLayer()])
def test_nothing_is_said_of_operators_that_torch_maps_slowly(train, capfd) -> None:
    words = torch.randint(0, 20, (60, 5), generator=torch.Generator().manual_seed(0))
    data, held = (words[:40], words[:40, 0] % 2), (words[40:], words[40:, 0] % 2)
    settings = {"start": "public", "heldout": held, "train": train, "epochs": 2}
    found = sn.finetune(Bag(), data, sn.DPSGD(8.0, 1e-3), **settings)
    assert found.guarantee is not None
    assert "performance drop" not in capfd.readouterr().err


def test_models_that_torch_maps_slowly_are_trained_together_without_a_word(capfd, recwarn) -> None:
    words = torch.randint(0, 20, (60, 5), generator=torch.Generator().manual_seed(0))
    recipe = sn.Recipe(Bag, epochs=1, together=True)
    recipe.models(words, words[:, 0] % 2, [torch.arange(30), torch.arange(30, 60)], [0, 1])
    assert "performance drop" not in capfd.readouterr().err
    assert not [warned for warned in recwarn if "performance drop" in str(warned.message)]


def test_a_users_own_mapping_is_told_of_again(capfd) -> None:
    with quiet_mapping():
        pass
    weight, rows = torch.randn(20, 8), torch.randint(0, 20, (3, 1, 5))
    bag = torch.ops.aten._embedding_bag.default
    torch.vmap(lambda row: bag(weight, row[0], torch.tensor([0]))[0])(rows)
    assert "performance drop" in capfd.readouterr().err
