#!/usr/bin/env python3
"""Migrate an installation to PostgreSQL: the same as ``iceburg-db migrate``."""

import sys

from iceburg.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "migrate")
    main()
