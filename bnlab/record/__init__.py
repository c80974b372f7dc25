"""The files of a run: its folder, its journal, its status."""
