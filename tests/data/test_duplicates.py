import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.data.duplicates import near_duplicates


def rows(count: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


CHANGES = {
    "a factor": lambda x: x * (1 + 1e-7),
    "float64 and back": lambda x: (x.double() * 3 / 3 + 1e-9).float(),
    "two decimals": lambda x: (x * 100).round() / 100,
    "a little noise": lambda x: x + 0.01 * rows(*x.shape, 9),
}


@pytest.mark.parametrize("columns", [8, 64, 400])
@pytest.mark.parametrize("change", CHANGES)
def test_records_of_another_file_are_found_for_what_they_are(change, columns) -> None:
    one = 5 + rows(300, columns, 0) * torch.logspace(-2, 3, columns)
    other = 5 + rows(200, columns, 1) * torch.logspace(-2, 3, columns)
    scale = torch.logspace(-2, 3, columns)
    other[40:80] = 5 + CHANGES[change]((one[100:140] - 5) / scale) * scale
    found = near_duplicates(one, other)
    assert found[:, 1].tolist() == list(range(40, 80))
    assert found[:, 0].tolist() == list(range(100, 140))


@pytest.mark.parametrize("kind", ["few columns", "integers", "one-hot", "constant", "pictures"])
def test_records_that_lie_near_by_nature_are_left_alone(kind) -> None:
    one, other = rows(1500, 6, 0), rows(1500, 6, 1)
    if kind == "few columns":
        one, other = one[:, :2], other[:, :2]
    elif kind == "integers":
        one, other = (20 * one).round(), (20 * other).round()
    elif kind == "one-hot":
        one, other = (torch.cat([part, (part > 0.5).float()], 1) for part in (one, other))
    elif kind == "constant":
        one, other = (torch.cat([part, torch.ones(1500, 3)], 1) for part in (one, other))
    else:
        one, other = one.reshape(-1, 1, 2, 3), other.reshape(-1, 1, 2, 3)
    assert len(near_duplicates(one, other)) == 0


def test_a_table_of_few_values_has_neighbors_in_both_sets_and_is_left_alone() -> None:
    """Two amounts that differ by 1 in a range of thousands are two records, not one."""
    table = torch.cat([(1000 * rows(3000, 1, 0)).round(), (rows(3000, 2, 1) > 0).float()], 1)
    table = table.unique(dim=0)
    assert len(near_duplicates(table[::2], table[1::2])) == 0


def test_tokens_and_sets_of_one_row_have_no_near_duplicates() -> None:
    tokens = torch.randint(0, 9, (20, 5), generator=torch.Generator().manual_seed(0))
    assert len(near_duplicates(tokens, tokens)) == 0
    assert len(near_duplicates(rows(1, 4, 0), rows(1, 4, 1))) == 0
    assert near_duplicates(rows(1, 4, 0), rows(1, 4, 0)).tolist() == [[0, 0]]


def test_an_audit_refuses_them_or_drops_them_with_a_count() -> None:
    """Nearly equal rows passed the check of overlap: the same records stood in two sets."""
    sets = {
        name: rows(120, 6, place)
        for place, name in enumerate(("members", "nonmembers", "auxiliary"))
    }
    sets["nonmembers"][:30] = sets["members"][:30] * (1 + 1e-7)
    shield = sn.harden(nn.Linear(6, 3))
    with pytest.raises(
        sn.errors.DataError, match="30 of the 120 nonmembers are nearly members .first:"
    ):
        sn.audit(shield, **sets, tier="quick", shadows=0)
    report = sn.audit(shield, **sets, tier="quick", shadows=0, duplicates="drop")
    line = "30 of the 120 members, 30 of the 120 nonmembers: they occur in another set too, exactly"
    assert any(one.startswith(line) for one in report.untested)


def test_a_group_of_missing_values_has_its_rows() -> None:
    sets = {
        name: (rows(160, 6, place), torch.arange(160) % 3)
        for place, name in enumerate(("members", "nonmembers"))
    }
    ages = torch.where(torch.arange(160) % 2 == 0, 30.0, torch.nan)
    report = sn.audit(
        sn.harden(nn.Linear(6, 3)),
        **sets,
        groups={"age": (ages, ages)},
        tier="quick",
        shadows=0,
    )
    assert report.groups == ("age = 30.0", "age = missing")
    found = {one.name: one for one in report.findings}
    assert found["accuracy.group.age = missing"].samples == 80


@pytest.mark.parametrize("sizes", [(100, 2000), (300, 5000)])
def test_few_columns_and_many_rows_bring_strangers_near(sizes) -> None:
    """A hundred rows beside thousands of three columns were called copies by the dozen."""
    for columns in (2, 3, 4):
        assert len(near_duplicates(rows(sizes[0], columns, 0), rows(sizes[1], columns, 1))) <= 1


def test_seconds_and_idle_records_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    seconds = 1.7e9 + 30 * 86_400 * torch.rand(1000, 1, generator=generator, dtype=torch.float64)
    flagged = torch.cat([seconds.round(), (seconds % 2 > 1).double()], 1)
    assert len(near_duplicates(*flagged.unique(dim=0).tensor_split(2))) == 0
    idle = [
        part * torch.where(torch.rand(500, 1, generator=generator) < share, 0.1, 1.0)
        for part, share in ((rows(500, 6, 1), 0.1), (rows(500, 6, 2), 0.6))
    ]
    assert len(near_duplicates(*idle)) <= 1


@pytest.mark.parametrize(("real", "binary"), [(2, 2), (3, 3), (1, 7)])
def test_strangers_of_one_group_that_lie_near_in_few_columns_are_left_alone(real, binary) -> None:
    for seed in range(4):
        sets = [
            torch.cat(
                [
                    rows(800, real, 2 * seed + part),
                    (rows(800, binary, 90 + 2 * seed + part) > 0).float(),
                ],
                1,
            )
            for part in (0, 1)
        ]
        assert len(near_duplicates(*sets)) == 0
