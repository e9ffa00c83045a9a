"""What is cheap to check before a model is loaded and asked: files, keys and packages."""

from collections.abc import Collection
from pathlib import Path

from shieldnet.core.checks import choice, optional
from shieldnet.core.errors import DataError
from shieldnet.shipping.envelope import private_key

_ENDINGS = ("onnx", "pt2")
_DEFAULT = "default"


def require_inputs(
    report: Path | None, policy: str | None, key: Path | None, graphs: Collection[str]
) -> None:
    """Returns where the files of a hardened folder can be read and its packages are installed.

    report, policy, key: files; graphs: endings of graphs. Nothing of torch is loaded.
    Errors: DataError for a file that is missing; ConfigError for a key or an ending that is none;
        MissingDependency.
    """
    if report is not None:
        require_report(report)
    if policy is not None and policy != _DEFAULT and not Path(policy).is_file():
        raise DataError(
            f"Cannot read the policy from {policy}: no such file. Write one with: shieldnet policy "
            f"init, or use the default limits: --policy {_DEFAULT}."
        )
    if key is not None:
        private_key(key)
    for ending in graphs:
        if choice("graph", ending, _ENDINGS) == "onnx":
            for package in ("onnx", "onnxscript", "onnxruntime"):
                optional(package, extra="onnx")


def require_report(path: Path) -> None:
    """Raises DataError with the command that writes a report where there is none."""
    if not path.is_file():
        raise DataError(
            f"Cannot read the report from {path}: no such file. Write it with: shieldnet audit "
            f"MODEL --members ... --nonmembers ... -o {path}, with the same MODEL, --weights and "
            "shield."
        )
