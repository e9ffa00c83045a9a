"""Records of charges, each with a keyed hash of itself and of all before it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Protocol

from shieldnet.core.errors import VerificationFailed
from shieldnet.serving.stores.base import KEPT_S, Entry, Head, Record, Request, State
from shieldnet.serving.units import NOTHING, Units

VERSION = 1
EVERYBODY = "everybody"
_FIRST = -(2**62)  # no number of a record is smaller, not even that of a forged one


@dataclass(frozen=True)
class Seal:
    """Hashes with the ledger's own key, without which no client can be named and no record forged.

    key: 16 to 64 bytes, the same for all who write to one ledger.
    """

    key: bytes = field(repr=False)

    def of(self, purpose: str, *parts: bytes, size: int = 16) -> str:
        """Returns a keyed hash in hexadecimal; a purpose's hashes never equal another's."""
        state = blake2b(key=self.key, digest_size=size, person=purpose.encode())
        for part in parts:
            state.update(len(part).to_bytes(8, "big"))
            state.update(part)
        return state.hexdigest()

    def subject(self, client: str) -> str:
        """Returns the name under which a client's charges stand."""
        return self.of("subject", client.encode())

    def record(self, body: dict[str, Any], after: Head | Record) -> Record:
        """Seals the next record of the chain."""
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        number = after.number + 1
        return Record(number, text, self.mac(number, text, after.mac))

    def mac(self, number: int, body: str, before: str) -> str:
        """Returns the keyed hash of a record and of all before it."""
        return self.of("record", str(number).encode(), body.encode(), before.encode(), size=32)


def account_id(subject: str | None, window: str, start: int) -> str:
    """Names one subject's charges in one window; None stands for all subjects together."""
    return f"{subject or EVERYBODY}:{window}:{start}"


class Draft:
    """Collects what one session appends, and seals it in order."""

    def __init__(self, seal: Seal, head: Head, totals: Mapping[str, Units]) -> None:
        self._seal = seal
        self._totals = totals
        self.entry = Entry(head)

    @property
    def is_empty(self) -> bool:
        """Returns whether there is nothing to append."""
        return not self.entry.records

    def total(self, account: str) -> Units:
        """Returns what an account was charged, this draft included."""
        return self.entry.totals.get(account) or self._totals.get(account, NOTHING)

    def charge(self, account: str, units: Units) -> None:
        """Charges an account; negative units return what a lease did not use."""
        self._append({"account": account, **units._asdict()})
        self.entry.totals[account] = self.total(account).plus(units)

    def keep(self, request: Request) -> None:
        """Keeps an idempotency key."""
        self._append({"request": request.id, "content": request.content})
        self.entry.requests.append(request)

    def adopt(self, policy: str) -> None:
        """Records the policy that holds from here on."""
        self._append({"policy": policy})
        self.entry.head = self.entry.head._replace(policy=policy)

    def _append(self, body: dict[str, Any]) -> None:
        head = self.entry.head
        record = self._seal.record({**body, "time": head.time}, head)
        self.entry.records.append(record)
        self.entry.head = head._replace(number=record.number, mac=record.mac)


@dataclass(frozen=True)
class Checked:
    """Says what a verified chain holds. records: how many. mac: of the last one."""

    records: int
    mac: str


class Kept(Protocol):
    """Reads a ledger piece by piece, while others may write to it."""

    def state(self) -> State:
        """Returns all that is kept but the records, as of one moment."""

    def page(self, after: int) -> tuple[Head, list[Record]]:
        """Returns the end of the chain and the next records after a number; none at the end."""


def verify(kept: Kept, seal: Seal, heads: Sequence[str] = ()) -> Checked:
    """Refuses a ledger that was changed.

    Records that are appended meanwhile are verified, too.
    heads: macs of records that were the last ones at earlier times: a ledger that was put back to
    an older state, which the chain alone cannot show, lacks the later of them.
    Guarantee: without the ledger's key, no record, total, request, time or policy can be changed,
    added, swapped or removed so that this passes, but for putting all of it back to an older state.
    Errors: VerificationFailed names the first thing that does not fit.
    """
    chain, state, after = _Chain(), kept.state(), _FIRST
    is_due = True
    while True:
        end, records = kept.page(after)
        for record in records:
            if is_due and chain.head.number >= state.head.number:
                _require_state(chain, state)
                is_due = False
            chain.add(record, seal)
        if not records:
            break
        after = records[-1].number
    if is_due:
        _require_state(chain, state)
    _require_head(end, chain)
    if missing := set(heads) - chain.macs:
        raise _tampered(f"the record {min(missing)} is missing: it was put back to an older state")
    return Checked(end.number, end.mac)


def _require_head(head: Head, chain: _Chain) -> None:
    if head != chain.head:
        raise _tampered(f"its head is record {head.number}, its last record is {chain.head.number}")


def _require_state(chain: _Chain, state: State) -> None:
    """Refuses a state that is not what the records up to it say."""
    head = state.head
    _require_head(head, chain)
    for account in sorted(chain.totals.keys() | state.totals.keys()):
        held, summed = state.totals.get(account, NOTHING), chain.totals.get(account, NOTHING)
        if held != summed:
            raise _tampered(f"account {account} holds {held}, its records sum to {summed}")
    for name in chain.requests.keys() | state.requests.keys():
        said, recorded = state.requests.get(name), chain.requests.get(name)
        may_be_gone = recorded is not None and recorded[1] < head.time - KEPT_S
        if said != recorded and not (said is None and may_be_gone):
            raise _tampered(f"the request {name} is not as its record has it")


@dataclass
class _Chain:
    """What the records of a ledger say, one after the other."""

    head: Head = field(default_factory=Head)
    macs: set[str] = field(default_factory=set)
    totals: dict[str, Units] = field(default_factory=dict)
    requests: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, record: Record, seal: Seal) -> None:
        """Takes in the next record. Errors: VerificationFailed if it is not."""
        last = self.head
        mac = seal.mac(last.number + 1, record.body, last.mac)
        if record.number != last.number + 1 or not compare_digest(record.mac, mac):
            raise _tampered(f"record {record.number} does not follow record {last.number}")
        body = json.loads(record.body)
        if "account" in body:
            units = Units(body["bits"], body["rho"], body["queries"])
            account = body["account"]
            self.totals[account] = self.totals.get(account, NOTHING).plus(units)
        elif "request" in body:
            self.requests[body["request"]] = (body["content"], body["time"])
        policy = body.get("policy", last.policy)
        self.head = Head(record.number, record.mac, body["time"], policy)
        self.macs.add(record.mac)


def _tampered(what: str) -> VerificationFailed:
    return VerificationFailed(
        f"This ledger was changed by somebody without its key, or is damaged: {what}. Serve "
        "nothing from it; restore a copy that verifies, and charge what was released since."
    )
