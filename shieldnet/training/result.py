"""The result of finetune."""

from dataclasses import dataclass

from torch import nn

from shieldnet.findings.finding import Finding, decimals
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.training.private.preflight import Preflight
from shieldnet.training.validation import Validation


@dataclass(frozen=True)
class Finetuned:
    """Holds a trained model, its guarantee, and what was measured.

    model: the trained copy, in evaluation mode, with the original's state_dict keys. guarantee:
    what is proven; None without DPSGD or in its empirical mode. findings: of the audit of the run
    itself. preflight: what was measured before training, without noise. steps: number of steps.
    seconds: duration. start: whether the start knows the records, tested on ``heldout`` without
    noise; "" without it. before, validation: loss and accuracy of the original and the trained
    model on the ``validation`` records.
    """

    model: nn.Module
    guarantee: Guarantee | None
    findings: tuple[Finding, ...]
    preflight: Preflight | None
    steps: int
    seconds: float
    start: str = ""
    before: Validation | None = None
    validation: Validation | None = None

    def __str__(self) -> str:
        claimed = "No guarantee is stated." if self.guarantee is None else str(self.guarantee)
        audited = [
            f"  {finding.name.removeprefix('one_run.')} at least {decimals(finding.low)} "
            f"(95%, {finding.samples} canaries)"
            for finding in self.findings
        ]
        head = ["Measured in the run itself:"] if audited else []
        known = [self.start] if self.start else []
        if self.validation is not None:
            known += [f"Validation before: {self.before}", f"Validation after: {self.validation}"]
        took = f"{self.steps} steps in {self.seconds:.1f} s"
        return "\n".join([took, claimed, *known, *head, *audited])
