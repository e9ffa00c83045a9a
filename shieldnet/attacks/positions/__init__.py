"""Answers at positions: the tokens of a text, the pixels of a segmentation."""
