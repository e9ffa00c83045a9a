"""Runs the likelihood-ratio attack (LiRA) of SACRO-ML against a model that the caller trained.

Runs in an environment of its own, without shieldnet, on one thread:

    python3 -m venv sacro-venv
    sacro-venv/bin/pip install torch==2.13.0 sacroml==2.0.1
    sacro-venv/bin/python benchmarks/sacro_worker.py FOLDER

FOLDER holds data.npz (members_x, members_y, nonmembers_x, nonmembers_y), target.npz (w1, b1, w2,
b2 of Linear-ReLU-Linear) and settings.json (SETTINGS below). The worker writes result.json:

- scores: for each of the attack's six settings, the scores of the members and of the nonmembers
  in their order, larger for members; auc: what SACRO-ML says of the same scores.
- cpu_s, wall_s: of one attack, from the data to its metrics, its report left out; training the
  shadow models is nearly all of it. The other settings reread the same shadows and are not timed.

SACRO-ML seeds its shadow models with their numbers: another seed of the caller's changes the data
and the target, never the shadows' draws. Its cache of shadows has no fingerprint: every run gets a
fresh folder.
"""

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"

import numpy as np
import torch
from sacroml.attacks.likelihood_attack import LIRAAttack
from sacroml.attacks.target import Target
from sacroml.version import __version__
from torch import nn
from torch.utils.data import DataLoader

SETTINGS = ("hidden", "classes", "epochs", "lr", "momentum", "weight_decay", "batch", "shadows")
"""What settings.json says; other entries are the caller's own."""
KINDS = [
    (mode, fixed)
    for mode in ("online-carlini", "offline-carlini", "offline")
    for fixed in (False, True)
]
"""The settings of the attack: the likelihood, and whether all records share one variance."""
TIMED = ("online-carlini", True)
"""What Carlini et al. 2022 advise for few shadows: both likelihoods, one variance for all."""


class Perceptron(nn.Sequential):
    """The architecture of the target, which SACRO-ML makes anew for every shadow."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def train(
    model: nn.Module,
    dataloader: DataLoader,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Trains a shadow model the way the target was; SACRO-ML finds it by its name."""
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    for _ in range(epochs):
        for inputs, labels in dataloader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()


def target_of(folder: Path, settings: dict[str, Any]) -> Target:
    """Wraps the caller's model, its weights and its data as SACRO-ML wants them."""
    with np.load(folder / "data.npz") as data, np.load(folder / "target.npz") as state:
        arrays = {name: data[name] for name in data.files}
        weights = [torch.from_numpy(state[name]).float() for name in ("w1", "b1", "w2", "b2")]
    sizes = {
        "features": arrays["members_x"].shape[1],
        "hidden": settings["hidden"],
        "classes": settings["classes"],
    }
    model = Perceptron(**sizes)
    model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    # It imports both modules by a path relative to a folder on sys.path: this script's own.
    here = Path(__file__).name
    return Target(
        model=model.eval(),
        model_module_path=here,
        model_name="Perceptron",
        model_params=sizes,
        train_module_path=here,
        train_params={
            name: settings[name] for name in ("epochs", "lr", "momentum", "weight_decay")
        },
        batch_size=settings["batch"],
        X_train=arrays["members_x"],
        y_train=arrays["members_y"],
        X_test=arrays["nonmembers_x"],
        y_test=arrays["nonmembers_y"],
    )


def lira(
    target: Target, shadows: int, kind: tuple[str, bool], cache: str, *, individual: bool
) -> LIRAAttack:
    """Runs the attack; shadows that lie in the cache are not trained again."""
    mode, fixed = kind
    attack = LIRAAttack(
        output_dir=cache,
        write_report=False,
        n_shadow_models=shadows,
        mode=mode,
        fix_variance=fixed,
        report_individual=individual,
    )
    attack.attack(target)
    return attack


def cpu_seconds() -> float:
    """Returns user and system time of this process and of its children."""
    return sum(os.times()[:4])


def main() -> None:
    """Attacks what lies in the folder and writes result.json beside it."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    missing = [name for name in SETTINGS if name not in settings]
    if missing:
        sys.exit(f"Expected {', '.join(SETTINGS)} in settings.json; {', '.join(missing)} missing.")
    target = target_of(folder, settings)
    members, shadows = len(target.X_train), settings["shadows"]
    result: dict[str, Any] = {"sacroml": __version__, "torch": torch.__version__}
    result |= {"shadows": shadows, "timed": name_of(TIMED), "scores": {}, "auc": {}}
    with tempfile.TemporaryDirectory() as cache:
        wall, cpu = time.perf_counter(), cpu_seconds()
        lira(target, shadows, TIMED, cache, individual=False)
        result |= {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}
        for kind in KINDS:
            attack = lira(target, shadows, kind, cache, individual=True)
            scores = [float(score) for score in attack.result["member_prob"]]
            name = name_of(kind)
            result["scores"][name] = {"members": scores[:members], "nonmembers": scores[members:]}
            result["auc"][name] = float(attack.attack_metrics[0]["AUC"])
    (folder / "result.json").write_text(json.dumps(result, allow_nan=False), encoding="utf-8")


def name_of(kind: tuple[str, bool]) -> str:
    """Names a setting of the attack."""
    mode, fixed = kind
    return f"{mode}, {'one variance' if fixed else 'a variance per record'}"


if __name__ == "__main__":
    main()
