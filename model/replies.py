"""`python -m model.replies`: see `model.commands.replies`."""

import sys

from model.commands.replies import main

if __name__ == "__main__":
    sys.exit(main())
