"""shieldnet: every answer has a price, and every claim has an adversary who tried to break it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shieldnet.accounting import composed_epsilon
    from shieldnet.answers import ZERO_LOGIT
    from shieldnet.auditing.comparing import Comparison, compare
    from shieldnet.auditing.policy import Policy, Verdict
    from shieldnet.auditing.report import Report
    from shieldnet.auditing.suite import audit
    from shieldnet.auditing.tiers import Tier
    from shieldnet.canaries import plant_canaries
    from shieldnet.certificate import Certificate
    from shieldnet.config import dump_shield, load_shield
    from shieldnet.data import split
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
    from shieldnet.errors import (
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
    from shieldnet.finding import Finding, Threat
    from shieldnet.language import LogitsProcessor
    from shieldnet.presets import harden
    from shieldnet.price import Price
    from shieldnet.settings import Extent, ShieldSettings
    from shieldnet.shield import Shield
    from shieldnet.training.accountant import Guarantee
    from shieldnet.training.class_defenses import (
        MID,
        AntiAdversarial,
        BiDO,
        TransferFreeze,
    )
    from shieldnet.training.clipping import AdaptiveClip
    from shieldnet.training.countermeasures import (
        Adversarial,
        Augment,
        Countermeasure,
        LabelSmoothing,
        WeightDecay,
    )
    from shieldnet.training.finetuning import Finetuned, finetune
    from shieldnet.training.private import DPSGD
    from shieldnet.training.together import Recipe

_ROOMS = {
    "answers": ("ZERO_LOGIT",),
    "auditing.comparing": ("Comparison", "compare"),
    "auditing.policy": ("Policy", "Verdict"),
    "auditing.report": ("Report",),
    "auditing.suite": ("audit",),
    "auditing.tiers": ("Tier",),
    "canaries": ("plant_canaries",),
    "data": ("split",),
    "certificate": ("Certificate",),
    "config": ("dump_shield", "load_shield"),
    "accounting": ("composed_epsilon",),
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
    "errors": (
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
    "finding": ("Finding", "Threat"),
    "language": ("LogitsProcessor",),
    "presets": ("harden",),
    "price": ("Price",),
    "settings": ("Extent", "ShieldSettings"),
    "shield": ("Shield",),
    "training.accountant": ("Guarantee",),
    "training.class_defenses": ("MID", "AntiAdversarial", "BiDO", "TransferFreeze"),
    "training.countermeasures": (
        "Adversarial",
        "Augment",
        "Countermeasure",
        "LabelSmoothing",
        "WeightDecay",
    ),
    "training.finetuning": ("Finetuned", "finetune"),
    "training.clipping": ("AdaptiveClip",),
    "training.private": ("DPSGD",),
    "training.together": ("Recipe",),
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
    "Price",
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
