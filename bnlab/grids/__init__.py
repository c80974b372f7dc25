"""Grids of runs: which cells have no result, who runs them, and their outcomes."""
