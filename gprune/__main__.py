"""`python -m gprune` is the command `gprune`."""

from gprune.cli import main

if __name__ == "__main__":
    main()
