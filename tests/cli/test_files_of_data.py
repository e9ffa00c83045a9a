"""Files of data that are not as they should be: where the fault is, and the way on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from shell import shieldnet

import shieldnet as sn

MODULE = "from torch import nn\n\ndef model():\n    return nn.Linear(3, 2)\n"


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "served.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    rows = [",".join(map(str, row)) for row in rng.normal(size=(40, 3)).round(3).tolist()]
    lines = [f"{row},{number % 2}" for number, row in enumerate([*rows, *rows[:4]])]
    (tmp_path / "good.csv").write_text("\n".join(["a,b,c,label", *lines]))
    (tmp_path / "plain.csv").write_text("\n".join(["a,b,c,outcome", *lines]))
    holes = [lines[0], "1.5,,2,0", "1,2,,1", "1,,3,"]
    (tmp_path / "holes.csv").write_text("\n".join(["a,b,c,label", *holes]))
    shutil.copy(tmp_path / "good.csv", tmp_path / "good.data")
    inputs = rng.normal(size=(40, 3))
    inputs[7, 2] = np.nan
    np.savez(tmp_path / "holes.npz", x=inputs, y=np.zeros(40, int))
    return tmp_path


def test_split_counts_distinct_records_as_an_audit_does(project) -> None:
    done = shieldnet(project, "split", "good.csv", "-o", "sets", "--share=0.5", "--share=0.5")
    assert done.returncode == 0, done.stderr
    rows = [len((project / "sets" / f"{name}.csv").read_text().split()) - 1
            for name in ("members", "nonmembers")]  # fmt: skip
    assert sum(rows) == 44
    for name, count in zip(("members", "nonmembers"), rows, strict=True):
        equal = "" if count == 20 else ", 20 with distinct inputs, as audits count"
        assert f"{name}.csv: {count} rows{equal}." in done.stdout
    sets = [f"--{name}=sets/{name}.csv" for name in ("members", "nonmembers")]
    audited = shieldnet(project, "audit", "served:model", *sets, "--tier=quick", "--shadows=0")
    assert "needs 300 nonmembers, there are 20 with distinct inputs" in audited.stdout


def test_split_says_which_columns_there_are_where_none_is_called_a_label(project) -> None:
    done = shieldnet(project, "split", "plain.csv", "-o", "sets")
    assert "No column of plain.csv is called label, y, target or class: name the" in done.stdout
    assert "--label. It has: a, b, c, outcome." in done.stdout
    named = shieldnet(project, "split", "plain.csv", "-o", "named", "--label=outcome")
    assert "No column" not in named.stdout


def test_an_audit_says_first_that_a_table_has_no_label(project) -> None:
    (project / "served.py").write_text(MODULE.replace("Linear(3,", "Linear(4,"))
    for name, rows in (("one", slice(1, 21)), ("two", slice(21, 41))):
        lines = (project / "plain.csv").read_text().splitlines()
        (project / f"{name}.csv").write_text("\n".join([lines[0], *lines[rows]]))
    sets = ("--members=one.csv", "--nonmembers=two.csv", "--tier=quick", "--shadows=0")
    audited = shieldnet(project, "audit", "served:model", *sets)
    first = audited.stderr.splitlines()[0]
    assert first.startswith(
        "No label column found in one.csv and two.csv (label, y, target, class)"
    )


VALUES = """version = 1
outputs = "values"
[[defense]]
name = "ClipRange"
low = -3.0
high = 3.0
[[defense]]
name = "RoundTo"
step = 0.5
"""


def write_priced(project: Path, form: str, *names: str, rows: int) -> None:
    """Writes sets of three columns with a cost as their target."""
    rng = np.random.default_rng(1)
    for name in names:
        inputs, targets = rng.normal(size=(rows, 3)), rng.normal(size=rows)
        if form == "npz":
            np.savez(project / f"{name}.npz", x=inputs, cost=targets)
        else:
            lines = [",".join(map(str, row)) for row in np.c_[inputs, targets].tolist()]
            (project / f"{name}.csv").write_text("\n".join(["a,b,c,cost", *lines]))


@pytest.mark.parametrize("form", ["csv", "npz"])
def test_the_targets_of_a_regression_are_read_as_numbers(project, form) -> None:
    (project / "values.toml").write_text(VALUES)
    (project / "priced.py").write_text(MODULE.replace("3, 2", "3, 1"))
    write_priced(project, form, "members", "nonmembers", rows=40)
    given = [f"--{name}={name}.{form}" for name in ("members", "nonmembers")]
    settings = ["--label=cost", "--shield=values.toml", "--tier=quick", "--shadows=0"]
    done = shieldnet(project, "audit", "priced:model", *given, *settings)
    assert done.returncode == 0, done.stderr
    assert "R2" in done.stdout
    assert "membership" in done.stdout
    plain = shieldnet(project, "audit", "priced:model", *given, "--label=cost", "--tier=quick")
    assert plain.returncode == 2
    assert "Expected whole-number labels for the members" in plain.stderr


@pytest.mark.parametrize("form", ["csv", "npz"])
def test_the_range_of_values_is_measured_on_public_rows(project, form) -> None:
    """Audit and folder agree: the same rows give the same shield, in the model's own float type."""
    (project / "priced.py").write_text(
        "import torch\n\ndef model():\n    torch.manual_seed(0)\n    return torch.nn.Linear(3, 1)\n"
    )
    write_priced(project, form, "members", "nonmembers", "public", rows=120)
    sets = [f"--{name}={name}.{form}" for name in ("members", "nonmembers")]
    shown = ["--outputs=values", f"--calibrate=public.{form}", "--preset=strict", "--label=cost"]
    settings = ["--tier=quick", "--shadows=0", "-oreport.json"]
    done = shieldnet(project, "audit", "priced:model", *sets, *shown, *settings)
    assert done.returncode == 0, done.stderr
    assert "ClipRange(low=" in sn.Report.load(project / "report.json")["strict"].certificate.shield
    written = shieldnet(project, "harden", "priced:model", *shown, "-ofolder", "--classes=2")
    assert written.returncode == 0, written.stderr
    audited = sn.Report.load(project / "report.json")["strict"].certificate.shield
    assert audited.partition("(")[2] in written.stdout
    for role in ("members", "nonmembers"):
        own = [one.replace(f"public.{form}", f"{role}.{form}") for one in shown]
        refused = shieldnet(project, "audit", "priced:model", *sets, *own, *settings)
        assert refused.returncode == 2
        assert f"120 of 120 different rows of --calibrate are {role}" in refused.stderr


@pytest.mark.parametrize("command", ["split", "audit", "finetune"])
def test_a_table_of_an_unknown_ending_is_refused_with_the_name_that_works(project, command) -> None:
    given = {
        "split": ("split", "good.data"),
        "audit": ("audit", "served:model", "--members=good.data", "--nonmembers=good.csv"),
        "finetune": ("finetune", "served:model", "--data=good.data", "-o", "no"),
    }
    done = shieldnet(project, *given[command])
    assert done.returncode == 2
    assert "name it good.csv, with the names of the columns in the first line" in done.stderr


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("holes.csv", "2 missing values in b (first: row 1), 1 missing value in c (first: row 2)"),
        ("holes.csv", "1 missing value in label (first: row 3)"),
        ("holes.csv", "dropna().to_csv(NEW, index=False)"),
        ("holes.npz", "in 1 of 40 rows (first: row 7, column 2, counted from 0). Drop"),
        ("plain.csv", "It has: "),
    ],
)
def test_what_is_missing_in_a_file_is_told_by_row_and_column(project, file, words) -> None:
    done = shieldnet(project, "finetune", "served:model", f"--data={file}", "-o", "no")
    assert done.returncode == 2
    assert words in done.stderr.replace("\n", " ")


def test_epsilon_without_delta_names_the_flag_and_a_value(project) -> None:
    given = ("--data=good.csv", "-o", "no", "--epsilon=3")
    done = shieldnet(project, "finetune", "served:model", *given)
    assert done.returncode == 2
    assert "Expected --delta beside the noise, got none" in done.stderr
    assert "well below 1 / records, such as --delta 1e-5 for 10,000" in done.stderr
