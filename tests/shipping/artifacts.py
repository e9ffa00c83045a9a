"""Hardened folders that the tests of this room share, and how they are written by somebody else."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from by_hand import finding, subject
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

import shieldnet as sn
from shieldnet.data.hashing import tensors_hash, weights_hash
from shieldnet.reports.report import Report
from shieldnet.shipping.envelope import signed
from shieldnet.shipping.manifest import digests_of, statement
from shieldnet.shipping.parts import LISTING, MANIFEST, SIGNATURE

PASSES = "max_leakage = 0.1\n"
FAILS = "max_leakage = 0.001\n"
UNSURE = "max_leakage = 0.03\n"


class Two(nn.Module):
    """Two layers of one shape, a buffer, and a number that no state_dict has."""

    def __init__(self, temperature: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("mean", torch.ones(3))
        self.temperature = temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x - self.mean)) / self.temperature


def shield_of(model: nn.Module | None = None) -> sn.Shield:
    return sn.harden((model or Two()).eval(), extent=sn.Extent(3))


def report_of(shield: sn.Shield, leak: float = 0.03, name: str = "balanced") -> Report:
    """Returns what an audit of this shield would say, without the attacks."""
    certificate = shield.certificate()
    found = (finding("inversion", leak - 0.02, leak + 0.02), finding("accuracy", 0.9, 0.95))
    hashes = {
        "model": weights_hash(shield.model),
        "weights": tensors_hash(shield.model.state_dict()),
    }
    bare = subject("bare", 0.6, float("inf"), configuration=shield.bare().settings.digest())
    one = subject(
        name,
        leak,
        certificate.cost.bits,
        certificate=certificate,
        findings=found,
        configuration=shield.settings.digest(),
    )
    return Report("Two", (bare, one), seed=0, duration_s=1.0, hashes=hashes, kind="logits")


def keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """Writes a pair of keys and returns their files."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def made(folder: Path, *, shield: sn.Shield | None = None, **more) -> Path:
    """Writes a whole hardened folder: report, policy, certificate and all."""
    shield = shield or shield_of()
    home = next(parent for parent in folder.parents if parent.is_dir())
    policy = home / f"{folder.name}-policy.toml"
    policy.write_text(PASSES)
    settings = {"model": "two:Two", "report": report_of(shield), "policy": policy, **more}
    return sn.save_hardened(shield, folder, **settings)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rewritten(folder: Path, key: Path | None = None, **files: bytes | None) -> Path:
    """Changes files and writes the manifest anew, as whoever can write the folder would.

    files: by name, with two underscores for a dot; None takes one away.
    """
    for name, data in files.items():
        path = folder / name.replace("__", ".")
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
    listed = {name: data for name, data in content(folder).items() if name not in LISTING}
    (folder / MANIFEST).write_bytes(statement(digests_of(listed)))
    (folder / SIGNATURE).unlink(missing_ok=True)
    if key is not None:
        (folder / SIGNATURE).write_bytes(signed((folder / MANIFEST).read_bytes(), key))
    return folder


def changed_json(data: bytes, **fields: object) -> bytes:
    return (json.dumps({**json.loads(data), **fields}, indent=1, sort_keys=True) + "\n").encode()


def measured(report: Report, **hashes: str) -> Report:
    return replace(report, hashes={**report.hashes, **hashes})
