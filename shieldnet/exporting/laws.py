"""The laws of noise inputs, as ``shieldnet.runtime`` reads them."""

from typing import Any

from shieldnet.core.errors import ConfigError
from shieldnet.core.exact_tables import FLIP_TICKS, coin_table, gaussian_table, laplace_table
from shieldnet.defenses import (
    Defense,
    GaussianNoise,
    LaplaceNoise,
    PermuteAndFlip,
    RandomizedResponse,
)
from shieldnet.runtime import Table


def law_of(stage: Defense, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Says how the noise of a defense is drawn.

    sizes: of the rows that it gets, behind the batch.
    Errors: ConfigError for a defense whose law is not written down.
    """
    if isinstance(stage, GaussianNoise):
        table = gaussian_table(stage.scale / stage.grid)
        return {"dtype": "int32", "sizes": sizes, "laws": [_by(table)]}
    if isinstance(stage, LaplaceNoise):
        table = laplace_table(stage.scale / stage.grid)
        return {"dtype": "int32", "sizes": sizes, "laws": [_by(table)]}
    if isinstance(stage, RandomizedResponse):
        law = {
            "law": "quotient of 63 bits",
            "divisor": str(stage.draws_of_other(sizes[-1] * stage.bins)),
        }
        return {"dtype": "int64", "sizes": (*sizes[:-1], 1), "laws": [law]}
    if isinstance(stage, PermuteAndFlip):
        laws = [{**_by(coin_table(stage.epsilon)), "from": FLIP_TICKS + 1}, {"law": "words"}]
        return {"dtype": "int64", "sizes": sizes, "laws": laws}
    raise ConfigError(
        f"{stage} draws noise of a law that a graph's server would not know. Serve this shield "
        "from Python."
    )


def limits_of(law: dict[str, Any]) -> tuple[int, int] | None:
    """Returns the least and the greatest number that a law draws; None for any 64-bit word."""
    if law["law"] == "table":
        first, last = law["first"], law["first"] + len(law["exact"])
        start = law.get("from")
        return (first, last) if start is None else (start - last, start - first)
    if law["law"] == "quotient of 63 bits":
        return 0, (2**63 - 1) // int(law["divisor"])
    return None


def _by(table: Table) -> dict[str, Any]:
    return {
        "law": "table",
        "first": table.first,
        "exact": [f"{threshold:x}" for threshold in table.exact],
    }
