"""What does not fit is said before anything is trained, by the user's own names and types."""

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import shieldnet as sn
from shieldnet.training.records import as_records

PRIVATE = sn.DPSGD(8.0, 1e-3)


class Coded(nn.Module):
    """Takes its first columns as ids for an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 4), nn.Linear(12, 3)

    def forward(self, rows):
        codes = self.table(rows[:, :2].long()).flatten(1)
        return self.head(torch.cat([codes, rows[:, 2:]], 1))


class OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vec = nn.Linear(36, 3), nn.Linear(4, 3)

    def forward(self, image, vec):
        return self.image(image.flatten(1)) + self.vec(vec)


def two(**names) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, vec = torch.randn(60, 6, 6, generator=generator), torch.randn(60, 4, generator=generator)
    named = {names.get("image", "image"): image, names.get("vec", "vec"): vec}
    return named, torch.arange(60) % 3


def coded() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (60, 2), generator=generator).float()
    return torch.cat([ids, torch.randn(60, 4, generator=generator)], 1), torch.arange(60) % 3


def test_values_that_the_data_does_not_have_are_named_as_such(make_model) -> None:
    with pytest.raises(sn.errors.PreflightFailed) as refused:
        sn.finetune(make_model(Coded), coded(), PRIVATE, epochs=1)
    told = str(refused.value)
    assert "preflight tries values that the data does not have" in told
    assert "IndexError: index out of range" in told
    assert "pass these as an input of their own" in told
    assert sn.finetune(make_model(Coded), coded(), epochs=1).steps == 1  # without preflight


def test_the_fix_that_is_told_for_such_values_works(make_model) -> None:
    class Named(Coded):
        def forward(self, ids, numbers):
            return self.head(torch.cat([self.table(ids).flatten(1), numbers], 1))

    rows, labels = coded()
    data = {"ids": rows[:, :2].long(), "numbers": rows[:, 2:]}, labels
    assert sn.finetune(make_model(Named), data, PRIVATE, epochs=1).guarantee.epsilon <= 8


@pytest.mark.parametrize("private", [(), (PRIVATE,)], ids=["plain", "private"])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_bytes_of_images_are_named_as_they_were_given(as_dataset, private, make_model) -> None:
    images = torch.zeros(60, 1, 6, 6, dtype=torch.uint8)
    labels = torch.arange(60) % 3
    data = TensorDataset(images, labels) if as_dataset else (images, labels)
    model = make_model(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3)))
    with pytest.raises(sn.errors.DataError) as refused:
        sn.finetune(model, data, *private, epochs=1)
    assert "dtype torch.uint8" in str(refused.value)
    assert "x.float() / 255" in str(refused.value)
    assert sn.finetune(model, (images.float() / 255, labels), *private, epochs=1).steps == 1


@pytest.mark.parametrize("private", [(), (PRIVATE,)], ids=["plain", "private"])
def test_inputs_by_a_wrong_name_are_listed_beside_those_of_the_model(private, make_model) -> None:
    model = make_model(OfTwo)
    with pytest.raises(sn.errors.DataError) as refused:
        sn.finetune(model, two(image="img"), *private)
    assert (
        "Expected the inputs that OfTwo takes, image, vec; your rows have img (6, 6), vec (4,)"
        in str(refused.value)
    )
    named, labels = two()
    with pytest.raises(sn.errors.DataError, match=r"takes, image, vec; your rows have one input"):
        sn.finetune(model, (named["vec"], labels), *private)
    named["image"] = named["image"][:, :5]
    with pytest.raises(
        sn.errors.DataError,
        match=r"the inputs image torch.float32 \(5, 6\), vec torch.float32 \(4,\)",
    ):
        sn.finetune(model, (named, labels), *private)


def test_ready_batches_are_asked_for_as_rows(images, make_model) -> None:
    model = make_model(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 3)))
    data = TensorDataset(*images)
    batches = list(DataLoader(data, batch_size=12))
    with pytest.raises(sn.errors.DataError, match="Rows are expected: if each of these 4 is a bat"):
        sn.finetune(model, batches)
    with pytest.raises(sn.errors.DataError, match="Rows are expected: if these are batches, join"):
        sn.finetune(model, list(DataLoader(data, batch_size=20)))
    named, labels = two()
    rows = {**named, "labels": labels}
    uneven = [{key: part[at : at + 25] for key, part in rows.items()} for at in (0, 25, 50)]
    with pytest.raises(sn.errors.DataError, match="Rows are expected"):
        sn.finetune(make_model(OfTwo), uneven)


@pytest.mark.parametrize("role", ["validation", "heldout"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x, y[:3]), "Expected as many labels as inputs"),
        (lambda x, y: (x * torch.nan, y), "Expected finite inputs"),
        (lambda x, y: (x, y + 7), "Expected labels from 0 to 2"),
        (lambda x, y: (x, y[:, None]), "Expected labels with one axis less"),
        (lambda x, y: (x, y.float()), "Expected integer labels"),
        (lambda x, y: 7, "Expected .inputs, labels., a Dataset"),
        (lambda x, y: x, "Expected a Dataset of .input, label. pairs"),
        (
            lambda x, y: DataLoader(
                TensorDataset(x, y), sampler=WeightedRandomSampler(torch.ones(60), 60)
            ),
            "Expected a DataLoader .* draws by WeightedRandomSampler",
        ),
    ],
)
def test_errors_about_held_out_data_name_its_argument(role, change, words, table, mlp) -> None:
    generator = torch.Generator().manual_seed(9)
    inputs, labels = torch.randn(60, 12, generator=generator), torch.arange(60) % 3
    with pytest.raises(sn.errors.ShieldnetError, match=rf"In {role}=: {words}"):
        sn.finetune(mlp, table, PRIVATE, start="public", **{role: change(inputs, labels)})


def test_a_batch_sampler_is_read_by_what_it_draws(table) -> None:
    data = TensorDataset(*table)

    def loader(sampler, **more) -> DataLoader:
        return DataLoader(data, batch_sampler=BatchSampler(sampler, 8, drop_last=False), **more)

    for sampler in (SequentialSampler(data), RandomSampler(data)):
        records = as_records(loader(sampler))
        assert (len(records), records.batch) == (120, 8)
    assert len(as_records(loader(SubsetRandomSampler(range(30))))) == 30
    with pytest.raises(sn.errors.DataError, match="draws by WeightedRandomSampler"):
        as_records(loader(WeightedRandomSampler(torch.ones(120), 120)))
    halved = as_records(
        loader(
            SequentialSampler(data),
            collate_fn=lambda rows: (
                torch.stack([x / 2 for x, _ in rows]),
                torch.stack([y for _, y in rows]),
            ),
        )
    )
    assert torch.equal(halved.inputs, table[0] / 2)


class Words(nn.Module):
    def __init__(self, layer: type[nn.Module] = nn.Embedding) -> None:
        super().__init__()
        self.words, self.head = layer(200, 4), nn.Linear(4, 3)

    def forward(self, input_ids):
        words = self.words(input_ids)
        return self.head(words if words.dim() == 2 else words.mean(1))


def ids(low: int, high: int, *, odd: int | None = None) -> torch.Tensor:
    made = torch.randint(low, high, (600, 5), generator=torch.Generator().manual_seed(0))
    made[0, 0], made[1, 1] = low, high - 1
    if odd is not None:
        made[-2] = odd  # none of the rows that preflight reads
    return made


@pytest.mark.parametrize("private", [(), (PRIVATE,)], ids=["plain", "private"])
@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (ids(100, 300), "from 100 to 299; words has 200 rows"),
        (ids(0, 200, odd=250), "from 0 to 250; words has 200 rows"),
        (ids(0, 200, odd=-1), "from -1 to 199; words has 200 rows"),
    ],
)
def test_ids_beyond_an_embedding_are_named(
    rows, told, is_named, layer, private, make_model
) -> None:
    inputs = {"input_ids": rows} if is_named else rows
    name = "input_ids" if is_named else "ids"
    with pytest.raises(sn.errors.ShieldnetError) as refused:
        sn.finetune(
            make_model(lambda: Words(layer)), (inputs, torch.arange(600) % 3), *private, epochs=1
        )
    assert isinstance(refused.value, sn.errors.DataError | sn.errors.PreflightFailed)
    assert f"or below 0: the data has {name} {told}" in str(refused.value)
    assert "more rows than the largest id" in str(refused.value)
    assert "preflight tries values" not in str(refused.value)


@pytest.mark.parametrize("role", ["validation", "heldout"])
def test_ids_of_other_rows_beyond_an_embedding_are_named(role, make_model) -> None:
    labels = torch.arange(600) % 3
    settings = {role: (ids(0, 199, odd=250), labels), "start": "public"}
    with pytest.raises(sn.errors.DataError, match="ids from 0 to 250; words has 200 rows"):
        sn.finetune(make_model(Words), (ids(0, 200), labels), PRIVATE, epochs=1, **settings)


def test_ids_are_named_where_the_last_layer_alone_is_trained(make_model) -> None:
    data = ids(0, 200, odd=250), torch.arange(600) % 3
    last = sn.trainable.LastLayer()
    with pytest.raises(sn.errors.DataError, match="ids from 0 to 250; words has 200 rows"):
        sn.finetune(make_model(Words), data, PRIVATE, epochs=1, train=last)


@pytest.mark.parametrize(
    "request_of_torch",
    [
        "  (Could this error message be improved?  If so, please report an enhancement request to "
        "PyTorch.)",
        ", please report a bug to PyTorch.",
    ],
)
@pytest.mark.parametrize("fails", ["always", "in training"])
def test_requests_to_report_an_error_to_torch_are_left_out(
    fails, request_of_torch, table, make_model
) -> None:
    class Failing(nn.Linear):
        def forward(self, x):
            if fails == "always" or self.training:
                raise RuntimeError(f"Expected X to be small, but got 7{request_of_torch}")
            return super().forward(x)

    with pytest.raises(sn.errors.ShieldnetError) as refused:
        sn.finetune(make_model(lambda: Failing(12, 3)), table, PRIVATE, epochs=1)
    assert "Expected X to be small, but got 7" in str(refused.value)
    assert "report" not in str(refused.value)
