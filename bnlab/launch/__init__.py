"""Executors: where the runs of a sweep run. One file each, found by its name: `launch=local`."""
