"""`python -m besteffort`: the command line."""

import sys

from besteffort.cli import main

if __name__ == "__main__":
    sys.exit(main())
