"""`python -m model.quantize`: see `model.commands.quantize`."""

import sys

from model.commands.quantize import main

if __name__ == "__main__":
    sys.exit(main())
