"""What an audit is about, checked once: shields, sets, columns, groups, canaries, claims."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from shieldnet.attacks import Game
from shieldnet.attacks.answers import Behind, in_batches
from shieldnet.attacks.attributes import PARTS_OF_ATTRIBUTES
from shieldnet.attacks.base import at_every_position
from shieldnet.attacks.positions.truth import Truth, tokens_of
from shieldnet.attacks.secrets import places_of
from shieldnet.auditing.base_model import base_of
from shieldnet.auditing.sets import Sets, as_the_model_reads, column_names
from shieldnet.auditing.several import model_itself
from shieldnet.core.checks import whole
from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.data.beside import Beside
from shieldnet.data.canaries import Planted
from shieldnet.data.examples import Canaries, Examples, Group, as_examples, require_disjoint
from shieldnet.data.hashing import is_named_by, state_hash, tensors_hash, weights_hash
from shieldnet.findings.finding import Finding
from shieldnet.outputs.estimators import Estimator, is_estimator
from shieldnet.outputs.functions import Around
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.reports.report import BARE
from shieldnet.reports.subject import Subject
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent
from shieldnet.training.result import Finetuned


@dataclass(frozen=True)
class Case:
    """Holds the question of an audit; several audits may ask it.

    shields: by name, the bare model first. sets: in a random order of the seed's. guarantee and
    findings: what the training claims of the model, and what it found itself. hashes: of the
    weights and of the sets as they were given.
    """

    shields: Mapping[str, Shield]
    sets: Sets
    columns: tuple[str, ...]
    sensitive: tuple[str, ...]
    groups: tuple[Group, ...]
    canaries: Canaries | None
    guarantee: Guarantee | None
    findings: tuple[Finding, ...]
    hashes: Mapping[str, str]
    seed: int
    beside: Beside | None = None
    extent: Extent | None = None
    padding: int | None = None
    base: nn.Module | None = None

    @classmethod
    def of(
        cls,
        shields: Mapping[str, Shield],
        sets: Sets,
        *,
        columns: Sequence[str] = (),
        sensitive: Sequence[str] = (),
        beside: Beside | None = None,
        groups: Mapping[str, tuple[object, object]] | None = None,
        canaries: Canaries | Planted | None = None,
        finetuned: Finetuned | Guarantee | None = None,
        base: nn.Module | None = None,
        padding: int | None = None,
        seed: int = 0,
    ) -> "Case":
        """Checks what an audit is given. The model is asked about one row.

        shields: as ``with_bare`` returns them. beside: of the sets as they were
        given.
        Errors: ConfigError and DataError, as in ``audit``.
        """
        whole("seed", seed, low=0, high=2**63 - 1)
        bare = _asked(shields[BARE], sets.examples["nonmembers"])
        planted = _canaries(canaries, sets, bare.model)
        sets = sets.as_read_by(bare.model)
        # First behind the user's own shields, so that a refusal speaks of them.
        given = (shield for name, shield in shields.items() if name != BARE)
        for shield in (*(_asked(one, sets.examples["nonmembers"]) for one in given), bare):
            _try_rows(shield, sets.examples["nonmembers"], [0])
        extent = _extent_of(bare)
        nonmembers = sets.examples["nonmembers"].inputs
        names = () if extent else column_names(columns, nonmembers)
        _require_sensitive(sensitive, names if beside is None else (*names, *beside.columns))
        model = model_itself(bare.model)
        model_hashes = _hashes_of(model)
        guarantee, findings = _claimed_by(finetuned, model)
        for examples in (*sets.examples.values(), *_both(planted)):
            if extent is None:
                _require_fit(bare, examples)
            elif not _is_unlabeled_map(examples, extent):
                Truth.of(examples, extent, padding)
            _try_rows(bare, examples, _least_and_greatest(examples))
        hashes = {name: examples.fingerprint() for name, examples in sets.examples.items()}
        sets = sets.shuffled(seed)
        return cls(
            shields=shields,
            sets=sets,
            columns=names,
            sensitive=tuple(sensitive),
            groups=sets.groups(groups),
            canaries=planted,
            guarantee=guarantee,
            findings=findings,
            hashes={**model_hashes, **hashes},
            seed=seed,
            beside=None if beside is None else beside.at(sets.rows),
            extent=extent,
            padding=padding,
            base=base_of(base, finetuned, bare, extent, sets.examples["nonmembers"], padding),
        )

    @property
    def bare(self) -> Shield:
        """Returns the undefended model."""
        return self.shields[BARE]

    def game(self) -> Game:
        """Returns the game of the undefended model; the others' differ in their shield alone."""
        examples = self.sets.examples
        return Game(
            _asked(self.bare, examples["nonmembers"]),
            examples["members"],
            examples["nonmembers"],
            examples.get("auxiliary"),
            seed=self.seed,
            columns=self.columns,
            sensitive=self.sensitive,
            groups=self.groups,
            canaries=self.canaries,
            guarantee=self.guarantee,
            beside=self.beside,
            class_names=_class_names(self.bare.model),
            extent=self.extent,
            padding=self.padding,
            base=None if self.base is None else self.bare.with_model(self.base),
        )

    def told(self, subject: Subject, untested: Sequence[str]) -> Subject:
        """Adds to what was found of a shield what holds for all, with records as they were given.

        untested: what none of the shields was tested for.
        """
        exposed = tuple(
            replace(record, rows=tuple(self.sets.rows[record.role][list(record.rows)].tolist()))
            for record in subject.exposed
        )
        named = _name(model_itself(self.bare.model))
        described = self.shields[subject.name].settings.describe(named)
        return replace(
            subject,
            certificate=replace(subject.certificate, shield=described),
            exposed=exposed,
            findings=(*subject.findings, *self.findings),
            untested=(*self.sets.dropped, *untested, *subject.untested),
        )

    def shown(self, count: int) -> Tensor | None:
        """Returns the first nonmembers, as images for the report; None for none."""
        return self.sets.examples["nonmembers"].inputs[:count].float() if count else None


def with_bare(shield: Shield | Mapping[str, Shield]) -> dict[str, Shield]:
    """Returns the undefended model by its name, and every shield by its own."""
    shields = {"shield": shield} if isinstance(shield, Shield) else shield
    named = isinstance(shields, Mapping) and all(
        isinstance(value, Shield) for value in shields.values()
    )
    if not (named and shields):
        is_model = isinstance(shield, nn.Module) or is_estimator(shield)
        fix = " Put one around it: shieldnet.harden(model)." if is_model else ""
        raise ConfigError(
            f"Expected a Shield, or a dict of Shields by name, got {type(shield).__name__}.{fix}"
        )
    first = next(iter(shields.values()))
    if any(other.model is not first.model for other in shields.values()):
        raise ConfigError("Expected shields around one model; audit another model by itself.")
    if BARE in shields:
        raise ConfigError(f"The name {BARE} is kept for the undefended model.")
    bare = {BARE: first.bare()}
    # The bare model audited alone is not measured twice; among others it keeps its name, so that
    # the gate sees it.
    alone = len(shields) == 1 and not first.chain.stages and not first.others
    return bare if alone else bare | dict(shields)


def _asked(shield: Shield, examples: Examples) -> Shield:
    """Returns a shield as it is measured: a text's beginnings are asked about, too.

    Where every record has one label, of the last position, that alone is asked about.
    """
    is_last = shield.settings.release_positions == "last"
    is_text = examples.labels is None or examples.labels.dim() > 1
    return at_every_position(shield) if is_last and is_text else shield


def _class_names(model: nn.Module) -> tuple[str, ...]:
    """Returns what an estimator, or a Hugging Face model's config, calls its classes."""
    itself = model_itself(model)
    if isinstance(itself, Estimator):
        return () if itself.classes is None else tuple(map(str, itself.classes.tolist()))
    named = getattr(getattr(itself, "config", None), "id2label", None)
    if not isinstance(named, dict) or sorted(named) != list(range(len(named))):
        return ()
    names = tuple(str(named[number]) for number in range(len(named)))
    return () if len({*names}) < len(names) else names


def _name(model: nn.Module) -> str:
    return repr(model) if isinstance(model, Around) else type(model).__name__


def _hashes_of(model: nn.Module) -> dict[str, str]:
    """Names the model and, of a network, its weights, which a file of weights can be held to."""
    hashes = {"model": weights_hash(model, compiled=isinstance(model, Around))}
    weights = None if isinstance(model, Around) else tensors_hash(model.state_dict())
    return hashes if weights is None else {**hashes, "weights": weights}


def _require_sensitive(sensitive: Sequence[str], columns: tuple[str, ...]) -> None:
    """Raises ConfigError for what is no name of a column, or could not be told from a finding's."""
    if isinstance(sensitive, str):
        raise ConfigError(f"Expected sensitive as names of columns: sensitive=({sensitive!r},).")
    endings = ", ".join(PARTS_OF_ATTRIBUTES)
    for name in sensitive:
        if name.endswith(PARTS_OF_ATTRIBUTES):
            raise ConfigError(
                f"The sensitive column {name} ends as findings do ({endings}): what was found of "
                "it could not be told from what was found of another. Rename it."
            )
    for name in sensitive:
        places_of(columns, name)


def _try_rows(bare: Shield, examples: Examples, rows: list[int]) -> None:
    """Answers some rows, to tell a model that cannot read the data from an internal error."""
    try:
        if rows:
            in_batches(bare, examples.inputs[rows])
    except ShieldnetError:
        raise
    except Exception as unreadable:
        tokens = ""
        is_lookup = isinstance(unreadable, IndexError | RuntimeError)
        if is_lookup and _least_and_greatest(examples):
            least, greatest = (int(end) for end in examples.inputs.long().aminmax())
            tokens = (
                f" If these are tokens, they range from {least} to {greatest}: is the vocabulary "
                "that large, and does the model take texts that long?"
            )
        raise DataError(
            f"The model cannot read the {examples.name} ({examples.described}): "
            f"{type(unreadable).__name__}: {unreadable}.{tokens}"
        ) from unreadable


def _least_and_greatest(examples: Examples) -> list[int]:
    """Lists the rows with the least and the greatest number, where all are whole."""
    if examples.inputs.is_floating_point():
        return []
    rows = examples.inputs.flatten(1).long()  # torch orders no bool, and few unsigned types
    return [int(rows.amin(1).argmin()), int(rows.amax(1).argmax())]


def _extent_of(bare: Shield) -> Extent | None:
    """Returns how large an answer is that has several positions, else None.

    bare: has answered once.
    Errors: ConfigError for vectors at positions, which no attack here reads.
    """
    extent, kind = bare.extent, bare.chain.layout.kind
    if extent is None or math.prod(extent.positions) < 2:
        return None
    if kind == "embeddings":
        raise ConfigError(
            f"An audit measures one vector an answer, the model gives {kind} at "
            f"{math.prod(extent.positions)} positions. Audit what is released of them, such as "
            "their mean. The certificate is proven all the same: shield.certificate()."
        )
    return extent


def _is_unlabeled_map(examples: Examples, extent: Extent) -> bool:
    """Returns whether these are the adversary's own images, of which it need not know the maps."""
    is_own = examples.name == "auxiliary" and examples.labels is None
    return is_own and tokens_of(examples, extent.positions) is None


def _require_fit(bare: Shield, examples: Examples) -> None:
    """Raises DataError for labels that are no classes of the model, or no targets.

    The model has answered once.
    """
    kind = bare.chain.layout.kind
    if examples.labels is None or kind == "embeddings":
        return
    if kind == "values":
        answers = in_batches(Behind(bare), examples.inputs[:1])
        examples.require_targets(answers.shape[-1])
    else:
        examples.require_labels(bare.classes or 0)


def _canaries(given: object, sets: Sets, model: nn.Module) -> Canaries | None:
    """Returns canaries that are neither members nor nonmembers, as the model reads them."""
    if given is None:
        return None
    canaries = given.canaries if isinstance(given, Planted) else given
    if not isinstance(canaries, Canaries):
        raise ConfigError(
            f"Expected canaries as plant_canaries returns them, got {type(given).__name__}."
        )
    for part in _both(canaries):
        for name in ("members", "nonmembers"):
            require_disjoint(sets.examples[name], part)
    targets = sets.examples["members"].has_targets
    parts = {
        "planted": as_examples(canaries.planted, canaries.planted.name, targets=targets),
        "held_out": as_examples(canaries.held_out, canaries.held_out.name, targets=targets),
    }
    read = as_the_model_reads(parts, model)
    return replace(canaries, planted=read["planted"], held_out=read["held_out"])


def _both(canaries: Canaries | None) -> tuple[Examples, ...]:
    return () if canaries is None else (canaries.planted, canaries.held_out)


def _claimed_by(
    finetuned: object, model: nn.Module
) -> tuple[Guarantee | None, tuple[Finding, ...]]:
    """Returns what a training claims of its model, and what its own audit found.

    model: that is audited. A guarantee is about the model it was stated for.
    """
    if finetuned is None:
        return None, ()
    if isinstance(finetuned, Finetuned):
        claimed, findings = finetuned.guarantee, finetuned.findings
    elif isinstance(finetuned, Guarantee):
        claimed, findings = finetuned, ()
    else:
        raise ConfigError(
            f"Expected finetuned as finetune returns it, or a Guarantee; got "
            f"{type(finetuned).__name__}."
        )
    if claimed is not None and claimed.weights and not _is_about(claimed, model):
        raise ConfigError(
            "The guarantee is of other weights (or buffers, attributes, layers) than those of the "
            "model that is audited: nothing is proven of these. Audit the model that finetune "
            "returned, or sn.load_weights(model, path) of what the same factory makes, which puts "
            "in the layers of fix=True as they were trained."
        )
    return claimed, findings


def _is_about(claimed: Guarantee, model: nn.Module) -> bool:
    if is_named_by(model, claimed.weights):
        return True
    # Trainings of version 1 had no run and hashed the state_dict alone.
    return not claimed.run and claimed.weights == state_hash(model)
