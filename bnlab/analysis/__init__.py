"""From run folders to figures, effects and verdicts. Pure readers; no torch."""
