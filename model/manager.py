"""`python -m model.manager`: see `model.commands.manager`."""

import sys

from model.commands.manager import main

if __name__ == "__main__":
    sys.exit(main())
