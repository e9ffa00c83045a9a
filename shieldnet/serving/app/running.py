"""The server itself: uvicorn, with what untrusted clients need of it."""

import math
import signal
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from shieldnet.core.errors import ConfigError
from shieldnet.serving.app.limits import Limits

_IDLE_S = 5
_MAX_CONNECTIONS = 1000


def server_of(
    app: FastAPI,
    limits: Limits,
    *,
    certificate: Path | None = None,
    private_key: Path | None = None,
) -> uvicorn.Server:
    """Returns a server of one process. certificate, private_key: PEM files for TLS."""
    config = uvicorn.Config(
        app,
        lifespan="on",
        http="h11",  # httptools has no limit for headers
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=math.ceil(limits.timeout_s),
        limit_concurrency=_MAX_CONNECTIONS,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )
    return uvicorn.Server(config)


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; raises ConfigError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as taken:
        raise ConfigError(
            f"Cannot listen on host={host}, port={port}: {taken.strerror}."
        ) from taken
    # Connections inherit it. asyncio sets it only where the socket names its protocol, and an
    # answer in two writes otherwise waits 40 ms for the acknowledgement of the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def run_until_stopped(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl+C.

    It then takes no more requests, answers those that it has, and closes the ledger.
    """
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: None)  # uvicorn sends it again once all is answered
    server.run(sockets=[listening])
