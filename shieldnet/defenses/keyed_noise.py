"""Noise that a secret key makes repeatable; two attacks of the audit remove it."""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.core.checks import choice, optional, positive
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.core.exact_tables import gaussian_table
from shieldnet.core.randomness import MAX_STEPS, by_table
from shieldnet.defenses.base import Defense

_MIN_KEY_BYTES = 16
_BLOCK = 16  # bytes of an AES block: 12 of the row's tag, 4 of a counter


@dataclass(frozen=True)
class KeyedNoise(Defense):
    """Adds Gaussian noise that depends on a secret key and on the answer or the input.

    scale: standard deviation in the unit of the answers, above 0; no default. key: at least 16
        secret bytes, never printed or written to a file. on: "answer" (default), the noise depends
        on the scores, truncated to the grid; "input", on the bytes of the model's input tensors.
        step: of the grid, at least scale/1024, by default the largest power of two up to scale/8.
    The same query gets the same answer, so that averaging repeated answers removes nothing. Its
    cost is infinite: an adversary who changes the input a little gets fresh noise and averages it
    (``JitterAveraging``), and one who collects ordinary answers learns scores and noise together
    (``TableLearning``).
    The tag of a row is a universal hash under the key, and its noise is AES of the tag, computed on
    the CPU. It cannot be compiled with ``fullgraph=True``, nor exported.
    Errors: ConfigError for other settings; AnswerError on "input" if no input has a row per answer.
    Source: Carter and Wegman 1981; Lemire and Kaser 2014 (arXiv:1202.4961) for the hash.
    """

    scale: float
    key: bytes = field(repr=False)
    on: Literal["answer", "input"] = "answer"
    step: float | None = None
    accepts = ("logits", "values", "embeddings")
    keeps_argmax = False
    may_overflow = True
    secret: ClassVar[tuple[str, ...]] = ("key",)

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(2.0, b"sixteen bytes it"),)

    def __post_init__(self) -> None:
        scale = positive("scale", self.scale)
        choice("on", self.on, ("answer", "input"))
        if not isinstance(self.key, bytes) or len(self.key) < _MIN_KEY_BYTES:
            came = f"{len(self.key)} bytes" if isinstance(self.key, bytes) else "no bytes"
            raise ConfigError(
                f"Expected a key of at least {_MIN_KEY_BYTES} secret bytes, got {came}. "
                f"Make one with secrets.token_bytes({_MIN_KEY_BYTES})."
            )
        if self.step is None:
            object.__setattr__(self, "step", 2.0 ** math.floor(math.log2(scale / 8)))
        if positive("step", self.step) < scale / MAX_STEPS:
            raise ConfigError(f"Expected step >= scale/{MAX_STEPS}, got step={self.step!r}.")

    @property
    def grid(self) -> float:
        return self.step or math.nan  # __post_init__ has set it

    @property
    def noise_deviation(self) -> float:
        return self.scale

    @property
    def reads_inputs(self) -> bool:  # type: ignore[override]  # a claim that depends on a setting
        return self.on == "input"

    def __call__(self, answers: Tensor) -> Tensor:
        if self.reads_inputs:
            raise AnswerError(
                "KeyedNoise(on='input') needs the model's input: call the shield itself, with "
                "tensors that have a row for each answer."
            )
        return self._with_noise(answers, [self._steps(answers).flatten(0, -2)])

    def with_inputs(self, answers: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """Does the same, keyed on the bytes of the inputs' rows."""
        rows = [tensor for tensor in inputs if tensor.dim() > 0 and len(tensor) == len(answers)]
        if not rows:
            return self(answers)
        positions = math.prod(answers.shape[1:-1])
        content = [tensor.flatten(1).repeat_interleave(positions, 0) for tensor in rows]
        position = torch.arange(positions).repeat(len(answers)).unsqueeze(1)
        return self._with_noise(answers, [*content, position])

    def _steps(self, answers: Tensor) -> Tensor:
        return answers.to(torch.float64).div(self.grid).trunc().add(0.0)  # no -0.0

    def _with_noise(self, answers: Tensor, content: list[Tensor]) -> Tensor:
        grid = self.grid
        words = keyed_words(content, answers.shape[-1], self.key).to(torch.int32)
        noise = by_table(words, gaussian_table(self.scale / grid)).reshape(answers.shape)
        return ((self._steps(answers) + noise.to(answers.device)) * grid).to(answers.dtype)


def keyed_words(content: list[Tensor], count: int, key: bytes) -> Tensor:
    """Returns ``count`` pseudorandom 64-bit words for every row.

    Shapes: content, each (rows, ...) -> (rows * count,) int64 on the CPU. Equal rows get equal
    words; without the key, the words of other rows look uniform.
    """
    rows = len(content[0])
    if rows == 0:
        return torch.empty(0, dtype=torch.int64)
    parts = [_as_words(tensor) for tensor in content]
    numbers = np.concatenate([*parts, np.full((rows, 1), len(parts[0][0]), np.uint64)], axis=1)
    hash_keys, cipher_key = _derived(key, numbers.shape[1])
    tags = ((numbers @ hash_keys[1:] + hash_keys[0]) >> np.uint64(32)).astype(np.uint32)
    pairs = -(-count // 2)
    blocks = np.empty((rows, pairs, 4), np.uint32)
    blocks[..., :3] = tags[:, None, :]
    blocks[..., 3] = np.arange(pairs, dtype=np.uint32)
    words = np.frombuffer(_encrypted(blocks.tobytes(), cipher_key), np.int64)
    return torch.from_numpy(words.reshape(rows, 2 * pairs)[:, :count].flatten())


def _as_words(rows: Tensor) -> NDArray[np.uint64]:
    """Splits the bytes of each row into 32-bit words."""
    flat = rows.detach().cpu().contiguous().flatten(1)
    data = flat.view(torch.uint8).numpy()
    padded = np.pad(data, ((0, 0), (0, -data.shape[1] % 4)))
    return np.ascontiguousarray(padded).view(np.uint32).astype(np.uint64)


@lru_cache(maxsize=16)
def _derived(key: bytes, width: int) -> tuple[NDArray[np.uint64], bytes]:
    """Derives the hash's keys, (width + 1, 3), and the cipher's from the user's key."""
    algorithms = optional("cryptography.hazmat.primitives.ciphers.algorithms", extra="keyed")
    ciphers = optional("cryptography.hazmat.primitives.ciphers", extra="keyed")
    hkdf = optional("cryptography.hazmat.primitives.kdf.hkdf", extra="keyed")
    hashes = optional("cryptography.hazmat.primitives.hashes", extra="keyed")
    secret = hkdf.HKDF(hashes.SHA256(), 64, None, b"shieldnet keyed noise").derive(key)
    stream = ciphers.Cipher(algorithms.AES(secret[:32]), ciphers.modes.CTR(bytes(_BLOCK)))
    keystream = stream.encryptor().update(bytes(8 * 3 * (width + 1)))
    return np.frombuffer(keystream, np.uint64).reshape(width + 1, 3), secret[32:]


def _encrypted(blocks: bytes, key: bytes) -> bytes:
    ciphers = optional("cryptography.hazmat.primitives.ciphers", extra="keyed")
    algorithms = optional("cryptography.hazmat.primitives.ciphers.algorithms", extra="keyed")
    # Every block is its own question to a pseudorandom permutation: no chaining is wanted.
    cipher = ciphers.Cipher(algorithms.AES(key), ciphers.modes.ECB())
    encrypted: bytes = cipher.encryptor().update(blocks)
    return encrypted
