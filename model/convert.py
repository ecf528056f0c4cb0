"""`python -m model.convert`: see `model.commands.convert`."""

import sys

from model.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
