"""The verb: whether a hardened folder holds what was written, signed, proven and measured."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from shieldnet.core.errors import ShieldnetError, VerificationFailed
from shieldnet.defenses import Defense
from shieldnet.gate.policy import Policy
from shieldnet.privacy.cost import rounded_up
from shieldnet.reports.report import as_policy
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.description import Answer, answers_of
from shieldnet.shipping.envelope import Key, key_id, require_signed
from shieldnet.shipping.graphs import check_graphs
from shieldnet.shipping.judging import check_policy, check_report
from shieldnet.shipping.parts import (
    CERTIFICATE,
    CERTIFICATE_TEXT,
    GRAPHS,
    MANIFEST,
    MODEL,
    SIGNATURE,
    WEIGHTS,
)
from shieldnet.shipping.proof import differences, document_of, extent_of, read_certificate
from shieldnet.shipping.reading import read_folder, total_bytes
from shieldnet.shipping.rebuilding import Source, given_model, made_model, weights_of
from shieldnet.shipping.verification import (
    Checked,
    Verification,
    names_of_checks,
    stopped,
    tried,
)

UNSIGNED = "unsigned: whoever can write this folder can also write its manifest"


def verify(
    folder: str | Path,
    *,
    public_key: Key | None = None,
    model: Source | None = None,
    policy: Policy | str | Path | None = None,
    require: Collection[str] = (),
    known: Sequence[type[Defense]] = (),
) -> Verification:
    """Checks a folder that ``save_hardened`` or ``shieldnet harden`` wrote.

    Each file is read once. Every byte is as the manifest lists it, and there is no other file; with
    ``public_key`` (a PEM file) the manifest is signed with that key; the certificate is recomputed
    from ``shield.toml``; every report of this shield is of this model and states what is proven;
    all of them meet the policy.
    model: as for ``load_hardened``. With it the model is made, held to the audited one (weights,
    buffers, structure and attributes; its code is not compared), and graphs are asked the same
    generated inputs as the shield. It runs code of yours; nothing in the folder is ever unpickled.
    policy: limits of your own, a TOML file or ``"default"``, to be met beside those in the folder.
    require: names of checks that have to pass, such as ``("signature", "report", "policy")``; what
    was not checked then fails. known: defenses of your own that the shield may hold.

    Returns what was checked, true where nothing that was checked is broken; ``require()`` raises.
    Without a key it gives no protection from anyone who can write the folder.
    Errors: DataError where there is no such folder; ConfigError for a key, a model, a policy or a
        name that is none; MissingDependency where a check needs a package that is not installed.
    """
    names = names_of_checks(require)
    limits = None if policy is None else as_policy(policy)
    shown = str(folder)
    try:
        files = read_folder(folder)
    except VerificationFailed as broken:
        return Verification(shown, stopped([Checked("files", "fail", str(broken))]))
    checks = checks_of(files, public_key=public_key, model=model, policy=limits, known=known)
    return Verification(
        shown, tuple(one.required() if one.name in names else one for one in checks)
    )


def checks_of(
    files: Mapping[str, bytes],
    *,
    public_key: Key | None = None,
    model: Source | None = None,
    policy: Policy | None = None,
    known: Sequence[type[Defense]] = (),
    network: nn.Module | None = None,
    example: Any = None,
) -> tuple[Checked, ...]:
    """Checks files that are as their manifest lists them.

    network: the described model itself, where it is at hand. example: inputs for the graphs, in
    place of generated ones.
    """
    done = [Checked("files", "pass", _counted(files)), check_signature(files, public_key)]
    if done[1].result == "fail":  # what somebody else wrote is not even read
        return stopped(done)
    contents = Contents(files, known)
    if network is not None:
        done.append(tried("model", lambda: _described(contents)))
    elif model is None:
        done.append(tried("model", lambda: _unmade(contents)))
    else:
        try:
            described = contents.description
        except ShieldnetError as broken:
            return stopped([*done, Checked("model", "fail", str(broken))])
        made = _Made(contents, given_model(model, described))
        done.append(tried("model", made.check))
        network = made.network
    report = tried("report", lambda: check_report(contents, network))
    return (
        *done,
        tried("graphs", lambda: check_graphs(contents, network, example)),
        tried("certificate", lambda: check_certificate(contents)),
        report,
        tried("policy", lambda: check_policy(contents, policy, report)),
    )


def _counted(files: Mapping[str, bytes]) -> str:
    return f"{len(files)} files, {total_bytes(files)} bytes, as listed and no others"


def check_signature(files: Mapping[str, bytes], public_key: Key | None) -> Checked:
    """Checks that the manifest is signed with a key, or else what its envelope looks like."""
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
                f"the signature names the key {name}; give the public key to check it. Without, "
                "whoever can write this folder can also sign it"
            )
            return Checked("signature", "not checked", words)
        name = require_signed(envelope, manifest, public_key)[:16]
    except VerificationFailed as broken:
        return Checked("signature", "fail", str(broken))
    return Checked("signature", "pass", f"{MANIFEST} is signed with the given key {name}")


class _Made:
    """Makes the model of a folder, and keeps it where it is the described one."""

    def __init__(self, contents: Contents, given: nn.Module | None) -> None:
        self.network: nn.Module | None = None
        self._contents, self._given = contents, given

    def check(self) -> Checked:
        """Checks that the model is the one that was audited."""
        _described(self._contents)
        self.network = made_model(self._contents, self._given)
        return _as_audited(self._contents)


def _unmade(contents: Contents) -> Checked:
    """Checks the files of a model without its code; a whole graph is made of its file."""
    checked = _described(contents)
    described = contents.description
    if described.file != WEIGHTS:
        made_model(contents, None)
        return checked
    state = weights_of(contents)
    fix = described.source or "package.module:factory"
    words = f"{len(state)} tensors, as described; its code was not run (--model {fix} does)"
    return Checked("model", "pass", words)


def _described(contents: Contents) -> Checked:
    """Checks that a folder has the files and the heads that ``model.json`` describes."""
    described = contents.description
    if described.answers != (known := answers_of(contents.settings)):
        raise VerificationFailed(
            f"{MODEL} describes {_shown(described.answers)}, the shield reads {_shown(known)}."
        )
    named = {described.file, *described.graphs}
    there = {*GRAPHS, WEIGHTS} & contents.files.keys()
    if named != there:
        raise VerificationFailed(
            f"{MODEL} describes {', '.join(sorted(named))}, and the folder has "
            f"{', '.join(sorted(there)) or 'none'}."
        )
    return _as_audited(contents)


def _shown(answers: Sequence[Answer]) -> str:
    parts = (f"{one.name} {one.kind} released as {one.released}".strip() for one in answers)
    return ", ".join(parts) or "no answers"


def _as_audited(contents: Contents) -> Checked:
    described = contents.description
    words = f"{described.kind}, {described.model[:16]}, as audited"
    if described.file == WEIGHTS:
        words += ": weights, buffers, structure and attributes; its code is not compared"
    return Checked("model", "pass", words)


def check_certificate(contents: Contents) -> Checked:
    """Checks that the certificate is what the shield proves."""
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
    shown = bits if isinstance(bits, str) else rounded_up(bits)
    words = f"recomputed from shield.toml: {shown} bits, {extent}"
    return Checked("certificate", "pass", words)


def require_loadable(
    files: Mapping[str, bytes], public_key: Key | None, known: Sequence[type[Defense]]
) -> Contents:
    """Returns what a folder says where its signature, certificate and reports are in order.

    The model is not made, and the policy is not judged.
    Errors: VerificationFailed for whatever of these ``verify`` calls broken.
    """
    contents = Contents(files, known)

    def loadable() -> Checked:
        _ = contents.description, contents.settings
        return _described(contents)

    signature = check_signature(files, public_key)
    checks = (
        []
        if signature.result == "fail"
        else [
            tried("model", loadable),
            tried("certificate", lambda: check_certificate(contents)),
            tried("report", lambda: check_report(contents, None)),
        ]
    )
    broken = [one for one in (signature, *checks) if one.result == "fail"]
    if broken:
        lines = "; ".join(f"{one.name}: {one.words}" for one in broken)
        raise VerificationFailed(lines)
    return contents
