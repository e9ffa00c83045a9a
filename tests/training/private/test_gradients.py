import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shieldnet.training.losses import Criterion
from shieldnet.training.private.gradient_parts import (
    Gradient,
    Products,
    Rows,
    Whole,
    clipped_sum,
    sum_error,
)
from shieldnet.training.private.gradients import RecordGradients, _distance

CRITERION = Criterion()


def losses(predict, inputs, labels):
    return CRITERION(predict(inputs), labels)


def sums(model, data, clip, **settings) -> list[torch.Tensor]:
    gradients = RecordGradients(model, losses, clip, data, **settings)
    totals = gradients.zeros()
    gradients.add(totals, *data)
    return totals


def one_by_one(model, inputs, labels, clip) -> list[torch.Tensor]:
    """Clips and sums record by record, in double precision: the definition."""
    model = copy.deepcopy(model).double()
    weights = list(model.parameters())
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    total = [torch.zeros_like(weight) for weight in weights]
    for place in range(len(inputs)):
        loss = losses(model, inputs[place : place + 1], labels[place : place + 1])
        slopes = torch.autograd.grad(loss.sum(), weights, materialize_grads=True)
        norm = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
        for part, slope in zip(total, slopes, strict=True):
            part += slope * min(1.0, clip / norm)
    return total


class Tied(nn.Module):
    """Guesses a word of its neighbors with one table for both, and looks it up twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(300, 8, padding_idx=0), nn.Linear(8, 300, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words):
        return self.head(self.table(words).mean(1) * self.table(words.flip(1)).amax(1))


class Reused(nn.Module):
    """Uses a layer's weight outside of the layer, over positions, and one more time."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        tokens = self.body(x.unsqueeze(1).expand(-1, 3, 12)).relu()
        return self.head(self.body(tokens @ self.body.weight).mean(1))


class Recurrent(nn.Module):
    """Reads a row as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cell(x.unflatten(1, (4, 3)))[0][:, -1])


class Constants(nn.Module):
    """Computes with numbers that are no weights and no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(12, 3), torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x):
        return self.layer(x) * self.scale * torch.tensor([3.0, 1.0, 1.0]) + torch.arange(3)


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2), nn.GroupNorm(2, 4)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
    )


MODELS = {
    "layers": lambda: nn.Sequential(
        nn.Linear(12, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 3)
    ),
    "convolutional": convolutional,
    "reused": Reused,
    "tied": Tied,
    "recurrent": Recurrent,
    "constants": Constants,
    "attending": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)),
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
}


def data_for(name, table):
    if name != "tied":
        return tuple(part[:9] for part in table)
    words = torch.randint(0, 300, (9, 5), generator=torch.Generator().manual_seed(0))
    words[:, 3:] = 0  # padding, and the same word twice
    words[:, 1] = words[:, 0]
    return words, words[:, 0]


@pytest.mark.parametrize("clip", [1e-9, 0.05, 100.0])
@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_the_definition(name, clip, table, make_model) -> None:
    model, data = make_model(MODELS[name]), data_for(name, table)
    for total, right in zip(sums(model, data, clip), one_by_one(model, *data, clip), strict=True):
        assert total.dtype == torch.float64
        assert torch.allclose(total, right, rtol=1e-3, atol=2e-5 * min(clip, 1.0))


@pytest.mark.parametrize("name", ["layers", "reused", "tied"])
def test_gradients_of_layers_and_tables_are_never_written_down(name, table, make_model) -> None:
    model, data = make_model(MODELS[name]), data_for(name, table)
    each = RecordGradients(model, losses, 1.0, data).each(*data)
    kinds = {type(part) for gradient in each for part in gradient.parts}
    assert kinds - {Whole} == {Products, Rows} if name == "tied" else {Products}


def test_views_are_averaged_before_they_are_clipped(table, mlp) -> None:
    data = tuple(part[:4] for part in table)

    def flip(inputs, labels, predict):
        signs = torch.tensor([1.0, -1.0]).repeat(len(inputs) // 2)
        return inputs * signs[:, None]

    def both(predict, inputs, labels):
        return (losses(predict, inputs, labels) + losses(predict, -inputs, labels)) / 2

    found = sums(mlp, data, 1e-2, views=2, move=flip)
    gradients = RecordGradients(mlp, both, 1e-2, data)
    right = gradients.zeros()
    gradients.add(right, *data)
    for total, other in zip(found, right, strict=True):
        assert torch.allclose(total, other, atol=1e-8)


def parts(generator, scale=1.0, rows=6):
    def draw(*shape):
        return scale * torch.randn(rows, *shape, generator=generator)

    places = torch.randint(0, 7, (rows, 3), generator=generator)
    table = Gradient((Products(draw(2, 7), draw(2, 4)), Rows(places, draw(3, 4), 0)))
    return [Gradient((Whole(draw(3, 4)),)), Gradient((Products(draw(1, 5), draw(1, 2)),)), table]


SHAPES = ((3, 4), (5, 2), (7, 4))


def zeros() -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]


@pytest.mark.parametrize("scale", [1e-37, 1e-12, 1e-3, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("clip", [1e-12, 2.0, 1e12])
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(scale, clip) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        totals = zeros()
        clipped_sum(parts(generator, scale, rows=1), clip, totals)
        norm = torch.cat([total.flatten() for total in totals]).norm()
        assert torch.isfinite(norm)
        assert float(norm) <= clip


def test_a_gradient_within_the_clip_norm_stays_as_it_is() -> None:
    each = parts(torch.Generator().manual_seed(0), rows=1)
    totals, clipped = zeros(), zeros()
    clipped_sum(each, 1e6, totals)
    norm = float(torch.cat([total.flatten() for total in totals]).norm())
    clipped_sum(each, norm / 2, clipped)
    for total, half in zip(totals, clipped, strict=True):
        assert torch.allclose(total / 2, half, rtol=1e-5)


def test_products_that_cancel_are_clipped_by_what_they_are_made_of() -> None:
    """A norm that is next to nothing would leave their rounding unclipped."""
    left = torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(0))
    right = 1e6 * torch.randn(1, 1, 40, generator=torch.Generator().manual_seed(1))
    cancelling = Products(torch.cat([left, -left], 1), torch.cat([right, right * (1 + 1e-7)], 1))
    total = torch.zeros(50, 40, dtype=torch.float64)
    clipped_sum([Gradient((cancelling,))], 1.0, [total])
    assert float(total.norm()) <= 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("place", range(3))
def test_what_has_no_finite_norm_counts_as_nothing(place, bad) -> None:
    def made(rows):
        each = parts(torch.Generator().manual_seed(0))
        part = each[place].parts[-1]
        content = part.each if hasattr(part, "each") else part.left
        content[1] = bad
        if bad == 3e38:
            (part.each if hasattr(part, "each") else part.right)[1] = bad
        return [Gradient(tuple(taken(part, rows) for part in one.parts)) for one in each]

    def taken(part, rows):
        return type(part)(
            *(
                value[rows] if isinstance(value, torch.Tensor) else value
                for value in vars(part).values()
            )
        )

    found, right = zeros(), zeros()
    clipped_sum(made(slice(None)), 1.0, found)
    kept = [0, 1, 2, 3, 4, 5] if bad == 3e38 else [0, 2, 3, 4, 5]  # its norm is finite in float64
    clipped_sum(made(kept), 1.0, right)
    for total, other in zip(found, right, strict=True):
        assert torch.isfinite(total).all()
        assert torch.allclose(total, other, atol=1e-12)


def test_weights_may_lie_in_memory_in_any_order(images, make_model) -> None:
    def model() -> nn.Module:
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        made[3].weight = nn.Parameter(made[3].weight.detach().t().contiguous().t())
        return made.to(memory_format=torch.channels_last)

    data = tuple(part[:7] for part in images)
    found = sums(make_model(model), data, 0.5)
    for total, right in zip(found, one_by_one(make_model(model), *data, 0.5), strict=True):
        assert total.is_contiguous()
        assert torch.allclose(total, right, atol=1e-5)


def test_a_broken_record_counts_as_nothing(table) -> None:
    inputs, labels = (part[:4].clone() for part in table)
    inputs[2] = math.nan
    model = nn.Sequential(nn.Linear(12, 3))
    found = sums(model, (inputs, labels), 1.0)
    right = sums(model, (inputs[[0, 1, 3]], labels[[0, 1, 3]]), 1.0)
    assert all(torch.allclose(one, other) for one, other in zip(found, right, strict=True))


def test_the_order_of_records_and_parts_of_a_batch_change_nothing(table, mlp) -> None:
    gradients = RecordGradients(mlp, losses, 0.1, table)
    whole, parted = gradients.zeros(), gradients.zeros()
    gradients.add(whole, *table)
    for rows in torch.randperm(len(table[0])).split(7):
        gradients.add(parted, table[0][rows], table[1][rows])
    for total, other in zip(whole, parted, strict=True):
        assert torch.allclose(total, other, atol=1e-6)


def test_the_error_of_a_sum_is_bounded() -> None:
    """Against exact sums of the same floats, in any order."""
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    each = torch.randn(200, 3, generator=generator)
    each *= torch.logspace(-8, 3, 200)[:, None]
    total = torch.zeros(3, dtype=torch.float64)
    clipped_sum([Gradient((Whole(each),))], 1e9, [total])
    for place in range(3):
        exact = sum(Fraction(float(value)) for value in each[:, place])
        most = sum_error(200, 200, 1) * float(each.double().norm(dim=1).max())
        assert abs(float(exact - Fraction(float(total[place])))) <= most


def test_the_row_of_the_padding_is_known(make_model) -> None:
    words = torch.randint(1, 20, (9, 5), generator=torch.Generator().manual_seed(0))
    labels = words[:, 0] % 3

    def model(padding):
        return nn.Sequential(
            nn.Embedding(20, 4, padding_idx=padding), nn.Flatten(), nn.Linear(20, 3)
        )

    padded = RecordGradients(make_model(lambda: model(2)), losses, 1.0, (words, labels))
    assert padded.silent_rows == [2, None, None]
    plain = RecordGradients(make_model(lambda: model(None)), losses, 1.0, (words, labels))
    assert plain.silent_rows == [None, None, None]
    tied = make_model(Tied)  # its padding is a word that may be guessed
    assert RecordGradients(tied, losses, 1.0, (words, words[:, 0])).silent_rows == [None]


def test_a_record_in_a_batch_is_compared_with_itself_alone(table, make_model, monkeypatch) -> None:
    for make in (
        lambda: nn.Sequential(nn.Linear(12, 3)),
        lambda: nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
    ):
        gradients = RecordGradients(make_model(make).train(), losses, 1.0, table)
        batch = gradients.each(*table)
        assert gradients.difference(batch, *table, 7) < 1e-5
        right = gradients.alone
        other = gradients.draws(table[0][8:9], table[1][8:9])
        monkeypatch.setattr(
            gradients,
            "alone",
            lambda x, y, *draws, right=right: right(x * 2, y, *draws),
        )
        assert gradients.difference(batch, *table, 7) > gradients.tolerance
        assert len(other) == (1 if gradients._drawing else 0)


class Edge(nn.Module):
    """A unit that begins to act where a dot product, as it is rounded alone, ends."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Conv2d(3, 4, 3), nn.Linear(1, 3)
        self.register_buffer("edge", torch.zeros(()))

    def units(self, inputs):
        return self.hidden(inputs).flatten(1)

    def forward(self, inputs):
        return self.last(5 * (self.units(inputs)[:, :1] > self.edge).float())


class Tie(Edge):
    """The larger of two units passes its gradient on."""

    def forward(self, inputs):
        units = self.units(inputs)
        return self.last(torch.maximum(units[:, :1] - self.edge, 0 * units[:, 1:2]))


@pytest.mark.parametrize("make", [Edge, Tie])
def test_a_gradient_that_last_digits_decide_is_no_error(make, make_model, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 3, 8, 8, generator=generator)
    labels = torch.randint(3, (256,), generator=generator)
    model = make_model(make)
    with torch.no_grad():
        alone = torch.stack([model.units(record[None])[0, 0] for record in inputs])
        batch = torch.func.vmap(lambda record: model.units(record[None])[0, 0])(inputs)
    rows = (alone != batch).nonzero()[:, 0]
    if not len(rows):
        pytest.skip("a batch is rounded as single records are on this machine")
    row = int(rows[0])
    model.edge = torch.minimum(alone[row], batch[row])
    gradients = RecordGradients(model, losses, 1.0, (inputs, labels))
    each = gradients.each(inputs, labels)
    bare = _distance(each, row, gradients.alone(inputs[row : row + 1], labels[row : row + 1]))
    assert bare > 0.1  # the record's own gradient jumps
    assert gradients.difference(each, inputs, labels, row) < 1e-4
    mixed = gradients.each(inputs.flip(0), labels)  # of other records
    quiet = (row + 7) % 256
    assert gradients.difference(mixed, inputs, labels, quiet) > gradients.tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_gradient_of_another_record_is_an_error_in_every_type(dtype, make_model) -> None:
    """What last digits may change must not be taken off: in bfloat16 it is more than a gradient."""
    layers = [nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12), nn.ReLU()) for _ in range(6)]
    model = make_model(lambda: nn.Sequential(*layers, nn.Linear(12, 3))).to(dtype)
    inputs = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(1))
    gradients = RecordGradients(model, losses, 1.0, (inputs, labels))
    mixed = gradients.each(inputs.flip(0), labels.flip(0))
    found = [gradients.difference(mixed, inputs, labels, row) for row in range(8)]
    assert min(found) > gradients.tolerance


def test_numbers_that_have_no_last_digits_do_not_stop_the_comparison(make_model) -> None:
    class Looks(nn.Module):
        """Looks up by a fraction, and keeps a buffer of eight bits."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(4, 3), nn.Linear(12, 3)
            self.register_buffer("eight", torch.ones(2).to(torch.float8_e4m3fn))
            self.register_buffer("base", torch.tensor(3.0))

        def forward(self, x):
            return self.last(x) + self.table((self.base - self.eight[0].float()).ceil().long())

    inputs = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (9,), generator=torch.Generator().manual_seed(1))
    gradients = RecordGradients(make_model(Looks), losses, 1.0, (inputs, labels))
    mixed = gradients.each(inputs.flip(0), labels)
    assert gradients.difference(mixed, inputs, labels, 0) > gradients.tolerance


def test_dropout_draws_anew_for_every_record(table, make_model) -> None:
    model = make_model(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 3, bias=False))).train()
    inputs, labels = torch.ones(64, 12), torch.zeros(64, dtype=torch.int64)
    gradients = RecordGradients(model, losses, 1.0, (inputs, labels))
    (weight,) = gradients.each(inputs, labels)
    masks = weight.parts[0].right[:, 0] != 0
    assert len(masks.unique(dim=0)) > 55
    assert 0.4 < float(masks.double().mean()) < 0.6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_type_of_weight_is_summed_in_float64(dtype, table, make_model) -> None:
    model = make_model(lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)))
    inputs, labels = table[0][:9].to(dtype), table[1][:9]

    def squares(predict, inputs, labels):
        return (predict(inputs) - F.one_hot(labels, 3)).square().sum(1)

    gradients = RecordGradients(model.to(dtype), squares, 0.3, (inputs, labels))
    moved = []
    for rows in (9, 8):
        totals = gradients.zeros()
        gradients.add(totals, inputs[:rows], labels[:rows])
        moved.append(torch.cat([total.flatten() for total in totals]))
    assert moved[0].dtype == torch.float64
    assert 0.29 < float((moved[0] - moved[1]).norm()) <= 0.3
