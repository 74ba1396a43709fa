"""`python -m dualslm`: the command line, also where a launcher such as torchrun asks for a module."""

import sys

from dualslm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
