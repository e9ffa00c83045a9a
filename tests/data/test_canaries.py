import pytest
import torch

import shieldnet as sn


def records(rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 5, generator=generator), torch.arange(rows) % 4


def row_set(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


@pytest.mark.parametrize("kind", ["mislabeled", "out_of_distribution", "duplicated"])
def test_a_coin_decides_which_canaries_are_trained_on(kind) -> None:
    planted = sn.plant_canaries(records(), count=200, kind=kind, copies=3)
    canaries = planted.canaries
    assert len(canaries.planted) + len(canaries.held_out) == 200
    assert 60 < len(canaries.planted) < 140
    times = 3 if kind == "duplicated" else 1
    assert canaries.copies == times
    inputs, labels = planted.data
    assert len(inputs) == len(labels) == 200 + times * len(canaries.planted)
    assert row_set(canaries.planted.inputs) <= row_set(inputs)
    assert not row_set(canaries.held_out.inputs) & row_set(inputs)
    assert not row_set(planted.members[0]) & row_set(canaries.planted.inputs)


def test_mislabeled_canaries_are_real_records_with_another_label() -> None:
    inputs, labels = records()
    known = {row.numpy().tobytes(): int(label) for row, label in zip(inputs, labels, strict=True)}
    canaries = sn.plant_canaries((inputs, labels), count=100).canaries
    for one in (canaries.planted, canaries.held_out):
        for row, label in zip(one.inputs, one.labels, strict=True):
            assert known[row.numpy().tobytes()] != int(label)


@pytest.mark.parametrize("shape", [(400,), (400, 2)])
def test_canaries_of_a_regression_have_the_target_of_a_record_far_from_theirs(shape) -> None:
    inputs, _ = records()
    targets = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    known = {row.numpy().tobytes(): target for row, target in zip(inputs, targets, strict=True)}
    order = targets.reshape(400, -1)[:, 0].sort().values
    planted = sn.plant_canaries((inputs, targets), count=100)
    for one in (planted.canaries.planted, planted.canaries.held_out):
        assert one.has_targets
        for row, target in zip(one.inputs, one.labels, strict=True):
            ends = torch.stack([known[row.numpy().tobytes()], target]).reshape(2, -1)[:, 0]
            first, second = torch.searchsorted(order, ends.contiguous()).tolist()
            assert 100 <= abs(first - second) <= 300
            assert any(bool((target == other).all()) for other in targets)
    with pytest.raises(sn.errors.DataError, match="at least two targets"):
        sn.plant_canaries((inputs, torch.ones(400)), count=100)


def test_records_out_of_distribution_keep_each_columns_values() -> None:
    inputs, labels = records()
    canaries = sn.plant_canaries((inputs, labels), count=100, kind="out_of_distribution").canaries
    made = torch.cat([canaries.planted.inputs, canaries.held_out.inputs])
    assert not row_set(made) & row_set(inputs)
    for column in range(5):
        assert torch.isin(made[:, column], inputs[:, column]).all()


def test_the_same_seed_plants_the_same_canaries() -> None:
    one, two, other = (sn.plant_canaries(records(), count=50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.data[0], two.data[0])
    assert not torch.equal(one.data[0], other.data[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"count": 300}, "at least 600 records for count=300 canaries, got 400. .*: count=200"),
        ({"data": torch.ones(3, 2), "kind": "duplicated"}, "for count=100 canaries, got 3. Add"),
        ({"kind": "odd"}, "Expected kind to be one of mislabeled"),
        ({"count": 1}, "Expected count >= 2"),
        ({"data": records()[0]}, "Canaries need labels"),
        ({"data": (records()[0], torch.zeros(400, dtype=torch.int64))}, "at least two classes"),
    ],
)
def test_canaries_that_cannot_be_planted_are_refused(settings, words) -> None:
    given = {"data": records(), "count": 100, **settings}
    with pytest.raises(sn.errors.ShieldnetError, match=words):
        sn.plant_canaries(given.pop("data"), **given)


def test_texts_without_labels_are_planted_without_labels() -> None:
    texts = torch.randint(30, (100, 8), generator=torch.Generator().manual_seed(0))
    for kind in ("out_of_distribution", "duplicated"):
        planted = sn.plant_canaries(texts, count=20, kind=kind)
        assert planted.canaries.planted.labels is None
        assert planted.members.shape == (80, 8)
        assert row_set(planted.canaries.planted.inputs) <= row_set(planted.data)


def test_tokens_and_their_mask_are_shuffled_alike() -> None:
    mask = (torch.arange(8) < torch.arange(100).unsqueeze(1) % 8 + 1).long()
    texts = {"input_ids": torch.randint(1, 30, (100, 8)) * mask, "attention_mask": mask}
    planted = sn.plant_canaries(texts, count=40, kind="out_of_distribution").canaries.planted
    inputs, _ = planted.in_own_form()
    assert torch.equal(inputs["input_ids"] > 0, inputs["attention_mask"].bool())


def test_positions_that_do_not_count_get_no_label() -> None:
    labels = torch.where(torch.rand(100, 8) < 0.5, -100, torch.arange(8) % 3)
    planted = sn.plant_canaries((torch.randn(100, 8), labels), count=40)
    made = torch.cat([planted.canaries.planted.labels, planted.canaries.held_out.labels])
    assert set(made.unique().tolist()) == {-100, 0, 1, 2}
    assert float((made == -100).double().mean()) == pytest.approx(0.5, abs=0.1)
