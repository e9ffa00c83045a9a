"""Models of several inputs are trained on dicts and tuples, and the inputs stay what they were."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import shieldnet as sn

WORDS = torch.randint(1, 12, (60, 5), generator=torch.Generator().manual_seed(0))
MASK = (torch.rand(60, 5, generator=torch.Generator().manual_seed(1)) > 0.3).long()
LABELS = ((WORDS * MASK).sum(1) > 20).long()


class Reader(nn.Module):
    """Reads words where a mask is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(12, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        assert input_ids.dtype == torch.int64
        assert attention_mask is not None
        assert attention_mask.dtype in (torch.int64, torch.bool)
        kept = attention_mask.unsqueeze(-1).float()
        return self.head((self.words(input_ids) * kept).sum(1))


class Rows(Dataset):
    """A Dataset whose rows are what the test says."""

    def __init__(self, row: Any) -> None:
        self.row = row

    def __len__(self) -> int:
        return len(WORDS)

    def __getitem__(self, index: int) -> Any:
        return self.row(index)


NAMED = {"input_ids": WORDS, "attention_mask": MASK}
FORMS = {
    "dict": (NAMED, LABELS),
    "arrays": ({name: column.numpy() for name, column in NAMED.items()}, LABELS.numpy()),
    "tuple": ((WORDS, MASK), LABELS),
    "with labels": {**NAMED, "labels": LABELS},
    "rows": Rows(lambda row: ({"input_ids": WORDS[row], "attention_mask": MASK[row]}, LABELS[row])),
    "rows of tuples": Rows(lambda row: ((WORDS[row], MASK[row]), LABELS[row])),
    "rows with labels": Rows(
        lambda row: {"input_ids": WORDS[row], "attention_mask": MASK[row], "labels": LABELS[row]}
    ),
}
FORMS["loader"] = DataLoader(FORMS["rows with labels"], batch_size=64, shuffle=True)
FORMS["bool"] = ({**NAMED, "attention_mask": MASK.bool()}, LABELS)


@pytest.fixture
def reader() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reader()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("measures", [(), (sn.DPSGD(8.0, 1e-3, canaries=20),)], ids=["plain", "dp"])
def test_every_form_of_several_inputs_trains_the_same_model(form, measures, reader) -> None:
    class Stacked(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, rows: Tensor) -> Tensor:
            return self.model(rows[:, 0], rows[:, 1])

    settings = {"epochs": 2, "seed": 0, "batch_size": 60}
    before = {name: weight.clone() for name, weight in reader.state_dict().items()}
    found = sn.finetune(reader, FORMS[form], *measures, **settings)
    stacked = torch.stack([WORDS, MASK], 1)
    wanted = sn.finetune(Stacked(reader), (stacked, LABELS), *measures, **settings)
    assert list(found.model.state_dict()) == list(reader.state_dict())
    for name, weight in found.model.state_dict().items():
        assert torch.allclose(weight, wanted.model.model.state_dict()[name], atol=1e-5), name
        assert torch.equal(before[name], reader.state_dict()[name]), "the model is left alone"
    assert (found.guarantee is None) == (not measures)
    if measures:
        assert found.guarantee.epsilon == wanted.guarantee.epsilon
    assert found.model(input_ids=WORDS, attention_mask=MASK).shape == (60, 2)
    assert reader(WORDS, MASK).shape == (60, 2)
    shield = sn.harden(found.model)
    assert shield(input_ids=WORDS, attention_mask=MASK).shape == (60, 2)


def test_it_learns_and_the_mask_counts(reader) -> None:
    found = sn.finetune(reader, (NAMED, LABELS), epochs=150, seed=0)
    right = (found.model(WORDS, MASK).argmax(1) == LABELS).float().mean()
    assert right > 0.9
    assert not torch.equal(found.model(WORDS, MASK), found.model(WORDS, torch.ones_like(MASK)))


@pytest.mark.parametrize("train", [sn.trainable.LastLayer(), sn.trainable.LoRA(2)])
def test_parts_of_the_weights_a_start_and_heldout_rows_go_along(train, reader) -> None:
    data = ({name: column[:40] for name, column in NAMED.items()}, LABELS[:40])
    held = ({name: column[40:] for name, column in NAMED.items()}, LABELS[40:])
    private = sn.DPSGD(8.0, 1e-3)
    found = sn.finetune(
        reader, data, private, epochs=1, train=train, start="public", heldout=held, seed=0
    )
    assert found.guarantee is not None
    again = sn.finetune(
        found.model, held, private, epochs=1, train=train, start=found.guarantee, seed=0
    )
    assert again.guarantee.epsilon > found.guarantee.epsilon
    with pytest.raises(sn.errors.DataError, match="Expected heldout rows with the inputs that"):
        sn.finetune(reader, data, private, start="public", heldout=(WORDS[40:], LABELS[40:]))


def test_a_stopped_training_goes_on(reader, tmp_path) -> None:
    settings = {"epochs": 2, "seed": 0, "checkpoint": tmp_path / "kept"}
    first = sn.finetune(reader, (NAMED, LABELS), sn.DPSGD(8.0, 1e-3), **settings)
    assert first.guarantee is not None


def test_real_inputs_of_several_shapes_are_trained_in_the_models_type() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 2 * 2 + 4, 2)

        def forward(self, picture: Tensor, table: Tensor) -> Tensor:
            assert picture.shape[1:] == (3, 2, 2)
            return self.head(torch.cat([picture.flatten(1), table], 1))

    for dtype in (torch.float32, torch.float64):
        model = Two().to(dtype)
        data = ({"table": torch.randn(20, 4), "picture": torch.randn(20, 3, 2, 2)}, LABELS[:20])
        found = sn.finetune(model, data, sn.DPSGD(8.0, 1e-3), epochs=1, seed=0)
        assert found.guarantee is not None


class Both(nn.Module):
    """Reads words and real numbers, each in its own type."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(12, 8), nn.Linear(11, 2)

    def forward(self, ids: Tensor, table: Tensor) -> Tensor:
        assert ids.dtype == torch.int64
        assert table.dtype == self.head.weight.dtype
        return self.head(torch.cat([self.words(ids % 2**24).mean(1), table], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measures", [(), (sn.DPSGD(8.0, 1e-3),)], ids=["plain", "dp"])
def test_whole_and_real_inputs_are_trained_together(dtype, measures) -> None:
    class Stacked(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, rows: Tensor) -> Tensor:
            return self.model(rows[:, :5].long(), rows[:, 5:].to(dtype))

    torch.manual_seed(0)
    model = Both().to(dtype)
    ids, table = WORDS + 2**24, torch.randn(60, 3)  # a float32 has no place for these ids
    settings = {"epochs": 2, "seed": 0, "batch_size": 60}
    held = ({"ids": ids[:9], "table": table[:9] + 1}, LABELS[:9])
    found = sn.finetune(
        model, ({"ids": ids, "table": table}, LABELS), *measures, validation=held, **settings
    )
    rows = torch.cat([ids.double(), table.double()], 1)
    if dtype == torch.float64 and not measures:  # in which one tensor can hold both
        wanted = sn.finetune(Stacked(model), (rows, LABELS), **settings)
        for name, weight in found.model.state_dict().items():
            assert torch.allclose(weight, wanted.model.model.state_dict()[name], atol=1e-9), name
    assert (found.guarantee is None) == (not measures)
    assert sn.harden(found.model)(ids=ids, table=table.to(dtype)).shape == (60, 2)


def test_a_hugging_face_classifier_is_trained_on_what_its_tokenizer_gives() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=12, intermediate_size=32, num_labels=2, **sizes)
    model = transformers.BertForSequenceClassification(config)
    encoded = transformers.BatchEncoding({**NAMED, "token_type_ids": torch.zeros_like(MASK)})
    found = sn.finetune(model, (encoded, LABELS), epochs=1, seed=0)
    assert found.model(**encoded).logits.shape == (60, 2)
    private = sn.finetune(model, (encoded, LABELS), sn.DPSGD(8.0, 1e-3), epochs=1, seed=0)
    assert private.guarantee is not None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (({"a": WORDS, "b": MASK[:3]}, LABELS), r"a row of every input.*b: torch.int64 \(3, 5\)"),
        (
            ({"a": WORDS * 2**54, "b": MASK.float()}, LABELS),
            "beside real ones up to",
        ),
        (
            ({"a": WORDS, "b": torch.zeros(60, 2).cfloat()}, LABELS),
            r"b: torch.complex64.*torch.view_as_real",
        ),
        (({}, LABELS), "Expected inputs of the records with a row for every record, got none"),
        (({1: WORDS}, LABELS), "by the names of arguments, got"),
        (({"a": ["x"] * 60}, LABELS), "Expected numbers for the records, got texts"),
        (({"a": WORDS, "b": MASK}, LABELS[:4]), "Expected as many labels as inputs, got 4 and 60"),
        (NAMED, r"Expected labels beside input_ids, attention_mask: give \(inputs, labels\)"),
        (Rows(lambda row: ({"a": WORDS[row, : row % 3]}, LABELS[row])), "padding='max_length'"),
        (Rows(lambda row: ({"ab"[row % 2]: WORDS[row]}, LABELS[row])), "to have the same inputs"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(data, words, reader) -> None:
    with pytest.raises(sn.errors.DataError, match=words):
        sn.finetune(reader, data, epochs=1)


def test_a_measure_that_changes_inputs_is_refused_with_a_model_that_works(reader) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Augment changes or reads inputs") as refused:
        sn.finetune(reader, (NAMED, LABELS), sn.countermeasures.Augment(shift=1), epochs=1)
    (body,) = re.findall(r"returns (self\.model\(.*\)), for rows", str(refused.value))
    (rows,) = re.findall(r"rows = (torch.stack.*\))\.", str(refused.value))
    held: dict[str, Any] = {"torch": torch, "reader": reader, **NAMED}
    exec(  # noqa: S102 - the lines of our own message
        "class Stacked(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.model = reader\n"
        f"    def forward(self, rows):\n        return {body}\n"
        f"model, rows = Stacked(), {rows}",
        held,
    )
    found = sn.finetune(
        held["model"], (held["rows"], LABELS), sn.countermeasures.LabelSmoothing(0.1), epochs=1
    )
    assert found.model(held["rows"]).shape == (60, 2)


def joined(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        "input": torch.stack([row for row, _ in rows]),
        "labels": torch.stack([label for _, label in rows]),
    }


def test_loaders_of_ones_own_give_each_record_once() -> None:
    x, y = torch.randn(20, 4), LABELS[:20]
    rows = TensorDataset(x, y)

    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(rows)

    model, settings = nn.Linear(4, 2), {"epochs": 1, "seed": 0, "batch_size": 5}
    wanted = sn.finetune(model, (x, y), **settings).model.weight
    for loader in (
        DataLoader(rows, 7, collate_fn=joined, drop_last=True),
        DataLoader(rows, 7, collate_fn=lambda rows: tuple(joined(rows).values()), shuffle=True),
        DataLoader(Stream(), 7),
    ):
        assert torch.equal(sn.finetune(model, loader, **settings).model.weight, wanted)

    def mixed(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, labels = joined(rows).values()
        return (inputs + inputs.roll(1, 0)) / 2, labels

    found = sn.finetune(model, DataLoader(rows, 7, collate_fn=mixed), **settings)
    assert torch.equal(found.model.weight, wanted), "no record is mixed into another's row"
    part = DataLoader(rows, 7, sampler=SubsetRandomSampler([3, 1, 2]))
    wanted = sn.finetune(model, (x[[3, 1, 2]], y[[3, 1, 2]]), epochs=1, seed=0).model.weight
    assert torch.equal(sn.finetune(model, part, epochs=1, seed=0).model.weight, wanted)
    weighted = DataLoader(rows, 7, sampler=WeightedRandomSampler([1.0] * 20, 20))
    for loader, words in (
        (weighted, r"draws by WeightedRandomSampler. Pass loader.dataset"),
        (DataLoader(rows, batch_sampler=[[0, 0], [1]]), "draws by list. Pass loader.dataset"),
        (DataLoader(Stream(), None), "got single records. Give the DataLoader a batch_size"),
        (DataLoader(rows, 7, collate_fn=list), "a collate_fn that stacks them: lambda rows"),
        (DataLoader(rows, 5, collate_fn=list), "a collate_fn that stacks them: lambda rows"),
    ):
        with pytest.raises(sn.errors.DataError, match=words):
            sn.finetune(model, loader, epochs=1)


def test_rows_of_two_labels_are_refused_with_rows_that_work() -> None:
    x, first, second = torch.randn(20, 4), LABELS[:20], LABELS[20:40]
    model = nn.Linear(4, 4)
    with pytest.raises(sn.errors.DataError, match="got a row of 3 values.*torch.stack"):
        sn.finetune(model, TensorDataset(x, first, second), epochs=1)

    def of_both(output: Tensor, labels: Tensor) -> Tensor:
        heads = zip(output.split(2, 1), labels.T, strict=True)
        return sum(F.cross_entropy(head, label, reduction="none") for head, label in heads)

    data = [(row, torch.stack(labels)) for row, *labels in zip(x, first, second, strict=True)]
    found = sn.finetune(model, data, sn.DPSGD(8.0, 1e-3), epochs=1, loss=of_both, seed=0)
    assert found.guarantee is not None
    uneven = [(x[0], y) for y in (first[:2], first[:3])]
    with pytest.raises(sn.errors.DataError, match="Expected labels of one shape for every record"):
        sn.finetune(model, uneven, epochs=1, loss=of_both)


def test_pairs_and_one_input_are_read_as_ever() -> None:
    x = torch.randn(12, 4)
    model = nn.Linear(4, 2)
    wanted = sn.finetune(model, (x, LABELS[:12]), epochs=1, seed=0).model.weight
    pairs = [(row, label) for row, label in zip(x, LABELS[:12], strict=True)]
    for data in (pairs, TensorDataset(x, LABELS[:12]), [x, LABELS[:12]]):
        assert torch.equal(sn.finetune(model, data, epochs=1, seed=0).model.weight, wanted)


def test_a_model_of_stacked_inputs_is_audited(reader) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = reader

        def forward(self, rows: Tensor) -> Tensor:
            return self.model(input_ids=rows[:, 0], attention_mask=rows[:, 1])

    generator = torch.Generator().manual_seed(2)
    words = torch.randint(1, 12, (240, 5), generator=generator)
    mask = (torch.rand(240, 5, generator=generator) > 0.3).long()
    rows, labels = torch.stack([words, mask], 1), ((words * mask).sum(1) > 20).long()
    sets = [(rows[start : start + 80], labels[start : start + 80]) for start in (0, 80, 160)]
    names = ("members", "nonmembers", "auxiliary")
    report = sn.audit(
        sn.harden(Stacked()),
        **dict(zip(names, sets, strict=True)),
        tier="quick",
        shadows=0,
        duplicates="drop",
        seed=0,
    )
    found = {finding.name for finding in report["shield"].findings}
    assert any(name.startswith("membership") for name in found)


NORMS = {
    "BatchNorm1d": (nn.BatchNorm1d(8), (8,)),
    "BatchNorm2d": (nn.BatchNorm2d(8), (8, 2, 2)),
    "GroupNorm": (nn.GroupNorm(1, 8), (8,)),
    "GroupNorm of sequences": (nn.GroupNorm(2, 8), (8, 3)),
    "LayerNorm": (nn.LayerNorm((8, 2)), (8, 2)),
    "InstanceNorm": (nn.InstanceNorm2d(8, affine=True), (8, 2, 2)),
    "Conv2d": (nn.Conv2d(8, 2, 2), (8, 2, 2)),
}


class Parted(nn.Module):
    """Applies a layer to one input, or to a part of it, as it is."""

    def __init__(self, layer: nn.Module, size: int, width: int | None = None) -> None:
        super().__init__()
        self.layer, self.head, self.width = layer, nn.Linear(size, 2), width

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        if self.width is not None:
            first, second = first[:, : self.width], first[:, self.width :]
        return self.head(torch.cat([self.layer(second).flatten(1), first.float()], 1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("form", ["dict", "tuple", "mixed"])
def test_a_layer_reads_one_of_several_inputs_as_it_is(norm, form, make_model) -> None:
    layer, shape = NORMS[norm]
    generator = torch.Generator().manual_seed(0)
    first, second = WORDS[:, :2].float(), torch.randn(60, *shape, generator=generator)
    if form == "mixed":
        first = WORDS[:, :2]
    inputs = (first, second) if form == "tuple" else {"first": first, "second": second}
    size = 2 + layer.eval()(second).flatten(1).shape[1]
    model = make_model(lambda: Parted(layer.train(), size))
    settings = {"epochs": 1, "seed": 0, "fix": True}
    found = sn.finetune(model, (inputs, LABELS), sn.DPSGD(8.0, 1e-3), **settings)
    assert found.guarantee is not None
    assert found.preflight.sensitivity <= 1
    plain = sn.finetune(model, (inputs, LABELS), **settings)
    assert plain.model(first, second).shape == (60, 2)


def test_a_layer_reads_a_part_of_a_row_as_it_is(make_model) -> None:
    model = make_model(lambda: Parted(nn.GroupNorm(1, 3), 5, width=2))
    data = (WORDS.float(), LABELS)
    private, attack = sn.DPSGD(8.0, 1e-3), sn.countermeasures.Adversarial(epsilon=0.1, steps=1)
    found = sn.finetune(model, data, private, attack, epochs=1, seed=0)
    assert found.guarantee is not None
