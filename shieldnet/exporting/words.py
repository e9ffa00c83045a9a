"""Errors of others in one line."""


def first_line(failed: Exception) -> str:
    """Returns the kind of an error and the first line of its message."""
    line = next((line for line in str(failed).splitlines() if line.strip()), "")
    return f"{type(failed).__name__}: {line.strip()[:300]}"
