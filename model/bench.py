"""`python -m model.bench`: see `model.commands.bench`."""

import sys

from model.commands.bench import main

if __name__ == "__main__":
    sys.exit(main())
