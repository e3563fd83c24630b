"""``python -m iceburg.cli``."""

from iceburg.cli import main

main()
