"""What the files of a hardened folder say, read from the bytes that were checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from shieldnet.core.errors import DataError
from shieldnet.defenses import Defense
from shieldnet.gate.policy import Policy
from shieldnet.reports.report import BARE, Report, load_all
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import ShieldSettings
from shieldnet.shield.toml import load_shield
from shieldnet.shipping.description import Description
from shieldnet.shipping.parts import MODEL, POLICY, REPORT, SHIELD
from shieldnet.shipping.reading import from_copy


@dataclass(frozen=True)
class Contents:
    """Reads each file when it is asked for, once.

    known: defenses of the user's own that the shield may name.
    """

    files: Mapping[str, bytes]
    known: Sequence[type[Defense]] = ()

    @cached_property
    def description(self) -> Description:
        """Returns what ``model.json`` says."""
        return Description.read(self.files[MODEL])

    @cached_property
    def settings(self) -> ShieldSettings:
        """Returns what ``shield.toml`` says."""
        return self.shield_around(nn.Identity()).settings

    def shield_around(self, model: nn.Module) -> Shield:
        """Puts the shield of the folder around a model."""
        return from_copy(
            self.files[SHIELD], SHIELD, lambda path: load_shield(model, path, known=self.known)
        )

    @cached_property
    def policy(self) -> Policy | None:
        """Returns the limits of ``policy.toml``, None where there is none."""
        if POLICY not in self.files:
            return None
        policy = from_copy(self.files[POLICY], POLICY, Policy.load)
        return replace(policy, source=POLICY)

    @cached_property
    def reports(self) -> list[Report]:
        """Returns what ``report.json`` holds, nothing where there is none."""
        return from_copy(self.files[REPORT], REPORT, load_all) if REPORT in self.files else []

    @cached_property
    def matches(self) -> list[tuple[Report, str]]:
        """Returns every report of this model with every name of this shield in it.

        Errors: DataError where all are of another model, of other weights or of another shield.
        """
        described, digest = self.description, self.settings.digest()
        of_model = [one for one in self.reports if one.hashes.get("model") == described.model]
        if not of_model:
            named = ", ".join(one.hashes.get("model", "none")[:16] for one in self.reports)
            raise DataError(
                f"{REPORT} is of another model: it names {named}, {MODEL} names "
                f"{described.model[:16]}. Audit this model and write the folder again."
            )
        of_weights = [
            one for one in of_model if one.hashes.get("weights") in (None, described.weights)
        ]
        if not of_weights:
            raise DataError(f"{REPORT} is of other weights than {MODEL} names.")
        if found := [
            (report, subject.name)
            for report in of_weights
            for subject in report.subjects
            if subject.name != BARE or len(report.subjects) == 1
            if subject.configuration == digest
        ]:
            return found
        shields = ", ".join(subject.name for one in of_weights for subject in one.subjects)
        raise DataError(
            f"{REPORT} is of other shields than {SHIELD}: none of {shields} has its settings "
            f"({digest[:16]}). Audit this shield, or harden with the one that was audited."
        )
