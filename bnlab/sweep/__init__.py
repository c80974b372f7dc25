"""Grids of runs: which cells are to do, who runs them, what came of them."""
