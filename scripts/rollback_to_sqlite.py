#!/usr/bin/env python3
"""Go back from PostgreSQL to the embedded stores: the same as ``iceburg-db rollback``."""

import sys

from iceburg.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "rollback")
    main()
