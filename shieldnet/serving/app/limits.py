"""How much a client may ask at once, and how long it may take."""

from dataclasses import dataclass

from shieldnet.core.checks import finite, positive, whole
from shieldnet.core.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Holds the limits of a server; what exceeds one is refused before anything is charged.

    max_rows: of one request. max_body_bytes: of its body. max_requests: served at the same time; a
    client has at most a third as many as are free.
    timeout_s: for a body to arrive, for a charge, and for an answer. max_batch_rows: that the model
    gets at once, of several requests. batch_wait_s: how long the model waits for further requests;
    at 0 a batch is what came while it answered the last one. quantize_latency_s: answers and
    refusals are sent only at multiples of this after the body was read; None for at once. Longer
    than the slowest queue, or the number of steps tells.
    """

    max_rows: int = 64
    max_body_bytes: int = 2**23
    max_requests: int = 256
    timeout_s: float = 30.0
    max_batch_rows: int = 64
    batch_wait_s: float = 0.0
    quantize_latency_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_body_bytes", "max_requests", "max_batch_rows"):
            whole(name, getattr(self, name), low=1)
        positive("timeout_s", self.timeout_s)
        if not 0 <= finite("batch_wait_s", self.batch_wait_s) < self.timeout_s:
            raise ConfigError(
                f"Expected batch_wait_s from 0 to below timeout_s ({self.timeout_s}), got "
                f"batch_wait_s={self.batch_wait_s}."
            )
        if self.quantize_latency_s is not None:
            positive("quantize_latency_s", self.quantize_latency_s)
