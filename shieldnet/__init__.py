"""shieldnet: every answer has a cost, and every claim has an adversary who tried to break it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shieldnet.auditing.plan import Tier
    from shieldnet.auditing.suite import audit
    from shieldnet.core.errors import (
        AnswerError,
        BypassError,
        ConfigError,
        DataError,
        MissingDependency,
        PolicyFailed,
        PolicyInconclusive,
        PreflightFailed,
        ShieldnetError,
        TrainingFailed,
    )
    from shieldnet.data.canaries import plant_canaries
    from shieldnet.data.examples import split
    from shieldnet.defenses import (
        ClipNorm,
        ClipRange,
        Coarsen,
        Confidence,
        Defense,
        GaussianNoise,
        KeyedNoise,
        Label,
        LaplaceNoise,
        PermuteAndFlip,
        RandomizedResponse,
        Round,
        RoundTo,
        Sign,
        Temperature,
        TopK,
    )
    from shieldnet.findings.finding import Finding, Threat
    from shieldnet.gate.policy import Policy, Verdict
    from shieldnet.outputs.layout import ZERO_LOGIT
    from shieldnet.privacy.certificate import Certificate
    from shieldnet.privacy.cost import PrivacyCost
    from shieldnet.privacy.guarantee import Guarantee
    from shieldnet.reports.comparison import Comparison, compare
    from shieldnet.reports.report import Report
    from shieldnet.shield.composition import composed_epsilon
    from shieldnet.shield.logits_processor import LogitsProcessor
    from shieldnet.shield.module import Shield
    from shieldnet.shield.presets import harden
    from shieldnet.shield.settings import Extent, ShieldSettings
    from shieldnet.shield.toml import dump_shield, load_shield
    from shieldnet.training.countermeasures.base import (
        Adversarial,
        Augment,
        Countermeasure,
        LabelSmoothing,
        WeightDecay,
    )
    from shieldnet.training.countermeasures.class_inversion import (
        MID,
        AntiAdversarial,
        BiDO,
        TransferFreeze,
    )
    from shieldnet.training.finetuning import Finetuned, finetune
    from shieldnet.training.private.clipping import AdaptiveClip
    from shieldnet.training.private.dpsgd import DPSGD
    from shieldnet.training.recipe import Recipe

_ROOMS = {
    "outputs.layout": ("ZERO_LOGIT",),
    "reports.comparison": ("Comparison", "compare"),
    "gate.policy": ("Policy", "Verdict"),
    "reports.report": ("Report",),
    "auditing.suite": ("audit",),
    "auditing.plan": ("Tier",),
    "data.canaries": ("plant_canaries",),
    "data.examples": ("split",),
    "privacy.certificate": ("Certificate",),
    "shield.toml": ("dump_shield", "load_shield"),
    "shield.composition": ("composed_epsilon",),
    "defenses": (
        "ClipNorm",
        "ClipRange",
        "Coarsen",
        "Confidence",
        "Defense",
        "GaussianNoise",
        "KeyedNoise",
        "Label",
        "LaplaceNoise",
        "PermuteAndFlip",
        "RandomizedResponse",
        "Round",
        "RoundTo",
        "Sign",
        "Temperature",
        "TopK",
    ),
    "core.errors": (
        "AnswerError",
        "BypassError",
        "ConfigError",
        "DataError",
        "MissingDependency",
        "PolicyFailed",
        "PolicyInconclusive",
        "PreflightFailed",
        "ShieldnetError",
        "TrainingFailed",
    ),
    "findings.finding": ("Finding", "Threat"),
    "shield.logits_processor": ("LogitsProcessor",),
    "shield.presets": ("harden",),
    "privacy.cost": ("PrivacyCost",),
    "shield.settings": ("Extent", "ShieldSettings"),
    "shield.module": ("Shield",),
    "privacy.guarantee": ("Guarantee",),
    "training.countermeasures.class_inversion": (
        "MID",
        "AntiAdversarial",
        "BiDO",
        "TransferFreeze",
    ),
    "training.countermeasures.base": (
        "Adversarial",
        "Augment",
        "Countermeasure",
        "LabelSmoothing",
        "WeightDecay",
    ),
    "training.finetuning": ("Finetuned", "finetune"),
    "training.private.clipping": ("AdaptiveClip",),
    "training.private.dpsgd": ("DPSGD",),
    "training.recipe": ("Recipe",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "DPSGD",
    "MID",
    "ZERO_LOGIT",
    "AdaptiveClip",
    "Adversarial",
    "AnswerError",
    "AntiAdversarial",
    "Augment",
    "BiDO",
    "BypassError",
    "Certificate",
    "ClipNorm",
    "ClipRange",
    "Coarsen",
    "Comparison",
    "Confidence",
    "ConfigError",
    "Countermeasure",
    "DataError",
    "Defense",
    "Extent",
    "Finding",
    "Finetuned",
    "GaussianNoise",
    "Guarantee",
    "KeyedNoise",
    "Label",
    "LabelSmoothing",
    "LaplaceNoise",
    "LogitsProcessor",
    "MissingDependency",
    "PermuteAndFlip",
    "Policy",
    "PolicyFailed",
    "PolicyInconclusive",
    "PreflightFailed",
    "PrivacyCost",
    "RandomizedResponse",
    "Recipe",
    "Report",
    "Round",
    "RoundTo",
    "Shield",
    "ShieldSettings",
    "ShieldnetError",
    "Sign",
    "Temperature",
    "Threat",
    "Tier",
    "TopK",
    "TrainingFailed",
    "TransferFreeze",
    "Verdict",
    "WeightDecay",
    "audit",
    "compare",
    "composed_epsilon",
    "dump_shield",
    "finetune",
    "harden",
    "load_shield",
    "plant_canaries",
    "split",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used: importing shieldnet imports nothing else."""
    if name not in _ROOM_OF:
        raise AttributeError(f"shieldnet has no {name}. It has: {', '.join(__all__)}.")
    value = getattr(import_module(f"shieldnet.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
