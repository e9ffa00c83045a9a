"""Loss and accuracy on records that no training saw."""

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.training.losses import Criterion, as_loss
from shieldnet.training.records import Records
from shieldnet.training.validation import validated


def test_loss_and_accuracy_are_those_of_the_records() -> None:
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    labels = torch.tensor([0, 0, 0, 1])
    found = validated(nn.Identity(), Records(scores, labels), Criterion())
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(scores, labels)))
    assert found.accuracy.value == 0.75
    assert found.accuracy.low < 0.75 < found.accuracy.high
    assert found.samples == 4


def test_positions_are_averaged_and_what_is_ignored_counts_for_nothing() -> None:
    scores = torch.zeros(3, 4, 2)
    scores[..., 1] = 1.0
    labels = torch.tensor([[1, 1, 0, 0], [1, -100, -100, -100], [-100] * 4])
    found = validated(nn.Identity(), Records(scores, labels), Criterion(axis=-1))
    assert found.accuracy.value == 0.75  # half of the first, all of the second, none of the third


def test_yes_or_no_is_right_on_the_side_of_zero() -> None:
    scores, labels = torch.tensor([2.0, -1.0, 1.0, -3.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    found = validated(nn.Identity(), Records(scores, labels), Criterion("binary_logits"))
    assert found.accuracy.value == 0.5


@pytest.mark.parametrize(
    "loss", [Criterion("values"), as_loss(nn.CrossEntropyLoss(), "logits", None)]
)
def test_what_has_no_classes_of_ours_has_no_accuracy(loss) -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = values if isinstance(loss, Criterion) else torch.zeros(5, dtype=torch.long)
    found = validated(nn.Identity(), Records(values, labels), loss)
    assert found.accuracy is None
    assert str(found).endswith("(5 records)")


def test_the_model_is_asked_in_evaluation_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9), nn.BatchNorm1d(2))
    model.train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    records = Records(torch.ones(600, 2), torch.zeros(600, dtype=torch.long))
    assert validated(model, records, Criterion()) == validated(model, records, Criterion())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_training_says_how_it_changed_and_learns_nothing_from_it() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 4, generator=generator)
    labels = (inputs[:, 0] > 0).long()
    data, others = (inputs[:200], labels[:200]), (inputs[200:], labels[200:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
    trained = sn.finetune(model, data, seed=0, validation=others)
    plain = sn.finetune(model, data, seed=0)
    assert trained.validation.loss < trained.before.loss
    assert trained.validation.accuracy.value > 0.9
    assert torch.equal(trained.model.weight, plain.model.weight)
    assert plain.validation is None
    with pytest.raises(sn.errors.DataError, match="are also training records"):
        sn.finetune(model, data, validation=(inputs[150:], labels[150:]))


class Reads(nn.Module):
    """Takes two inputs, writes into them, draws and counts when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.last = nn.Linear(8, 2)
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        torch.rand(3)
        input_ids[:] = input_ids % 10
        return self.last((self.words(input_ids) * attention_mask[..., None]).mean(1))


def texts(count: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 30, (count, 5), generator=generator)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}, labels


def test_a_model_of_several_inputs_is_asked_by_its_own_and_nothing_is_touched() -> None:
    """The trained rows hold both inputs: the model itself was asked about these, and failed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Reads()
    data, others = texts(100, 0), texts(60, 1)
    before = others[0]["input_ids"].clone()
    trained = sn.finetune(model, data, epochs=2, seed=0, validation=others)
    assert trained.validation.samples == 60
    assert torch.equal(others[0]["input_ids"], before)
    assert model.asked == 0
    plain = sn.finetune(model, data, epochs=2, seed=0)
    assert torch.equal(trained.model.last.weight, plain.model.last.weight)


@pytest.mark.parametrize("private", [(), (sn.DPSGD(8.0, 1e-3),)])
def test_validation_records_have_the_inputs_of_the_others(private) -> None:
    words, labels = texts(60, 1)
    one = {"input_ids": words["input_ids"]}
    for wrong in ((words["input_ids"], labels), (one, labels)):
        with pytest.raises(sn.errors.DataError, match="Expected validation rows with the inputs"):
            sn.finetune(Reads(), texts(100, 0), *private, epochs=1, validation=wrong)
    with pytest.raises(sn.errors.DataError, match=r"\(one input\), got input_ids"):
        sn.finetune(
            nn.Linear(10, 2),
            (torch.randn(50, 10), labels[:50]),
            *private,
            validation=(words, labels),
        )
