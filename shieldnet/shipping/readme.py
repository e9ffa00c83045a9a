"""The page of a hardened folder: what it is, how it is verified and loaded, what it is not."""

from collections.abc import Iterable

from shieldnet.shipping.description import Description
from shieldnet.shipping.parts import PARTS, README, WEIGHTS

_PAGE = """\
# A hardened model

{shield}

Written by `shieldnet harden`. The folder holds what was audited and nothing else:

{files}

## Verify it

```bash
shieldnet verify {folder}{key}
```

Every byte is compared with `manifest.json`, the certificate is recomputed, the report is held to
this model and this shield, and judged by `policy.toml`. Exit code 0: nothing that was checked is
broken; the last line names what was not checked. 1: something is broken, or the policy is not met.
3: too few samples to tell. `--require signature` and `--policy own.toml` ask for more.
{signature}

## Load it

```python
import shieldnet as sn

shield = sn.load_hardened("{folder}"{model}{python_key})
```

Nothing is unpickled. The weights and attributes of the model are compared with those that were
audited; its code is not. Answer clients with `shield(x)`, never with `shield.model(x)`.

## What it does not protect

A file in the hands of a caller protects nothing. Whoever holds this folder can call the model in
it, or add one output to a graph of it, and read the raw scores. The shield protects a model behind
an interface that answers with what the shield releases. Keep this folder where the clients are not.
"""
_UNSIGNED = """\

It is not signed: whoever can write this folder can also write its manifest. Sign it with
`shieldnet harden ... --key key.pem`, and keep the public key somewhere else."""
_SIGNED = """\

The manifest is signed. Take the public key from somewhere else than this folder's source."""


def page(described: Description, shield: str, names: Iterable[str], *, is_signed: bool) -> str:
    """Writes README.md. shield: the chain in one line. names: of the folder's files."""
    parts = {name: PARTS[name].about for name in sorted({*names, README})}
    source = described.source or "package.module:factory"
    return _PAGE.format(
        shield=f"`{shield}`",
        files="\n".join(f"- `{name}`: {about}" for name, about in parts.items()),
        folder="hardened/",
        key=" --public-key public.pem" if is_signed else "",
        signature=_SIGNED if is_signed else _UNSIGNED,
        model=f', model="{source}"' if described.file == WEIGHTS else "",
        python_key=', public_key="public.pem"' if is_signed else "",
    )
