"""The last position alone: what is released, what it costs, and where it makes no sense."""

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, 5)
        self.out = nn.Linear(5, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.out(self.words(tokens).cumsum(1))
        return scores


TOKENS = torch.arange(12).reshape(3, 4) % 9


@pytest.mark.parametrize("release", ["logits", "probabilities", "labels"])
@pytest.mark.parametrize("defenses", [(), (sn.TopK(2), sn.Round(1))], ids=["bare", "rounded"])
def test_the_last_position_is_released_alone(release: str, defenses) -> None:  # type: ignore[no-untyped-def]
    model = Texts().eval()
    everything = sn.Shield(model, *defenses, axis=-1, release=release)
    last = sn.Shield(model, *defenses, axis=-1, release=release, release_positions="last")

    for _ in range(2):  # the second answer takes the quick way
        assert torch.equal(last(TOKENS), everything(TOKENS)[:, -1:])


def test_it_costs_what_one_position_costs_whatever_the_length() -> None:
    shield = sn.harden(Texts().eval(), axis=-1, release_positions="last")

    shield(TOKENS)
    short = shield.cost()
    shield(torch.arange(7).reshape(1, 7))

    assert shield.cost() == short
    assert short.bits == sn.harden(nn.Linear(2, 9)).cost(9).bits
    assert shield.extent == sn.Extent(9, (1,))


def test_its_cost_is_known_before_the_first_answer() -> None:
    shield = sn.harden(Texts().eval(), axis=-1, release_positions="last")

    before = shield.cost(9)
    shield(TOKENS)

    assert before == shield.cost()
    assert shield.certificate(9).cost == before


def test_a_graph_releases_the_last_position_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    shield = sn.Shield(Texts().eval(), sn.TopK(2), sn.Round(1), axis=-1, release_positions="last")

    sn.export(shield, TOKENS, tmp_path / "texts.pt2")
    exported = torch.export.load(tmp_path / "texts.pt2").module()

    assert torch.equal(exported(TOKENS[:2]), shield(TOKENS[:2]))


def test_it_is_written_to_a_file_and_read_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    shield = sn.Shield(Texts(), sn.TopK(1), axis=-1, release_positions="last", outputs="logits")
    (tmp_path / "shield.toml").write_text(sn.dump_shield(shield))

    read = sn.load_shield(shield.model, tmp_path / "shield.toml")

    assert read.settings == shield.settings
    assert "the last position alone" in repr(read)


def test_it_makes_no_sense_without_positions() -> None:
    with pytest.raises(sn.errors.ConfigError, match="axis=-1"):
        sn.harden(nn.Linear(2, 3), release_positions="last")
    with pytest.raises(sn.errors.ConfigError, match="'all' or 'last'"):
        sn.harden(Texts(), axis=-1, release_positions="first")  # type: ignore[arg-type]
    with pytest.raises(sn.errors.AnswerError, match="leave it out"):
        sn.harden(nn.Linear(2, 3), axis=-1, release_positions="last")(torch.rand(4, 2))
    several = sn.Shield(nn.Identity(), axis=-1, release_positions="last", outputs="logits")
    with pytest.raises(sn.errors.AnswerError, match="leave it out"):
        several(torch.randn(4, 2, 3, 5))
