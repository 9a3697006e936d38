"""`python -m secateur.cli`: the command line without its entry point on the path."""

from __future__ import annotations

from secateur.cli import main

if __name__ == "__main__":
    main()
