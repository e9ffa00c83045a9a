"""What many attacks use: decoders and how they are chosen."""
