"""`python -m assistant.bench`: see `assistant.cli.bench`."""

import sys

from assistant.cli.bench import main

if __name__ == "__main__":
    sys.exit(main())
