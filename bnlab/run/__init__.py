"""One run, from its spec to its final status."""
