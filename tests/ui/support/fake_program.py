"""In the place of our own command line: `fake_program.py ANSWERS.json WORDS...` prints the lines kept for those words.

ANSWERS.json holds a list of [words, lines, exit code, last words on stderr]; the first whose words all stand among
ours is taken. Exit code null: it goes on until it is killed. Every call is noted in ANSWERS.json.calls.
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
