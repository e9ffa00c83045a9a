"""Where a training stands: never half written, keyed, and continued once."""

import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from hmac import compare_digest
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from shieldnet.core.errors import TrainingFailed
from shieldnet.core.randomness import noise_about, random_seed
from shieldnet.privacy.signing import key_of_environment, mac
from shieldnet.training.distributed import Ranks

_VERSION = 2
_SIZE = 32  # bytes of a keyed hash
STATE, RUN, KEY, LOCK = "finetune.pt", "finetune.run", "finetune.key", "finetune.lock"


@dataclass
class State:
    """Holds all that the next step depends on, and all that a guarantee counts.

    step: steps that were taken; a guarantee counts these. weights: of the trained part. mean: their
    running mean. coins, scores: which canaries are in (fair Bernoulli draws), and how surely each
    looks it. clip: the norm of the next step, 0 before the first. run: names the training,
    once and for all. saved: how often it was saved.
    """

    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    mean: dict[str, Tensor] = field(default_factory=dict)
    coins: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    clip: float = 0.0
    run: str = ""
    saved: int = 0


@dataclass(frozen=True)
class Checkpointer:
    """Keeps a training in a folder every so many seconds, if there is one.

    key: the fingerprint of all that the training depends on. run: names it, where it begins anew.
    """

    folder: Path | None
    key: str
    every_s: float
    ranks: Ranks
    run: str

    @classmethod
    def of(
        cls, folder: str | Path | None, every_s: float, ranks: Ranks, key: Callable[[Ranks], str]
    ) -> "Checkpointer":
        """Draws the name of a run, the same on every rank; asks for the key if there is a folder.

        key: returns the fingerprint, for which all records are read.
        """
        with noise_about("run"):
            draws = ranks.broadcast(torch.tensor([random_seed(), random_seed()]))
        run = "".join(f"{draw:016x}" for draw in draws.tolist())
        if folder is None:
            return cls(None, "", every_s, ranks, run)
        return cls(Path(folder), key(ranks), every_s, ranks, run)

    def only_here(self) -> AbstractContextManager[None]:
        """Keeps the folder to this training; see ``only_here``."""
        return only_here(self.folder if self.ranks.is_first else None)

    def latest(self, steps: int) -> State:
        """Returns where the training stood, the same for all ranks."""
        state = None if self.folder is None else load(self.folder, self.key, steps)
        return state or State(run=self.run)

    def is_time(self, saved_at: float, *, last: bool) -> bool:
        """Says whether the state is to be written. saved_at: seconds of ``time.monotonic``."""
        return self.folder is not None and (last or time.monotonic() - saved_at > self.every_s)

    def keep(self, state: State) -> float:
        """Writes the state; returns when that was."""
        if self.folder is not None and self.ranks.is_first:
            save(self.folder, self.key, state)
        return time.monotonic()


def save(folder: Path, key: str, state: State) -> None:
    """Writes the state beside the last one and then puts it in its place, at once.

    The count in the run's own file follows: a copy of an older state is told by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    secret = _secret(folder, make=True)
    if state.saved == 0:  # of a run that is killed before its first state is there
        _replace(folder / RUN, _run_document(secret, state))
    state.saved += 1
    content = io.BytesIO()
    torch.save({"version": _VERSION, "key": key, **asdict(state)}, content)
    payload = content.getvalue()
    _replace(folder / STATE, payload + mac(secret, payload))
    _replace(folder / RUN, _run_document(secret, state))


def load(folder: Path, key: str, steps: int) -> State | None:
    """Reads the state of the same training, or returns None where there is none yet.

    Errors: TrainingFailed for a file that is broken, was changed, is of another training, was
    continued already, or stands beyond the steps that are planned.
    """
    path = folder / STATE
    if not path.exists():
        if (folder / RUN).exists() and _run_of(folder, _secret(folder, make=False))[1] > 0:
            raise TrainingFailed(
                f"{path} is gone, but {folder / RUN} names a run that was saved there. Put it "
                "back, or choose an empty folder to begin anew."
            )
        return None
    raw = path.read_bytes()
    payload, seal = raw[:-_SIZE], raw[-_SIZE:]
    secret = _secret(folder, make=False)
    if not compare_digest(mac(secret, payload), seal):
        raise TrainingFailed(
            f"{path} is not what was saved with this key: it is damaged, was changed, or is of an "
            "older version. Nothing was trained: put back a copy of the whole folder (and the "
            "same SHIELDNET_KEY), or choose an empty one to begin anew."
        )
    try:
        content = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception as broken:  # torch raises a dozen kinds
        raise TrainingFailed(f"{path} cannot be read ({type(broken).__name__}).") from broken
    if content.pop("version", None) != _VERSION:
        raise TrainingFailed(f"{path} is no checkpoint of this version. Choose another folder.")
    if content.pop("key", None) != key:
        raise TrainingFailed(
            f"{path} belongs to another training: its model, data or settings differ. Choose "
            "another folder, or delete it to begin anew."
        )
    state = State(**content)
    if not 0 <= state.step <= steps:
        raise TrainingFailed(
            f"{path} stands at step {state.step}, the training has {steps}: what was taken beyond "
            "is in no guarantee. Choose another folder."
        )
    _require_latest(folder, secret, state)
    return state


@contextmanager
def only_here(folder: Path | None) -> Iterator[None]:
    """Keeps a folder to one process: two that continue one training publish two models.

    The system lets go of it where a process ends, however it does.
    Errors: TrainingFailed where another process has it.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if not _is_locked(file):
            raise TrainingFailed(
                f"Another process trains in {folder}: two continuations of one training would each "
                "state the epsilon of one. Wait for it, or choose another folder."
            )
        yield


def _is_locked(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: the count of saves still tells a second continuation
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _run_of(folder: Path, secret: bytes) -> tuple[str, int]:
    """Reads which run a folder is of, and how often its state was saved."""
    path = folder / RUN
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        run, saved, seal = str(document["run"]), int(document["saved"]), str(document["seal"])
    except (OSError, ValueError, KeyError, TypeError) as missing:
        raise TrainingFailed(
            f"Cannot read {path}, which tells whether {folder / STATE} was continued already. Put "
            "it back, or choose an empty folder to begin anew."
        ) from missing
    if not compare_digest(seal.encode(), _run_seal(secret, run, saved).encode()):
        raise TrainingFailed(f"{path} was not written with this key. Choose an empty folder.")
    return run, saved


def _require_latest(folder: Path, secret: bytes, state: State) -> None:
    """Raises TrainingFailed for a state that its run has left behind."""
    run, saved = _run_of(folder, secret)
    # A stop between the two files leaves the state one save ahead.
    if run != state.run or state.saved not in (saved, saved + 1):
        raise TrainingFailed(
            f"{folder / STATE} is an older state of the run {run}, which went on from there: a "
            "second continuation would be a second model, and the guarantee is of one. Put the "
            "latest finetune.pt back, or choose an empty folder to begin anew."
        )


def _run_document(secret: bytes, state: State) -> bytes:
    seal = _run_seal(secret, state.run, state.saved)
    return json.dumps({"run": state.run, "saved": state.saved, "seal": seal}).encode()


def _run_seal(secret: bytes, run: str, saved: int) -> str:
    return mac(secret, f"shieldnet run {run} {saved}".encode()).hex()


def _secret(folder: Path, *, make: bool) -> bytes:
    """Returns the environment's key, or the folder's own, which only its owner can read."""
    key = key_of_environment()
    if key is not None:
        return key
    path = folder / KEY
    if make and not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_SIZE))
    try:
        return path.read_bytes()
    except OSError as missing:
        raise TrainingFailed(
            f"Cannot read {path}, the key that {folder / STATE} was written with. Put it back (or "
            "set SHIELDNET_KEY, if that was it), or choose an empty folder to begin anew."
        ) from missing


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
