"""A drop-in module that turns what a model would say into what it may say."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet._compiled import is_captured, refuse_recording
from shieldnet._validate import whole
from shieldnet.answers import Kind
from shieldnet.callables import Around, as_arrays, holds_tensors
from shieldnet.certificate import Certificate
from shieldnet.defenses import Chain, Defense
from shieldnet.errors import AnswerError, BypassError, ConfigError
from shieldnet.language import LogitsProcessor, processor_of
from shieldnet.layers import explain_devices, refuse_mixing_graphs, refuse_mixing_layers
from shieldnet.pieces import arrays, merged, pieces
from shieldnet.price import Price, rounded_up
from shieldnet.rows import RowTrial
from shieldnet.structure import (
    Path,
    form_of_call,
    leaves,
    named_leaves,
    outline,
    replaced,
    written,
)

_WAYS = {"generate": ", model.generate(..., logits_processor=[shield.logits_processor()])"}
"""Other ways to what methods do that would bypass a shield."""

Sizes = tuple[int, tuple[int, ...]]
"""The classes of a row and the positions of an answer."""


class Shield(nn.Module):
    """Wraps ``model`` and applies ``defenses``, in order, to every answer before it is released.

    The Shield inserts ``Softmax`` where a defense reads probabilities and, at the end, ``Log`` so
    that a model of logits still gives logits: their softmax is the released distribution.
    ``print(shield)`` shows the whole chain.

    model: any module. It keeps its mode, gradients, hooks and ``state_dict`` keys.
    outputs: what the model gives: ``"logits"`` or ``"probabilities"`` of classes,
        ``"binary_logits"`` or ``"binary_probabilities"`` where every number is a yes or no of its
        own, ``"values"`` of a regression, ``"embeddings"``. Where the output has several fields (a
        tuple, dict, dataclass or ModelOutput), a dict names the kinds: ``{"logits": "logits",
        "boxes": "values"}``; the first field is the one that ``defenses`` act on. One word alone
        means the field of that name, or the only tensor.
    release: what is released, ``"logits"``, ``"probabilities"`` or ``"labels"`` (of values and
        embeddings: themselves, or ``"integers"``); by default the model's own kind.
    axis: where the classes are, if the answer is not (rows, classes): 1 for a segmentation
        (N, K, H, W), -1 for a language model (N, T, V). A dict where several fields need one.
    also: defenses of the other fields that are released, ``{"boxes": (RoundTo(4.0),)}``; an empty
        tuple releases a field as it is, for an infinite price. drop: fields that are left out.
    micro_batch: rows that the model gets at once; large batches can be faster in pieces. With 1,
        rows cannot change each other, whatever the model does.
    example: what the model is asked, at least two different rows: a tensor or an array, a tuple of
        arguments or a dict of named ones. Rows are then tried now instead of at the first answers.

    Answers are at least float32, carry no graph, and have memory of their own. That the model
    answers each row by itself, and the same twice, is tried: on the example, or else on the first
    call, the first with two different rows, and each with more than twice as many rows as before
    (``rows``). Such a call asks the model about six times; hooks of the model see that. A compiled
    shield is not tried while it is compiled: call it once before, or give an example.
    All answers to one form of call (which arguments, of which types) have the containers, field
    names and types of the first one.
    Errors: ConfigError for an order that makes no sense, for a graph that draws or mixes rows, and
        for rows of the example that do, when the Shield is made; AnswerError for an output that
        cannot be defended (NaN and Inf among them), and for rows that change each other: nothing
        is released.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        *defenses: Defense,
        outputs: Kind | Mapping[str, Kind] = "logits",
        release: Kind | None = None,
        axis: int | Mapping[str, int] | None = None,
        also: Mapping[str, Sequence[Defense]] | None = None,
        drop: Sequence[str] = (),
        micro_batch: int | None = None,
        example: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"Expected model to be an nn.Module, got {type(model).__name__}. "
                "For a function of arrays use Shield.around(function, ...), such as "
                "Shield.around(estimator.predict_proba, ...)."
            )
        if any(isinstance(part, Shield) for part in model.modules()):
            raise ConfigError(
                "The model is a Shield already, or holds one: its defenses would act before these, "
                "and no price would count them. Put all defenses into one Shield around the model "
                "itself, which is shield.model."
            )
        if not isinstance(outputs, str | Mapping):
            raise ConfigError(f"Expected outputs as a kind, or a dict of kinds, got {outputs!r}.")
        if not isinstance(also or {}, Mapping):
            raise ConfigError(f"Expected also as a dict of defenses by field, got {also!r}.")
        names = (drop,) if isinstance(drop, str) else drop
        if not isinstance(names, Sequence) or not all(isinstance(one, str) for one in names):
            raise ConfigError(f"Expected drop as the names of fields, got {drop!r}.")
        self.model = model
        self.training = model.training
        self.outputs = outputs if isinstance(outputs, str) else dict(outputs)
        self.axis = axis if not isinstance(axis, Mapping) else dict(axis)
        self.also = {name: tuple(chain) for name, chain in (also or {}).items()}
        self.drop = tuple(names)
        self.micro_batch = None if micro_batch is None else whole("micro_batch", micro_batch, low=1)
        self.field, kinds = _fields(self.outputs)
        self.chain = Chain.of(defenses, kinds[self.field], release, self._axis_of(self.field))
        self.others = self._other_chains(kinds)
        chains = [self.chain, *(chain for chain in self.others.values() if chain is not None)]
        self.reads_inputs = any(chain.reads_inputs for chain in chains)
        self.sizes: Sizes | None = None
        self.other_sizes: dict[str, Sizes] = {}
        self.outlines: dict[object, object] = {}
        self.trial = RowTrial(self.micro_batch == 1)
        self.register_state_dict_post_hook(_drop_prefix)  # type: ignore[no-untyped-call]  # torch's
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]  # torch's
        refuse_mixing_graphs(model)
        if example is not None:
            self._try(example)

    @classmethod
    def around(
        cls,
        function: Callable[..., Any],
        *defenses: Defense,
        outputs: Kind | Mapping[str, Kind] = "probabilities",
        release: Kind | None = None,
        axis: int | Mapping[str, int] | None = None,
        also: Mapping[str, Sequence[Defense]] | None = None,
        drop: Sequence[str] = (),
        micro_batch: int | None = None,
        example: Any = None,
    ) -> "Shield":
        """Wraps a function of numpy arrays: ``predict_proba``, an ONNX Runtime session, any other.

        Called with arrays it answers with arrays, called with tensors it answers with tensors. The
        settings are the constructor's; ``outputs`` is what the function returns.
        """
        return cls(
            Around(function),
            *defenses,
            outputs=outputs,
            release=release,
            axis=axis,
            also=also,
            drop=drop,
            micro_batch=micro_batch,
            example=example,
        )

    def _try(self, example: Any) -> None:
        """Answers an example, so that rows are tried and sizes are known; nobody sees the answer.

        Errors: ConfigError where it shows nothing of rows.
        """
        args = example if isinstance(example, tuple) else (example,)
        if isinstance(example, Mapping):
            self(**example)
        else:
            self(*args)
        if self.trial.enough < 2 and self.micro_batch != 1:
            raise ConfigError(
                "Expected an example of at least two rows that differ, to try whether rows change "
                "each other. Give a few real ones: example=inputs[:8]."
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answers like the model, with what the defenses leave of it.

        Shapes: the model's arguments -> the model's output; labels have no class axis.
        """
        refuse_recording("a Shield")
        model = self.model
        mode = refuse_mixing_layers(model)
        if kwargs.get("training"):
            raise AnswerError(
                "training=True would make answers random or let rows of a batch change each "
                "other, and the model itself. Leave it out."
            )
        with torch.no_grad():
            if self.micro_batch is None:
                answers = self._answer(model, args, kwargs, mode)
            else:
                parts, rows = pieces(args, kwargs, self.micro_batch)
                answers = merged([self._answer(model, *part, mode) for part in parts], rows)
        if isinstance(model, Around) and not holds_tensors(*args, *kwargs.values()):
            return as_arrays(answers)
        return answers

    def _answer(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: object
    ) -> Any:
        asked = None if is_captured() else self.trial.due(args, kwargs, mode)
        try:
            output = model(*args, **kwargs)
        except RuntimeError as failed:
            explain_devices(failed, model, (*args, *kwargs.values()))
            raise
        inputs: tuple[Tensor, ...] = ()
        if self.reads_inputs:
            given = arrays((*args, *kwargs.values()))
            inputs = tuple(torch.as_tensor(value) for value in given)
        answers = self._released(output, inputs, form_of_call(args, kwargs))
        if asked is not None and not _has_noise(model):
            self.trial.run(model, asked, output, self._priced)
        return answers

    def _priced(self, output: Any) -> list[Tensor]:
        """Lists the tensors of an output whose every row is priced by itself."""
        if isinstance(output, Tensor) and self.field is None:
            return [output]
        main = self._place(output)
        priced = {name for name, chain in self.others.items() if chain is not None}
        return [
            leaf
            for path, leaf in leaves(output)
            if isinstance(leaf, Tensor)
            and (path == main or (_named_by(path, self.drop) is None and _named_by(path, priced)))
        ]

    def defend(self, output: Any, inputs: tuple[Tensor, ...] = ()) -> Any:
        """Turns an output of the model into what is released.

        inputs: the tensors that the model got, for noise that is keyed on them.
        Shapes: the model's output -> the same; labels have no class axis.
        """
        with torch.no_grad():
            return self._released(output, inputs, "defend")

    def _released(self, output: Any, inputs: tuple[Tensor, ...], form: object) -> Any:
        if output is None or (isinstance(output, Tensor) and self.field is None):
            released = self._main_answer(output, inputs)
        else:
            released = self._fields_released(output, inputs)
        shown = outline(released)
        first = self.outlines.setdefault(form, shown)
        if first != shown:
            raise AnswerError(
                "Expected an answer of the form of the first one, as types and names of fields "
                f"are answers too; nothing was released. {_difference(first, shown)} Have the "
                "model return one form, leave out what comes and goes with drop=(...), or make "
                "one Shield for each form."
            )
        return released

    def _fields_released(self, output: Any, inputs: tuple[Tensor, ...]) -> Any:
        fields = named_leaves(output)
        main = self._place(output)
        self._refuse_undefended(output, main)
        answer = fields[main]
        rows = len(answer) if isinstance(answer, Tensor) and answer.dim() else 0

        def change(path: Path, leaf: Any) -> Any:
            if path == main:
                return self._main_answer(leaf, inputs)
            return self._other_answer(path, leaf, rows, inputs)

        return replaced(output, change, without=lambda path: _named_by(path, self.drop) is not None)

    def _main_answer(self, output: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        if self.sizes is None:
            self.chain.layout.refuse_mistaken(output)
        answers = self.chain(output, inputs)
        sizes = self.chain.layout.sizes(output.shape)
        if sizes != self.sizes:
            self.sizes = _largest(self.sizes, sizes)
        return answers.detach() if answers.requires_grad else answers

    def _other_answer(self, path: Path, leaf: Any, rows: int, inputs: tuple[Tensor, ...]) -> Any:
        name = written(path)
        chain = self.others[_named_by(path, self.others) or ""]
        if chain is None:
            self.other_sizes[name] = (1, ())
            return _copy_of(leaf)
        if isinstance(leaf, Tensor) and (leaf.dim() == 0 or len(leaf) != rows):
            raise AnswerError(
                f"Expected {name} to have a row for each of the {rows} answers, got shape "
                f"{tuple(leaf.shape)}: its price could not be told. Leave it out with "
                f"drop=({name!r},), or release it as it is with also={{{name!r}: ()}}, for an "
                "infinite price."
            )
        answers = chain(leaf, inputs)
        self.other_sizes[name] = _largest(
            self.other_sizes.get(name), chain.layout.sizes(leaf.shape)
        )
        return answers.detach() if answers.requires_grad else answers

    def _place(self, output: Any) -> Path:
        """Finds the answer in an output, or says what is there."""
        found = dict(leaves(output))
        if self.field is not None:
            fitting = [path for path in found if written(path) == self.field]
        else:
            kinds = (self.chain.layout.kind, self.chain.layout.row_kind)
            named = [path for path in found if path and path[-1] in kinds]
            fitting = named or [
                path
                for path, leaf in found.items()
                if isinstance(leaf, Tensor) and not _named_by(path, (*self.others, *self.drop))
            ]
        if len(fitting) != 1:
            wanted = self.field or "the answer"
            there = [written(path) for path in found]
            kind = self.chain.layout.kind
            example = f"{{{there[0] if there and found else 'logits'!r}: {kind!r}}}"
            raise AnswerError(
                f"Expected to find {wanted} in what the model returned ({type(output).__name__}); "
                f"it holds {', '.join(there) or 'nothing'}. Name it, such as outputs={example}."
            )
        return fitting[0]

    def _refuse_undefended(self, output: Any, main: Path) -> None:
        open_fields: dict[str, list[str]] = {}
        for path, leaf in leaves(output):
            if _named_by(path, self.drop) is not None:
                continue
            if path != main and _named_by(path, self.others) is None:
                open_fields.setdefault(path[0], []).append(type(leaf).__name__)
        if open_fields:
            listed = ", ".join(
                f"{name} ({kinds[0]}{'' if len(kinds) == 1 else f' x {len(kinds)}'})"
                for name, kinds in open_fields.items()
            )
            raise AnswerError(
                f"The model also returns {listed}, which no defense covers; nothing was released. "
                f"Leave them out with drop={tuple(open_fields)!r}, or give each its own defenses "
                "with also={...}."
            )

    def answer_in(self, released: Any) -> Tensor:
        """Returns the tensor that ``defenses`` act on, of an output or of what was released."""
        if isinstance(released, Tensor):
            return released
        place = self._place(released)
        found: Tensor = dict(leaves(released))[place]
        return found

    def bare(self, release: Kind | None = None) -> "Shield":
        """Returns a shield of the same model and output without any defense, for comparison."""
        kind = self.chain.layout.kind
        return Shield(
            self.model,
            outputs=kind if self.field is None else {self.field: kind},
            release=release,
            axis=self.chain.layout.axis,
            drop=(*self.others, *self.drop),
        )

    def _fingerprinted(self) -> tuple[Any, ...]:
        """Lists all that decides on an answer: two shields of equal settings answer alike."""
        own = (self.outputs, self.release, self.axis, self.also, self.drop)
        return (self.model, self.defenses, *own)

    def with_model(self, model: nn.Module) -> "Shield":
        """Returns a shield with the same settings around another model."""
        return Shield(
            model,
            *self.defenses,
            outputs=self.outputs,
            release=self.release,
            axis=self.axis,
            also=self.also,
            drop=self.drop,
            micro_batch=self.micro_batch,
        )

    def distribution(self, answers: Any) -> Tensor:
        """Reads released answers as the distributions that they state.

        Shapes: what ``forward`` returned -> (rows, *positions, classes) that sums to 1.
        """
        if self.chain.layout.kind in ("values", "embeddings"):
            raise ConfigError(f"{self.chain.layout.kind} are no distribution.")
        classes = self._known_sizes(None)[0] if self.release == "labels" else 0  # told by the rows
        return self.chain.distribution(self.answer_in(answers), classes)

    def adversary_view(
        self, probabilities: Tensor, logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Lists the readings of an answer that an attacker who knows the shield tries.

        probabilities: what ``distribution`` returned, or its mean over repeated queries.
        logits: what was released, or its mean, where ``releases_scores``.
        Shapes: (rows, classes) -> each map (rows, features).
        """
        return self.chain.views(probabilities, logits)

    def logits_processor(self, *, forbidden: Iterable[int] = ()) -> LogitsProcessor:
        """Returns the defenses as ``model.generate(..., logits_processor=[...])`` takes them.

        forbidden: words that are never said, the same for every text (``LogitsProcessor``).
        """
        return processor_of(self.chain, forbidden)

    @property
    def defenses(self) -> tuple[Defense, ...]:
        """Returns the defenses of the answer, without inserted conversions."""
        return self.chain.defenses

    @property
    def release(self) -> Kind:
        """Returns the kind of what is released."""
        return self.chain.release

    @property
    def classes(self) -> int | None:
        """Returns the number of classes, known with the first answer."""
        return None if self.sizes is None else self.sizes[0]

    @property
    def releases_scores(self) -> bool:
        """Says whether logits are released that say more than their softmax."""
        return self.chain.releases_scores

    @property
    def deterministic(self) -> bool:
        """Says whether the same input always gets the same answer."""
        chains = [self.chain, *(chain for chain in self.others.values() if chain is not None)]
        return all(chain.deterministic for chain in chains)

    def price(
        self, classes: int | None = None, *, positions: tuple[int, ...] | None = None
    ) -> Price:
        """Prices one answer, all its fields and positions together.

        For each field the least bits, mu and pure epsilon over the stages of its chain.
        classes: of the model (numbers of a value, dimensions of an embedding); positions: the
        other axes of an answer, such as (height, width). Both are needed only before the first
        answer; after it the greatest extent so far along every axis is priced.
        """
        price = self.chain.price(*self._known_sizes(classes, positions))
        if self.others and self.sizes is None:
            return Price()  # how large the other fields are is not known yet
        for path, sizes in self.other_sizes.items():
            chain = self.others[_named_by(tuple(path.split(".")), self.others) or ""]
            price += Price() if chain is None else chain.price(*sizes)
        return price

    def certificate(
        self,
        classes: int | None = None,
        *,
        positions: tuple[int, ...] | None = None,
        queries: int = 1,
    ) -> Certificate:
        """States what ``queries`` answers may give away at most, to any adversary.

        classes, positions: as in ``price``; needed only before the first answer.
        """
        count, places = self._known_sizes(classes, positions)
        return Certificate(
            self.describe(),
            count,
            self.price(classes, positions=positions),
            queries,
            positions=math.prod(places),
        )

    def describe(self) -> str:
        """Writes the chains in one line, inserted conversions in brackets."""
        name = repr(self.model) if isinstance(self.model, Around) else type(self.model).__name__
        line = " -> ".join([name, str(self.chain)] if self.chain.stages else [name])
        for field, chain in self.others.items():
            line += f"; {field}: {'as it is' if chain is None else chain}"
        return line + (f"; without {', '.join(self.drop)}" if self.drop else "")

    def __repr__(self) -> str:
        price = "known with the first answer"
        if self.sizes is not None:
            one = self.price()
            price = f"{rounded_up(one.bits)} bits, mu {rounded_up(one.mu)} an answer"
        return f"Shield({self.describe()}; releases {self.release}; price: {price})"

    def __prepare_scriptable__(self) -> "Shield":
        """Refuses torch.jit.script, which asks for this before it compiles a module."""
        raise ConfigError(
            "torch.jit.script cannot compile a Shield: what it draws and refuses is Python. Use "
            "torch.compile(shield) or torch.export.export(shield, ...); or script the model alone "
            "and put the shield around it."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Shield":
        self.outlines.clear()  # the owner has moved or cast the model: so are its answers
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if name.startswith("_") or not callable(getattr(model, name, None)):
                raise
        raise BypassError(
            f"A Shield has no {name}: the model's own would answer without the defenses. "
            f"Call shield(...) instead{_WAYS.get(name, '')}, "
            f"or shield.model.{name} where no stranger listens."
        )

    def _known_sizes(self, classes: int | None, positions: tuple[int, ...] | None = None) -> Sizes:
        least = 1 if self.chain.layout.kind in ("values", "embeddings") else 2
        given = None if classes is None else whole("classes", classes, low=least)
        places = (
            None
            if positions is None
            else tuple(whole("positions", one, low=1) for one in positions)
        )
        if self.sizes is None:
            if given is None:
                raise ConfigError(
                    "The number of classes is not known before the first answer. "
                    "Answer a batch first, or give it: shield.certificate(classes=10)."
                )
            if places is None and self.chain.layout.has_positions:
                raise ConfigError(
                    "How many positions an answer has is not known before the first answer. "
                    "Answer a batch first, or give them: positions=(height, width), or "
                    "positions=() for one number or row an answer."
                )
            return given, places or ()
        if given not in (None, self.sizes[0]):
            raise ConfigError(f"The shield has answered {self.sizes[0]} classes, not {given}.")
        return self.sizes[0], self.sizes[1] if places is None else places

    def _axis_of(self, field: str | None) -> int | None:
        if isinstance(self.axis, dict):
            return self.axis.get(field or "")
        return self.axis if field == self.field else None

    def _other_chains(self, kinds: dict[str | None, Kind]) -> dict[str, Chain | None]:
        chains: dict[str, Chain | None] = {}
        for name, defenses in self.also.items():
            if defenses and name not in kinds:
                raise ConfigError(
                    f"Expected the kind of {name} beside its defenses: outputs={{..., "
                    f"{name!r}: 'embeddings'}}."
                )
            chains[name] = (
                Chain.of(defenses, kinds[name], None, self._axis_of(name)) if defenses else None
            )
        for field in kinds:
            if field not in (self.field, *chains, *self.drop):
                raise ConfigError(
                    f"The field {field} has no defenses of its own: also={{{field!r}: (...)}}, or "
                    f"leave it out with drop=({field!r},)."
                )
        return chains


def _fields(
    outputs: Kind | dict[str, Kind],
) -> tuple[str | None, dict[str | None, Kind]]:
    """Returns the field that the defenses act on, None to look for it, and the fields' kinds."""
    if isinstance(outputs, str):
        return None, {None: outputs}
    if not outputs:
        raise ConfigError("Expected outputs to name at least one field and its kind.")
    kinds: dict[str | None, Kind] = dict(outputs.items())
    return next(iter(outputs)), kinds


def _named_by(path: Path, names: Iterable[str]) -> str | None:
    """Returns the name that stands for a path: its own, or that of something it is inside of."""
    whole_path = written(path)
    return next(
        (one for one in names if whole_path == one or whole_path.startswith(f"{one}.")), None
    )


def _largest(known: Sizes | None, sizes: Sizes) -> Sizes:
    """Returns the greatest extent along every axis: no answer so far costs more than that."""
    if known is None or known == sizes:
        return sizes
    if known[0] != sizes[0] or len(known[1]) != len(sizes[1]):
        raise AnswerError(
            f"Expected {_extent(known)} as in the first answer, got {_extent(sizes)}; "
            "make one Shield for each model."
        )
    return known[0], tuple(map(max, known[1], sizes[1]))


def _extent(sizes: Sizes) -> str:
    return f"{sizes[0]} classes" + (f" at {len(sizes[1])} axes of positions" if sizes[1] else "")


def _has_noise(model: nn.Module) -> bool:
    """Says whether a model holds a shield with fresh noise: it tries its own rows."""
    return any(isinstance(part, Shield) and not part.deterministic for part in model.modules())


def _copy_of(leaf: Any) -> Any:
    """Copies what is released as it is: a view of more, or of what somebody else holds, is more."""
    if isinstance(leaf, Tensor):
        plain = leaf.detach().as_subclass(Tensor)
        is_dense = plain.layout is torch.strided
        return plain.clone(memory_format=torch.contiguous_format) if is_dense else plain.clone()
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


def _difference(first: object, shown: object) -> str:
    """Says in what an answer's form differs from that of the first."""
    names = [", ".join(sorted(_names(form))) for form in (first, shown)]
    if names[0] != names[1]:
        return f"The first had {names[0] or 'no fields'}, this one has {names[1] or 'no fields'}."
    return f"The first was {_form_words(first)}, this one is {_form_words(shown)}."


def _names(form: Any, path: Path = ()) -> list[str]:
    if isinstance(form, tuple) and len(form) == 2 and isinstance(form[1], tuple):
        return [name for _, key, inside in form[1] for name in _names(inside, (*path, str(key)))]
    return [written(path)] if path and form is not type(None) else []


def _form_words(form: Any) -> str:
    if not isinstance(form, tuple):
        return str(form.__name__)
    if len(form) == 2 and isinstance(form[1], tuple):
        inside = ", ".join(f"{key}: {_form_words(child)}" for _, key, child in form[1])
        return f"{form[0].__name__}({inside})"
    return f"{form[0].__name__} {form[1]}"


def _drop_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Gives ``state_dict`` the model's own keys, in their order."""
    inner = f"{prefix}model."
    own = {key: state.pop(key) for key in list(state) if key.startswith(inner)}
    state.update({prefix + key.removeprefix(inner): value for key, value in own.items()})


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Lets ``load_state_dict`` take the model's own keys."""
    own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    state.update({f"{prefix}model.{key.removeprefix(prefix)}": value for key, value in own.items()})
