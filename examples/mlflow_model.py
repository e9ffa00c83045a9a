"""Keeps a hardened folder as a model of MLflow, and serves it: verified first, and no pickle.

MLflow reads this file as the model's code (its "models from code"). The public key comes from the
place that serves, never from the store of models: whoever can write there could bring their own.
"""

import os
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

import shieldnet as sn

KEY = "HARDENED_PUBLIC_KEY"


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).eval()


class Hardened(mlflow.pyfunc.PythonModel):
    """Answers as the shield in the hardened folder does."""

    def load_context(self, context) -> None:
        folder, key = context.artifacts["hardened"], os.environ[KEY]
        sn.verify(folder, public_key=key, model=network).require()
        self.shield = sn.load_hardened(folder, network, public_key=key)

    def predict(self, context, model_input, params=None) -> np.ndarray:
        return self.shield(torch.from_numpy(model_input)).numpy()


def keys(folder: Path) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / "private.pem", folder / "public.pem"
    pem = serialization.Encoding.PEM
    kept, format_ = serialization.PrivateFormat.PKCS8, serialization.PublicFormat
    private.write_bytes(key.private_bytes(pem, kept, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, format_.SubjectPublicKeyInfo))
    return private, public


def main(folder: Path) -> None:
    private, public = keys(folder)
    shield, rows = sn.harden(network(), "open"), torch.randn(6, 20)
    sn.save_hardened(shield, folder / "hardened", example=rows, key=private)
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=__file__,
        artifacts={"hardened": str(folder / "hardened")},
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype("float32"), (-1, 20))]),
            Schema([TensorSpec(np.dtype("float32"), (-1, 5))]),
        ),
        pip_requirements=[
            f"shieldnet[cli,sign]=={sn.__version__}",
            f"mlflow=={mlflow.__version__}",
        ],
    )
    os.environ[KEY] = str(public)
    answers = mlflow.pyfunc.load_model(str(folder / "model")).predict(rows.numpy())
    print(f"answers as the shield: {np.array_equal(answers, shield(rows).numpy())}")
    print(f"pickles: {[path.name for path in folder.rglob('*.pkl')]}")

    weights = next((folder / "model").rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    try:
        mlflow.pyfunc.load_model(str(folder / "model"))
    except sn.errors.VerificationFailed as refused:
        print(f"refused: {str(refused).splitlines()[-1].strip()}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
else:
    mlflow.models.set_model(Hardened())
