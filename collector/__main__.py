"""``python -m collector`` is ``tillpost``."""

from collector.cli import main

if __name__ == "__main__":
    main(prog_name="tillpost")
