"""`python -m model.convert`: see `model.checkpoints.convert`."""

import sys

from model.checkpoints.convert import main

if __name__ == "__main__":
    sys.exit(main())
