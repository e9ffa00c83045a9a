"""Where charges are kept: SQLite for one machine, PostgreSQL and Redis for several."""

from importlib import import_module

from shieldnet.core.errors import ConfigError
from shieldnet.serving.stores.base import Store, without_secrets

_STORES = {
    "sqlite": ("sqlite", "SqliteStore"),
    "postgresql": ("postgres", "PostgresStore"),
    "redis": ("redis", "RedisStore"),
    "rediss": ("redis", "RedisStore"),
}


def open_store(url: str, *, read_only: bool = False) -> Store:
    """Opens the store of an address, such as ``sqlite:///ledger.db``.

    read_only: only ``reading`` is used, and makes nothing where there is no ledger.

    Errors: ConfigError for an address of another form; LedgerUnavailable if nothing answers there;
    MissingDependency if its driver is not installed.
    """
    scheme = url.partition("://")[0] if isinstance(url, str) else ""
    if scheme not in _STORES or "://" not in url:
        raise ConfigError(
            "Expected a ledger as sqlite:///ledger.db, postgresql://host/database or "
            f"redis://host:6379/0, got {without_secrets(url)!r}."
        )
    file, name = _STORES[scheme]
    kind = getattr(import_module(f"shieldnet.serving.stores.{file}"), name)
    store: Store = kind(url, read_only=read_only)
    return store
