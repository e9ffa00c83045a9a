"""Models of several inputs: asked by their own inputs, attacked by rows."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import shieldnet as sn
from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.auditing.several import Packed
from shieldnet.data.packing import packed

ROWS, WORDS = 90, 12
NAMES = ("members", "nonmembers", "auxiliary")
FEW = sn.Tier("few", (sn.attacks.Inversion(decoders=(Ridge(),)), sn.attacks.Membership()))
MOVING = sn.Tier(
    "moving",
    (
        *FEW.attacks,
        sn.attacks.JitterAveraging(queries=8),
        sn.attacks.AttributeRecovery(),
        sn.attacks.Extraction(students=(Ridge(),)),
        sn.attacks.ClassInversion(steps=3, restarts=1),
        sn.attacks.StraightThrough(),
    ),
    (sn.checks.Masking(),),
)


class Reader(nn.Module):
    """Reads words where a mask is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert input_ids.dtype == torch.int64
        assert not attention_mask.dtype.is_floating_point
        kept = attention_mask.unsqueeze(-1).float()
        return self.head((self.words(input_ids) * kept).sum(1))


class Mixed(nn.Module):
    """Reads an image, words and a table, each in the type in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Linear(3 * 4 * 4, 4), nn.Embedding(WORDS, 4)
        self.head = nn.Linear(4 + 4 + 3, 2)

    def forward(self, image: Tensor, ids: Tensor, table: Tensor) -> Tensor:
        assert (image.dtype, ids.dtype, table.dtype) == (
            *[torch.float32, torch.int32],
            torch.float32,
        )
        assert image.shape[1:] == (3, 4, 4)
        parts = (self.image(image.flatten(1)).relu(), self.words(ids).mean(1), table)
        return self.head(torch.cat(parts, 1))


class TwoReal(nn.Module):
    """Reads an image and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 4 * 4 + 3, 2)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(torch.cat([image.flatten(1), table], 1))


def made(kind: type, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def texts(seed: int, rows: int = ROWS) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(1, WORDS, (rows, 7), generator=draw)
    mask = (torch.rand(rows, 7, generator=draw) > 0.3).long()
    return {"input_ids": words, "attention_mask": mask}, ((words * mask).sum(1) > 28).long()


def mixed(seed: int, rows: int = ROWS) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, 3, generator=draw)
    inputs = {
        "ids": torch.randint(0, WORDS, (rows, 5), generator=draw).int(),
        "image": torch.rand(rows, 3, 4, 4, generator=draw),
        "table": table,
    }
    return inputs, (table[:, 0] > 0).long()


def real(seed: int, rows: int = ROWS) -> tuple[dict[str, Tensor], Tensor]:
    inputs, labels = mixed(seed, rows)
    return {name: inputs[name] for name in ("image", "table")}, labels


def sets(make: Any, **settings: Any) -> dict[str, Any]:
    return {name: make(seed, **settings) for seed, name in enumerate(NAMES, 1)}


def names_of(subject: Any) -> set[str]:
    return {finding.name for finding in subject.findings}


class Rows(Dataset):
    """A Dataset whose rows are what the test says."""

    def __init__(self, data: Any, row: Any) -> None:
        self.data, self.row = data, row

    def __len__(self) -> int:
        return len(self.data[1])

    def __getitem__(self, index: int) -> Any:
        inputs, labels = self.data
        return self.row({name: column[index] for name, column in inputs.items()}, labels[index])


class Stream(IterableDataset):
    """Yields rows without a length."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return (self.rows[index] for index in range(len(self.rows)))


def with_labels(inputs: dict[str, Tensor], label: Tensor) -> dict[str, Tensor]:
    return {**inputs, "labels": label}


def by_place(inputs: dict[str, Tensor], label: Tensor) -> Any:
    return tuple(inputs.values()), label


FORMS = {
    "arrays": lambda data: ({k: v.numpy() for k, v in data[0].items()}, data[1].numpy()),
    "list of labels": lambda data: (data[0], data[1].tolist()),
    "other order": lambda data: (dict(reversed(data[0].items())), data[1]),
    "with labels": lambda data: with_labels(*data),
    "rows": lambda data: Rows(data, lambda *row: row),
    "rows with labels": lambda data: Rows(data, with_labels),
    "loader": lambda data: DataLoader(Rows(data, with_labels), batch_size=16, shuffle=True),
    "loader of pairs": lambda data: DataLoader(Rows(data, lambda *row: row), drop_last=True),
    "loader of its own": lambda data: DataLoader(
        Rows(data, lambda *row: row),
        batch_size=16,
        collate_fn=lambda rows: torch.utils.data.default_collate([with_labels(*r) for r in rows]),
    ),
    "stream": lambda data: DataLoader(Stream(Rows(data, lambda *row: row)), batch_size=16),
}


@pytest.fixture(scope="module")
def shield() -> sn.Shield:
    return sn.Shield(made(Reader), sn.Round(1))


@pytest.fixture(scope="module")
def report(shield) -> sn.Report:
    return sn.audit(shield, **sets(texts), tier=FEW, shadows=0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_named_inputs_gives_the_same_report(form, shield, report) -> None:
    given = {name: FORMS[form](data) for name, data in sets(texts).items()}
    if form == "other order":
        given["members"] = texts(1)
    found = sn.audit(shield, **given, tier=FEW, shadows=0)
    for name in ("bare", "shield"):
        assert found[name].findings == report[name].findings
    assert found.hashes == report.hashes


@pytest.mark.parametrize("form", ["tuple", "rows", "loader"])
def test_positional_inputs_are_named_by_their_places(form, shield, report) -> None:
    forms = {
        "tuple": lambda data: by_place(*data),
        "rows": lambda data: Rows(data, by_place),
        "loader": lambda data: DataLoader(Rows(data, by_place), batch_size=16),
    }
    given = {name: forms[form](data) for name, data in sets(texts).items()}
    found = sn.audit(shield, **given, tier=FEW, shadows=0)
    assert found["bare"]["inversion"].value == report["bare"]["inversion"].value
    assert found["bare"]["accuracy"] == report["bare"]["accuracy"]
    assert found.columns[0] == "input 0[0]"
    assert found.hashes["members"] != report.hashes["members"]


def test_each_input_is_reported_and_the_worst_is_the_headline(report) -> None:
    bare = report["bare"]
    shares = [bare[f"inversion.column.{name}"] for name in ("input_ids", "attention_mask")]
    assert bare["inversion"].value == max(share.value for share in shares)
    assert bare["inversion"].note.startswith("the worst of 2 inputs: ")
    assert report.columns[:2] == ("input_ids[0]", "input_ids[1]")
    assert report.columns[-1] == "attention_mask[6]"
    assert "membership.auc" in names_of(bare)
    assert report.title == "Audit of Reader"


def test_a_table_beside_an_image_counts_in_full() -> None:
    model = made(TwoReal)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[0, -3], model.head.weight[1, -2] = 1.0, 1.0  # of the table alone
    found = sn.audit(sn.harden(model), **sets(real), tier=FEW, shadows=0)["bare"]
    assert found["inversion.column.table[0]"].low > 0.6
    assert found["inversion.column.table"].low > 0.3
    assert found["inversion"].value == found["inversion.column.table"].value
    assert found["inversion.column.image"].high < 0.2
    assert "inversion.column.image[0, 0, 0]" not in names_of(found)


def test_whatever_attacks_move_reaches_the_model_in_its_own_types_and_range() -> None:
    data = sets(mixed, rows=60)
    report = sn.audit(
        sn.Shield(made(Mixed), sn.Round(1)),
        **data,
        sensitive=("table[0]", "ids[2]"),
        tier=MOVING,
        shadows=0,
        engine="inline",
        duplicates="drop",
        with_examples=2,
    )
    found = names_of(report["shield"])
    assert {"inversion", "membership.label only.auc", "extraction.fidelity"} <= found
    assert {"class_inversion.queries", "attribute.table[0]"} <= found
    untested = "\n".join(report["shield"].untested)
    assert "masking: whole numbers among the inputs have no gradient: ids" in untested


def test_mixed_types_are_packed_without_a_lost_digit() -> None:
    inputs = {
        "ids": torch.tensor([[2**53], [-(2**53)], [2**53 - 1]]),
        "half": torch.tensor([1.1, 2.2, 3.3]).half(),
        "table": torch.tensor([[1.1], [1e30], [-1e-30]]),
        "mask": torch.tensor([True, False, True]),
    }
    rows, packing = packed(inputs, "records")
    for name, column in packing.inputs(rows).items():
        assert column.dtype == inputs[name].dtype
        assert torch.equal(column, inputs[name]), name
    asked = Packed(packing, rows.amin(0), rows.amax(0))(nn.Identity())
    assert torch.equal(asked.nearest_table_codes(rows), rows)
    with pytest.raises(sn.errors.DataError, match=r"up to 2\*\*53"):
        packed({**inputs, "ids": inputs["ids"] * 2}, "records")


def test_shadows_are_trained_on_inputs_in_their_own_form() -> None:
    seen = []

    def train(data: Any, seed: int) -> nn.Module:
        seen.append(data)
        return sn.finetune(made(Reader, seed), data, epochs=1, seed=seed).model

    shield, tier = sn.harden(made(Reader)), sn.Tier("few", (sn.attacks.Membership(),))
    own = sn.audit(shield, **sets(texts), train=train, shadows=4, tier=tier, engine="inline")
    assert "membership.LiRA.auc" in names_of(own["bare"])
    for inputs, labels in seen:
        assert {name: column.dtype for name, column in inputs.items()} == {
            "input_ids": torch.int64,
            "attention_mask": torch.int64,
        }
        assert len(labels) == len(inputs["input_ids"])


@pytest.mark.parametrize(("kind", "make"), [(Reader, texts), (Mixed, mixed)])
def test_a_recipe_trains_models_of_several_inputs(kind, make) -> None:
    recipe = sn.Recipe(kind, epochs=2)
    model = recipe(make(1), 0)
    assert isinstance(model, kind)
    assert model(**make(1)[0]).shape == (ROWS, 2)
    tier = sn.Tier("few", (sn.attacks.Membership(),))
    report = sn.audit(sn.harden(model), **sets(make), train=recipe, shadows=4, tier=tier)
    assert "membership.LiRA.auc" in names_of(report["bare"])


def test_what_finetune_proves_stands_beside_what_is_measured(tmp_path) -> None:
    data = sets(texts)
    private = sn.finetune(
        made(Reader), data["members"], sn.DPSGD(3.0, 1e-3), start="public", epochs=1, seed=0
    )
    shield = sn.harden(private.model)
    settings = {"tier": FEW, "shadows": 0, "cache": tmp_path}
    report = sn.audit(shield, **data, finetuned=private, **settings)
    assert report["bare"]["membership.auc"].ceiling == private.guarantee.auc()
    again = sn.audit(shield, **data, finetuned=private, **settings)
    assert again["bare"].findings == report["bare"].findings
    with pytest.raises(sn.errors.ConfigError, match="guarantee is of other weights"):
        sn.audit(sn.harden(made(Reader, 1)), **data, finetuned=private, **settings)


@pytest.mark.parametrize("make", [texts, mixed])
def test_parts_and_canaries_keep_the_form_of_the_data(make) -> None:
    inputs, labels = make(1, rows=240)
    parts = sn.split((inputs, labels), (0.5, 0.5), seed=0)
    for part, own in parts:
        assert {k: v.dtype for k, v in part.items()} == {k: v.dtype for k, v in inputs.items()}
        assert len(own) == len(part["ids" if "ids" in part else "input_ids"])
    planted = sn.plant_canaries(parts[0], count=40, seed=0)
    assert planted.data[0].keys() == inputs.keys()
    kind = Reader if make is texts else Mixed
    report = sn.audit(
        sn.harden(made(kind)),
        members=planted.members,
        nonmembers=parts[1],
        canaries=planted,
        tier=sn.Tier("few", (sn.attacks.Membership(),)),
        shadows=0,
    )
    assert "membership.canaries.auc" in names_of(report["bare"])


def test_attribution_reads_several_inputs_by_their_embeddings() -> None:
    model = made(Reader)
    given = sets(texts, rows=800)
    for inputs, _ in given.values():
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    tier = sn.Tier("checks", (), (sn.checks.Attribution(), sn.checks.Memorization()))
    found = sn.audit(sn.Shield(model, sn.Round(1)), **given, tier=tier, duplicates="drop")
    assert found["bare"]["attribution.estimate"].value > 0
    assert "memorization.members" in names_of(found["bare"])


def test_attribution_and_masking_take_gradients_of_several_real_inputs() -> None:
    tier = sn.Tier("checks", (), (sn.checks.Attribution(), sn.checks.Masking()))
    found = sn.audit(sn.Shield(made(TwoReal), sn.Round(1)), **sets(real, rows=400), tier=tier)
    assert {"attribution.estimate", "masking"} <= names_of(found["shield"])


def test_sets_of_other_types_and_groups_and_duplicates_go_along(shield) -> None:
    data = sets(texts)
    inputs, labels = data["members"]
    narrow = {name: column.int() for name, column in inputs.items()}
    narrow["input_ids"][:2] = data["nonmembers"][0]["input_ids"][:2].int()
    narrow["attention_mask"][:2] = data["nonmembers"][0]["attention_mask"][:2].int()
    data["members"] = narrow, labels
    with pytest.raises(sn.errors.DataError, match="2 of the 90 nonmembers are also members"):
        sn.audit(shield, **data, tier=FEW)
    found = sn.audit(
        shield,
        **data,
        tier=FEW,
        shadows=0,
        duplicates="drop",
        groups={"half": (np.arange(ROWS) % 2, np.arange(ROWS) % 2)},
    )
    assert "membership.group.half = 0.auc" in names_of(found["bare"])
    assert found.untested[0].startswith("2 of the 90 members, 2 of the 90 nonmembers")


def test_inputs_without_labels_are_taken(shield) -> None:
    data = {name: inputs for name, (inputs, _) in sets(texts).items()}
    found = sn.audit(shield, **data, tier=FEW)
    assert "inversion" in names_of(found["bare"])
    assert "accuracy: it needs labels: pass nonmembers=(inputs, labels)" in found.untested


def _fewer(data: Any) -> Any:
    return {"input_ids": data[0]["input_ids"]}, data[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_fewer, r"members and nonmembers with the same inputs, got input_ids \(7,\), attention_m"),
        (lambda data: by_place(*data), "with the same inputs"),
        (lambda data: (data[0]["input_ids"], data[1]), "and one tensor"),
        (
            lambda data: ({"input_ids": ["a"] * ROWS}, data[1]),
            "numbers for the nonmembers, got texts",
        ),
        (
            lambda data: ({**data[0], "token_type_ids": data[0]["input_ids"][:3]}, data[1]),
            "a row of every input for every record",
        ),
        (lambda data: TensorDataset(*data[0].values(), data[1]), r"every row \(\(first, second\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, words, shield) -> None:
    data = sets(texts)
    data["nonmembers"] = change(data["nonmembers"])
    with pytest.raises(sn.errors.DataError, match=words):
        sn.audit(shield, **data, tier=FEW)


def test_a_model_that_cannot_read_the_inputs_is_told_which_they_are() -> None:
    data = {name: ({"x": d[0]["input_ids"]}, d[1]) for name, d in sets(texts).items()}
    with pytest.raises(sn.errors.DataError, match=r"read the nonmembers \(x \(7,\)\): TypeError"):
        sn.audit(sn.harden(made(Reader)), **data, tier=FEW)


def test_an_estimator_is_given_one_table() -> None:
    estimator = LogisticRegression().fit([[0.0, 1], [1, 0]], [0, 1])
    columns = {"a": np.arange(2.0), "b": np.arange(2.0)}
    with pytest.raises(sn.errors.DataError, match=r"pandas.DataFrame\(columns\)"):
        sn.audit(sn.harden(estimator), members=(columns, [0, 1]), nonmembers=(columns, [0, 1]))


def test_columns_beside_several_inputs_are_refused(shield) -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"named by them: input_ids\[0\]"):
        sn.audit(shield, **sets(texts), columns=("a", "b"), tier=FEW)


def test_of_a_loader_of_a_part_the_part_is_read() -> None:
    inputs, labels = real(1)
    dataset = TensorDataset(inputs["table"], labels)
    loaders = [
        DataLoader(dataset, sampler=SubsetRandomSampler(range(start, start + 45)))
        for start in (0, 45)
    ]
    model = sn.harden(nn.Linear(3, 2))
    found = sn.audit(model, members=loaders[0], nonmembers=loaders[1], tier=FEW, shadows=0)
    table = inputs["table"], labels
    halves = [tuple(column[rows] for column in table) for rows in (slice(45), slice(45, 90))]
    plain = sn.audit(model, members=halves[0], nonmembers=halves[1], tier=FEW, shadows=0)
    assert found.hashes == plain.hashes
    weighted = DataLoader(dataset, sampler=WeightedRandomSampler([1.0] * 90, 90))
    with pytest.raises(sn.errors.DataError, match="WeightedRandomSampler. Pass loader.dataset"):
        sn.audit(model, members=weighted, nonmembers=halves[1])
