"""Every model, loss and loader that is known to break Opacus's promise, and what comes of it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import shieldnet as sn
from shieldnet.training.losses import Criterion
from shieldnet.training.private.gradients import RecordGradients
from shieldnet.training.private.hazards import hazards_of
from shieldnet.training.private.preflight import examine
from shieldnet.training.records import Records

PRIVATE = sn.DPSGD(epsilon=8.0, delta=1e-3)


class Centered(nn.Module):
    """Takes the mean of the batch off every record."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x - x.mean(0)).relu())


class Inside(nn.Module):
    """Holds the culprit inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), Centered()

    def forward(self, x):
        return self.second(self.first(x))


class Reused(nn.Module):
    """Uses a layer's weight outside of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.body(x).relu() @ self.body.weight)


class Tied(nn.Module):
    """Guesses a word of its neighbors with one table for both (CBOW)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words):
        return self.head(self.table(words).mean(1))


class SharedAdapter(nn.Module):
    """Puts one adapter beside several frozen layers, under a frozen head."""

    def __init__(self, adapter=lambda: nn.Linear(12, 12)) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(12, 12) for _ in range(4)]).requires_grad_(False)
        self.adapter, self.head = adapter(), nn.Linear(12, 3).requires_grad_(False)

    def forward(self, x):
        for layer in self.body:
            x = (layer(x) + self.adapter(x)).tanh()
        return self.head(x)


class Auxiliary(nn.Module):
    """Has a second loss on a layer that it uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        hidden = self.body(x)
        return {"logits": self.head(hidden.relu()), "again": self.body(hidden)}


def with_auxiliary(output, labels):
    return F.cross_entropy(output["logits"], labels, reduction="none") + output[
        "again"
    ].square().mean(1)


class Unseen(nn.Module):
    """Has a layer that nothing asks."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.forgotten = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x):
        return self.asked(x)


def normed(**settings):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, **settings),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 3),
    )


def frozen_norm():
    model = normed()
    model[1].requires_grad_(False)
    return model


def words() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 20, (60, 5), generator=generator)
    return draws[:, :4], draws[:, 4]


def train(model, data, *more, private=PRIVATE, **settings):
    return sn.finetune(model, data, private, *more, epochs=2, seed=0, progress=False, **settings)


@pytest.mark.parametrize(
    ("make", "fix", "kept"),
    [
        (frozen_norm, "Keep it in evaluation mode", nn.BatchNorm2d),
        (lambda: normed(affine=False), "Keep it in evaluation mode", nn.BatchNorm2d),
        (normed, r"Replace it by nn.GroupNorm\(1, \d+\), or freeze", nn.GroupNorm),
    ],
)
def test_batch_norm_is_refused_by_name_and_the_mend_works(
    make, fix, kept, images, make_model
) -> None:
    model = make_model(make)
    if model[1].affine:
        nn.init.constant_(model[1].weight, 1.5)
    with pytest.raises(
        sn.errors.PreflightFailed, match=f"batch statistics in 1: BatchNorm2d.*{fix}"
    ):
        train(model, images)
    found = train(model, images, fix=True)
    assert isinstance(found.model[1], kept)
    assert found.preflight.sensitivity <= 1
    if kept is nn.BatchNorm2d:  # what it knew before stays: nothing of the records is in it
        assert torch.equal(found.model[1].running_mean, model[1].running_mean)
        assert found.model.state_dict().keys() == model.state_dict().keys()
    else:
        assert abs(float(found.model[1].weight.detach().mean()) - 1.5) < 0.5
    assert isinstance(model[1], nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("make", "where"),
    [(Centered, "the model's forward"), (Inside, "second")],
)
def test_batch_statistics_in_forward_are_blamed_on_their_module(
    make, where, table, make_model
) -> None:
    with pytest.raises(
        sn.errors.PreflightFailed, match=f"batch statistics in {where}: .* the output of Centered"
    ):
        train(make_model(make), table)


def test_batch_statistics_cannot_reach_a_graph_of_one_record(table, make_model) -> None:
    found, _ = examine(make_model(Centered).train(), Records(*table), plain, clip=1.0)
    assert found.sensitivity <= 1


def test_a_class_weighted_mean_is_refused_and_its_sum_is_not(table, mlp) -> None:
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 10.0]))
    with pytest.raises(sn.errors.PreflightFailed, match="weighted loss .*reduction='none'"):
        train(mlp, table, loss=weighted)
    assert train(mlp, table, loss=weighted, fix=True).guarantee.epsilon <= 8
    assert weighted.reduction == "mean"


def test_a_loss_that_joins_records_is_refused(table, mlp) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected a loss for each of"):
        train(mlp, table, loss=lambda output, labels: F.cross_entropy(output, labels))


@pytest.mark.parametrize(
    ("make", "data", "loss"),
    [
        (Reused, None, None),
        (Tied, words, None),
        (SharedAdapter, None, None),
        (
            lambda: SharedAdapter(lambda: nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 12))),
            None,
            None,
        ),
        (lambda: SharedAdapter(lambda: nn.LayerNorm(12)), None, None),
        (Auxiliary, None, with_auxiliary),
    ],
)
def test_weights_used_twice_are_trained_as_they_are(make, data, loss, table, make_model) -> None:
    model, data = make_model(make), table if data is None else data()
    found = train(model, data, loss=loss)
    assert found.preflight.sensitivity <= 1
    moved = [
        not torch.equal(one, other)
        for one, other in zip(found.model.parameters(), model.parameters(), strict=True)
        if other.requires_grad
    ]
    assert all(moved)


class OnlyInTraining(nn.Module):
    """Centers its hidden layer over the batch, but only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.body(x)
        return self.head((hidden - hidden.mean(0) if self.training else hidden).relu())


class Prompted(nn.Module):
    """Adds a learned prompt that is looked up once for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.head = nn.Embedding(1, 12), nn.Linear(12, 3).requires_grad_(False)

    def forward(self, x):
        return self.head((x + self.prompt(torch.zeros(1, dtype=torch.int64))).tanh())


class Sorted(nn.Module):
    """Reads words in the order of their lengths, as packed sequences do, and puts them back."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, words):
        order = (words != 0).sum(1).argsort()
        return self.head(self.table(words[order]).mean(1))[order.argsort()]


class Renormed(nn.Module):
    """Shortens the vectors of the words that it sees, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8, max_norm=0.5), nn.Linear(8, 20)

    def forward(self, words):
        return self.head(self.table(words).mean(1))


class Peak(nn.Module):
    """Remembers the greatest number that it has seen, once it is greater than 3."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.register_buffer("peak", torch.tensor(9.0))

    def forward(self, x):
        if self.training:
            self.peak.copy_(torch.maximum(self.peak, x.abs().max()))
        return self.layer(x)


def test_statistics_that_are_taken_in_training_alone_are_found(table, make_model) -> None:
    with pytest.raises(sn.errors.PreflightFailed, match="batch statistics in the model's forward"):
        train(make_model(OnlyInTraining), table)


def test_layers_whose_rows_are_no_records_are_trained(table, make_model) -> None:
    for model, data in ((make_model(Prompted), table), (make_model(Sorted), words())):
        assert train(model, data).preflight.sensitivity <= 1


def test_weights_that_a_forward_pass_writes_into_are_refused(make_model) -> None:
    with pytest.raises(sn.errors.PreflightFailed, match="moving weight in table.weight.*max_norm"):
        train(make_model(Renormed), words())


def test_buffers_that_move_only_now_and_then_are_not_published(table, make_model) -> None:
    inputs = table[0].clone()
    inputs[77] = 42.5
    found = train(make_model(Peak), (inputs, table[1]))
    assert float(found.model.peak) == 9.0


def test_norms_of_sequences_do_not_cancel(make_model) -> None:
    """Gradients that sum to nothing over positions, of inputs with a large offset."""

    class Centering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 64, bias=False)
            self.head = nn.Linear(64, 3).requires_grad_(False)

        def forward(self, x):
            hidden = self.layer(x)
            return self.head((hidden - hidden.mean(1, keepdim=True)).relu().mean(1))

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 8, 16, generator=generator)
    inputs[-1] += 3000
    labels = torch.arange(12) % 3
    model = make_model(Centering).train()
    gradients = RecordGradients(model, plain, 0.01, (inputs, labels))
    sums = [gradients.zeros() for _ in range(2)]
    for rows, totals in zip((12, 11), sums, strict=True):
        gradients.add(totals, inputs[:rows], labels[:rows])
    assert float((sums[0][0] - sums[1][0]).norm()) <= 0.01


def test_an_augmentation_that_mixes_now_and_then_is_found(table, mlp) -> None:
    def mixup(inputs):
        return (inputs + inputs.flip(0)) / 2 if torch.rand(()) > 0.6 else inputs

    with pytest.raises(sn.errors.PreflightFailed, match="mixed records|reads the value"):
        train(mlp, table, sn.countermeasures.Augment(transform=mixup))


def test_layers_with_many_states_are_not_taken_for_records(table, make_model) -> None:
    class TwoWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.cell(x.unflatten(1, (4, 3)))[0][:, -1])

    assert train(make_model(TwoWays), table).preflight.hazards == ()


def test_steps_that_draw_nobody_are_no_error(images, make_model) -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)

        def forward(self, x):
            return self.head(self.layer(x).view(x.size(0), -1))

    private = sn.DPSGD(noise_multiplier=2.0, delta=1e-3)
    assert train(make_model(Viewing), images, private=private, batch_size=1).steps == 96


def test_a_weight_that_the_loss_never_sees_is_named_and_frozen(table, make_model) -> None:
    model = make_model(Unseen)
    with pytest.raises(sn.errors.PreflightFailed, match="unseen weight in forgotten.weight"):
        train(model, table)
    found = train(model, table, fix=True).model
    assert torch.equal(found.forgotten.weight, model.forgotten.weight)
    assert not torch.equal(found.asked.weight, model.asked.weight)


def test_buffers_that_move_in_training_are_refused(table, make_model) -> None:
    model = make_model(
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(12, 3)))
    )
    with pytest.raises(sn.errors.PreflightFailed, match="moving buffer in 0.parametrizations"):
        train(model, table)


class Recurrent(nn.Module):
    """Reads a row as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cell(x.unflatten(1, (4, 3)))[0][:, -1])


class Attending(nn.Module):
    """Reads a row as three tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.layer(x.unsqueeze(1).expand(-1, 3, 12))[:, 0])


class Scaled(nn.Module):
    """Has a weight of its own, outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(12, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x) * self.scale


CLEAN = {
    "mlp": lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 3)),
    "recurrent": Recurrent,
    "attending": Attending,
    "scaled": Scaled,
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_models_pass(name, table, make_model) -> None:
    found = train(make_model(CLEAN[name]), table)
    assert found.preflight.sensitivity == pytest.approx(1, abs=1e-5)
    assert found.preflight.sensitivity <= 1
    assert "one record moved the sum of gradients by 1.000 clip norms" in str(found.preflight)


def test_group_and_instance_norm_pass(images, make_model) -> None:
    for norm in (lambda: nn.GroupNorm(2, 8), lambda: nn.InstanceNorm2d(8, affine=True)):
        model = make_model(
            lambda norm=norm: nn.Sequential(
                nn.Conv2d(3, 8, 3), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
            )
        )
        assert train(model, images).preflight.hazards == ()


def test_a_plain_loader_gives_its_records_and_batch_but_not_its_order(table, mlp) -> None:
    loader = DataLoader(TensorDataset(*table), batch_size=30, shuffle=True, drop_last=True)
    guarantee = train(mlp, loader).guarantee
    assert (guarantee.sample_rate, guarantee.steps) == (0.25, 8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_records_that_are_not_finite_are_named(bad, table, mlp) -> None:
    inputs = table[0].clone()
    inputs[7, 3] = bad
    with pytest.raises(sn.errors.DataError, match="row 7"):
        train(mlp, (inputs, table[1]))


def test_a_huge_record_moves_nothing_by_more_than_its_share(table, mlp) -> None:
    inputs = table[0].clone()
    inputs[0] = 1e30
    found = train(mlp, (inputs, table[1]))
    assert all(torch.isfinite(one).all() for one in found.model.state_dict().values())


def plain(predict, inputs, labels):
    return Criterion()(predict(inputs), labels)


def test_clipping_per_batch_is_caught_before_a_step_is_taken(table, mlp, monkeypatch) -> None:
    def per_batch(gradients, clip, totals):
        each = [gradient.parts[0] for gradient in gradients]
        count = len(each[1].each)
        for part, total in zip(each, totals, strict=True):
            part.add(total, torch.full((count,), clip, dtype=torch.float64), slice(None))

    monkeypatch.setattr("shieldnet.training.private.preflight.clipped_sum", per_batch)
    with pytest.raises(sn.errors.PreflightFailed, match="one record moved the clipped sum by"):
        train(mlp, table)


def test_preflight_leaves_the_model_and_the_random_states_alone(table, mlp) -> None:
    before = {name: one.clone() for name, one in mlp.state_dict().items()}
    state = torch.get_rng_state()
    assert hazards_of(mlp.train(), Records(*table)) == ()
    examine(mlp, Records(*table), plain, clip=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, before[name]) for name, one in mlp.state_dict().items())
    assert all(one.grad is None for one in mlp.parameters())


def test_the_empirical_mode_trains_what_is_refused_and_states_nothing(table, make_model) -> None:
    private = sn.DPSGD(noise_multiplier=0.1, mode="empirical")
    found = train(make_model(Unseen), table, private=private)
    assert found.guarantee is None
    assert "epsilon" not in str(found)


class Sequences(nn.Module):
    """Reads a row as a sequence, by any recurrent cell."""

    def __init__(self, kind, **settings) -> None:
        super().__init__()
        self.cell, self.head = kind(3, 8, batch_first=True, **settings), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cell(x.unflatten(1, (4, 3)))[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(nn.RNN, {}), (nn.GRU, {}), (nn.LSTM, {"num_layers": 2, "dropout": 0.2})],
)
def test_recurrent_layers_are_trained_with_their_dropout(kind, settings, table, make_model) -> None:
    model = make_model(lambda: Sequences(kind, **settings))
    found = train(model, table)
    assert 0.99 < found.preflight.sensitivity <= 1
    assert list(found.model.state_dict()) == list(model.state_dict())


def test_dropout_of_a_users_own_module_is_trained(table, make_model) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x):
            return F.dropout(self.layer(x), 0.3, self.training)

    assert 0.99 < train(make_model(Dropping), table).preflight.sensitivity <= 1


class Packed(Sequences):
    """Packs its sequences."""

    def forward(self, x):
        lengths = torch.full((len(x),), 4)
        packed = nn.utils.rnn.pack_padded_sequence(x.unflatten(1, (4, 3)), lengths, True)
        return self.head(self.cell(packed)[1][-1])


class Squeezed(nn.Module):
    """Drops every axis of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        return self.layer(x[:, None]).squeeze()


class ByValue(nn.Module):
    """Decides by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(12, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Packed(nn.GRU), "packs sequences.*DPGRU.*says nothing about privacy"),
        (
            Squeezed,
            r"lost axis.*returns shape \(5, 3\) for . records and \(3,\) for one.*squeeze\(1\)",
        ),
        (ByValue, "reads the value of a tensor.*torch.where.*says nothing about privacy"),
        (Counting, "kept state.*counts its calls"),
    ],
)
def test_what_cannot_be_computed_is_not_called_unsafe(make, words, table, make_model) -> None:
    with pytest.raises(sn.errors.PreflightFailed, match=words) as refused:
        train(make_model(make), table)
    assert "moved the clipped sum" not in str(refused.value)


def test_padding_gets_no_noise_and_sparse_tables_are_trained(make_model) -> None:
    for sparse in (False, True):
        model = make_model(
            lambda sparse=sparse: nn.Sequential(
                nn.Embedding(20, 6, padding_idx=3, sparse=sparse), nn.Flatten(), nn.Linear(24, 20)
            )
        )
        found = train(model, words()).model
        assert torch.equal(found[0].weight[3], model[0].weight[3])
        moved = (found[0].weight != model[0].weight).any(1)
        assert int(moved.sum()) == 19  # words that nobody has get noise as well
        assert model[0].sparse == sparse
