"""`python -m medret` is `medret`."""

import sys

from medret.cli import main

if __name__ == "__main__":
    sys.exit(main())
