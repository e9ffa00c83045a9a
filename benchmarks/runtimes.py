"""What a shield adds to one answer of a small ResNet, in each runtime beside the bare model.

A runtime's bare and hardened programs are asked in turns, in a new order each turn, on one thread;
medians are compared with the bare model of the same runtime. The A/A control is the bare program
loaded twice: what it is off 1 is noise. AOTInductor needs a C++ compiler.

    python benchmarks/runtimes.py            # about two minutes
    python benchmarks/runtimes.py --quick    # without AOTInductor and torch.compile, writes nothing
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from models import resnet
from overhead import SHIELDS, medians, table
from results import write_section
from torch import Tensor, nn

import shieldnet as sn

NAMES = ("strict", "balanced", "open", "Round(2)")
Program = Callable[[Tensor], Any]


def eager(shield: sn.Shield, x: Tensor, folder: Path) -> Program:
    """Calls the shield itself, or the model where there are no defenses."""
    return shield if shield.defenses else shield.model


def compiled(shield: sn.Shield, x: Tensor, folder: Path) -> Program:
    """Compiles it by torch.compile."""
    program = eager(shield, x, folder)
    program(x)
    return torch.compile(program)


def exported(shield: sn.Shield, x: Tensor, folder: Path) -> torch.export.ExportedProgram:
    """Returns the graph that ``sn.export`` writes; the model's own without defenses."""
    if not shield.defenses:
        return torch.export.export(shield.model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    sn.export(shield, x, folder / "model.pt2", force=True)
    return torch.export.load(folder / "model.pt2")


def ahead(shield: sn.Shield, x: Tensor, folder: Path) -> Program:
    """Compiles the exported graph ahead of time by AOTInductor."""
    program = exported(shield, x, folder)
    program.example_inputs = ((x,), {})
    package = str(folder / "ahead.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    return torch._inductor.aoti_load_package(package)


def in_onnx_runtime(shield: sn.Shield, x: Tensor, folder: Path) -> Program:
    """Runs the ONNX graph on one thread."""
    path = folder / "model.onnx"
    if shield.defenses:
        sn.export(shield, x, path, force=True)
    else:
        shapes = ({0: torch.export.Dim.AUTO},)
        torch.onnx.export(shield.model, (x,), path, dynamic_shapes=shapes, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    name = session.get_inputs()[0].name
    return lambda rows: session.run(None, {name: rows.numpy()})


RUNTIMES = {
    "eager": eager,
    "torch.compile": compiled,
    "AOTInductor": ahead,
    "ONNX Runtime": in_onnx_runtime,
}


def row_of(runtime: str, model: nn.Module, x: Tensor, folder: Path, budget_s: float) -> list[str]:
    """Measures every shield in one runtime."""
    make = RUNTIMES[runtime]
    example = torch.cat([x, -x, 2 * x])
    shields = {"bare": sn.Shield(model), "again": sn.Shield(model)}
    shields |= {name: sn.Shield(model, *SHIELDS[name]) for name in NAMES}
    calls = {name: make(shield, example, folder) for name, shield in shields.items()}
    found = medians(calls, x, budget_s)
    cells = [
        f"{found[name] / found['bare']:.2f} ({found[name] - found['bare']:+.0f})" for name in NAMES
    ]
    row = [runtime, f"{found['bare']:.0f}", f"{found['again'] / found['bare']:.2f}", *cells]
    print(*row, flush=True)
    return row


def main() -> None:
    """Measures every runtime and writes the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, _ = resnet(10, width=38)
    model.eval()
    x = torch.randn(1, 3, 16, 16)
    runtimes = ("eager", "ONNX Runtime") if quick else tuple(RUNTIMES)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        rows = [row_of(each, model, x, Path(name), 5 if quick else 60) for each in runtimes]
    weights = sum(weight.numel() for weight in model.parameters())
    text = (
        f"A ResNet of {weights / 1e3:.0f}k weights, batch 1, ten classes: the time of a hardened "
        "answer over that of the bare model in the same runtime, and in brackets the microseconds "
        "that are added. Lower is better; A/A is the bare model against itself.\n\n"
    ) + table(["runtime", "bare, us", "A/A", *NAMES], rows)
    if quick:
        print(text)
    else:
        write_section("runtimes", "python benchmarks/runtimes.py", text)


if __name__ == "__main__":
    main()
