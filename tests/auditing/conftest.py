"""Reports that need no audit."""

import math

import pytest
import torch
from by_hand import GUARANTEE, made, subject

from shieldnet.auditing.report import Report


@pytest.fixture
def report() -> Report:
    return made()


@pytest.fixture
def pictured() -> Report:
    """Returns a report with pictures, subgroups and a guarantee: all that a page can show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 8, 8, generator=generator)
    drawn = {f"class image {label}": torch.rand(1, 8, 8) for label in range(3)}
    subjects = [
        subject(
            name,
            leak,
            bits,
            reconstructions=images,
            features={"leak map": torch.rand(8, 8), "null map": torch.rand(8, 8), **drawn},
        )
        for name, leak, bits in (("bare", 0.6, math.inf), ("open", 0.1, 15.0), ("strict", 0.0, 3.3))
    ]
    return made(*subjects, inputs=images, groups=("sex = 0", "sex = 1"), guarantee=GUARANTEE)
