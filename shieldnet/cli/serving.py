"""The commands that serve a hardened folder and make keys for its clients."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shieldnet.cli.hardening import MAX_ROWS
from shieldnet.cli.models import inputs_of
from shieldnet.cli.options import DATA
from shieldnet.cli.terminal import guarded
from shieldnet.cli.verifying import PublicKey

if TYPE_CHECKING:
    from socket import socket

    from fastapi import FastAPI

    from shieldnet.serving.watch import WatchPolicy

_MAX_NATURAL = 1000
_SHOWN_DIGITS = 12

keys_app = typer.Typer(help="Makes, lists and removes API keys of clients.", no_args_is_help=True)

Ledger = Annotated[
    str,
    typer.Option(
        help="Where charges are recorded: sqlite:///budget.db on one machine, postgresql://... or "
        "redis://... for several servers."
    ),
]
Keys = Annotated[
    Path, typer.Option(help="The file of the clients' keys, which shieldnet keys add writes.")
]
Bits = Annotated[
    float | None,
    typer.Option("--bits-per-client", help="Bits that one client may learn in a window."),
]
Mu = Annotated[
    float | None,
    typer.Option("--mu-per-client", help="mu that one client may learn in a window."),
]
Queries = Annotated[
    int | None,
    typer.Option("--queries-per-client", help="Answers that one client may get in a window."),
]
BitsInAll = Annotated[
    float | None,
    typer.Option("--bits-in-all", help="Bits that all clients together may learn in a window."),
]
QueriesInAll = Annotated[
    int | None,
    typer.Option("--queries-in-all", help="Answers that all clients together get in a window."),
]
Window = Annotated[
    str, typer.Option(help="When a budget renews: hour, day (both in UTC) or total, for never.")
]
ModelCode = Annotated[
    str | None,
    typer.Option(
        help="package.module:factory of the model whose weights the folder holds. It runs your "
        "code. Leave it out where a .pt2 or .onnx file was hardened itself."
    ),
]
Example = Annotated[
    str | None,
    typer.Option(
        help="A few inputs, if the folder does not describe them or generated ones do not fit: the "
        f"model is asked before it is served, and its answer is discarded. {DATA}."
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="The model's name in addresses.", show_default="name of the folder"),
]
Host = Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(help="The port to listen on.", min=0, max=65535)]
MaxRows = Annotated[int, typer.Option(help="Rows that one request may have.")]
MaxBytes = Annotated[int, typer.Option(help="Bytes that the body of one request may have.")]
Timeout = Annotated[
    float, typer.Option(help="Seconds for a body to arrive, and for an answer to be given.")
]
BatchWait = Annotated[
    float,
    typer.Option(help="Seconds that an idle model waits for further requests to answer together."),
]
Quantize = Annotated[
    float | None,
    typer.Option(
        help="Send answers only at multiples of this many seconds after the body of a request was "
        "read, so that their time says less of the input."
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        help="A port on 127.0.0.1 with numbers for Prometheus. Without it there are none.",
        min=1,
        max=65535,
    ),
]
Watched = Annotated[
    str | None,
    typer.Option(
        "--watch",
        help="Watch what clients ask for the patterns of an extraction: 200 or more inputs as they "
        f"usually send them, best none that trained the model. {DATA}.",
    ),
]
LogAbove = Annotated[
    float | None,
    typer.Option(help="The score above which --watch logs a client.", show_default="0.15"),
]
HarderAbove = Annotated[
    float | None,
    typer.Option(help="The score above which --harder answers a client.", show_default="0.3"),
]
RefuseAbove = Annotated[
    float | None,
    typer.Option(
        help="The score above which a client is refused; 1 for never.", show_default="0.6"
    ),
]
Harder = Annotated[
    str | None,
    typer.Option(help="The preset that answers a suspicious client.", show_default="strict"),
]
RefuseS = Annotated[
    float | None, typer.Option(help="Seconds that such a refusal lasts.", show_default="3600")
]
Certificate = Annotated[Path | None, typer.Option(help="The certificate for TLS (PEM).")]
PrivateKey = Annotated[Path | None, typer.Option(help="Its private key (PEM).")]


@guarded
def serve(
    folder: Annotated[Path, typer.Argument(help="A folder that shieldnet harden wrote.")],
    ledger: Ledger,
    keys: Keys,
    bits_per_client: Bits = None,
    mu_per_client: Mu = None,
    queries_per_client: Queries = None,
    bits_in_all: BitsInAll = None,
    queries_in_all: QueriesInAll = None,
    window: Window = "total",
    model: ModelCode = None,
    public_key: PublicKey = None,
    example: Example = None,
    name: Name = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_rows: MaxRows = 64,
    max_body_bytes: MaxBytes = 2**23,
    timeout_s: Timeout = 30.0,
    batch_wait_s: BatchWait = 0.0,
    quantize_latency_s: Quantize = None,
    watch: Watched = None,
    log_above: LogAbove = None,
    harder_above: HarderAbove = None,
    refuse_above: RefuseAbove = None,
    harder: Harder = None,
    refuse_s: RefuseS = None,
    metrics_port: MetricsPort = None,
    tls_certificate: Certificate = None,
    tls_key: PrivateKey = None,
) -> None:
    """Serves a hardened folder: every answer is charged to its client before it exists.

    It speaks the Open Inference Protocol, version 2, and plain JSON (POST /predict). Exit code 0:
    it was stopped. 1: the folder or the ledger does not verify. 2: bad input, or no ledger.
    """
    from shieldnet.core.checks import optional
    from shieldnet.core.errors import ConfigError

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        optional(package, extra="serve")
    if (tls_certificate is None) != (tls_key is None):
        raise ConfigError("TLS takes two files: give both --tls-certificate and --tls-key.")
    from shieldnet.serving.app.folder import name_of, served_folder
    from shieldnet.serving.app.keys import ApiKeys
    from shieldnet.serving.app.limits import Limits
    from shieldnet.serving.app.running import bound, run_until_stopped, server_of
    from shieldnet.serving.app.served import ServedModel
    from shieldnet.serving.app.watching import watch_of
    from shieldnet.serving.app.web import make_app
    from shieldnet.serving.budget import Budget
    from shieldnet.serving.guard import Guard

    policy = _watch_policy(
        watch,
        log_above=log_above,
        harder_above=harder_above,
        refuse_above=refuse_above,
        harder=harder,
        refuse_s=refuse_s,
    )
    limits = Limits(
        max_rows=max_rows,
        max_body_bytes=max_body_bytes,
        timeout_s=timeout_s,
        batch_wait_s=batch_wait_s,
        quantize_latency_s=quantize_latency_s,
        max_batch_rows=max_rows,
    )
    known = ApiKeys.load(keys)
    shield, inputs = served_folder(folder, model, public_key=public_key)
    own_name, version = name_of(folder)
    served = ServedModel(
        shield,
        name=name or own_name,
        version=version,
        inputs=inputs,
        example=None
        if example is None
        else inputs_of(example, "example", shield.model, most=MAX_ROWS),
        limits=limits,
    )
    natural = (
        None
        if watch is None
        else inputs_of(watch, "natural inputs", shield.model, most=_MAX_NATURAL)
    )
    guard = Guard(
        shield,
        ledger=ledger,
        bits_per_client=bits_per_client,
        mu_per_client=mu_per_client,
        queries_per_client=queries_per_client,
        window=window,
        in_all=Budget(bits_in_all, None, queries_in_all, window),
        watch=None if natural is None else watch_of(served, natural, policy),
    )
    with closing(guard):
        guard.ledger.verify()
        app = make_app(guard, served, known)
        listening = bound(host, port)
        typer.echo(f"Serving {served.name}, {shield!r}, at http://{_address(listening)}", err=True)
        _log_requests()
        with _metrics(app, metrics_port):
            server = server_of(app, limits, certificate=tls_certificate, private_key=tls_key)
            run_until_stopped(server, listening)


def _watch_policy(natural: str | None, **settings: Any) -> "WatchPolicy":
    from shieldnet.core.errors import ConfigError
    from shieldnet.serving.watch import WatchPolicy

    given = {name: value for name, value in settings.items() if value is not None}
    if given and natural is None:
        raise ConfigError(f"Expected watch=..., the inputs that are ordinary, beside {min(given)}.")
    return WatchPolicy(**given)


def _address(listening: "socket") -> str:
    host, port, *_ = listening.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _log_requests() -> None:
    """Writes a line of JSON for each request to stderr."""
    import logging

    for log, level in (("shieldnet.serving", logging.INFO), ("uvicorn.error", logging.WARNING)):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger(log).addHandler(handler)
        logging.getLogger(log).setLevel(level)


@contextmanager
def _metrics(app: "FastAPI", port: int | None) -> Iterator[None]:
    """Gives numbers to Prometheus on a port of this machine."""
    if port is None:
        yield
        return
    from prometheus_client import start_http_server

    server, thread = start_http_server(port, "127.0.0.1", registry=app.state.metrics.registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@keys_app.command("add")
@guarded
def add(
    name: Annotated[str, typer.Argument(help="The client, whose budget the key's answers cost.")],
    keys: Annotated[Path, typer.Option(help="The file of keys; it is made if there is none.")],
) -> None:
    """Makes a key for a client, shows it once, and writes its hash into the file.

    A client may have several keys and has one budget. The server reads the file when it starts.
    """
    from shieldnet.serving.app.keys import add_key

    key = add_key(keys, name)
    typer.echo(f"The key of {name}. It is shown only now: {keys} holds its hash.", err=True)
    typer.echo(key)


@keys_app.command("list")
@guarded
def list_keys(
    keys: Annotated[Path, typer.Option(help="The file of keys.")],
) -> None:
    """Lists the clients of a file, and the first digits of the hash of each of their keys."""
    from tabulate import tabulate

    from shieldnet.serving.app.keys import ApiKeys, shown

    known = ApiKeys.load(keys).hashes
    rows = [(name, shown(one)[:_SHOWN_DIGITS]) for name, hashes in known.items() for one in hashes]
    typer.echo(tabulate(rows, ("client", "hash"), disable_numparse=True))


@keys_app.command("remove")
@guarded
def remove(
    name: Annotated[str, typer.Argument(help="The client whose keys are removed.")],
    keys: Annotated[Path, typer.Option(help="The file of keys.")],
    which: Annotated[
        str | None,
        typer.Option(
            "--hash",
            help="Remove only the key whose hash begins so, as shieldnet keys list shows it.",
            show_default="all keys of the client",
        ),
    ] = None,
) -> None:
    """Removes the keys of a client, or one of them. Its budget stays what it is.

    A server that runs still takes them: it reads the file when it starts.
    """
    from shieldnet.serving.app.keys import remove_keys

    count = remove_keys(keys, name, which)
    typer.echo(f"Removed {count} of the keys of {name}. A server that runs has to be restarted.")
