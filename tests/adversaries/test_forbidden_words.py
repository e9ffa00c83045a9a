"""The adversary reads which words cannot be said: a set that hangs on the scores is an answer."""

import pytest
import torch
from torch import Tensor

import shieldnet as sn

NO_TEXT = torch.zeros(1, 1, dtype=torch.long)
CHAINS = [
    (sn.Label(),),
    (sn.Confidence(4),),
    (sn.TopK(3), sn.Round(1)),
    (sn.Round(1),),
    (sn.Round(2),),
    (sn.Temperature(2.0), sn.TopK(3), sn.Round(1)),
]


def _forbid_by_score(scores: Tensor) -> Tensor:
    """An earlier processor, such as top-p or a filter, that reads the scores."""
    return scores.masked_fill(scores < scores.median(), -torch.inf)


def _scores(seed: int, words: int = 200) -> Tensor:
    return torch.randn(1, words, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_equal_answers_leave_equal_sets_of_forbidden_words(chain) -> None:
    """Two secrets with the same answer of the defenses: what is forbidden must not tell them."""
    process = sn.LogitsProcessor(*chain)
    first = _scores(0)
    second = first.clone()
    order = first[0].argsort(descending=True)
    tail = order[150:]
    second[0, tail] = first[0, tail.flip(0)]  # another half of them is forbidden
    middle = order[20:60]
    second[0, middle] = first[0, middle.flip(0)]
    shielded = [sn.Shield(torch.nn.Identity(), *chain)(scores) for scores in (first, second)]
    released = [process(NO_TEXT, _forbid_by_score(scores)) for scores in (first, second)]
    if torch.equal(*shielded):
        assert torch.equal(*released)
        forbidden = [answers == -torch.inf for answers in released]
        assert torch.equal(*forbidden)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_no_more_answers_leave_than_are_counted(chain) -> None:
    """Each answer of the defenses has one answer of the processor, whatever comes forbidden."""
    process = sn.LogitsProcessor(*chain)
    leaving: dict[bytes, set[bytes]] = {}
    words = 5
    for seed in range(300):
        scores = _scores(seed, words)
        mask = torch.rand(1, words, generator=torch.Generator().manual_seed(seed)) < 0.3
        mask[0, scores.argmax()] = False
        filled = torch.where(mask, scores.amax() - 1024, scores)
        answer = sn.Shield(torch.nn.Identity(), *chain)(filled)
        released = process(NO_TEXT, scores.masked_fill(mask, -torch.inf))
        leaving.setdefault(answer.numpy().tobytes(), set()).add(released.numpy().tobytes())
        assert torch.isfinite(released.softmax(-1)).all()
    assert all(len(forms) == 1 for forms in leaving.values())


def test_words_that_were_named_without_a_chance_look_like_all_others() -> None:
    """``Round`` looks at the first hundred words: which these are is not in its cost."""
    released = sn.LogitsProcessor(sn.Round(2))(NO_TEXT, _scores(1, 1000))
    assert int((released > -torch.inf).sum()) == int((released.softmax(-1) > 0).sum())


@pytest.mark.parametrize("forbidden", [[3, 1], torch.tensor([1, 3]), torch.arange(6) % 2 == 1])
def test_what_the_owner_calls_public_leaves_forbidden(forbidden) -> None:
    for chain in (
        *CHAINS,
        (sn.RandomizedResponse(0.5),),
        (sn.ClipNorm(5.0), sn.GaussianNoise(1.0)),
    ):
        process = sn.LogitsProcessor(*chain, forbidden=forbidden)
        for seed in range(20):
            released = process(NO_TEXT, _scores(seed, 6))
            assert (released[0, [1, 3]] == -torch.inf).all()
            assert torch.isfinite(released.softmax(-1)).all()
    assert "forbidden: 2 words" in repr(sn.LogitsProcessor(sn.Label(), forbidden=[1, 3]))


def test_all_that_comes_forbidden_is_forgotten_by_noise() -> None:
    process = sn.LogitsProcessor(sn.ClipNorm(5.0), sn.GaussianNoise(1.0))
    scores = _forbid_by_score(_scores(0, 6))
    released = torch.cat([process(NO_TEXT, scores) for _ in range(20)])
    assert torch.isfinite(released).all()
    everything = process(NO_TEXT, torch.full((1, 6), -torch.inf))
    assert torch.isfinite(everything).all()


@pytest.mark.parametrize(
    ("forbidden", "words"),
    [
        ([7], "Expected forbidden words below 6, which the model has, got 7"),
        (range(6), "All 6 words are forbidden: allow at least one"),
    ],
)
def test_a_list_that_does_not_fit_the_model_is_refused(forbidden, words) -> None:
    with pytest.raises(sn.errors.AnswerError, match=words):
        sn.LogitsProcessor(sn.Label(), forbidden=forbidden)(NO_TEXT, _scores(0, 6))


@pytest.mark.parametrize("forbidden", [[-1], [True], [1.5], "pad", 3])
def test_a_list_that_names_no_words_is_refused(forbidden) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected forbidden"):
        sn.LogitsProcessor(sn.Label(), forbidden=forbidden)
