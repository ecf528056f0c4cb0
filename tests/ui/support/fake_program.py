"""Replaces our own command line: `fake_program.py ANSWERS.json WORDS...` prints the lines stored for those words.

ANSWERS.json is a list of [words, lines, exit code, last line on stderr]. The first entry whose words are all among the
arguments is used. Exit code null keeps running until killed. Each call is recorded in ANSWERS.json.calls.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    file, *words = sys.argv[1:]
    with Path(f"{file}.calls").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps(words) + "\n")
    for wanted, lines, code, said in json.loads(Path(file).read_text("utf-8")):
        if all(word in words for word in wanted):
            for line in lines:
                sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            if code is None:
                sys.stdin.read()  # open until we are killed
            sys.stderr.write(said)
            return int(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
