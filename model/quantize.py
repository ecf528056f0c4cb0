"""`python -m model.quantize`: see `model.checkpoints.quantize`."""

import sys

from model.checkpoints.quantize import main

if __name__ == "__main__":
    sys.exit(main())
