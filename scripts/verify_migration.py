#!/usr/bin/env python3
"""Verify a migration: the same as ``iceburg-db verify``."""

import sys

from iceburg.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "verify")
    main()
