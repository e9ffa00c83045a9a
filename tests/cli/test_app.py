import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import Finished, shieldnet

import shieldnet as sn

ROOT = Path(__file__).parents[2]

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Linear(6, 3)

def unseeded():
    return nn.Linear(6, 3)

def train(data, seed):
    torch.manual_seed(seed)
    return nn.Linear(6, 3)

def hardened():
    import shieldnet as sn
    return sn.Shield(model(), sn.TopK(2))

def raises():
    raise KeyError("theirs")

def nan():
    class Broken(nn.Module):
        def forward(self, x):
            return x[:, :3] / 0
    return Broken()

def crash():
    class Crash(nn.Module):
        def forward(self, x):
            if len(x) > 1:
                raise RuntimeError("a defect in the middle")
            return x[:, :3]
    return Crash()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "served.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    for name, rows in (("members", 100), ("nonmembers", 100), ("auxiliary", 120)):
        inputs = rng.normal(size=(rows, 6)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=inputs.astype(float), y=rng.integers(0, 3, rows))
    np.savez(folder / "narrow.npz", x=np.ones((30, 2)), y=np.zeros(30, int))
    (folder / "lenient.toml").write_text("max_leakage = 0.9\nmax_membership_auc = 1.0\n")
    (folder / "private.toml").write_text("max_epsilon = 4.0\n")
    (folder / "harsh.toml").write_text("min_accuracy = 0.99\n")
    (folder / "unsure.toml").write_text("max_membership_auc = 0.52\n")
    return folder


def audit(project: Path, *extra: str, model: str = "served:model") -> Finished:
    sets = [f"--{name}={name}.npz" for name in ("members", "nonmembers", "auxiliary")]
    tier = [] if any(one.startswith("--tier") for one in extra) else ["--tier=quick"]
    return shieldnet(project, "audit", model, *sets, *tier, *extra)


def test_shadows_are_trained_by_the_users_own_function_and_kept(project) -> None:
    given = ("--train=served:train", "--shadows=4", "--cache=kept", "--policy=lenient.toml")
    result = audit(project, *given)
    assert result.returncode == 0, result.stderr
    assert "quick audit: 6 attacks and 3 checks on 2 shields, 4 shadows" in result.stderr
    kept = set((project / "kept").iterdir())
    assert audit(project, *given).returncode == 0
    assert set((project / "kept").iterdir()) == kept


def test_a_model_that_meets_the_policy_exits_with_0(project) -> None:
    result = audit(
        project, "--policy=lenient.toml", "--html=out.html", "--json=out.json", "--preset=strict"
    )
    assert result.returncode == 0, result.stderr
    assert "strict" in result.stdout
    assert "pass" in result.stdout
    assert (project / "out.html").read_text().startswith("<!doctype html>")
    assert (project / "out.json").exists()


def test_a_model_that_breaks_the_policy_exits_with_1_and_still_writes_its_report(project) -> None:
    result = audit(project, "--policy=harsh.toml", "--json=harsh.json")
    assert result.returncode == 1
    assert "PolicyFailed" in result.stderr
    assert "min_accuracy = 0.99" in result.stderr
    assert (project / "harsh.json").exists()


def test_a_measurement_too_small_to_tell_exits_with_3(project) -> None:
    result = audit(project, "--policy=unsure.toml")
    assert result.returncode == 3, result.stdout
    assert "PolicyInconclusive" in result.stderr


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--preset=opne"], "Expected --preset to be one of"),
        (["--policy=nowhere.toml"], "Cannot read nowhere.toml"),
        (["--members=nowhere.npz"], "Cannot read the members"),
        (["--nonmembers=members.npz"], "are also members"),
        (["-o", "report.pdf"], "ends in .json, .html, .md, .xml, .sarif"),
        (["-o", "report.xml"], "report.xml has a test for each limit of a policy"),
        (["--html=nowhere/report.html"], "there is no folder nowhere"),
        (
            ["--shield=shield.toml", "--outputs=probabilities"],
            "leave --preset, --outputs, --axis, --calibrate and --release-positions out",
        ),
        (["--seed=18446744073709551616"], "Expected --seed from 0"),
        (["--members=served:raises"], "cannot load 'served:raises'"),
        (["--nonmembers=narrow.npz"], "of one shape"),
        (["--colour"], "No such option"),
        (["--tier=huge"], "Expected --tier to be one of quick"),
        (["--shadows=2"], "at least 4 shadows"),
        (["--train=served:nothing"], "Expected --train as package.module:name; cannot load"),
        (["--train=served:raises"], "ConfigError: train((inputs, labels), seed) failed"),
        (["--sensitive=age"], "no column age"),
        (["--canaries=served:model"], "as plant_canaries returns them"),
    ],
)
def test_bad_input_exits_with_2_and_one_clear_line(project, extra, words) -> None:
    result = audit(project, *extra)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_of_nans_is_bad_input(project) -> None:
    result = audit(project, model="served:nan")
    assert result.returncode == 2
    assert "NaN or Inf in row 0" in result.stderr


def test_a_factory_that_returns_a_shield_is_judged_as_it_is_served(project) -> None:
    """Another preset was put around it and judged: an infinite privacy cost passed."""
    result = audit(project, "--json=served.json", model="served:hardened")
    assert result.returncode in (0, 1, 3), result.stderr
    report = sn.Report.load(project / "served.json")
    assert [one.name for one in report.subjects] == ["bare", "served"]
    assert "TopK" in report["served"].certificate.shield
    assert report["served"].certificate.cost.bits == float("inf")
    for extra in (
        "--preset=strict",
        "--outputs=logits",
        "--axis=1",
        "--calibrate=members.npz",
        "--shield=shield.toml",
    ):
        refused = audit(project, extra, model="served:hardened")
        assert refused.returncode == 2
        assert "is a Shield already, which is judged as it is served" in refused.stderr


def test_a_crash_exits_with_4(project) -> None:
    result = audit(project, model="served:crash")
    assert result.returncode == 4
    assert "a defect in the middle" in result.stderr


def test_harden_writes_a_shield_and_its_certificate(project) -> None:
    result = shieldnet(
        project, "harden", "served:model", "--preset=open", "--classes=3", "-o", "hardened"
    )
    assert result.returncode == 0, result.stderr
    assert "Certificate for Linear -> [Softmax()] -> TopK" in result.stdout
    assert "bits" in (project / "hardened" / "certificate.txt").read_text()
    again = audit(project, "--shield=hardened/shield.toml", "--policy=lenient.toml")
    assert again.returncode == 0, again.stderr


def test_harden_without_classes_says_that_there_is_no_certificate(project) -> None:
    result = shieldnet(project, "harden", "served:model", "-o", "plain")
    assert result.returncode == 0
    assert "No certificate" in result.stdout
    assert not (project / "plain" / "certificate.txt").exists()


def test_help_answers_without_loading_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['shieldnet', '--help']\n"
        "try: runpy.run_module('shieldnet', run_name='__main__')\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'captum'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "harden" in result.stdout
    assert result.stdout.strip().endswith("[]")


def test_the_version_is_told(tmp_path) -> None:
    assert shieldnet(tmp_path, "--version").stdout == f"shieldnet {sn.__version__}\n"


def test_a_process_ends_with_the_commands_code_and_loads_no_more_than_it_needs(project) -> None:
    code = (
        "import sys\nfrom shieldnet.__main__ import main\n"
        "sys.argv = ['shieldnet', 'policy', 'check', 'nowhere.toml']\n"
        "try: main()\n"
        "finally: print(sorted({'scipy', 'captum', 'opacus', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=project
    )
    assert result.returncode == 2
    assert "Cannot read nowhere.toml" in result.stderr
    assert result.stdout.strip().endswith("[]")


def test_a_missing_extra_gives_the_install_command() -> None:
    code = "import sys; sys.modules['typer'] = None\nfrom shieldnet.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "pip install -c constraints.txt -e '.[cli]'" in result.stderr


def test_harden_writes_down_where_the_classes_are_and_counts_positions(project) -> None:
    result = shieldnet(
        project,
        *("harden", "served:model", "--preset=strict", "--axis=1", "--classes=4"),
        *("--positions=4,4", "-o", "segmentation"),
    )
    assert result.returncode == 0, result.stderr
    assert "bits 32.00" in result.stdout
    assert "axis = 1" in (project / "segmentation" / "shield.toml").read_text()
    result = shieldnet(project, "harden", "served:model", "--positions=wide", "-o", "wrong")
    assert result.returncode == 2
    assert "Expected --positions as whole numbers such as 480,640; got 'wide'" in result.stderr


def test_finetune_writes_weights_and_a_guarantee_that_audit_reads(project: Path) -> None:
    trained = shieldnet(
        project, "finetune", "served:model", "--data", "members.npz", "-o", "private",
        "--epsilon", "4", "--delta", "1e-3", "--epochs", "5", "--canaries", "50",
        "--start", "public", "--heldout", "nonmembers.npz",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "epsilon 4.00 at delta 0.001" in trained.stdout
    audited = shieldnet(
        project, "audit", "served:model", "--weights", "private/model.safetensors",
        "--members", "members.npz", "--nonmembers", "nonmembers.npz", "--tier", "quick",
        "--shadows", "0", "--guarantee", "private/guarantee.json", "--policy", "private.toml",
    )  # fmt: skip
    assert "training: epsilon 4.00 at delta 0.001, proven." in audited.stdout
    assert "no max_epsilon" not in audited.stdout
    assert "the guarantee is unsigned" in audited.stdout
    assert audited.returncode == 0, audited.stdout + audited.stderr
    again = shieldnet(
        project, "finetune", "served:model", "--weights", "private/model.safetensors",
        "--data", "members.npz", "-o", "further", "--epsilon", "1", "--delta", "1e-3",
        "--epochs", "2", "--start", "private/guarantee.json",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "composed with 1 earlier training" in again.stdout


def test_finetune_prints_the_audit_that_comes_next_and_it_runs(project: Path) -> None:
    trained = shieldnet(
        project, "finetune", "served:model", "--data", "members.npz", "-o", "next model",
        "--epsilon", "4", "--delta", "1e-3", "--epochs", "2", "--start", "public",
        "--validation", "nonmembers.npz",
    )  # fmt: skip
    (line,) = [line for line in trained.stdout.splitlines() if line.startswith("Next: ")]
    command = shlex.split(line.removeprefix("Next: "))
    assert command == [
        "shieldnet", "audit", "served:model", "--weights", "next model/model.safetensors",
        "--guarantee", "next model/guarantee.json", "--members", "members.npz",
        "--nonmembers", "nonmembers.npz", "--auxiliary", "OTHER_DATA",
        "-o", "next model/report.html",
    ]  # fmt: skip
    assert "Add --policy default, or a file of shieldnet policy init" in trained.stdout
    command[command.index("OTHER_DATA")] = "auxiliary.npz"
    assert "The model took 2 steps in all. Private training usually needs 100" in trained.stdout
    done = shieldnet(project, *command[1:], "--tier=quick", "--shadows=0")
    assert done.returncode == 0, done.stderr
    plain = shieldnet(
        project, "finetune", "served:model", "--data", "members.npz", "-o", "yes-or-no",
        "--epochs", "1", "--axis", "1",
    )  # fmt: skip
    assert (
        "--members members.npz --nonmembers OTHER_DATA --auxiliary MORE_DATA --axis 1 -o"
        in plain.stdout
    )
    assert "--guarantee" not in plain.stdout


def test_a_stop_is_said_and_gives_the_exit_code_of_one(project: Path, monkeypatch) -> None:
    from shieldnet.training.private.noisy_sums import DpSgd

    call, steps = DpSgd.__call__, []

    def stopped(self, step, state):
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return call(self, step, state)

    given = (
        "finetune", "served:unseeded", "--data", "members.npz", "-o", "stopped", "--epsilon", "4",
        "--delta", "1e-3", "--epochs", "6", "--checkpoint", "ck", "--checkpoint-every", "1e-9",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(DpSgd, "__call__", stopped)
        first = shieldnet(project, *given)
    assert first.returncode == 130
    assert "Stopped at step 3 of 6; the same command resumes from step 3" in first.stderr
    again = shieldnet(project, *given)
    assert "continuing from step 3 of 6" in again.stderr
    assert "6 steps, 3 of them in this run, in" in again.stdout
    state = torch.random.get_rng_state()
    shieldnet(project, *given, "--force")
    assert torch.equal(torch.random.get_rng_state(), state)
    edited = shieldnet(project, *given, "--force", "--learning-rate", "0.3")
    assert "What differs: --learning-rate: 0.1 then, 0.3 now" in edited.stderr


def test_finetune_writes_over_no_earlier_model_unless_told(project: Path) -> None:
    given = ("finetune", "served:model", "--data", "members.npz", "-o", "kept", "--epochs", "1")
    assert shieldnet(project, *given).returncode == 0
    before = (project / "kept" / "model.safetensors").read_bytes()
    again = shieldnet(project, *given, "--learning-rate", "0.5")
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert (project / "kept" / "model.safetensors").read_bytes() == before
    assert shieldnet(project, *given, "--learning-rate", "0.5", "--force").returncode == 0
    assert (project / "kept" / "model.safetensors").read_bytes() != before


def test_finetune_tells_loss_accuracy_and_how_far_it_is(project: Path) -> None:
    trained = shieldnet(
        project, "finetune", "served:model", "--data", "members.npz", "-o", "adaptive",
        "--validation", "nonmembers.npz", "--optimizer", "adam", "--learning-rate", "0.01",
        "--epsilon", "4", "--delta", "1e-3", "--adaptive-clip", "--epochs", "20", "--part", "bias",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert re.search(
        r"Validation: accuracy [\d.]+ \[.*\] before, [\d.]+ \[.*\] after; loss [\d.]+ before",
        trained.stdout,
    )
    assert re.search(r"step 10 of 20, epsilon \d\.\d+ so far", trained.stderr)
    assert "step 20 of 20, epsilon" in trained.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--delta", "1e-3"), "Expected --epsilon"),
        (("--epsilon", "4"), "Expected --delta"),
        (("--epsilon", "4", "--delta", "0.5"), "Expected --delta below 1 / 100 records"),
        (("--part", "most"), "Expected --part to be one of"),
        (("--adaptive-clip",), "Expected --epsilon"),
        (("--optimizer", "rmsprop"), "Expected --optimizer to be one of sgd, adam"),
        (("--checkpoint-every", "0"), "Expected a finite --checkpoint-every > 0"),
        (("--validation", "members.npz"), "100 of the validation rows are also training records"),
    ],
)
def test_finetune_says_what_is_missing(project: Path, arguments, words) -> None:
    done = shieldnet(
        project, "finetune", "served:model", "--data", "members.npz", "-o", "no", *arguments
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert not (project / "no").exists()


def test_a_guarantee_that_is_none_is_refused(project: Path) -> None:
    (project / "forged.json").write_text('{"epsilon": 0.1}')
    done = shieldnet(
        project, "audit", "served:model", "--members", "members.npz",
        "--nonmembers", "nonmembers.npz", "--guarantee", "forged.json",
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not a guarantee as finetune writes it" in done.stderr


@pytest.fixture(scope="module")
def files(project) -> Path:
    import torch
    from torch import nn

    size = ({0: torch.export.Dim("batch", min=1)},)
    torch.manual_seed(0)
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.randn(4, 3),), dynamic_shapes=size)
    torch.export.save(program, project / "model.pt2")
    rng = np.random.default_rng(1)
    for name, rows in (("members", 120), ("nonmembers", 120), ("auxiliary", 120)):
        lines = ["age,income,sex,place,label"]
        lines += [
            f"{rng.normal():.6f},{rng.normal():.6f},{rng.integers(2)},"
            f"{rng.choice(['north', 'south'])},{rng.integers(2)}"
            for _ in range(rows)
        ]
        (project / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (project / "groups.toml").write_text('[groups."*"]\nmax_membership_auc = 1.0\n')
    return project


class TestFiles:
    """Models and data that come as files, from the shell to the exit code."""

    def run(self, files: Path, *extra: str, model: str = "model.pt2"):
        sets = [f"--{name}={name}.csv" for name in ("members", "nonmembers", "auxiliary")]
        given = ("--tier=quick", "--shadows=0", *sets, *extra)
        return shieldnet(files, "audit", model, *given)

    def test_a_table_and_an_exported_program_are_audited_by_groups(self, files) -> None:
        result = self.run(
            files,
            "--group=sex",
            "--group=place",
            "--sensitive=sex",
            "--policy=groups.toml",
            "--json=table.json",
        )
        assert result.returncode == 0, result.stderr
        report = sn.Report.load(files / "table.json")
        assert report.columns == ("age", "income", "sex")
        assert report.groups == ("sex = 0", "sex = 1", "place = north", "place = south")
        assert report["balanced"]["membership.group.place = north.auc"].samples > 60
        assert report["balanced"]["accuracy.group.sex = 1"].samples < 120

    @pytest.mark.parametrize(
        ("extra", "model", "words"),
        [
            (("--label=job",), "model.pt2", "has no column job. It has: age, income, sex, place"),
            ((), "model.pt2", "got words in: place. Encode them as numbers"),
            (("--group=job",), "model.pt2", "has no column job"),
            (("--group=place",), "nowhere.pt2", "Cannot read the model from nowhere.pt2"),
            (
                ("--group=place",),
                "members.csv",
                "is not a supported model file. Pass a file ending in",
            ),
            (("--group=place", "--weights=w.pt"), "model.pt2", "contains its weights: omit"),
        ],
    )
    def test_what_does_not_fit_exits_with_2(self, files, extra, model, words) -> None:
        result = self.run(files, *extra, model=model)
        assert result.returncode == 2
        assert words in result.stderr.replace("\n", " ")
        assert "Traceback" not in result.stderr
