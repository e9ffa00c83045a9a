"""The true class of every position: next tokens, given labels, and what does not count."""

import pytest
import torch

from shieldnet.attacks.positions.truth import IGNORED, Truth
from shieldnet.core.errors import DataError
from shieldnet.data.examples import as_examples
from shieldnet.shield.settings import Extent

EXTENT = Extent(5, (4,))
TOKENS = torch.tensor([[1, 2, 3, 4], [4, 3, 0, 0]])


def test_a_text_without_labels_is_held_to_its_next_tokens() -> None:
    truth = Truth.of(as_examples(TOKENS, "members"), EXTENT)

    assert truth.labels[:, :-1].equal(TOKENS[:, 1:])
    assert truth.counted.tolist() == [[True, True, True, False]] * 2


def test_padding_and_a_mask_leave_the_same_positions_out() -> None:
    mask = (TOKENS != 0).long()
    masked = as_examples({"input_ids": TOKENS, "attention_mask": mask}, "members")
    expected = [[True, True, True, False], [True, False, False, False]]

    assert Truth.of(as_examples(TOKENS, "members"), EXTENT, padding=0).counted.tolist() == expected
    assert Truth.of(masked, EXTENT).counted.tolist() == expected


def test_given_labels_count_where_they_are_not_ignored() -> None:
    labels = torch.tensor([[0, IGNORED, 1, 2], [IGNORED, IGNORED, IGNORED, 4]])

    truth = Truth.of(as_examples((torch.rand(2, 3), labels), "members"), EXTENT)

    assert truth.counted.equal(labels != IGNORED)


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        (TOKENS, TOKENS, "tokens of their own positions"),
        (TOKENS, torch.tensor([1, 2]), "label at every position"),
        (TOKENS, torch.full((2, 4), IGNORED), "got none in 2 of the 2"),
        (TOKENS + 3, None, "from 0 to 4"),
        (torch.rand(2, 4), None, "Only a text's"),
    ],
    ids=["own tokens", "one a record", "all ignored", "unknown tokens", "no text"],
)
def test_labels_that_do_not_fit_are_refused(inputs, labels, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=words):
        Truth.of(as_examples((inputs, labels) if labels is not None else inputs, "members"), EXTENT)


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(DataError, match="A text takes two tokens"):
        Truth.of(as_examples(torch.tensor([[1, 0, 0, 0]]), "members"), EXTENT, padding=0)
