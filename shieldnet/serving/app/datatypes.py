"""The datatypes of the protocol: their names, and their numbers in memory."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shieldnet.serving.app.refusals import malformed


@dataclass(frozen=True)
class Datatype:
    """Says how the numbers of a datatype lie in memory.

    array: numpy's name of the same bytes in little-endian order, as the protocol sends them.
    """

    name: str
    dtype: torch.dtype
    array: str

    @property
    def size(self) -> int:
        """Returns the bytes of one number."""
        return np.dtype(self.array).itemsize

    def of_bytes(self, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """Reads numbers from as many bytes as the shape needs, into memory of their own."""
        numbers = np.frombuffer(data, dtype=self.array)
        if self.dtype is torch.bool and numbers.view(np.uint8).max(initial=0) > 1:
            raise malformed("Expected 0 or 1 in each byte of BOOL.")
        native = numbers.astype(numbers.dtype.newbyteorder("="), copy=True)
        return torch.from_numpy(native).view(self.dtype).reshape(shape)

    def of_numbers(self, numbers: list[object], shape: tuple[int, ...]) -> Tensor:
        """Reads numbers from JSON, each of which the datatype has to hold.

        numbers: in row-major order, as many as the shape has.
        """
        kinds = set(map(type, numbers))
        expected: set[type] = {bool} if self.dtype is torch.bool else {int}
        if self.dtype.is_floating_point:
            expected.add(float)
        if self.dtype is torch.bfloat16:
            raise malformed("BF16 is read from binary data alone: give binary_data_size.")
        if not kinds <= expected:
            words = " or ".join(sorted(kind.__name__ for kind in expected))
            raise malformed(f"Expected every number of {self.name} as {words}.")
        out_of_range = malformed(f"Expected numbers that {self.name} can hold.")
        if int in kinds and not self.dtype.is_floating_point:
            limits = torch.iinfo(self.dtype)
            if min(numbers) < limits.min or max(numbers) > limits.max:  # type: ignore[type-var, operator]  # integers
                raise out_of_range
        try:
            with np.errstate(over="ignore"):
                array = np.array(numbers, dtype=self.array)
        except OverflowError:
            raise out_of_range from None
        if self.dtype.is_floating_point and not np.isfinite(array).all():
            raise out_of_range
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native).reshape(shape)

    def bytes_of(self, numbers: Tensor) -> bytes:
        """Returns numbers as the protocol sends them. Shapes: any, in row-major order."""
        held = numbers.detach().cpu().contiguous()
        if self.dtype is torch.bfloat16:
            held = held.view(torch.uint16)
        return held.numpy().astype(self.array, copy=False).tobytes()


DATATYPES = {
    one.name: one
    for one in (
        Datatype("BOOL", torch.bool, "?"),
        Datatype("UINT8", torch.uint8, "u1"),
        Datatype("UINT16", torch.uint16, "<u2"),
        Datatype("UINT32", torch.uint32, "<u4"),
        Datatype("UINT64", torch.uint64, "<u8"),
        Datatype("INT8", torch.int8, "i1"),
        Datatype("INT16", torch.int16, "<i2"),
        Datatype("INT32", torch.int32, "<i4"),
        Datatype("INT64", torch.int64, "<i8"),
        Datatype("FP16", torch.float16, "<f2"),
        Datatype("BF16", torch.bfloat16, "<u2"),
        Datatype("FP32", torch.float32, "<f4"),
        Datatype("FP64", torch.float64, "<f8"),
    )
}
"""Every datatype of the protocol by its name, but BYTES: no model of numbers takes it."""

OF_DTYPE = {str(one.dtype).removeprefix("torch."): one for one in DATATYPES.values()}
"""The same by torch's name of the dtype, ``float32``."""
