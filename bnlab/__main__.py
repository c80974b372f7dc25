"""The command `bnlab`, and `python -m bnlab`."""

import sys


def main() -> None:
    """Run one command and exit with its code. Until the command can note Ctrl-C itself, it ends here."""
    try:
        from bnlab.cli import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted before anything began", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
