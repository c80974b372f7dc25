"""Runs of a training loop that is not bnlab's: a script's, a notebook's, a trainer's."""
