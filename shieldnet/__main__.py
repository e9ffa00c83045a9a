"""``python -m shieldnet`` and the ``shieldnet`` command."""

import sys


def main() -> None:
    """Runs the command line, or says how to install what it needs."""
    from shieldnet._validate import optional
    from shieldnet.errors import MissingDependency

    try:
        optional("typer", extra="cli")
        optional("rich", extra="cli")
    except MissingDependency as missing:
        sys.exit(f"shieldnet: {missing}")
    from shieldnet.cli import main as run

    run()


if __name__ == "__main__":
    main()
