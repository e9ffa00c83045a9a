"""Every example runs as a user would run it, and says what it should."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SAYS = {
    "segmentation.py": ("mean IoU", "positions"),
    "segmentation_audit.py": ("labels: inversion.map 0.000", "fail  rounded: inversion.map"),
    "regression.py": ("R2", "bits"),
    "credit.py": ("bits",),
    "embedding_service.py": ("retrieval.recall", "inversion.search", "balanced", "RoundTo"),
    "private.py": ("epsilon", "canaries", "after:"),
    "ray_train.py": ("epsilon 8.00", "weights: 1.weight"),
    "language_model.py": ("members told with AUC", "verbatim", "policy says fail"),
    "hugging_face.py": ("hidden_states", "generate"),
    "keras_model.py": ("predict", "bits"),
    "sklearn_pipeline.py": ("bits",),
    "mlflow_model.py": ("as the shield: True", "pickles: []", "weights.safetensors was changed"),
    "kserve_model.py": ("as the shield: True", "refused: These rows have no answer."),
    "serve_fastapi.py": ("200: [[0.", "429: "),
    "serve_litserve.py": ("200: {", "429: "),
    "serve_ray.py": ("budget exceeded",),
}
WARN_OF_THEMSELVES = {"ray_train.py", "serve_ray.py", "mlflow_model.py", "kserve_model.py"}
NOT_INSTALLED_FOR_TESTS = {
    "mlflow_model.py": ("mlflow", "pip install mlflow-skinny pandas"),
    "kserve_model.py": ("kserve", "pip install kserve, in an environment of its own"),
}
"""MLflow brings many packages, and KServe asks for other versions than constraints.txt."""


def test_every_example_is_run_by_a_test() -> None:
    elsewhere = {"__init__.py", "digits.py", "serve.py"}  # in test_readme.py
    assert {path.name for path in (ROOT / "examples").glob("*.py")} - elsewhere == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_and_prints_what_it_is_about(name: str, tmp_path) -> None:
    package, fix = NOT_INSTALLED_FOR_TESTS.get(name, ("shieldnet", ""))
    if find_spec(package) is None:
        pytest.skip(f"examples/{name} needs {package}: {fix}")
    arguments = [str(tmp_path / "scene.png")] if name == "segmentation.py" else []
    done = subprocess.run(
        [
            sys.executable,
            *(() if name in WARN_OF_THEMSELVES else ("-W", "error")),
            str(ROOT / "examples" / name),
            *arguments,
        ],
        cwd=ROOT,
        timeout=300,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in SAYS[name]:
        assert words in done.stdout
    assert all(Path(path).stat().st_size > 10_000 for path in arguments)
