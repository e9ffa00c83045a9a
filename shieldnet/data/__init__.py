"""Examples, canaries, duplicates and what names them."""
