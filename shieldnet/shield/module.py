"""A drop-in module that turns what a model would say into what it may say."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.core.opaque_ops import is_captured, refuse_recording
from shieldnet.defenses import Defense
from shieldnet.outputs.adapters import as_function, as_module, default_kind
from shieldnet.outputs.calls import explain_call
from shieldnet.outputs.estimators import Estimator, stated_classes
from shieldnet.outputs.functions import Around, as_arrays, holds_tensors
from shieldnet.outputs.layers import Layers
from shieldnet.outputs.layout import Kind, Positions
from shieldnet.outputs.micro_batches import arrays, merged, pieces
from shieldnet.outputs.mistaken import UnitVectors
from shieldnet.outputs.nested import (
    Path,
    form_of_call,
    is_list_of_dicts,
    leaves,
    named_leaves,
    replaced,
)
from shieldnet.outputs.row_mixing import refuse_mixing_graphs
from shieldnet.outputs.row_trial import RowTrial
from shieldnet.privacy.certificate import Certificate
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.shield.bypasses import nested, scripted, training_asked
from shieldnet.shield.detections import require_covered
from shieldnet.shield.estimator_face import shown_by
from shieldnet.shield.facts import Facts, has
from shieldnet.shield.fields import (
    AnswerForms,
    answer_of,
    copy_of,
    counted_rows,
    place_of,
    refuse_undefended,
    require_rows,
)
from shieldnet.shield.logits_processor import LogitsProcessor, processor_of
from shieldnet.shield.routine import Routine
from shieldnet.shield.seen import Classes, SeenExtent
from shieldnet.shield.settings import Extent, ShieldSettings, as_settings, has_settings, named_by
from shieldnet.shield.state import keep_model_keys
from shieldnet.shield.stated import certificate


class Shield(nn.Module):
    """Wraps ``model`` and applies ``defenses``, in order, to every answer before it is released.

    The Shield inserts ``Softmax`` where a defense reads probabilities and, at the end, ``Log`` so
    that a model of logits still gives logits: their softmax is the released distribution.
    ``print(shield)`` shows the whole chain.

    model: any module, which keeps its mode, gradients, hooks and ``state_dict`` keys; a fitted
        classifier, whose ``predict_proba``, ``predict`` and ``classes_`` the Shield then has, too;
        a fitted regressor, whose ``predict`` it has;
        a session of ONNX Runtime, or a function of arrays: arrays in, arrays out.
    outputs: what the model gives: ``"logits"`` (of a module, by default) or ``"probabilities"``
        (by default of all else) of classes, ``"binary_logits"`` or ``"binary_probabilities"``
        of binary or multi-label models, ``"values"`` of a regression (by default of a regressor),
        ``"embeddings"``. Where the output has several fields (a tuple, dict, dataclass or
        ModelOutput), a dict names the kinds: ``{"logits": "logits", "boxes": "values"}``; the
        first field is the one that ``defenses`` act on. One word alone means the field of that
        name, or the only tensor.
    release: what is released, ``"logits"``, ``"probabilities"`` or ``"labels"`` (of values and
        embeddings: themselves, or ``"integers"``); by default the model's own kind.
    axis: where the classes are, if the answer is not (rows, classes): 1 for a segmentation
        (N, K, H, W), -1 for a language model (N, T, V). A dict where several fields need one.
    also: defenses of the other fields that are released, ``{"boxes": (RoundTo(4.0),)}``; an empty
        tuple releases a field as it is, for an infinite cost. drop: fields that are left out.
    micro_batch: rows that the model gets at once; large batches can be faster in pieces. With 1,
        rows cannot change each other, whatever the model does.
    extent: the largest answer that is released, ``Extent(classes=10)``: what it costs is known
        before the first one, in every worker, and a larger one is refused.
    release_positions: ``"last"`` releases the last position alone, and that is what costs: for a
        language model (axis=-1) whose server gives the next token's scores. Of several heads it
        is about the first.
    Or all of these as one value: ``Shield(model, ShieldSettings(...))``.
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
        model: Any,
        *defenses: Defense | ShieldSettings,
        outputs: Kind | Mapping[str, Kind] | None = None,
        release: Kind | None = None,
        axis: int | Mapping[str, int] | None = None,
        also: Mapping[str, Sequence[Defense]] | None = None,
        drop: Sequence[str] = (),
        micro_batch: int | None = None,
        extent: Extent | None = None,
        release_positions: Positions = "all",
        example: Any = None,
    ) -> None:
        super().__init__()
        model = as_module(model)
        if outputs is None and not has_settings(defenses):
            outputs = default_kind(model)
        if any(isinstance(part, Shield) for part in model.modules()):
            raise nested()
        self.model = model
        self.training = model.training
        self.settings = as_settings(
            defenses,
            outputs=outputs,
            release=release,
            axis=axis,
            also={} if also is None else also,
            drop=drop,
            micro_batch=micro_batch,
            extent=extent,
            release_positions=release_positions,
        )
        # Read at every answer, where a look-up in another object would be felt.
        self.chain, self.others = self.settings.chain, self.settings.others
        self.micro_batch, self.reads_inputs = self.settings.micro_batch, self.settings.reads_inputs
        self.is_one_tensor = self.settings.main is None
        self.is_routine = self.is_one_tensor and not self.reads_inputs
        self.seen = SeenExtent(self.settings, stated_classes(model))
        self.forms, self.facts = AnswerForms(), Facts(model)
        self.layers, self.routine = Layers(), Routine()
        self.vectors = UnitVectors(done=not self.settings.is_guess)
        self.trial = RowTrial(self.micro_batch == 1)
        keep_model_keys(self)
        refuse_mixing_graphs(model)
        if example is not None:
            self.trial.on_example(self, example)

    @classmethod
    def around(
        cls,
        function: Callable[..., Any],
        *defenses: Defense | ShieldSettings,
        outputs: Kind | Mapping[str, Kind] | None = None,
        **settings: Any,
    ) -> "Shield":
        """Wraps a function of numpy arrays, also one that ``Shield`` would take for a model.

        The ``predict`` of a fitted regressor is taken as the regressor itself.

        Called with arrays it answers with arrays, called with tensors it answers with tensors. The
        settings are the constructor's.
        """
        return cls(as_function(function), *defenses, outputs=outputs, **settings)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answers like the model, with what the defenses leave of it.

        Shapes: the model's arguments -> the model's output; labels have no class axis.
        """
        refuse_recording("a Shield")
        if kwargs and kwargs.get("training"):
            raise training_asked()
        if not torch.is_grad_enabled():
            return self._answers(args, kwargs)
        with torch.no_grad():
            return self._answers(args, kwargs)

    def _answers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        model: nn.Module = self.__dict__["_modules"]["model"]  # what self.model is, a third as long
        mode = self.layers.mode(model)
        if self.micro_batch is None:
            answers = self._answer(model, args, kwargs, mode)
        else:
            parts, rows = pieces(args, kwargs, self.micro_batch)
            answers = merged([self._answer(model, *part, mode) for part in parts], rows)
        is_function = isinstance(model, Around) and not holds_tensors(*args, *kwargs.values())
        return as_arrays(answers) if is_function else answers

    def _answer(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: object
    ) -> Any:
        asked = None if is_captured() else self.trial.due(args, kwargs, mode)
        try:
            output = model(*args, **kwargs)
        except Exception as failed:  # the model's own: whatever it raises
            explain_call(failed, model, args, kwargs)
            raise
        if asked is None and self.routine.fits(args, kwargs, output):
            return self.chain.again(output)
        inputs: tuple[Tensor, ...] = ()
        if self.reads_inputs:
            inputs = tuple(map(torch.as_tensor, arrays((*args, *kwargs.values()))))
        elif is_list_of_dicts(output):  # of images, whose size a refusal names
            inputs = tuple(leaf for _, leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
        answers = self._released(output, inputs, form_of_call(args, kwargs))
        if asked is not None and not any(  # a shield with fresh noise tries its own rows
            isinstance(part, Shield) and not part.deterministic for part in model.modules()
        ):
            self.trial.run(model, asked, output, lambda given: counted_rows(given, self.settings))
        if self.is_routine and self.seen.answered and self.vectors.done:
            self.routine.learn(args, kwargs, output)
        return answers

    def defend(self, output: Any, inputs: tuple[Tensor, ...] = ()) -> Any:
        """Turns an output of the model into what is released.

        inputs: the tensors that the model got, for noise that is keyed on them.
        Shapes: the model's output -> the same; labels have no class axis.
        """
        with torch.no_grad():
            return self._released(output, inputs, "defend")

    def _released(self, output: Any, inputs: tuple[Tensor, ...], form: object) -> Any:
        if output is None or (isinstance(output, Tensor) and self.is_one_tensor):
            released = self._main_answer(output, inputs)
        elif is_list_of_dicts(output):
            require_covered(output, self.settings, inputs)
            self.seen.see_any_number()
            images = [self._fields_released(image, inputs) for image in output]
            return self.forms.require_same_of_each(form, images)
        else:
            released = self._fields_released(output, inputs)
        self.forms.require_same(form, released)
        return released

    def _fields_released(self, output: Any, inputs: tuple[Tensor, ...]) -> Any:
        fields = named_leaves(output)
        main = place_of(output, self.settings)
        refuse_undefended(output, main, self.settings)
        answer = fields[main]
        rows = len(answer) if isinstance(answer, Tensor) and answer.dim() else 0

        def change(path: Path, leaf: Any) -> Any:
            if path == main:
                return self._main_answer(leaf, inputs)
            return self._other_answer(path, leaf, rows, inputs)

        return replaced(output, change, without=self.settings.is_dropped)

    def _main_answer(self, output: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        chain, seen = self.chain, self.seen
        if not (seen.answered and self.vectors.done):
            chain.layout.refuse_mistaken(output, self.vectors)
        answers = chain(output, inputs)
        sizes = chain.layout.sizes(output.shape)
        if not seen.answered or sizes != seen.sizes:  # almost never: no call is made for it
            seen.see(sizes)
        return answers.detach() if answers.requires_grad else answers

    def _other_answer(self, path: Path, leaf: Any, rows: int, inputs: tuple[Tensor, ...]) -> Any:
        chain = self.others[named_by(path, self.others) or ""]
        if chain is None:
            self.seen.see_as_it_is(path)
            return copy_of(leaf)
        require_rows(path, leaf, rows)
        if self.seen.is_first(path):
            chain.layout.refuse_mistaken(leaf, UnitVectors(done=True))
        answers = chain(leaf, inputs)
        self.seen.see_field(path, chain.layout.sizes(leaf.shape))
        return answers.detach() if answers.requires_grad else answers

    def answer_in(self, released: Any) -> Tensor:
        """Returns the tensor that ``defenses`` act on, of an output or of what was released."""
        return answer_of(released, self.settings)

    def bare(self, release: Kind | None = None) -> "Shield":
        """Returns a shield of the same model and output without any defense, for comparison."""
        return Shield(self.model, self.settings.bare(release))

    def _fingerprinted(self) -> tuple[Any, ...]:
        """Lists all that decides on an answer: two shields of equal settings answer alike."""
        return (self.model, self.settings)

    def with_model(self, model: nn.Module) -> "Shield":
        """Returns a shield with the same settings around another model."""
        return Shield(model, self.settings)

    def distribution(self, answers: Any) -> Tensor:
        """Reads released answers as the distributions that they state.

        Shapes: what ``forward`` returned -> (rows, *positions, classes) that sums to 1.
        """
        classes = 0 if self.release != "labels" else self.seen.extent(None).classes
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
        return processor_of(self.settings, forbidden)

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
        """Returns the number of classes, known after the first answer."""
        return None if self.seen.sizes is None else self.seen.sizes[0]

    @property
    def releases_scores(self) -> bool:
        """Returns whether logits are released that say more than their softmax."""
        return self.chain.releases_scores

    @property
    def deterministic(self) -> bool:
        """Returns whether the same input always gets the same answer."""
        return self.settings.deterministic

    def cost(
        self, classes: Classes | None = None, *, positions: tuple[int, ...] | None = None
    ) -> PrivacyCost:
        """Returns the privacy cost of one answer, all its fields and positions together.

        classes: of the model (numbers of a value, dimensions of an embedding), or of each head by
        name; positions: the other axes of an answer, such as (height, width). Needed only before
        the first answer, and where no extent was declared; else the declared extent counts, or the
        greatest so far along every axis. ``settings.cost(extent)`` depends on no answer.
        """
        return self.settings.cost(self.seen.extent(classes, positions))

    def certificate(
        self,
        classes: Classes | None = None,
        *,
        positions: tuple[int, ...] | None = None,
        queries: int = 1,
    ) -> Certificate:
        """States what ``queries`` answers may give away at most, to any adversary.

        classes, positions: as in ``cost``; needed only before the first answer, and where no extent
        was declared.
        """
        extent = self.seen.extent(classes, positions)
        return certificate(self.settings, self.describe(), extent, queries)

    def describe(self) -> str:
        """Writes the chains in one line, inserted conversions in brackets."""
        name = repr(self.model) if isinstance(self.model, Around) else type(self.model).__name__
        return self.settings.describe(name)

    def __repr__(self) -> str:
        return f"Shield({self.describe()}; releases {self.release}; cost: {self.seen.cost()})"

    def __prepare_scriptable__(self) -> "Shield":
        """Refuses torch.jit.script, which asks for this before it compiles a module."""
        raise scripted()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Shield":
        self.routine.forget()
        self.forms.forget()  # the owner has moved or cast the model: so are its answers
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if isinstance(model, Estimator):
                return shown_by(self, model, name)
            if name.startswith("_") or "facts" not in self.__dict__ or not has(model, name):
                raise
        return self.facts.give(model, name)

    @property
    def extent(self) -> Extent | None:
        """Returns the declared extent of an answer, or the greatest so far; None before any."""
        return self.seen.known()
