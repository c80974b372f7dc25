"""From run folders to metrics, effects and verdicts. No torch here."""
