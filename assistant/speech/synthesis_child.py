"""The synthesis child: `python -m assistant.speech.synthesis_child KIND [FOLDER THREADS]`.

A request is one line of JSON on stdin; the answer is one line of JSON on stdout, followed by `bytes` bytes
of little-endian int16 samples. When stdin closes (the assistant is gone) the process ends at once, even in
the middle of a call into a library. Nothing here imports torch or Qt.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from assistant.speech.system_voices import Engine, Espeak, Portable, Request


def _answer(engine: Engine, request: Request) -> tuple[dict[str, Any], bytes]:
    if request["op"] == "voices":
        return {"voices": engine.voices()}, b""
    result = engine.speak(request)
    samples = result["samples"].astype("<i2").tobytes()
    return {"rate": result["rate"], "words": result["words"], "exact": result["exact"]}, samples


def _read_requests(requests: queue.Queue[Request]) -> None:
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)  # the assistant is gone; the main thread may be inside a library


def main(kind: str, folder: str = "", threads: str = "1") -> None:
    """Serve requests from stdin with the engine `kind`: espeak, portable or kokoro."""
    # Libraries print to stdout; the answers go to a copy of it, and their chatter to stderr.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        requests: queue.Queue[Request] = queue.Queue()
        threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
        engine: Engine | None = None
        while True:
            request = requests.get()
            try:
                engine = engine or _engine(kind, folder, threads)
                header, samples = _answer(engine, request)
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                header, samples = {"error": " ".join(str(error).split())}, b""
            out.write(json.dumps({**header, "bytes": len(samples)}).encode() + b"\n" + samples)
            out.flush()


def _engine(kind: str, folder: str, threads: str) -> Engine:
    if kind == "kokoro":
        from assistant.speech.kokoro_voice import Kokoro

        return Kokoro(Path(folder), int(threads))
    return Espeak() if kind == "espeak" else Portable()


if __name__ == "__main__":
    main(*sys.argv[1:])
