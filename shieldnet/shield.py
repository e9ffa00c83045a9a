"""A drop-in module that turns what a model would say into what it may say."""

from typing import Any

import torch
from torch import Tensor, nn

from shieldnet._validate import choice, whole
from shieldnet.answers import KINDS, MODEL_KINDS, Kind, checked, require_finite
from shieldnet.certificate import Certificate
from shieldnet.defenses.base import UNBOUNDED, Defense, one_hot, readings
from shieldnet.defenses.labels import Argmax
from shieldnet.defenses.scale import Log, Softmax
from shieldnet.errors import AnswerError, BypassError, ConfigError
from shieldnet.price import Price, rounded_up


class Shield(nn.Module):
    """Wraps ``model`` and applies ``defenses``, in order, to every answer before it is released.

    The Shield inserts ``Softmax`` where a defense reads probabilities and, at the end, ``Log`` so
    that a model of logits still gives logits: their softmax is the released distribution.
    ``print(shield)`` shows the whole chain.

    model: any module whose output is one tensor (rows, classes). It keeps its mode, gradients,
        hooks and ``state_dict`` keys.
    outputs: what the model gives, ``"logits"`` or ``"probabilities"``.
    release: what is released, ``"logits"``, ``"probabilities"`` or ``"labels"``; by default the
        model's own kind.

    Answers are at least float32 and carry no graph. Rows are independent.
    Errors: ConfigError for an order that makes no sense, when the Shield is made; AnswerError for
        an output that cannot be defended (NaN and Inf among them): nothing is released.
    """

    model: nn.Module
    chain: tuple[Defense, ...]

    def __init__(
        self,
        model: nn.Module,
        *defenses: Defense,
        outputs: Kind = "logits",
        release: Kind | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ConfigError(f"Expected model to be an nn.Module, got {type(model).__name__}.")
        choice("outputs", outputs, MODEL_KINDS)
        choice("release", outputs if release is None else release, KINDS)
        self.model = model
        self.training = model.training
        self.outputs: Kind = outputs
        self.release: Kind = release or outputs
        self.defenses = defenses
        self.chain = _link(defenses, outputs, self.release)
        self.classes: int | None = None
        self.register_state_dict_post_hook(_drop_prefix)  # type: ignore[no-untyped-call]  # torch's
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]  # torch's

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Answers like the model, with what the defenses leave of it.

        Shapes: the model's arguments -> (rows, classes), or (rows,) int64 for labels.
        """
        self._refuse_mixing_layers()
        with torch.no_grad():
            return self.defend(self.model(*args, **kwargs))

    def defend(self, output: object) -> Tensor:
        """Turns an output of the model into what is released.

        Shapes: (rows, classes) -> (rows, classes), or (rows,) int64 for labels.
        """
        answers = checked(output, self.outputs)
        if self.classes not in (None, answers.shape[-1]):
            raise AnswerError(
                f"Expected {self.classes} classes as in the first answer, "
                f"got {answers.shape[-1]}; make one Shield for each model."
            )
        self.classes = answers.shape[-1]
        for stage in self.chain:
            answers = stage(answers)
            if stage.gives == "logits":
                require_finite(answers, stage)
        return answers

    def distribution(self, answers: Tensor) -> Tensor:
        """Reads released answers as the distributions that they state.

        Shapes: what ``forward`` returned -> (rows, classes) that sums to 1.
        """
        if self.release == "labels":
            row = torch.zeros(len(answers), self._known_classes(None), device=answers.device)
            return one_hot(answers.unsqueeze(-1), row)
        return answers.softmax(-1) if self.release == "logits" else answers

    def adversary_view(
        self, probabilities: Tensor, logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Lists the readings of an answer that an attacker who knows the shield tries.

        probabilities: what ``distribution`` returned, or its mean over repeated queries.
        logits: what was released, or its mean, where ``releases_scores``.
        Shapes: (rows, classes) -> each map (rows, features).
        """
        views = readings(probabilities)
        for stage in self.chain:
            views |= stage.adversary_view(probabilities)
        return views if logits is None else {**views, "logits": logits}

    @property
    def releases_scores(self) -> bool:
        """Says whether logits are released that say more than their softmax."""
        return self.release == "logits" and not (self.chain and isinstance(self.chain[-1], Log))

    @property
    def deterministic(self) -> bool:
        """Says whether the same input always gets the same answer."""
        return all(stage.deterministic for stage in self.chain)

    def price(self, classes: int | None = None) -> Price:
        """Prices one answer: the least bits and the least mu over the stages of the chain.

        classes: of the model; needed only before the first answer.
        """
        count = self._known_classes(classes)
        price, reach = Price(), UNBOUNDED
        for stage in self.chain:
            price = price.capped(stage.price(count, reach))
            reach = stage.reach(count, reach)
        return price

    def certificate(self, classes: int | None = None, *, queries: int = 1) -> Certificate:
        """States what ``queries`` answers may give away at most, to any adversary.

        classes: of the model; needed only before the first answer.
        """
        return Certificate(
            self.describe(), self._known_classes(classes), self.price(classes), queries
        )

    def describe(self) -> str:
        """Writes the chain in one line, inserted conversions in brackets."""
        stages = [f"[{stage}]" if stage.conversion else str(stage) for stage in self.chain]
        return " -> ".join([type(self.model).__name__, *stages])

    def __repr__(self) -> str:
        price = "known with the first answer"
        if self.classes is not None:
            one = self.price()
            price = f"{rounded_up(one.bits)} bits, mu {rounded_up(one.mu)} an answer"
        return f"Shield({self.describe()}; releases {self.release}; price: {price})"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if name.startswith("_") or not callable(getattr(model, name, None)):
                raise
        raise BypassError(
            f"A Shield has no {name}: the model's own would answer without the defenses. "
            f"Call shield(...) instead, or shield.model.{name} where no stranger listens."
        )

    def _known_classes(self, classes: int | None) -> int:
        known = self.classes if classes is None else whole("classes", classes, low=2)
        if self.classes not in (None, known):
            raise ConfigError(f"The shield has answered {self.classes} classes, not {known}.")
        if known is None:
            raise ConfigError(
                "The number of classes is not known before the first answer. "
                "Answer a batch first, or give it: shield.certificate(classes=10)."
            )
        return known

    def _refuse_mixing_layers(self) -> None:
        """Refuses layers whose answers would be random or depend on the rest of the batch."""
        for module in self.model.modules():
            if _mixes_rows(module) or (module.training and _draws_at_random(module)):
                name = next(name for name, one in self.model.named_modules() if one is module)
                mend = "Call shield.eval() first." if module.training else "Track its statistics."
                raise AnswerError(
                    f"The model's layer {name or 'model'} ({type(module).__name__}) would make "
                    f"answers random or let rows of a batch change each other. {mend}"
                )


def _mixes_rows(module: nn.Module) -> bool:
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm and (module.training or module.running_mean is None)


def _draws_at_random(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0


def _link(defenses: tuple[Defense, ...], outputs: Kind, release: Kind) -> tuple[Defense, ...]:
    """Chains the defenses from kind to kind, inserting conversions, or says how to mend them."""
    chain: list[Defense] = []
    kind = outputs
    for defense in defenses:
        if not isinstance(defense, Defense):
            raise ConfigError(f"Expected a defense such as Round(2), got {defense!r}.")
        for earlier in chain:
            if reason := defense.not_after.get(type(earlier).__name__):
                raise ConfigError(f"Put {defense} before {earlier}: {reason}.")
        if kind not in defense.accepts and "probabilities" in defense.accepts:
            chain.append(Softmax())
        elif kind not in defense.accepts:
            source = f"{chain[-1]} gives" if chain else "the model's outputs are"
            mend = (
                f"Put {defense} before {next(stage for stage in chain if not stage.conversion)}."
                if chain
                else "Wrap the model so that it returns its logits."
            )
            wanted = " or ".join(defense.accepts)
            raise ConfigError(f"{defense} reads {wanted}, but {source} {kind}. {mend}")
        chain.append(defense)
        kind = defense.gives
    conversions: dict[Kind, Defense] = {
        "logits": Log(),
        "probabilities": Softmax(),
        "labels": Argmax(),
    }
    if kind != release:
        chain.append(conversions[release])
    return tuple(chain)


def _drop_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Gives ``state_dict`` the model's own keys, in their order."""
    inner = f"{prefix}model."
    own = {key: state.pop(key) for key in list(state) if key.startswith(inner)}
    state.update({prefix + key.removeprefix(inner): value for key, value in own.items()})


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Lets ``load_state_dict`` take the model's own keys."""
    own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    state.update({f"{prefix}model.{key.removeprefix(prefix)}": value for key, value in own.items()})
