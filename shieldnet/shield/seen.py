"""How large a shield's answers were so far, and whether they stay within a declared extent."""

from collections.abc import Iterator, Mapping
from typing import Any

from shieldnet.core.checks import whole
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.core.opaque_ops import is_exporting
from shieldnet.defenses import Chain
from shieldnet.outputs.layout import ROW_KINDS
from shieldnet.outputs.nested import Path, written
from shieldnet.privacy.certificate import counted
from shieldnet.privacy.cost import PrivacyCost, rounded_up
from shieldnet.shield.settings import UNITS, Extent, ShieldSettings, named_by, unit_of

Sizes = tuple[int, tuple[int, ...]]
"""The classes of a row and the positions of an answer."""

Classes = int | Mapping[str, int]


class SeenExtent:
    """Keeps the greatest extent of a shield's answers, or holds them to the declared one.

    sizes: of the answer; fields: of the other fields, by path. Both are declared from the start
    where the settings have an extent, and never change then. stated: classes that the model states
    before it answers, as a fitted estimator does.
    Errors: AnswerError for an answer of another extent; ConfigError where none is known.
    """

    def __init__(self, settings: ShieldSettings, stated: int | None = None) -> None:
        self._settings = settings
        self._stated = stated
        self.answered = False
        self.any_number = False
        self.sizes: Sizes | None = None
        self.fields: dict[str, Sizes] = {}
        self._answered_fields: set[str] = set()
        self._absent: set[str] = set()
        if (declared := settings.extent) is not None:
            self.sizes = (declared.classes, declared.positions)
            parts = declared.fields.items()
            self.fields = {path: (part.classes, part.positions) for path, part in parts if part}

    def recall(self, extent: Extent) -> None:
        """Takes in the extent of answers that were given elsewhere, as a certificate says it."""
        if self.sizes is not None:
            return
        self.sizes, self.any_number = (extent.classes, extent.positions), extent.any_number
        parts = extent.fields.items()
        self.fields = {path: (part.classes, part.positions) for path, part in parts if part}
        self._absent = {path for path, part in parts if part is None}

    def see(self, sizes: Sizes) -> None:
        """Takes in the sizes of an answer, or refuses them."""
        greatest = self._at_most(self.sizes, sizes)
        if not is_exporting():  # there a graph is drawn, and nothing is answered
            self.sizes, self.answered = greatest, True

    def see_any_number(self) -> None:
        """Takes in an answer of as many rows as the model likes, as a detector's, or refuses it."""
        if self._settings.extent is not None:
            raise AnswerError(
                f"Expected {self._settings.extent} at most, the extent that was declared; a "
                "list of dicts, as a detector's, has any number of boxes, for an "
                "infinite cost. Nothing was released. Leave extent= out."
            )
        if not is_exporting():
            self.any_number = True

    def is_first(self, path: Path) -> bool:
        """Returns whether no answer had another field so far."""
        return written(path) not in self._answered_fields

    def see_field(self, path: Path, sizes: Sizes) -> None:
        """Takes in the sizes of another field of an answer, or refuses them."""
        name = written(path)
        greatest = self._at_most(self.fields.get(name), sizes)
        if not is_exporting():
            self._answered_fields.add(name)
            self.fields[name] = greatest

    def see_as_it_is(self, path: Path) -> None:
        """Takes in a field that is released as it is, whatever its size, or refuses it."""
        name = written(path)
        if self._settings.extent is not None and name not in self.fields:
            raise AnswerError(
                f"Expected no field {name}, which the declared extent does not have; "
                "nothing was released. Name it: Extent(classes, fields={...: Extent(1)})."
            )
        if not is_exporting():
            self.fields[name] = (1, ())

    def known(self) -> Extent | None:
        """Returns the declared extent of an answer, or the greatest so far; None before any."""
        if self.sizes is None or self._settings.extent is not None:
            return self._settings.extent
        fields: dict[str, Extent | None] = {
            path: Extent(*sizes) for path, sizes in self.fields.items()
        } | dict.fromkeys(self._absent - self.fields.keys())
        if self.answered:  # what the form of an answer does not have costs nothing
            others = self._settings.others
            there = {named_by(tuple(path.split(".")), others) for path in fields}
            fields |= {name: None for name in others if name not in there}
        return Extent(*self.sizes, fields, any_number=self.any_number)

    def extent(self, classes: Classes | None, positions: tuple[int, ...] | None = None) -> Extent:
        """Returns the extent that is known, or else the one that is given.

        classes: of the answer, or by name of each head. positions: to be counted in place of those
        that are known.
        """
        known = self.known()
        sizes = self._sizes(classes)
        own = sizes.pop(self._settings.main, None)
        if positions is not None:
            positions = tuple(whole("positions", size, low=1) for size in positions)
        if known is None:
            fields = {str(name): self._field(str(name), size) for name, size in sizes.items()}
            return Extent(*self._given(own, positions), fields, self.any_number)
        self._require_size(known, own, self._settings.chain)
        for name, size in sizes.items():
            self._require_size(known.fields.get(str(name)), size, self._settings.others[str(name)])
        places = known.positions if positions is None else positions
        return Extent(known.classes, places, known.fields, known.any_number)

    def cost(self) -> str:
        """Says what an answer costs, for those who print a shield."""
        extent = self.known()
        if extent is None:
            return "known after the first answer"
        cost: PrivacyCost = self._settings.cost(extent)
        return f"{rounded_up(cost.bits)} bits, mu {rounded_up(cost.mu)} per answer"

    def _sizes(self, classes: Classes | None) -> dict[str | None, int]:
        """Checks what is given, and returns it by name of head, as far as it is known."""
        chains = dict(self._heads())
        if not isinstance(classes, Mapping):
            named: dict[Any, Any] = {} if classes is None else {self._settings.main: classes}
        else:
            named = {name: classes[name] for name in classes}
            heads = [name for name, chain in chains.items() if chain is not None]
            if self._settings.main is None or set(named) - set(heads):
                expected = f"one of each head ({', '.join(map(str, heads))}) or a whole number"
                if self._settings.main is None:
                    expected = "a whole number, as the shield has one head"
                raise ConfigError(f"Expected classes as {expected}, got classes={classes!r}.")
        kinds = {name: chain.layout.kind for name, chain in chains.items() if chain is not None}
        return {
            name: whole("classes", size, low=1 if kinds[name] in UNITS else 2)
            for name, size in named.items()
        }

    def _require_size(self, known: Extent | None, size: int | None, chain: Chain | None) -> None:
        if known is None or size is None or chain is None:
            return
        if known.classes != size:
            answered = counted(known.classes, unit_of(chain))
            raise ConfigError(f"The shield has answered {answered}, not {size}.")

    def _field(self, name: str, classes: int) -> Extent:
        chain = self._settings.others[name]
        if chain is not None and chain.layout.has_positions:
            raise ConfigError(
                f"How many positions {name} has is not known before the first answer. Answer a "
                "batch first."
            )
        return Extent(classes)

    def _given(self, classes: int | None, positions: tuple[int, ...] | None) -> Sizes:
        unit, heads = unit_of(self._settings.chain), [name for name, part in self._heads() if part]
        if self._settings.chain.layout.kind in ROW_KINDS and classes is None:
            classes = 2  # yes and no
        elif self._stated is not None and classes not in (None, self._stated):
            raise ConfigError(f"The estimator has {self._stated} classes, not {classes}.")
        if classes is None:
            classes = self._stated
        if classes is None:
            example = repr(dict.fromkeys(heads, 10)) if len(heads) > 1 else "10"
            raise ConfigError(
                f"The number of {unit} is not known before the first answer. "
                f"Answer a batch first, or give it: shield.certificate(classes={example})."
            )
        if positions is None and self._settings.release_positions == "last":
            return classes, (1,)
        if positions is None and self._settings.chain.layout.has_positions:
            raise ConfigError(
                "How many positions an answer has is not known before the first answer. "
                "Answer a batch first, or give them: positions=(height, width). Of one "
                "number or row an answer they are (). A detector answers as many boxes as it "
                "finds: its cost is infinite, whatever the positions."
            )
        return classes, positions or ()

    def _heads(self) -> Iterator[tuple[str | None, Chain | None]]:
        yield self._settings.main, self._settings.chain
        yield from self._settings.others.items()

    def _at_most(self, known: Sizes | None, sizes: Sizes) -> Sizes:
        """Returns the greatest extent along every axis, or refuses what is above the declared."""
        unit = unit_of(self._settings.chain)
        if self._settings.extent is None:
            return _largest(known, sizes, unit)
        if known is not None and _fits(sizes, known):
            return known
        if known is None:
            allowed = "nothing of that name"
        elif known[0] != sizes[0]:
            allowed = f"exactly {Extent(known[0]).words(unit)}"
        else:
            allowed = f"{Extent(*known).words(unit)} at most"
        declare = ""
        if known is not None and len(known[1]) != len(sizes[1]):
            allowed, declare = Extent(*known).words(unit), f" Declare it: sn.{Extent(*sizes)!r}."
        raise AnswerError(
            f"Expected {allowed}, the extent that was declared, "
            f"got {Extent(*sizes).words(unit)}; nothing was released.{declare}"
        )


def _fits(sizes: Sizes, limit: Sizes) -> bool:
    same = sizes[0] == limit[0] and len(sizes[1]) == len(limit[1])
    return same and all(size <= most for size, most in zip(sizes[1], limit[1], strict=True))


def _largest(known: Sizes | None, sizes: Sizes, unit: str) -> Sizes:
    """Returns the greatest extent along every axis: no answer so far costs more than that."""
    if known is None or known == sizes:
        return sizes
    if known[0] != sizes[0] or len(known[1]) != len(sizes[1]):
        raise AnswerError(
            f"Expected {Extent(*known).words(unit)} as in the first answer, got "
            f"{Extent(*sizes).words(unit)}; make one Shield for each model."
        )
    return known[0], tuple(map(max, known[1], sizes[1]))
