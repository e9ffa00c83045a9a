"""GroupNorm layers in files of weights: recorded beside them, and put into a model again.

Private training with ``fix=True`` trains GroupNorm in place of BatchNorm. The model's factory still
makes BatchNorm, and the number of groups is in no tensor, so the file of weights names it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shieldnet.core.checks import positive, whole
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.files.documents import parse_json

METADATA = "shieldnet.group_norms"
"""Name of the entry in the metadata of a .safetensors file."""
_CHANNELS = 8  # per group: normalizing two numbers leaves only a sign
_MAX_GROUPS = 32
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Norm:
    """Holds the settings of a GroupNorm, which decide what it computes from its weights.

    groups, channels: numbers of groups and channels. eps: added to the variance. affine: whether it
    has a scale and a shift.
    """

    groups: int
    channels: int
    eps: float = 1e-5
    affine: bool = True

    def __post_init__(self) -> None:
        whole("channels", self.channels, low=1)
        whole("groups", self.groups, low=1, high=self.channels)
        positive("eps", self.eps)
        if self.channels % self.groups or not isinstance(self.affine, bool):
            raise ConfigError(f"Expected groups that divide the channels, got {self}.")

    def __str__(self) -> str:
        return f"GroupNorm({self.groups}, {self.channels})"

    @classmethod
    def of(cls, layer: nn.GroupNorm) -> "Norm":
        """Returns the settings of a layer."""
        return cls(layer.num_groups, layer.num_channels, layer.eps, layer.affine)

    @classmethod
    def replacing(cls, layer: _BatchNorm) -> "Norm":
        """Returns the GroupNorm that ``fix=True`` puts in place of a BatchNorm.

        It has groups of 8 channels or more, at most 32 of them; of BatchNorm1d one group.
        """
        channels = layer.num_features
        most = max(1, min(_MAX_GROUPS, channels // _CHANNELS))
        most = 1 if isinstance(layer, nn.BatchNorm1d) else most
        groups = next(count for count in range(most, 0, -1) if channels % count == 0)
        return cls(groups, channels, layer.eps, layer.affine)

    def put(self, model: nn.Module, name: str) -> None:
        """Puts the layer in place of a BatchNorm of as many channels, with its scale and shift.

        name: of the BatchNorm in the model, which is changed in place.
        """
        layer = _layer(model, name)
        made = nn.GroupNorm(self.groups, self.channels, eps=self.eps, affine=self.affine)
        if self.affine and layer.affine:
            made.to(layer.weight.device, layer.weight.dtype)
            made.weight.data.copy_(layer.weight.data)
            made.bias.data.copy_(layer.bias.data)
            made.weight.requires_grad_(layer.weight.requires_grad)
            made.bias.requires_grad_(layer.bias.requires_grad)
        holder, _, own = name.rpartition(".")
        setattr(model.get_submodule(holder), own, made.train(layer.training))


Norms = Mapping[str, Norm]
"""Settings of GroupNorm layers, by their names in a model."""


def metadata_of(model: nn.Module) -> dict[str, str] | None:
    """Returns the metadata for a file of the model's weights; None without GroupNorm."""
    norms = {
        name: asdict(Norm.of(layer))
        for name, layer in model.named_modules()
        if type(layer) is nn.GroupNorm
    }
    return {METADATA: json.dumps(norms)} if norms else None


def norms_in(content: bytes, source: object) -> Norms:
    """Reads the layers from the header of a .safetensors file; none without the entry.

    content: the file or its beginning. source: the file, for messages.
    Errors: DataError for an entry that ``metadata_of`` does not write.
    """
    length = int.from_bytes(content[:8], "little")
    header = parse_json(content[8 : 8 + length], source, "header")
    metadata = header.get("__metadata__") or {}
    if METADATA not in metadata:
        return {}
    listed = parse_json(metadata[METADATA], source, "list of GroupNorm layers")
    try:
        return {name: Norm(**settings) for name, settings in listed.items()}
    except (TypeError, ConfigError) as broken:
        raise DataError(f"{source} has no valid list of GroupNorm layers: {broken}") from broken


def put_norms(model: nn.Module, norms: Norms) -> tuple[str, ...]:
    """Puts recorded layers in place of BatchNorm layers of the same names.

    Returns what was replaced, in words; the model is changed in place.
    """
    replaced = []
    for name, norm in norms.items():
        layer = _layer(model, name)
        if isinstance(layer, _BatchNorm) and layer.num_features == norm.channels and name:
            norm.put(model, name)
            replaced.append(f"{norm} in place of layer {name} ({type(layer).__name__})")
    return tuple(replaced)


def unlike(model: nn.Module, norms: Norms) -> Iterable[str]:
    """Lists GroupNorm layers of a model that are not as recorded, with the fix."""
    for name, norm in norms.items():
        layer = _layer(model, name)
        if type(layer) is nn.GroupNorm and Norm.of(layer) != norm:
            yield (
                f"it was trained with nn.GroupNorm({norm.groups}, {norm.channels}, "
                f"eps={norm.eps:g}) as {name}, and the model has nn.{layer} there: put the former "
                "into the factory, or leave the BatchNorm, which is then replaced"
            )


def batch_norm_hint(model: nn.Module, missing: Iterable[str]) -> str:
    """Returns a hint for weights that lack nothing but the statistics of BatchNorm layers."""
    names = dict.fromkeys(name.rpartition(".")[0] for name in missing)
    layers = {name: _layer(model, name) for name in names}
    if not all(name.endswith(_STATISTICS) for name in missing):
        return ""
    made = [
        f"{Norm.replacing(layer)} in place of {name}"
        for name, layer in layers.items()
        if isinstance(layer, _BatchNorm)
    ]
    if not made:
        return ""
    return (
        f". If they were trained with fix=True, put nn.{', nn.'.join(made)} into the factory. "
        "Files that shieldnet finetune and private.save(folder) write record it themselves"
    )


def _layer(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
