"""The verb that takes a hardened folder into service."""

from collections.abc import Sequence
from pathlib import Path

from shieldnet.core.errors import DataError, ShieldnetError, VerificationFailed
from shieldnet.defenses import Defense
from shieldnet.shield.module import Shield
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.envelope import Key, require_signed
from shieldnet.shipping.parts import MANIFEST, SIGNATURE
from shieldnet.shipping.reading import read_folder
from shieldnet.shipping.rebuilding import Source, given_model, made_model


def load_hardened(
    folder: str | Path,
    model: Source | None = None,
    *,
    public_key: Key | None = None,
    known: Sequence[type[Defense]] = (),
) -> Shield:
    """Returns the shield of a hardened folder, around the model that was audited.

    model: of a folder with weights, what they are put into: ``package.module:factory``, a function
    that returns the network, or the network itself, which then holds them. A Shield stands for the
    model in it. Of a folder with a whole graph: leave it out. public_key: a PEM file; with it the
    folder must be signed with that key. known: defenses of your own that the shield may hold.

    Each file is read once, and what was hashed is what is parsed; nothing is unpickled. Whether the
    report belongs to it and meets the policy says ``verify``.
    Errors: DataError where there is no such folder; ConfigError for a model or a key that is none;
        VerificationFailed for a folder that is not as it was written, for weights that are missing,
        too many, of another shape or type, and for a network that is not the one that was audited.
    """
    files = read_folder(folder)
    if public_key is not None:
        if SIGNATURE not in files:
            raise VerificationFailed(
                f"{folder} has no {SIGNATURE}, and a public key was given: it is unsigned. Sign it "
                "where it is made: shieldnet harden ... --key key.pem"
            )
        require_signed(files[SIGNATURE], files[MANIFEST], public_key)
    contents = Contents(files, known)
    try:
        described, _ = contents.description, contents.settings
    except ShieldnetError as broken:
        raise VerificationFailed(f"{folder} cannot be loaded: {broken}") from broken
    network = given_model(model, described)
    try:
        return contents.shield_around(made_model(contents, network))
    except DataError as unread:
        raise VerificationFailed(f"{folder} cannot be loaded: {unread}") from unread
