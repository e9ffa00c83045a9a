"""Text of files, which may come from anybody, as a terminal may show it."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Replaces every character that is not printable by its escape, such as ``\x1b``.

    Escape sequences of terminals, line breaks and marks that reorder text are among them.
    keep: characters that stay as they are.
    """
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)
