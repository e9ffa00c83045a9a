"""``python -m shieldnet`` and the ``shieldnet`` command."""

import os
import sys


def main() -> None:
    """Runs the command line, or says how to install what it needs."""
    # Threads that spin while they wait make torch 30 times slower beside a busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from shieldnet.core.checks import optional
    from shieldnet.core.errors import MissingDependency

    try:
        optional("typer", extra="cli")
        optional("rich", extra="cli")
    except MissingDependency as missing:
        sys.stderr.write(f"shieldnet: {missing}\n")
        sys.exit(missing.exit_code)
    from shieldnet.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
