import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from shell import shieldnet

from shieldnet.core.errors import DataError
from shieldnet.data.duplicates import near_duplicates
from shieldnet.data.examples import require_disjoint
from shieldnet.files.dividing import divide
from shieldnet.files.sources import load_examples
from shieldnet.files.tables import read_table


def table(folder: Path, rows: int = 40) -> Path:
    """Writes a table in which every record stands twice, once with a wrong label."""
    lines = [f"{n % 20},city {n % 20 % 3},{n // 20}" for n in range(rows)]
    path = folder / "data.csv"
    path.write_text("age,city,y\n" + "\n".join(lines) + "\n")
    return path


def test_equal_records_go_together_and_words_stay_as_they_are(tmp_path) -> None:
    path = table(tmp_path)
    done = shieldnet(tmp_path, "split", str(path), "-o", str(tmp_path / "sets"))
    assert done.returncode == 0, done.stderr
    sets = {one.stem: read_table(one, "set") for one in (tmp_path / "sets").iterdir()}
    assert set(sets) == {"members", "nonmembers", "auxiliary"}
    ages = {name: set(one["age"].tolist()) for name, one in sets.items()}
    assert sum(map(len, ages.values())) == 20
    assert set.union(*ages.values()) == set(range(20))
    assert len(sets["members"]["age"]) == 20
    assert set(sets["members"]["city"]) <= {"city 0", "city 1", "city 2"}
    assert "shieldnet audit MODEL --members" in done.stdout


def test_what_is_there_stays_unless_it_is_asked_for(tmp_path) -> None:
    path = table(tmp_path)
    command = ("split", str(path), "-o", str(tmp_path), "--share=0.5", "--share=0.5")
    assert shieldnet(tmp_path, *command).returncode == 0
    again = shieldnet(tmp_path, *command)
    assert again.returncode == 2
    assert "members.csv" in again.stderr
    assert shieldnet(tmp_path, *command, "--force").returncode == 0


def test_arrays_are_divided_with_all_that_belongs_to_their_rows(tmp_path) -> None:
    x = np.repeat(np.arange(30.0), 2).reshape(-1, 1)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(60), group=np.arange(60) % 2)
    parts = divide(tmp_path / "data.npz", (0.5, 0.5), label=None, seed=0)
    for rows, name in zip(parts.rows, ("a", "b"), strict=True):
        parts.write(rows, tmp_path / f"{name}.npz")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert not set(a["x"].ravel()) & set(b["x"].ravel())
        assert sorted([*a["y"], *b["y"]]) == list(range(60))
        assert (a["group"] == a["y"] % 2).all()


def test_a_packed_table_is_read_and_one_that_unpacks_to_too_much_is_not(
    tmp_path, monkeypatch
) -> None:
    path = tmp_path / "data.CSV.gz"
    path.write_bytes(gzip.compress(table(tmp_path).read_bytes()))
    assert len(read_table(path, "members")["age"]) == 40
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 10)[:-9])
    with pytest.raises(DataError, match="is not a readable .* table"):
        read_table(path, "members")
    monkeypatch.setattr("shieldnet.files.tables.MAX_FILE_BYTES", 100)
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 10_000))
    monkeypatch.setattr("shieldnet.files.sizes.MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="would take 101 bytes"):
        read_table(path, "members")


def test_a_table_keeps_how_its_values_were_written(tmp_path) -> None:
    lines = [f'{n:05};NA;{n}.50;"a;b, {n}";{n % 2}' for n in range(20)]
    path = tmp_path / "data.tsv.gz"
    path.write_bytes(gzip.compress(("zip;state;price;note;y\n" + "\n".join(lines)).encode()))
    parts = divide(path, (0.5, 0.5), label=None, seed=0)
    assert parts.ending == ".tsv.gz"
    written = []
    for number, rows in enumerate(parts.rows):
        parts.write(rows, tmp_path / f"{number}{parts.ending}")
        with gzip.open(tmp_path / f"{number}{parts.ending}", "rt") as file:
            first, *rest = csv.reader(file, delimiter=";")
        assert first == ["zip", "state", "price", "note", "y"]
        written += rest
    assert sorted(written) == list(csv.reader(lines, delimiter=";"))


@pytest.mark.parametrize(("ending", "mark"), [(".csv", ","), (".tsv", "\t"), (".csv.gz", ";")])
def test_a_line_stays_as_it_is_and_only_what_needs_quotes_has_them(tmp_path, ending, mark) -> None:
    rows = [(f"{n:03}", f"{n}.50", "", f"word {n}", f"1e-{n}", n % 2) for n in range(20)]
    rows[3] = ("003", "3.50", "", f'"a{mark}b ""c"""', "-0.0", 1)
    lines = [mark.join(map(str, row)) for row in [("a", "b", "c", "d", "e", "y"), *rows]]
    opened = gzip.open if ending.endswith(".gz") else open
    with opened(tmp_path / f"data{ending}", "wt") as file:
        file.write("\n".join(lines) + "\n")
    parts = divide(tmp_path / f"data{ending}", (0.5, 0.5), label=None, seed=0)
    written = []
    for number, places in enumerate(parts.rows):
        target = tmp_path / f"{number}{parts.ending}"
        parts.write(places, target)
        with opened(target, "rt") as file:
            first, *rest = file.read().splitlines()
        assert first == lines[0]
        written += rest
    assert sorted(written) == sorted(lines[1:])


def test_records_are_one_where_an_audit_reads_them_as_one(tmp_path) -> None:
    rows = [
        f"{n}.1{'0' * (n % 3)}{'00000001' * twin},{'fm'[twin]},0"
        for n in range(20)
        for twin in (0, 1)
    ]
    path = tmp_path / "data.csv"
    path.write_text("age,sex,y\n" + "\n".join(rows) + "\n")
    sets = ("--share=0.5", "--share=0.5", "--group=sex", "-o", str(tmp_path))
    done = shieldnet(tmp_path, "split", str(path), *sets)
    assert done.returncode == 0, done.stderr
    members, nonmembers = (
        load_examples(str(tmp_path / f"{name}.csv"), name, groups=("sex",)).examples
        for name in ("members", "nonmembers")
    )
    require_disjoint(members, nonmembers)
    assert not len(near_duplicates(members.inputs, nonmembers.inputs))


def test_dates_are_texts_as_an_audit_reads_them(tmp_path) -> None:
    path = tmp_path / "dates.csv"
    days = [f"{number % 28 + 1:02}" for number in range(60)]
    rows = [f"{number},2020-11-{day},12:{day}\n" for number, day in enumerate(days)]
    path.write_text("age,joined,at\n" + "".join(rows))
    done = shieldnet(tmp_path, "split", "dates.csv", "-o", "sets")
    assert done.returncode == 0, done.stderr
    kept = "".join(part.read_text() for part in (tmp_path / "sets").glob("*.csv"))
    assert all(row in kept for row in rows)


def test_two_columns_that_may_be_the_label_are_refused(tmp_path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("a,y,target\n" + "\n".join(f"{n},0,1" for n in range(9)))
    with pytest.raises(DataError, match="y and target: name one with --label"):
        divide(path, (0.5, 0.5), label=None, seed=0)
    with pytest.raises(DataError, match="no column sex"):
        divide(path, (0.5, 0.5), label="y", groups=("sex",), seed=0)


@pytest.mark.parametrize("name", ["data.png", "data.npy", "data"])
def test_other_files_are_refused(tmp_path, name) -> None:
    with pytest.raises(DataError, match="Expected a table"):
        divide(tmp_path / name, (0.5, 0.5), label=None, seed=0)


@pytest.mark.parametrize("odd", ["word", "true", "1.5"])
def test_one_value_of_another_kind_does_not_divide_equal_records(tmp_path, odd) -> None:
    """In the part that it does not go to, the column is read as numbers."""
    large = 2**53 + 2**29 + 1
    rows = [f"{1 + n % 7},{large + n % 2}" for n in range(60)] + [f"{odd},{large}"]
    rows += [f"{1 + n % 7}.0,{large + n % 2}.0" for n in range(60)]
    path = tmp_path / "data.csv"
    path.write_text("a,b\n" + "\n".join(rows) + "\n")
    for seed in range(8):
        parts = divide(path, (0.5, 0.5), label=None, seed=seed)
        keys = []
        for number, places in enumerate(parts.rows):
            parts.write(places, tmp_path / f"{number}.csv")
            lines = (tmp_path / f"{number}.csv").read_text().split("\n")[1:-1]
            values = [line.replace('"', "").split(",") for line in lines]
            keys.append(
                {tuple(np.float32(float(v)) for v in row) for row in values if odd not in row}
            )
        assert not keys[0] & keys[1]


@pytest.mark.parametrize("x", [np.array(["a", "b"]), np.zeros(5), np.zeros((0, 3)), np.array(3.0)])
def test_arrays_that_hold_no_rows_of_numbers_are_refused(tmp_path, x) -> None:
    np.savez(tmp_path / "data.npz", x=x)
    with pytest.raises(DataError, match="Expected a numeric array x"):
        divide(tmp_path / "data.npz", (0.5, 0.5), label=None, seed=0)
