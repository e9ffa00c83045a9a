"""Records of charges, each with a keyed hash of itself and of all before it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import Any

from shieldnet.core.errors import VerificationFailed
from shieldnet.serving.stores.base import KEPT_S, Contents, Entry, Head, Record, Request
from shieldnet.serving.units import NOTHING, Units

VERSION = 1
EVERYBODY = "everybody"


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


def verify(kept: Contents, seal: Seal, heads: Sequence[str] = ()) -> Checked:
    """Refuses a ledger that was changed.

    heads: macs of records that were the last ones at earlier times: a ledger that was put back to
    an older state, which the chain alone cannot show, lacks the later of them.
    Guarantee: without the ledger's key, no record, total, request, time or policy can be changed,
    added, swapped or removed so that this passes, but for putting all of it back to an older state.
    Errors: VerificationFailed names the first thing that does not fit.
    """
    chain, head = _replayed(kept.records, seal), kept.head
    if head != chain.head:
        raise _tampered(f"its head is record {head.number}, its last record is {chain.head.number}")
    if missing := set(heads) - chain.macs:
        raise _tampered(f"the record {min(missing)} is missing: it was put back to an older state")
    for account in sorted(chain.totals.keys() | kept.totals.keys()):
        held, summed = kept.totals.get(account, NOTHING), chain.totals.get(account, NOTHING)
        if held != summed:
            raise _tampered(f"account {account} holds {held}, its records sum to {summed}")
    for name in chain.requests.keys() | kept.requests.keys():
        said, recorded = kept.requests.get(name), chain.requests.get(name)
        may_be_gone = recorded is not None and recorded[1] < head.time - KEPT_S
        if said != recorded and not (said is None and may_be_gone):
            raise _tampered(f"the request {name} is not as its record has it")
    return Checked(head.number, head.mac)


@dataclass
class _Chain:
    """What the records of a ledger say, one after the other."""

    head: Head = field(default_factory=Head)
    macs: set[str] = field(default_factory=set)
    totals: dict[str, Units] = field(default_factory=dict)
    requests: dict[str, tuple[str, int]] = field(default_factory=dict)


def _replayed(records: Iterable[Record], seal: Seal) -> _Chain:
    chain = _Chain()
    for record in records:
        last = chain.head
        mac = seal.mac(last.number + 1, record.body, last.mac)
        if record.number != last.number + 1 or not compare_digest(record.mac, mac):
            raise _tampered(f"record {record.number} does not follow record {last.number}")
        body = json.loads(record.body)
        if "account" in body:
            units = Units(body["bits"], body["rho"], body["queries"])
            account = body["account"]
            chain.totals[account] = chain.totals.get(account, NOTHING).plus(units)
        elif "request" in body:
            chain.requests[body["request"]] = (body["content"], body["time"])
        policy = body.get("policy", last.policy)
        chain.head = Head(record.number, record.mac, body["time"], policy)
        chain.macs.add(record.mac)
    return chain


def _tampered(what: str) -> VerificationFailed:
    return VerificationFailed(
        f"This ledger was changed by somebody without its key, or is damaged: {what}. Serve "
        "nothing from it; restore a copy that verifies, and charge what was released since."
    )
