"""One normalization a file."""
