"""The verb: whether a hardened folder holds what was written, signed, proven and measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from shieldnet.core.errors import (
    MissingDependency,
    PolicyFailed,
    PolicyInconclusive,
    ShieldnetError,
    VerificationFailed,
)
from shieldnet.defenses import Defense
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.envelope import Key, key_id, require_signed
from shieldnet.shipping.parts import (
    CERTIFICATE,
    CERTIFICATE_TEXT,
    GRAPHS,
    MANIFEST,
    MODEL,
    POLICY,
    REPORT,
    SIGNATURE,
    WEIGHTS,
)
from shieldnet.shipping.proof import differences, document_of, extent_of, read_certificate
from shieldnet.shipping.reading import read_folder, total_bytes
from shieldnet.shipping.rebuilding import Source, given_model, made_model, weights_of

Result = Literal["pass", "fail", "inconclusive", "not checked"]
CheckName = Literal["files", "signature", "model", "certificate", "report", "policy"]
UNSIGNED = "unsigned: whoever can write this folder can also write its manifest"


@dataclass(frozen=True)
class Checked:
    """Holds what was found of one thing that a hardened folder claims."""

    name: CheckName
    result: Result
    words: str
    judged: bool = False  # by the policy, of a report that is whole


@dataclass(frozen=True)
class Verification:
    """Holds all that was checked of a folder. It is true only where nothing is broken.

    What was not checked says why; it is no failure.
    """

    folder: str
    checks: tuple[Checked, ...]

    def __getitem__(self, name: str) -> Checked:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"There is no check {name}. There are: {', '.join(get_args(CheckName))}.")

    def __bool__(self) -> bool:
        return self.outcome == "pass"

    @property
    def outcome(self) -> Literal["pass", "fail", "inconclusive"]:
        """Returns fail if anything fails, else inconclusive if the policy is, else pass."""
        results = {check.result for check in self.checks}
        if "fail" in results:
            return "fail"
        return "inconclusive" if "inconclusive" in results else "pass"

    def require(self) -> None:
        """Returns if the folder verifies.

        Errors: VerificationFailed for what is broken; PolicyFailed where all is whole and the
            report does not meet the policy; PolicyInconclusive where that cannot be told.
        """
        broken = [check for check in self.checks if check.result in ("fail", "inconclusive")]
        if not broken:
            return
        error: type[ShieldnetError] = VerificationFailed
        if all(check.judged for check in broken):
            error = PolicyFailed if self.outcome == "fail" else PolicyInconclusive
        lines = (f"\n  {check.name}: {check.words}" for check in broken)
        raise error(f"{self.folder} does not verify:{''.join(lines)}")

    def __str__(self) -> str:
        return "\n".join(f"{one.result:>12}  {one.name:<11}  {one.words}" for one in self.checks)

    def __repr__(self) -> str:
        return f"<{self.folder}: {self.outcome}>"


def verify(
    folder: str | Path,
    *,
    public_key: Key | None = None,
    model: Source | None = None,
    known: Sequence[type[Defense]] = (),
) -> Verification:
    """Checks a folder that ``save_hardened`` or ``shieldnet harden`` wrote.

    Each file is read once. Every byte is as the manifest lists it, and there is no other file; with
    ``public_key`` (a PEM file) the manifest is signed with that key; the certificate is computed
    anew from ``shield.toml``; the report is of this model and this shield; and it meets the policy.
    model: as for ``load_hardened``. With it the model is made, and held to the audited one; it
    runs code of yours, and nothing in the folder is ever run or unpickled without it.
    known: defenses of your own that the shield may hold.

    Returns what was checked, true where nothing is broken; ``require()`` raises. Without a key it
    is no protection from whoever can write the folder.
    Errors: DataError where there is no such folder; ConfigError for a key or a model that is none.
    """
    shown = str(folder)
    try:
        files = read_folder(folder)
    except VerificationFailed as broken:
        return Verification(shown, _stopped((Checked("files", "fail", str(broken)),)))
    return verify_files(files, shown, public_key=public_key, model=model, known=known)


def verify_files(
    files: Mapping[str, bytes],
    shown: str,
    *,
    public_key: Key | None = None,
    model: Source | None = None,
    known: Sequence[type[Defense]] = (),
) -> Verification:
    """Checks files that are as their manifest lists them. shown: the folder, for messages."""
    whole = f"{len(files)} files, {total_bytes(files)} bytes, as listed and no others"
    done: tuple[Checked, ...] = (
        Checked("files", "pass", whole),
        _signature(files, public_key),
    )
    if done[1].result == "fail":  # what somebody else wrote is not even read
        return Verification(shown, _stopped(done))
    contents = Contents(files, known)
    given = None
    if model is not None:
        try:
            described = contents.description
        except ShieldnetError as broken:
            done += (Checked("model", "fail", str(broken)),)
            return Verification(shown, _stopped(done))
        given = given_model(model, described)
    checks: tuple[tuple[CheckName, Callable[[], Checked]], ...] = (
        ("model", lambda: _model(contents, given)),
        ("certificate", lambda: _certificate(contents)),
        ("report", lambda: _report(contents)),
        ("policy", lambda: _policy(contents)),
    )
    return Verification(shown, (*done, *(_tried(name, check) for name, check in checks)))


def _stopped(done: tuple[Checked, ...]) -> tuple[Checked, ...]:
    """Says of the checks that were not reached that they were not."""
    rest = get_args(CheckName)[len(done) :]
    return (*done, *(Checked(name, "not checked", "the folder is not whole") for name in rest))


def _tried(name: CheckName, check: Callable[[], Checked]) -> Checked:
    try:
        return check()
    except MissingDependency as missing:
        return Checked(name, "not checked", str(missing))
    except ShieldnetError as broken:
        return Checked(name, "fail", str(broken))


def _signature(files: Mapping[str, bytes], public_key: Key | None) -> Checked:
    manifest, envelope = files[MANIFEST], files.get(SIGNATURE)
    try:
        if envelope is None and public_key is None:
            return Checked("signature", "not checked", UNSIGNED)
        if envelope is None:
            words = f"there is no {SIGNATURE}, and a public key was given: the folder is {UNSIGNED}"
            return Checked("signature", "fail", words)
        if public_key is None:
            name = key_id(envelope, manifest)[:16]
            words = (
                f"signed, by its own word with the key {name}; give the public key to check it. "
                "Without, whoever can write this folder can also sign it"
            )
            return Checked("signature", "not checked", words)
        name = require_signed(envelope, manifest, public_key)[:16]
    except VerificationFailed as broken:
        return Checked("signature", "fail", str(broken))
    return Checked("signature", "pass", f"{MANIFEST} is signed with the given key {name}")


def _model(contents: Contents, given: nn.Module | None) -> Checked:
    described = contents.description
    if described.answers != contents.settings.chain.layout.kind:
        raise VerificationFailed(
            f"The model is described as one of {described.answers}, the shield reads "
            f"{contents.settings.chain.layout.kind}."
        )
    _require_files_of(contents)
    if described.file == WEIGHTS and given is None:
        state = weights_of(contents)
        fix = described.source or "package.module:factory"
        words = f"{len(state)} tensors, as described; its code was not run (--model {fix} does)"
        return Checked("model", "pass", words)
    made_model(contents, given)
    return Checked("model", "pass", f"{described.kind}, {described.model[:16]}, as audited")


def _require_files_of(contents: Contents) -> None:
    """Raises VerificationFailed where the graphs and weights are not those that are described."""
    described = contents.description
    named = {described.file, *described.graphs}
    there = {*GRAPHS, WEIGHTS} & contents.files.keys()
    if named != there:
        raise VerificationFailed(
            f"{MODEL} describes {', '.join(sorted(named))}, and the folder has "
            f"{', '.join(sorted(there)) or 'none'}."
        )


def _certificate(contents: Contents) -> Checked:
    files = contents.files
    if CERTIFICATE not in files:
        if CERTIFICATE_TEXT in files:
            raise VerificationFailed(f"There is a {CERTIFICATE_TEXT} and no {CERTIFICATE}.")
        words = "there is none: it depends on the number of classes (--classes)"
        return Checked("certificate", "not checked", words)
    claimed = read_certificate(files[CERTIFICATE])
    extent = extent_of(claimed)
    declared = contents.settings.extent
    if declared is not None and declared != extent:
        raise VerificationFailed(f"{CERTIFICATE} is about {extent}, the shield says {declared}.")
    computed = document_of(contents.settings, extent, contents.description.kind)
    if wrong := differences(claimed, computed):
        raise VerificationFailed(
            f"{CERTIFICATE} is not what shield.toml proves: {', '.join(wrong)} differ."
        )
    if files.get(CERTIFICATE_TEXT, b"").decode("utf-8", "replace") != f"{claimed['text']}\n":
        raise VerificationFailed(f"{CERTIFICATE_TEXT} does not say what {CERTIFICATE} says.")
    bits = claimed["bounds"]["bits"]
    shown = bits if isinstance(bits, str) else f"{bits:.2f}"
    return Checked("certificate", "pass", f"computed anew from shield.toml: {shown} bits, {extent}")


def _report(contents: Contents) -> Checked:
    if REPORT not in contents.files:
        return Checked("report", "not checked", "there is none: nothing was measured")
    report, name = contents.measured
    _require_certified(contents)
    of_weights = "weights" in report.hashes or contents.description.weights is None
    words = f"of this model and of this shield ({name}), {len(report[name].findings)} findings"
    if not of_weights:
        words += "; it was written before reports named the weights alone: give --model"
    return Checked("report", "pass", words)


def _require_certified(contents: Contents) -> None:
    """Raises VerificationFailed where a report states another bound than the shield proves."""
    report, name = contents.measured
    stated = report[name].certificate
    extent = contents.settings.extent
    if CERTIFICATE in contents.files:
        extent = extent_of(read_certificate(contents.files[CERTIFICATE]))
    if extent is None or extent.positions or extent.fields or extent.classes != stated.classes:
        return
    proven = contents.settings.cost(extent)
    for bound in ("bits", "mu", "pure"):
        said, known = getattr(stated.cost, bound), getattr(proven, bound)
        if said < known * (1 - 1e-9):
            raise VerificationFailed(
                f"{REPORT} states {bound} {said:.4g} of {name}, and the shield proves {known:.4g}."
            )


def _policy(contents: Contents) -> Checked:
    policy = contents.policy
    if policy is None:
        return Checked("policy", "not checked", "there is none: nothing is judged")
    if REPORT not in contents.files:
        raise VerificationFailed(f"There is a {POLICY} and no {REPORT} that it could judge.")
    report, name = contents.measured
    verdict = report.verdict(policy, name)
    if verdict.outcome == "pass":
        return Checked("policy", "pass", f"{name} meets it: {policy}")
    words = "; ".join(judgment.words for judgment in verdict.broken)
    result: Result = "inconclusive" if verdict.outcome == "inconclusive" else "fail"
    return Checked("policy", result, f"{name}: {words}", judged=True)
