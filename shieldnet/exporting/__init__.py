"""Shields as graphs that run without shieldnet: torch's exported programs and ONNX models."""

from shieldnet.exporting.line import NO_LABEL, Line, NoiseInput
from shieldnet.exporting.writing import Exported, export

__all__ = ["NO_LABEL", "Exported", "Line", "NoiseInput", "export"]
