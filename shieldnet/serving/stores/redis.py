"""Charges in a Redis server, for the servers of several machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from shieldnet.core.checks import optional
from shieldnet.core.errors import ConfigError
from shieldnet.serving.stores.base import KEPT_S, Entry, Head, Record, State, unavailable
from shieldnet.serving.units import Units

_WAIT_S = 5.0
# One slot of a cluster holds them all, so that one script may write them.
_HEAD, _RECORDS, _TOTALS, _REQUESTS, _TIMES = (
    f"{{shieldnet}}:{name}" for name in ("head", "records", "totals", "requests", "times")
)
# KEYS are those five. ARGV: the number and mac of the head that was read ("0" and "" for none),
# the new head's four fields, the age at which requests go, then counts and members of each list.
_APPEND = """
local number = redis.call('HGET', KEYS[1], 'number') or '0'
local mac = redis.call('HGET', KEYS[1], 'mac') or ''
if number ~= ARGV[1] or mac ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'number', ARGV[3], 'mac', ARGV[4], 'time', ARGV[5], 'policy', ARGV[6])
local at = 9
for _ = 1, tonumber(ARGV[8]) do
  redis.call('RPUSH', KEYS[2], ARGV[at]); at = at + 1
end
local count = tonumber(ARGV[at]); at = at + 1
for _ = 1, count do
  redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1]); at = at + 2
end
count = tonumber(ARGV[at]); at = at + 1
if count > 0 then
  local old = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', '(' .. ARGV[7], 'LIMIT', 0, 1000)
  for _, name in ipairs(old) do
    redis.call('HDEL', KEYS[4], name); redis.call('ZREM', KEYS[5], name)
  end
end
for _ = 1, count do
  redis.call('HSET', KEYS[4], ARGV[at], ARGV[at + 1])
  redis.call('ZADD', KEYS[5], ARGV[at + 2], ARGV[at]); at = at + 3
end
return 1
"""


class RedisStore:
    """Keeps charges in five keys of one database: ``redis://host:6379/0``.

    The server must evict nothing and write every change to its append log before it answers:
    ``maxmemory-policy noeviction``, ``appendonly yes``, ``appendfsync always`` and
    ``no-appendfsync-on-rewrite no``. With ``?appendfsync=everysec`` at the end of the address a
    power failure may forget the charges of a second; a crash of the server alone forgets none. A
    server that fails over to a replica may forget what was not replicated.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        """Takes ``read_only`` as every store does: here no look makes anything."""
        self.url = url
        self._redis: Any = optional("redis", extra="redis")
        parts = urlsplit(url)
        options = parse_qs(parts.query)
        self._fsync = options.pop("appendfsync", ["always"])[-1]
        if self._fsync not in ("always", "everysec"):
            raise ConfigError(f"Expected appendfsync=always or everysec, got {self._fsync!r}.")
        self._address = urlunsplit(parts._replace(query=urlencode(options, doseq=True)))
        self._client: Any = None

    def _connected(self) -> Any:
        if self._client is None:
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._client = self._redis.Redis.from_url(
                self._address,
                decode_responses=True,
                socket_timeout=_WAIT_S,
                socket_connect_timeout=_WAIT_S,
                # What may have been done is never sent again by the driver.
                retry=Retry(NoBackoff(), 0),
                retry_on_timeout=False,
                redis_connect_func=self._on_connect,
            )
            self._append = self._client.register_script(_APPEND)
        return self._client

    def _on_connect(self, connection: Any) -> None:
        """Looks at the server's settings at every connection: it may have restarted with others."""
        connection.on_connect()
        found: dict[str, str] = {}
        for name in ("maxmemory-policy", "*append*"):
            connection.send_command("CONFIG", "GET", name)
            try:
                answer = connection.read_response()
            except self._redis.ResponseError as refused:
                raise ConfigError(
                    "This Redis server does not say how it keeps data (CONFIG GET is refused), so "
                    "that nothing shows that it forgets no charge. Allow CONFIG GET, or use "
                    "PostgreSQL."
                ) from refused
            if not isinstance(answer, dict):
                answer = dict(zip(answer[::2], answer[1::2], strict=True))
            found |= {_text(name): _text(value) for name, value in answer.items()}
        self._require_durable(found)

    def _require_durable(self, found: Mapping[str, str]) -> None:
        fsync = ("always",) if self._fsync == "always" else ("always", "everysec")
        wanted = {
            "maxmemory-policy": ("noeviction",),
            "appendonly": ("yes",),
            "appendfsync": fsync,
            "no-appendfsync-on-rewrite": ("no",),
        }
        for name, values in wanted.items():
            if found.get(name) not in values:
                raise ConfigError(
                    f"Expected a Redis server with {name} {values[0]}, got "
                    f"{found.get(name)}: it may forget charges. Set it: CONFIG SET {name} "
                    f"{values[0]}, and in redis.conf."
                )

    @contextmanager
    def session(self) -> Iterator[RedisSession]:
        """Opens a session. Other writers do not wait; the slower of two fails to append."""
        try:
            yield RedisSession(self._connected(), self._append)
        except self._redis.RedisError as failed:
            self.close()  # the next session connects, and looks at its settings, again
            raise unavailable(self.url, type(failed).__name__) from failed

    def reading(self) -> AbstractContextManager[RedisSession]:
        """Opens a session, for which no writer waits as for any other."""
        return self.session()

    def close(self) -> None:
        """Closes the connection; the next session opens another."""
        client, self._client = self._client, None  # also where closing it fails
        if client is not None:
            client.close()


class RedisSession:
    """A look at the server, and one script that appends if nothing changed since."""

    def __init__(self, client: Any, append: Any) -> None:
        self._client, self._script = client, append

    def head(self) -> Head | None:
        """Returns the end of the chain; None for a store that is empty."""
        return _head(self._client.hgetall(_HEAD))

    def totals(self, ids: Sequence[str]) -> Mapping[str, Units]:
        """Returns what was charged to these accounts."""
        found = self._client.hmget(_TOTALS, ids) if ids else ()
        pairs = zip(ids, found, strict=True)
        return {name: _units(counts) for name, counts in pairs if counts is not None}

    def requests(self, ids: Sequence[str], since: int) -> Mapping[str, str]:
        """Returns the content of each of these requests that was recorded since then."""
        contents, times = self._client.hmget(_REQUESTS, ids), self._client.zmscore(_TIMES, ids)
        found = zip(ids, contents, times, strict=True)
        return {name: content for name, content, time in found if time and time >= since}

    def state(self) -> State:
        """Returns all that is kept but the records."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hgetall(_HEAD)
        pipe.hgetall(_TOTALS)
        pipe.hgetall(_REQUESTS)
        pipe.zrange(_TIMES, 0, -1, withscores=True)
        head, totals, requests, times = pipe.execute()
        ages = {name: int(time) for name, time in times}
        return State(
            _head(head) or Head(),
            {name: _units(counts) for name, counts in totals.items()},
            {name: (content, ages.get(name, 0)) for name, content in requests.items()},
        )

    def records(self, after: int, most: int) -> list[Record]:
        """Returns so many of the records with larger numbers, in their order."""
        start = max(0, after)  # record 1 is the first of the list
        found = self._client.lrange(_RECORDS, start, start + most - 1)
        lines = (line.split(" ", 2) for line in found)
        return [Record(int(number), body, mac) for number, mac, body in lines]

    def append(self, entry: Entry, after: Head | None) -> bool:
        """Appends all of the entry if ``after`` is still the end of the chain, or nothing."""
        before = after or Head()
        records = [f"{record.number} {record.mac} {record.body}" for record in entry.records]
        totals = [(name, ",".join(map(str, units))) for name, units in entry.totals.items()]
        arguments = [
            before.number,
            before.mac,
            *entry.head,
            entry.head.time - KEPT_S,
            *(len(records), *records),
            *(len(totals), *(word for total in totals for word in total)),
            *(len(entry.requests), *(word for request in entry.requests for word in request)),
        ]
        keys = [_HEAD, _RECORDS, _TOTALS, _REQUESTS, _TIMES]
        return bool(self._script(keys=keys, args=arguments))


def _units(counts: str) -> Units:
    return Units(*map(int, counts.split(",")))


def _head(found: Mapping[str, str]) -> Head | None:
    if not found:
        return None
    return Head(int(found["number"]), found["mac"], int(found["time"]), found["policy"])


def _text(word: str | bytes) -> str:
    return word.decode() if isinstance(word, bytes) else word
