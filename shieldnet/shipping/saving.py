"""The verb that writes a hardened folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.defenses import Defense
from shieldnet.files.sizes import require_bytes, require_file
from shieldnet.gate.policy import DEFAULT, Policy
from shieldnet.reports.report import Report, as_json_of
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent
from shieldnet.shield.toml import dump_shield
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.envelope import Key, private_key, signed
from shieldnet.shipping.manifest import digests_of, statement
from shieldnet.shipping.model_files import files_of
from shieldnet.shipping.parts import (
    CERTIFICATE,
    CERTIFICATE_TEXT,
    MANIFEST,
    MODEL,
    PARTS,
    POLICY,
    README,
    REPORT,
    SHIELD,
    SIGNATURE,
    written,
)
from shieldnet.shipping.policies import policy_text
from shieldnet.shipping.preflight import require_report
from shieldnet.shipping.proof import document_of
from shieldnet.shipping.readme import page
from shieldnet.shipping.verification import Verification
from shieldnet.shipping.verifying import checks_of
from shieldnet.shipping.writing import require_free, write_folder


def save_hardened(
    shield: Shield,
    folder: str | Path,
    *,
    model: str = "",
    report: Report | str | Path | None = None,
    policy: Policy | str | Path | None = None,
    classes: int | None = None,
    positions: tuple[int, ...] | None = None,
    example: Any = None,
    key: Key | None = None,
    known: Sequence[type[Defense]] = (),
    graphs: Mapping[str, bytes] | None = None,
    force: bool = False,
) -> Path:
    """Writes what was audited into a folder, and nothing else, so that it can be verified.

    model: how it is made, for loading it: ``package.module:factory``, or the name of the
    ``.onnx`` or ``.pt2`` file that it was read from. report: of its audit, or report.json. policy:
    that the report meets, a TOML file or ``"default"``. classes, positions: of an answer, for the
    certificate, as in ``Shield.certificate``; or example: a few inputs, which it answers; or
    neither, where the shield has answered or the report says it. key: a private Ed25519 key (PEM)
    that signs the manifest. known: defenses of your own. graphs: the shield itself as whole graphs
    that ``sn.export`` wrote, ``{"model.pt2": content}``; they are asked the example, or generated
    inputs, and have to answer as the shield does. force: replaces a hardened folder, and no other.

    The same shield, report and policy give the same bytes. What is written verifies, or nothing is.
    Errors: ConfigError for a folder that is not empty, and for a model that only a pickle holds
        (scikit-learn, functions of arrays); DataError for a report of another model or shield;
        PolicyFailed and PolicyInconclusive for one that does not meet the policy.
    """
    target = Path(folder)
    require_free(target, force=force)
    if key is not None:
        private_key(key)  # before long work
    files, described = files_of(_shield(shield), model, graphs or {}, example)
    files[MODEL] = described.written()
    files[SHIELD] = dump_shield(shield, known=known).encode()
    files |= _evidence(report, policy)
    contents = Contents(files, known)
    if contents.settings.digest() != shield.settings.digest():
        raise ConfigError(f"The shield cannot be written as {SHIELD} and read back as it was.")
    if example is not None:
        _answer(shield, example)
    chain = contents.settings.describe(described.kind)
    files |= _proof(contents, _extent(shield, contents, classes, positions))
    files[README] = page(described, chain, files, is_signed=key is not None).encode()
    _seal(files, key)
    _require_whole(files, contents, shield, example)
    write_folder(files, target, force=force)
    return target


def _shield(shield: object) -> Shield:
    if not isinstance(shield, Shield):
        raise ConfigError(
            f"Expected a Shield, got {type(shield).__name__}. Put one around it: "
            "shieldnet.harden(model)."
        )
    return shield


def _evidence(
    report: Report | str | Path | None, policy: Policy | str | Path | None
) -> dict[str, bytes]:
    """Returns the files of the report and of the policy that judges it."""
    if report is None and policy is not None:
        raise ConfigError(
            "A policy judges a report: give --report report.json (report= in Python), which "
            "shieldnet audit ... -o report.json writes."
        )
    files = {}
    if isinstance(report, Report):
        files[REPORT] = as_json_of([report]).encode()
    elif report is not None:
        require_report(Path(report))
        files[REPORT] = _file_bytes(Path(report), REPORT, "report")
    limits = Policy() if policy == DEFAULT else policy
    if isinstance(limits, Policy):
        files[POLICY] = policy_text(limits).encode()
    elif limits is not None:
        files[POLICY] = _file_bytes(Path(limits), POLICY, "policy")
    return files


def _proof(contents: Contents, extent: Extent | None) -> dict[str, bytes]:
    """Returns the files of the certificate; none if the size of an answer is not known."""
    if extent is None:
        return {}
    certificate = document_of(contents.settings, extent, contents.description.kind)
    text = f"{certificate['text']}\n".encode()
    return {CERTIFICATE: written(certificate), CERTIFICATE_TEXT: text}


def _seal(files: dict[str, bytes], key: Key | None) -> None:
    """Adds the manifest of files and, with a key, its signature."""
    for name, content in files.items():
        require_bytes(len(content), name, PARTS[name].about, PARTS[name].max_bytes)
    files[MANIFEST] = statement(digests_of(files))
    if key is not None:
        files[SIGNATURE] = signed(files[MANIFEST], key)


def _require_whole(
    files: Mapping[str, bytes], contents: Contents, shield: Shield, example: Any
) -> None:
    """Raises where what is about to be written would not verify, naming what is wrong."""
    if REPORT in files:
        _ = contents.matches  # a report of another model is bad input, no broken folder
    checks = checks_of(files, known=contents.known, network=shield.model, example=example)
    found = Verification("The folder", checks)
    try:
        found.require()
    except ShieldnetError as broken:
        raise type(broken)(f"Nothing was written. {broken}") from broken
    if "graphs" in found.unchecked:
        raise ConfigError(
            f"Nothing was written. {found['graphs'].words}. Give example=, a few real inputs."
        )


def _answer(shield: Shield, example: Any) -> None:
    """Asks the shield once: its answer says how large answers are."""
    try:
        if isinstance(example, tuple):
            shield(*example)
        elif isinstance(example, Mapping):
            shield(**example)
        else:
            shield(example)
    except (TypeError, ValueError, RuntimeError) as unread:
        raise DataError(f"The model cannot read the example: {unread}") from unread


def _extent(
    shield: Shield, contents: Contents, classes: int | None, positions: tuple[int, ...] | None
) -> Extent | None:
    """Returns how large an answer is: as given, declared, seen or reported; None if unknown."""
    stated = [report[name].certificate.classes for report, name in _matches(contents)]
    if classes is not None:
        extent = shield.seen.extent(classes, positions)
    elif shield.extent is not None:
        extent = shield.extent
    else:
        return Extent(stated[0]) if stated else None
    if wrong := [size for size in stated if size != extent.classes]:
        raise ConfigError(
            f"Expected classes={wrong[0]}, which the report is about, got "
            f"classes={extent.classes}. Leave classes out, or audit this shield."
        )
    return extent


def _matches(contents: Contents) -> list[tuple[Report, str]]:
    return contents.matches if contents.reports else []


def _file_bytes(path: Path, name: str, role: str) -> bytes:
    size = require_file(path, role)
    require_bytes(size, path, role, PARTS[name].max_bytes)
    return path.read_bytes()
