"""Checkpoints of a training: written atomically, authenticated, and continued only once."""

import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hmac import compare_digest
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from shieldnet.core.errors import DataError, MissingDependency, TrainingFailed
from shieldnet.core.randomness import noise_about, random_seed
from shieldnet.files.weights import weights_bytes
from shieldnet.privacy.signing import key_of_environment, mac
from shieldnet.training.distributed import Ranks
from shieldnet.training.identity import WEIGHTS, Identity, differences

_VERSION = 3
_SIZE = 32  # bytes of a keyed hash
STATE, RUN, KEY, LOCK = "finetune.pt", "finetune.run", "finetune.key", "finetune.lock"
START = "start.safetensors"
_UNFINISHED = re.compile(rf"(?:{'|'.join(map(re.escape, (STATE, RUN, KEY, START)))})\.\d+")
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows


@dataclass
class State:
    """Holds everything that the next step and the guarantee depend on.

    step: number of steps taken, as counted by the guarantee. weights: the trained weights. mean:
    their running mean. coins: which canaries are in (fair Bernoulli draws). scores: evidence that
    each canary is in. clip: clip norm of the next step, 0 before the first. run: unique name of the
    training. saved: number of times that it was saved.
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
    """Saves the state of a training in a folder, if one is given, every few seconds.

    identity: everything that the training depends on. run: its name if it starts anew. model: has
    the starting weights.
    """

    folder: Path | None
    identity: Identity
    every_s: float
    ranks: Ranks
    run: str
    model: nn.Module

    @classmethod
    def of(
        cls,
        folder: str | Path | None,
        every_s: float,
        ranks: Ranks,
        identity: Callable[[Ranks], Identity],
        model: nn.Module,
    ) -> "Checkpointer":
        """Draws the name of a run, the same on every rank, and reads the identity if needed.

        identity: function that returns it, which reads all records.
        """
        with noise_about("run"):
            draws = ranks.broadcast(torch.tensor([random_seed(), random_seed()]))
        run = "".join(f"{draw:016x}" for draw in draws.tolist())
        if folder is None:
            return cls(None, {}, every_s, ranks, run, model)
        return cls(Path(folder), identity(ranks), every_s, ranks, run, model)

    def only_here(self) -> AbstractContextManager[None]:
        """Locks the folder for this training; see ``only_here``."""
        return only_here(self.folder if self.ranks.is_first else None)

    def latest(self, steps: int) -> State:
        """Returns the latest state, the same on all ranks."""
        state = None if self.folder is None else load(self.folder, self.identity, steps)
        return state or State(run=self.run)

    def is_time(self, saved_at: float, *, last: bool) -> bool:
        """Returns whether it is time to save. saved_at: seconds of ``time.monotonic``."""
        return self.folder is not None and (last or time.monotonic() - saved_at > self.every_s)

    def keep(self, state: State) -> float:
        """Saves the state and returns the time in seconds of ``time.monotonic``."""
        if self.folder is not None and self.ranks.is_first:
            if state.saved == 0:
                _keep_start(self.folder, self.model)
            save(self.folder, self.identity, state)
        return time.monotonic()


def save(folder: Path, identity: Identity, state: State) -> None:
    """Replaces the saved state atomically.

    Then updates the count of saves in the run's file, by which an older copy is recognized.
    """
    folder.mkdir(parents=True, exist_ok=True)
    secret = _secret(folder, make=True)
    if state.saved == 0:  # the run may be killed before its first state exists
        _replace(folder / RUN, _run_document(secret, state))
    state.saved += 1
    content = io.BytesIO()
    torch.save({"version": _VERSION, "identity": dict(identity), **asdict(state)}, content)
    payload = content.getvalue()
    _replace(folder / STATE, payload + mac(secret, payload))
    _replace(folder / RUN, _run_document(secret, state))


def load(folder: Path, identity: Identity, steps: int) -> State | None:
    """Reads the saved state of the same training, or returns None if there is none yet.

    Errors: TrainingFailed for a file that is damaged, was changed, belongs to another training, was
    already continued, or has more steps than planned.
    """
    path = folder / STATE
    if not path.exists():
        if (folder / RUN).exists() and _run_of(folder, _secret(folder, make=False))[1] > 0:
            raise TrainingFailed(
                f"{path} is missing, but {folder / RUN} names a run that was saved there. Restore "
                "it, or choose an empty folder to start over."
            )
        return None
    raw = path.read_bytes()
    payload, seal = raw[:-_SIZE], raw[-_SIZE:]
    secret = _secret(folder, make=False)
    if not compare_digest(mac(secret, payload), seal):
        raise TrainingFailed(
            f"{path} does not match its key: it is damaged, was changed, or was saved by an older "
            "version. Nothing was trained. Restore a copy of the whole folder (and the same "
            "SHIELDNET_KEY), or choose an empty folder to start over."
        )
    try:
        content = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception as broken:  # torch raises a dozen kinds
        raise TrainingFailed(f"{path} cannot be read ({type(broken).__name__}).") from broken
    if content.pop("version", None) != _VERSION:
        raise TrainingFailed(f"{path} is not a checkpoint of this version. Choose another folder.")
    if changed := differences(content.pop("identity"), identity):
        kept = folder / START
        undone = "Undo it to go on"
        if kept.exists() and any(one.startswith(WEIGHTS) for one in changed):
            undone = f'Undo it (sn.load_weights(model, "{kept.as_posix()}")) to go on'
        raise TrainingFailed(
            f"{path} belongs to another training. What differs: {'; '.join(changed)}. {undone}, "
            "or choose another folder to start over."
        )
    state = State(**content)
    if not 0 <= state.step <= steps:
        raise TrainingFailed(
            f"{path} is at step {state.step} of a training with {steps} steps: a guarantee would "
            "not count the steps beyond. Choose another folder."
        )
    _require_latest(folder, secret, state)
    return state


@contextmanager
def only_here(folder: Path | None) -> Iterator[None]:
    """Locks a folder, since two processes that continue one training would publish two models.

    The operating system releases the lock whenever the process ends.
    Errors: TrainingFailed if another process holds the lock.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if not _is_locked(file):
            raise TrainingFailed(
                f"Another process is training in {folder}: two continuations of one training would "
                "each state the epsilon of one. Wait for it, or choose another folder."
            )
        if os.name == "posix":  # elsewhere another process may hold the folder, too
            _drop_unfinished(folder)
        yield


def _is_locked(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: the count of saves still reveals a second continuation
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _run_of(folder: Path, secret: bytes) -> tuple[str, int]:
    """Reads the name of a folder's run and its number of saves."""
    path = folder / RUN
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        run, saved, seal = str(document["run"]), int(document["saved"]), str(document["seal"])
    except (OSError, ValueError, KeyError, TypeError) as missing:
        raise TrainingFailed(
            f"Cannot read {path}, which shows whether {folder / STATE} was already continued. "
            "Restore it, or choose an empty folder to start over."
        ) from missing
    if not compare_digest(seal.encode(), _run_seal(secret, run, saved).encode()):
        raise TrainingFailed(f"{path} was not written with this key. Choose an empty folder.")
    return run, saved


def _require_latest(folder: Path, secret: bytes, state: State) -> None:
    """Raises TrainingFailed for a state that is not the latest of its run."""
    run, saved = _run_of(folder, secret)
    # An interruption between the two writes leaves the state one save ahead.
    if run != state.run or state.saved not in (saved, saved + 1):
        raise TrainingFailed(
            f"{folder / STATE} is an older state of the run {run}, which was already continued: "
            "continuing it again would give a second model, and the guarantee covers one. Restore "
            "the latest finetune.pt, or choose an empty folder to start over."
        )


def _keep_start(folder: Path, model: nn.Module) -> None:
    """Keeps the starting weights, without which random ones could not be had again.

    What is read from the file is compared with the identity. A model that .safetensors cannot hold
    has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / START).unlink(missing_ok=True)  # of a run that was stopped before its first state
    with suppress(DataError, MissingDependency):
        _replace(folder / START, weights_bytes(model))


def _run_document(secret: bytes, state: State) -> bytes:
    seal = _run_seal(secret, state.run, state.saved)
    return json.dumps({"run": state.run, "saved": state.saved, "seal": seal}).encode()


def _run_seal(secret: bytes, run: str, saved: int) -> str:
    return mac(secret, f"shieldnet run {run} {saved}".encode()).hex()


def _secret(folder: Path, *, make: bool) -> bytes:
    """Returns the environment's key, or the folder's key, which only its owner can read."""
    key = key_of_environment()
    if key is not None:
        return key
    path = folder / KEY
    if make and not path.exists():
        _replace(path, secrets.token_bytes(_SIZE))
    try:
        return path.read_bytes()
    except OSError as missing:
        raise TrainingFailed(
            f"Cannot read {path}, the key that {folder / STATE} was saved with. Restore it (or set "
            "SHIELDNET_KEY, if that was the key), or choose an empty folder to start over."
        ) from missing


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, by way of a file that ends in the process's number."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    mode = 0o600 if path.name == KEY else 0o666
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:  # such as Ctrl+C
        beside.unlink(missing_ok=True)
        raise


def _drop_unfinished(folder: Path) -> None:
    """Removes what a process that was killed left half written; call it with the lock held."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
