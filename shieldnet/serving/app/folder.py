"""A hardened folder as it is served: verified, with the extent that its certificate is about."""

from dataclasses import replace
from pathlib import Path

from shieldnet.core.errors import ConfigError
from shieldnet.shield.module import Shield
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.description import TensorFacts
from shieldnet.shipping.envelope import Key
from shieldnet.shipping.loading import loaded
from shieldnet.shipping.rebuilding import Source
from shieldnet.shipping.verification import Verification
from shieldnet.shipping.verifying import checks_of


def served_folder(
    folder: str | Path, model: Source | None = None, *, public_key: Key | None = None
) -> tuple[Shield, tuple[TensorFacts, ...]]:
    """Returns the shield of a hardened folder, and the inputs that the folder describes, if any.

    The shield refuses answers larger than those that the certificate is about: what an answer costs
    is known before the first one. model, public_key: as for ``load_hardened``.
    Errors: those of ``load_hardened``; PolicyFailed and PolicyInconclusive where the report does
        not meet the folder's policy; ConfigError for a folder without a certificate.
    """
    contents, shield = loaded(folder, model, public_key=public_key)
    Verification(str(folder), checks_of(contents.files, public_key=public_key)).require()
    if shield.extent is None:
        raise ConfigError(
            f"{folder} has no certificate, so that an answer has no known cost: write it again "
            "with shieldnet harden --example inputs.npz (or --classes)."
        )
    if shield.extent.any_number:
        raise ConfigError(
            f"{folder} answers with a list of dicts, as a detector, which the server's protocol of "
            "tensors does not hold. Serve it from Python: "
            "sn.Guard(sn.load_hardened(...), ledger=..., queries_per_client=1000)."
        )
    if shield.settings.extent is None:
        shield = Shield(shield.model, replace(shield.settings, extent=shield.extent))
    return shield, _inputs(contents)


def name_of(folder: Path) -> tuple[str, str]:
    """Returns the model's name and version; of a Triton repository, as the repository has them."""
    path = folder.resolve()
    return (path.parent.name, path.name) if path.name.isdigit() else (path.name, "1")


def _inputs(contents: Contents) -> tuple[TensorFacts, ...]:
    described = contents.description
    if described.inputs:
        return described.inputs
    for graph in described.graphs.values():
        if taken := tuple(one for one in graph.inputs if one.name not in graph.noise):
            return taken
    return ()
