"""The verb that takes a hardened folder into service."""

from collections.abc import Sequence
from pathlib import Path

from shieldnet.core.errors import DataError, VerificationFailed
from shieldnet.defenses import Defense
from shieldnet.shield.module import Shield
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.envelope import Key
from shieldnet.shipping.parts import CERTIFICATE
from shieldnet.shipping.proof import extent_of, read_certificate
from shieldnet.shipping.reading import read_folder
from shieldnet.shipping.rebuilding import Source, given_model, made_model
from shieldnet.shipping.verifying import require_loadable


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

    Each file is read once, and what was hashed is what is parsed; nothing is unpickled. Before the
    model is made, signature, certificate and reports are held to the shield and the described model
    as ``verify`` does it; whether a report meets the policy, and whether graphs answer as the
    shield does, says ``verify`` alone. The network's weights, buffers, structure and attributes
    are held to the audited ones; its code is not compared: a class of the same name with another
    ``forward`` is not noticed. What an answer costs is known before the first one if the folder has
    a certificate.
    Errors: DataError where there is no such folder; ConfigError for a model or a key that is none;
        VerificationFailed for a folder that is not as it was written, for weights that are missing,
        too many, of another shape or type, and for a network that is not the one that was audited;
        MissingDependency where a check needs a package that is not installed.
    """
    return loaded(folder, model, public_key=public_key, known=known)[1]


def loaded(
    folder: str | Path,
    model: Source | None = None,
    *,
    public_key: Key | None = None,
    known: Sequence[type[Defense]] = (),
) -> tuple[Contents, Shield]:
    """Returns what a folder says beside the shield that ``load_hardened`` makes of it."""
    files = read_folder(folder)
    try:
        contents = require_loadable(files, public_key, known)
    except VerificationFailed as broken:
        raise VerificationFailed(f"{folder} cannot be loaded: {broken}") from broken
    network = given_model(model, contents.description)
    try:
        shield = contents.shield_around(made_model(contents, network))
    except DataError as unread:
        raise VerificationFailed(f"{folder} cannot be loaded: {unread}") from unread
    if CERTIFICATE in contents.files:
        shield.seen.recall(extent_of(read_certificate(contents.files[CERTIFICATE])))
    return contents, shield
