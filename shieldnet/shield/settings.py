"""All of a shield but its model, as one value; what an answer of a given extent costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, cast

from shieldnet.core.checks import whole
from shieldnet.core.errors import ConfigError
from shieldnet.core.frozen import FrozenDict
from shieldnet.defenses import Chain, Defense
from shieldnet.outputs.layout import Kind, Positions
from shieldnet.outputs.nested import Path, written
from shieldnet.privacy.certificate import counted
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.shield.written_out import example_for, in_code, kind_for, named


class _Guess(str):
    """A kind that is assumed: equal to the given word, but of its own type."""

    __slots__ = ()


UNITS: Mapping[Kind, str] = {"values": "values", "embeddings": "dimensions"}
"""What an axis counts that holds no classes."""

_NO_FIELDS: FrozenDict["Extent | None"] = FrozenDict()


@dataclass(frozen=True)
class Extent:
    """Says how large an answer is.

    classes: of a row (numbers of a value, dimensions of an embedding). positions: the other axes
    of an answer, such as (height, width). fields: of other fields that are released, by path; None
    for one that no answer has. any_number: the answer has as many rows as the model likes, as a
    detector's boxes: seen, never declared, and its cost is infinite.
    """

    classes: int
    positions: tuple[int, ...] = ()
    fields: Mapping[str, "Extent | None"] = _NO_FIELDS
    any_number: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        whole("classes", self.classes, low=1)
        given: object = self.positions
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise ConfigError(
                "Expected positions as a tuple, (16,) for texts of 16 tokens or (height, width) "
                f"for maps; got {given!r}."
            )
        parts = self.fields.values() if isinstance(self.fields, Mapping) else (self.fields,)
        if not all(part is None or isinstance(part, Extent) for part in parts):
            raise ConfigError(f"Expected fields as a dict of extents, got {self.fields!r}.")
        places = tuple(whole("positions", place, low=1) for place in self.positions)
        object.__setattr__(self, "positions", places)
        by_name = {path: self.fields[path] for path in sorted(self.fields)}
        object.__setattr__(self, "fields", FrozenDict(by_name))

    def __str__(self) -> str:
        return self.words("classes")

    def words(self, unit: str) -> str:
        """Says how large it is, in classes, values or dimensions."""
        places = " x ".join(map(str, self.positions))
        return counted(self.classes, unit) + (f" at {places} positions" if places else "")


@dataclass(frozen=True)
class ShieldSettings:
    """Says what is done to a model's output; ``Shield(model, settings)`` does it.

    A value: printed, hashed and compared as one. ``dataclasses.replace`` links the chain anew.
    defenses: of the answer, in order. outputs, release, axis, also, drop, micro_batch and
    release_positions: as in ``Shield``; outputs that are not given (``is_guess``) are taken as
    logits. extent: the largest answer that is released; what it costs is then known before the
    first one, and a larger one is refused.
    Errors: ConfigError for settings that make no sense, and for an order of defenses that does not.
    """

    defenses: tuple[Defense, ...] = ()
    outputs: Kind | Mapping[str, Kind] | None = None
    release: Kind | None = None
    axis: int | Mapping[str, int] | None = None
    also: Mapping[str, Sequence[Defense]] = field(default_factory=lambda: FrozenDict())
    drop: Sequence[str] = ()
    micro_batch: int | None = None
    extent: Extent | None = None
    release_positions: Positions = "all"

    def __post_init__(self) -> None:
        if self.outputs is None:
            self._set(outputs=_Guess("logits"))
        if not isinstance(self.outputs, str | Mapping):
            raise ConfigError(
                f"Expected outputs as a kind, or a dict of kinds, got {self.outputs!r}."
            )
        if not isinstance(self.also, Mapping):
            raise ConfigError(f"Expected also as a dict of defenses by field, got {self.also!r}.")
        for setting in ("outputs", "also", "axis", "drop"):
            _require_words(setting, getattr(self, setting))
        names = (self.drop,) if isinstance(self.drop, str) else self.drop
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"Expected drop as the names of fields, got {self.drop!r}.")
        if self.micro_batch is not None:
            whole("micro_batch", self.micro_batch, low=1)
        if not isinstance(self.extent, Extent | None):
            raise ConfigError(f"Expected extent as Extent(classes=10), got {self.extent!r}.")
        also: dict[object, object] = dict(self.also.items())
        lists = all(isinstance(chain, list | tuple) for chain in also.values())
        if not (lists and all(isinstance(name, str) for name in also)):
            raise ConfigError(f"Expected also as a dict of defenses by field, got {self.also!r}.")
        self._set(
            defenses=tuple(self.defenses),
            outputs=self.outputs if isinstance(self.outputs, str) else FrozenDict(self.outputs),
            axis=FrozenDict(self.axis) if isinstance(self.axis, Mapping) else self.axis,
            also=FrozenDict({name: tuple(self.also[name]) for name in sorted(self.also)}),
            drop=tuple(names),
        )
        if self.main is not None and named_by((self.main,), self.drop) is not None:
            raise self._drops_main(self.main)
        _ = self.chain, self.others  # an order that makes no sense never exists
        if self.extent is not None:
            if self.extent.any_number:
                raise ConfigError("Expected an extent that bounds an answer, got any_number=True.")
            self.cost(self.extent)  # nor an extent of fields that there are not

    def _set(self, **settings: object) -> None:
        for name, value in settings.items():
            object.__setattr__(self, name, value)

    @property
    def is_guess(self) -> bool:
        """Returns whether the kind of the outputs was not given, and is assumed."""
        return type(self.outputs) is _Guess

    @cached_property
    def main(self) -> str | None:
        """Names the field that the defenses act on; None where it is looked for."""
        return None if isinstance(self.outputs, str) else next(iter(self._kinds))

    @cached_property
    def chain(self) -> Chain:
        """Links the defenses of the answer."""
        kind, axis = self._kinds[self.main], self._axis(self.main)
        return Chain.of(self.defenses, kind, self.release, axis, self.release_positions)

    @cached_property
    def others(self) -> Mapping[str, Chain | None]:
        """Links the defenses of the other fields; None for one that is released as it is."""
        chains: dict[str, Chain | None] = {}
        for name, defenses in self.also.items():
            if defenses and name not in self._kinds:
                raise self._no_kind(name, defenses)
            chains[name] = (
                Chain.of(tuple(defenses), self._kinds[name], None, self._axis(name))
                if defenses
                else None
            )
        for given in self._kinds:
            if given not in (self.main, *chains, *self.drop):
                kind = self._kinds[given]
                example = example_for(kind, self.defenses)
                own = " with its own range and step" if kind == "values" else ""
                raise ConfigError(
                    f"The field {given} has no defenses of its own: also={{{given!r}: {example}}}"
                    f"{own}, or leave it out with drop=({given!r},)."
                )
        return FrozenDict(chains)

    def _drops_main(self, main: str) -> ConfigError:
        others = [name for name in self._kinds if name != main and self.also.get(str(name))]
        fix = "Name a field that is released first in outputs="
        if others:
            first = str(others[0])
            kinds = {name: kind for name, kind in self._kinds.items() if name in others}
            rest = {name: chain for name, chain in self.also.items() if name != first}
            written_out = ", ".join(f"{name!r}: {in_code(chain)}" for name, chain in rest.items())
            own = ", ".join(map(named, self.also[first]))
            axes = {name: axis for name in kinds if (axis := self._axis(str(name))) is not None}
            more = f", axis={axes!r}" if axes else ""
            more += "" if self.micro_batch is None else f", micro_batch={self.micro_batch}"
            fix = (
                f"To release the others alone: sn.Shield(model, {own}, "
                f"outputs={kinds!r}, also={{{written_out}}}, drop={self.drop!r}{more})"
            )
        return ConfigError(
            f"The defenses of the answer act on {main}, the first field of outputs=, which drop= "
            f"leaves out. {fix}."
        )

    def _no_kind(self, name: str, defenses: Sequence[Defense]) -> ConfigError:
        main = "NAME" if self.main is None else self.main
        kind = self._kinds[self.main]
        kinds = {main: kind, **{name: kind for name, kind in self._kinds.items() if name}}
        kinds[name] = kind_for(defenses, kind)
        rest = ", with the answer's own name for NAME" if self.main is None else ""
        return ConfigError(
            f"Expected the kind of {name} beside its defenses: outputs={kinds!r}{rest}."
        )

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Lists the chains of all fields that have defenses."""
        return (self.chain, *(chain for chain in self.others.values() if chain is not None))

    @property
    def reads_inputs(self) -> bool:
        """Returns whether a defense needs what the model was asked."""
        return any(chain.reads_inputs for chain in self.chains)

    @property
    def deterministic(self) -> bool:
        """Returns whether the same input always gets the same answer."""
        return all(chain.deterministic for chain in self.chains)

    def bare(self, release: Kind | None = None) -> "ShieldSettings":
        """Returns settings of the same output without any defense, for comparison."""
        return ShieldSettings(
            outputs=self.outputs if self.main is None else {self.main: self.chain.layout.kind},
            release=release,
            axis=self.chain.layout.axis,
            drop=(*self.others, *self.drop),
            micro_batch=self.micro_batch,
            release_positions=self.release_positions,
        )

    def cost(self, extent: Extent) -> PrivacyCost:
        """Returns the privacy cost of one answer of this extent, all fields and positions together.

        For each field the least bits, mu and pure epsilon over the stages of its chain. It depends
        on nothing else: no answer has to be given before.
        """
        cost = self.chain.cost(extent.classes, extent.positions)
        unknown = set(self.others)
        for path, part in extent.fields.items():
            name = named_by(tuple(path.split(".")), self.others)
            if name is None:
                raise ConfigError(f"Expected extents of {', '.join(self.others)}, got {path}.")
            unknown.discard(name)
            if part is not None:
                chain = self.others[name]
                cost += PrivacyCost() if chain is None else chain.cost(part.classes, part.positions)
        if extent.any_number:
            return PrivacyCost()
        return PrivacyCost() if unknown else cost  # how large the other fields are is not known yet

    def is_dropped(self, path: Path) -> bool:
        """Returns whether a field of the output is left out."""
        return named_by(path, self.drop) is not None

    def describe(self, model: str) -> str:
        """Writes the chains in one line, inserted conversions in brackets."""
        line = f"{model} -> {self.chain}" if self.chain.stages else f"{model}, no defenses"
        line += "" if self.release_positions == "all" else "; the last position alone"
        for name, chain in self.others.items():
            line += f"; {name}: {'as it is' if chain is None else chain}"
        return line + (f"; without {', '.join(self.drop)}" if self.drop else "")

    def digest(self) -> str:
        """Returns a hash that names the settings; keys are left out."""
        return sha256(repr(self).encode()).hexdigest()

    @cached_property
    def _kinds(self) -> dict[str | None, Kind]:
        if isinstance(self.outputs, str):
            return {None: cast(Kind, str(self.outputs))}
        if not self.outputs:
            raise ConfigError("Expected outputs to name at least one field and its kind.")
        return dict(self.outputs.items())

    def _axis(self, name: str | None) -> int | None:
        if isinstance(self.axis, Mapping):
            return self.axis.get(name or "")
        return self.axis if name == self.main else None


def _require_words(setting: str, names: object) -> None:
    """Refuses numbers as names of fields, as somebody gives them for a tuple."""
    numbers: tuple[object, ...]
    if isinstance(names, str) or not isinstance(names, Mapping | Sequence):
        numbers = (names,) if setting == "drop" and isinstance(names, int) else ()
    else:
        numbers = tuple(name for name in names if isinstance(name, int))
    if not numbers:
        return
    if isinstance(names, Mapping):
        wanted: object = {str(name): value for name, value in names.items()}
    else:
        wanted = tuple(map(str, names if isinstance(names, Sequence) else numbers))
    raise ConfigError(
        f"Expected {setting} by names of fields, which are strings: those of a tuple are '0', '1' "
        f"and so on. Say {setting}={wanted!r}."
    )


def unit_of(chain: Chain) -> str:
    """Names what the last axis of a head counts."""
    return UNITS.get(chain.layout.kind, "classes")


def has_settings(defenses: tuple[Any, ...]) -> bool:
    """Returns whether a Shield's positional arguments are settings, not defenses."""
    return len(defenses) == 1 and isinstance(defenses[0], ShieldSettings)


def as_settings(defenses: tuple[Any, ...], **keywords: Any) -> ShieldSettings:
    """Makes settings of a Shield's arguments: as they are, or of defenses and keywords.

    Errors: ConfigError for keywords beside settings, which say it all.
    """
    if not has_settings(defenses):
        return ShieldSettings(defenses, **keywords)
    plain = ShieldSettings()
    said = {name: value for name, value in keywords.items() if value is not None}
    if beside := [name for name, value in said.items() if value != getattr(plain, name)]:
        raise ConfigError(
            f"Expected ShieldSettings alone, got {', '.join(beside)} beside them: use "
            f"dataclasses.replace(settings, {beside[0]}=...)."
        )
    settings: ShieldSettings = defenses[0]
    return settings


def named_by(path: Path, names: Iterable[str]) -> str | None:
    """Returns the name that stands for a path: its own, or the nearest that it is inside of."""
    whole_path = written(path)
    fitting = (name for name in names if whole_path == name or whole_path.startswith(f"{name}."))
    return max(fitting, key=len, default=None)
