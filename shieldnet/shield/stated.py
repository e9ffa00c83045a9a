"""What a shield states of its answers, and why a bound is infinite where it is."""

import math

from shieldnet.privacy.certificate import Certificate, counted
from shieldnet.shield.settings import Extent, ShieldSettings, named_by, unit_of


def certificate(settings: ShieldSettings, chain: str, extent: Extent, queries: int) -> Certificate:
    """Returns the certificate of answers of an extent. chain: of the defenses, in words."""
    return Certificate(
        chain,
        extent.classes,
        settings.cost(extent),
        queries,
        positions=math.prod(extent.positions),
        size=_size(settings, extent),
        unbounded=_unbounded(settings, extent),
    )


def _size(settings: ShieldSettings, extent: Extent) -> str:
    """Says how large an answer is, each head of several by its name."""
    own = counted(extent.classes, unit_of(settings.chain))
    others = []
    for path, part in extent.fields.items():
        chain = settings.others.get(named_by(tuple(path.split(".")), settings.others) or "")
        if part is not None and chain is not None:
            others.append(f"{part.words(unit_of(chain))} of {path}")
    if not others:
        return own
    return ", ".join([f"{own} of {settings.main}" if settings.main else own, *others])


def _unbounded(settings: ShieldSettings, extent: Extent) -> str:
    """Says what makes a cost infinite, beside the defenses of the answer itself."""
    if extent.any_number:
        return "the model answers any number of boxes, and nothing bounds how many"
    if plain := [name for name, chain in settings.others.items() if chain is None]:
        return f"{', '.join(plain)} is released as it is"
    known = {named_by(tuple(path.split(".")), settings.others) for path in extent.fields}
    if missing := [name for name in settings.others if name not in known]:
        line: dict[str | None, int] = {settings.main: extent.classes, **dict.fromkeys(missing, 10)}
        return (
            f"the size of {' and '.join(missing)} is not known. Answer a batch first, or give the "
            f"classes of each head: classes={line!r}"
        )
    return ""
