"""A room imports only from floors strictly below; this table is the map of the house."""

import ast
from pathlib import Path

import pytest

import shieldnet

HOUSE = Path(shieldnet.__file__).parent

FLOORS = {
    "errors": 0.0,
    "_validate": 0.1,
    "statistics": 0.1,
    "duplicates": 0.2,
    "randomness": 0.2,
    "_compiled": 0.1,
    "answers": 1.0,
    "structure": 1.0,
    "price": 1.0,
    "data": 1.0,
    "events": 1.1,
    "finding": 1.0,
    "metrics": 1.0,
    "canaries": 1.1,
    "cache": 1.1,
    "identity": 1.1,
    "engine": 0.3,
    "one_run": 1.1,
    "certificate": 2.0,
    "loading": 3.1,
    "files.limits": 1.0,
    "files.documents": 0.5,
    "files.torch_operators": 0.5,
    "files.onnx_operators": 0.5,
    "files.recognition": 1.05,
    "files.weights": 1.1,
    "files.arrays": 1.1,
    "files.tables": 1.1,
    "files.dividing": 1.15,
    "files.pictures": 1.1,
    "files.programs": 1.1,
    "files.onnx_models": 1.1,
    "files": 1.2,
    "callables": 2.0,
    "pieces": 2.0,
    "layers": 2.0,
    "rows": 2.0,
    "defenses.base": 2.0,
    "defenses.clipping": 2.1,
    "defenses.coarse": 2.1,
    "defenses.keyed": 2.1,
    "defenses.labels": 2.1,
    "defenses.noise": 2.1,
    "defenses.response": 2.15,
    "defenses.rounding": 2.1,
    "defenses.scale": 2.1,
    "defenses.signs": 2.1,
    "defenses.truncation": 2.1,
    "defenses.chain": 2.2,
    "defenses": 2.3,
    "baselines": 2.4,
    "language": 2.5,
    "frozen": 1.0,
    "settings": 2.6,
    "fields": 2.7,
    "shield": 3.0,
    "accounting": 3.1,
    "training.shadow": 3.0,
    "training.together": 3.0,
    "training.steps": 3.01,
    "training.composition": 3.02,
    "training.signing": 3.0,
    "training.accountant": 3.05,
    "training.checkpoint": 3.05,
    "training.losses": 3.0,
    "training.parts": 3.0,
    "training.ranks": 3.0,
    "training.records": 3.0,
    "training.capture": 3.0,
    "training.clipping": 3.0,
    "training.features": 3.1,
    "training.lattice": 3.0,
    "training.gradients": 3.1,
    "training.countermeasures": 3.15,
    "training.class_defenses": 3.2,
    "training.premise": 3.1,
    "training.hazards": 3.1,
    "training.preflight": 3.2,
    "training.private": 3.2,
    "training.stepping": 3.3,
    "training.finetuning": 3.4,
    "training": 3.5,
    "presets": 4.0,
    "config": 4.1,
    "attacks.base": 4.0,
    "attacks.decoders": 4.0,
    "attacks.likelihood": 4.0,
    "attacks.inversion": 4.1,
    "attacks.blind": 4.2,
    "attacks.quantile": 4.2,
    "attacks.shadows": 4.2,
    "attacks.denoising": 4.2,
    "attacks.extraction": 4.2,
    "attacks.class_inversion": 4.25,
    "attacks.straight_through": 4.2,
    "attacks.scores": 4.3,
    "attacks.membership": 4.35,
    "attacks.one_run": 4.35,
    "attacks.averaging": 4.4,
    "attacks.attribute": 4.4,
    "attacks": 4.5,
    "checks.embeddings": 4.55,
    "checks.attribution": 4.6,
    "checks.calibration": 4.65,
    "checks.masking": 4.65,
    "checks.memorization": 4.65,
    "checks": 4.7,
    "auditing.utility": 4.8,
    "auditing.declared": 4.9,
    "auditing.policy": 5.0,
    "auditing.claims": 5.0,
    "auditing.evidence": 5.05,
    "auditing.schema": 5.0,
    "auditing.subject": 5.0,
    "auditing.charts": 5.05,
    "auditing.markdown": 5.05,
    "auditing.pictures": 5.05,
    "auditing.pipeline": 5.05,
    "auditing.render": 5.06,
    "auditing.formats": 5.07,
    "auditing.report": 5.1,
    "auditing.comparing": 5.15,
    "auditing.tiers": 5.0,
    "auditing.given": 5.15,
    "auditing.playing": 5.15,
    "auditing.suite": 5.2,
    "auditing": 5.3,
    "demo": 7.0,
    "pytest_plugin": 7.0,
    "commands.shared": 7.5,
    "commands.gate": 7.6,
    "commands.splitting": 7.6,
    "commands": 7.7,
    "cli": 8.0,
    "": 9.0,
    "__main__": 9.1,
}


def rooms() -> dict[str, Path]:
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {
        name.removeprefix("shieldnet").removeprefix(".")
        for name in names
        if name == "shieldnet" or name.startswith("shieldnet.")
    }


def test_every_room_stands_on_the_map() -> None:
    assert set(rooms()) == set(FLOORS)


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_imports_only_from_below(room: str) -> None:
    above = [name for name in imports(rooms()[room]) if FLOORS[name] >= FLOORS[room]]
    assert not above, f"{room or 'shieldnet'} imports from its own floor or above: {above}"


@pytest.mark.parametrize("room", sorted(rooms()))
def test_every_room_says_its_idea_in_the_first_line(room: str) -> None:
    path = rooms()[room]
    assert path.read_text().startswith('"""'), f"{path} starts without a sentence"
