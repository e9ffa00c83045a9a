"""What the postprocessors of ART 1.20.1 get wrong, one test each: here it is right.

`benchmarks/art_worker.py --failures` shows what ART answers to the same questions.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Inversion
from shieldnet.attacks.adversary.decoders import Ridge

GENERATOR = torch.Generator().manual_seed(0)


class Says(nn.Module):
    def forward(self, x: object) -> object:
        return x


def probabilities(rows: int, classes: int, width: float = 1.0) -> Tensor:
    return (torch.randn(rows, classes, generator=GENERATOR) * width).softmax(-1)


def released(defense: sn.Defense, rows: Tensor) -> Tensor:
    return sn.Shield(Says(), defense, outputs="probabilities")(rows)


def test_class_labels_of_a_row_are_its_own_and_not_the_batchs() -> None:
    rows = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]])
    assert released(sn.Label(), rows).tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("width", [1.0, 4.0])
def test_rounded_rows_of_a_thousand_classes_still_sum_to_one(width) -> None:
    rounded = released(sn.Round(2), probabilities(100, 1000, width))
    assert torch.allclose(rounded.sum(-1), torch.ones(100))


def test_rounding_after_a_cut_loses_no_class_altogether() -> None:
    rows = probabilities(100, 1000)
    answers = sn.Shield(Says(), sn.TopK(3), sn.Round(2), outputs="probabilities")(rows)
    assert (answers > 0).float().mean() > 0.99


def test_noise_never_makes_a_row_that_is_not_a_number() -> None:
    scores = torch.randn(10_000, 2, generator=GENERATOR)
    noisy = sn.Shield(Says(), sn.ClipNorm(3.0), sn.GaussianNoise(1.0), release="probabilities")
    answers = noisy(scores)
    assert torch.isfinite(answers).all()
    assert torch.allclose(answers.sum(-1), torch.ones(len(scores)))


def test_a_row_out_of_tolerance_does_not_turn_normalization_off_for_the_others() -> None:
    rows = probabilities(4, 5)
    rows[2] *= 1.005
    answers = released(sn.TopK(2), rows)
    assert torch.allclose(answers.sum(-1), torch.ones(4))
    alone = released(sn.TopK(2), rows[:1])
    assert torch.equal(answers[:1], alone)


@pytest.mark.parametrize("defense", [sn.Confidence(4), sn.TopK(3), sn.Label()], ids=str)
def test_confident_classes_of_a_thousand_are_never_a_row_of_zeros(defense) -> None:
    answers = released(defense, probabilities(100, 1000))
    assert (answers.amax(-1) > 0).all()
    assert torch.allclose(answers.sum(-1), torch.ones(100), atol=1e-5)


def test_logits_are_defended_as_logits() -> None:
    scores = torch.randn(50, 10, generator=GENERATOR) * 3
    for preset in ("strict", "balanced", "open"):
        answers = sn.harden(Says(), preset)(scores)
        assert torch.equal(answers.argmax(-1), scores.argmax(-1))
        assert torch.allclose(answers.softmax(-1).sum(-1), torch.ones(50))
    with pytest.raises(sn.errors.AnswerError, match="is not a distribution"):
        released(sn.Label(), scores)


def test_a_segmentation_is_defended_pixel_by_pixel() -> None:
    scores = torch.randn(2, 4, 5, 6, generator=GENERATOR)
    answers = sn.harden(Says(), "strict", axis=1)(scores)
    assert torch.equal(answers.argmax(1), scores.argmax(1))
    assert torch.allclose(answers.softmax(1).sum(1), torch.ones(2, 5, 6))
    with pytest.raises(sn.errors.AnswerError, match="pass the class axis"):
        sn.harden(Says(), "strict")(scores)


def test_negative_regression_values_stay_negative() -> None:
    for values in (torch.tensor([-1.2345, -0.5, 2.3456]), torch.tensor([[-1.2, 2.3], [-0.5, -3]])):
        shield = sn.Shield(Says(), sn.RoundTo(0.5), outputs="values")
        assert torch.equal(shield(values), (values / 0.5).round() * 0.5)
        noisy = sn.Shield(Says(), sn.ClipRange(-4, 4), sn.GaussianNoise(0.1), outputs="values")
        assert (noisy(values) - values).abs().max() < 1
    for wrong in (sn.Label(), sn.Confidence(4), sn.TopK(1), sn.Round(2)):
        with pytest.raises(sn.errors.ConfigError, match="For values use ClipRange"):
            sn.Shield(Says(), wrong, outputs="values")


def test_several_labels_of_a_record_are_several_questions() -> None:
    scores = torch.randn(20, 6, generator=GENERATOR) * 3
    answers = sn.harden(Says(), "strict", outputs="binary_logits")(scores)
    assert torch.equal(answers.sigmoid().round(), (scores > 0).float())


def test_dicts_tuples_and_bfloat16_are_answered() -> None:
    scores = torch.randn(3, 4).to(torch.bfloat16)
    wanted = sn.harden(Says())(scores)
    assert torch.equal(sn.harden(Says())({"logits": scores})["logits"], wanted)
    assert torch.equal(sn.harden(Says())((scores,))[0], wanted)


def test_an_empty_batch_gets_an_empty_answer() -> None:
    assert sn.harden(Says())(torch.zeros(0, 4)).shape == (0, 4)


def test_a_saved_and_copied_shield_keeps_its_defense(tmp_path) -> None:
    model = nn.Linear(3, 4)
    shield = sn.harden(model, "open")
    path = tmp_path / "shield.toml"
    path.write_text(sn.dump_shield(shield))
    x = torch.randn(5, 3)
    assert torch.equal(sn.load_shield(model, path)(x), shield(x))
    assert torch.equal(copy.deepcopy(shield)(x), shield(x))


def test_gradients_and_methods_do_not_lead_around_the_defense() -> None:
    class Predicts(nn.Linear):
        def predict(self, x: Tensor) -> Tensor:
            return self(x)

    shield = sn.harden(Predicts(3, 4))
    x = torch.randn(5, 3, requires_grad=True)
    assert not shield(x).requires_grad
    with pytest.raises(sn.errors.BypassError, match="shield.predict is blocked"):
        shield.predict(x)


def test_the_inversion_attack_sees_the_defended_answers(make_game) -> None:
    attack = Inversion(decoders=(Ridge(),))
    (bare, *_), (strict, *_) = (attack(make_game(*chain)).findings for chain in ((), (sn.Label(),)))
    assert bare.value > 0.3
    assert strict.value < 0.05


def test_the_privacy_cost_of_a_call_does_not_grow_with_the_square_of_the_batch() -> None:
    """ART's ClassLabels writes every row's class into every row: rows x rows numbers."""
    rows = probabilities(50_000, 10)
    assert torch.equal(released(sn.Label(), rows).argmax(-1), rows.argmax(-1))
