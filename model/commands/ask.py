"""The command `ask`: recordings and typed messages answered in order, as one conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from assistant.events import SAMPLE_RATE, EmotionReading, Exchange, Message, Spoken, Typed
from model.audio.files import read_audio
from model.commands.read import describe, in_words
from model.errors import BadInput, NothingHeard
from model.inference.engine import Engine

Result = dict[str, Any]
"""One JSON line of `ask`."""

Show = Callable[..., None]
"""Takes what `print` takes."""


def answers(
    engine: Engine, inputs: Sequence[str | Path], show: Show, *, empathy: bool, load_ms: float
) -> Iterator[tuple[Result, EmotionReading | None]]:
    """Answer each input as one turn of a conversation; a bad input does not stop the others.

    Args:
        engine: with the loaded checkpoint.
        inputs: typed messages as str, recordings as Path.
        show: called with each text as soon as it is known.
        empathy: add the empathetic part to the system prompt.
        load_ms: duration of loading, for the JSON lines.

    Yields:
        The JSON line of each input, and its reading.
    """
    history: list[Exchange] = []
    for given in inputs:
        result = blank_result(given, engine)
        reading = None
        try:
            message = read_message(given, result)
            result["timings_ms"]["load"] = load_ms
            reply = answer(engine, history, message, empathy, result, show)
        except BadInput as error:
            name = f"{given}: " if isinstance(given, Path) and str(given) not in str(error) else ""
            result["error"] = f"{name}{error}"
            result["why"] = result["why"] or result["error"]
            if isinstance(error, NothingHeard):
                result["duration_seconds"] = round(error.seconds, 3)
        else:
            result["reply"] = reply
            history.append(Exchange(message, reply))
            reading = engine.hear(message).reading if isinstance(message, Spoken) else None
        yield result, reading


def blank_result(given: str | Path, engine: Engine) -> Result:
    """The JSON line before anything is known."""
    loaded = engine.checkpoint
    return {
        "file": str(given) if isinstance(given, Path) else None,
        "duration_seconds": None,
        "transcript": None if isinstance(given, Path) else given,
        **describe(None, None if isinstance(given, Path) else "a typed message has no voice"),
        "reply": None,
        "path": loaded.model.config.path,
        "model": loaded.name,
        "device": loaded.device,
        "quantize": loaded.quantize,
        "limit_reached": None,
        "timings_ms": dict.fromkeys(("load", "encode", "prefill", "first_token", "reply")),
        "error": None,
    }


def read_message(given: str | Path, result: Result) -> Message:
    """The message behind one input; `result` gets its duration.

    Raises:
        BadInput: the recording cannot be used, or the text is empty.
    """
    if isinstance(given, Path):
        samples = read_audio(given)
        result["duration_seconds"] = round(len(samples) / SAMPLE_RATE, 3)
        return Spoken(samples)
    if not given.strip():
        raise BadInput("The message after --text is empty: type what you want to say.")
    if not given.isprintable() and any("\ud800" <= character <= "\udfff" for character in given):
        raise BadInput("The message after --text is not UTF-8: check your terminal's encoding.")
    return Typed(given.strip())


def answer(
    engine: Engine, history: Sequence[Exchange], message: Message, empathy: bool, result: Result, show: Show
) -> str:
    """Hear and answer one message, filling `result` and showing things as they become known. Returns the reply."""
    timings = result["timings_ms"]
    if isinstance(message, Spoken):
        began = time.perf_counter()
        hearing = engine.hear(message)
        # The transcript comes before the reply only where the reply is conditioned on the words.
        words = engine.transcript(message) if result["path"] == "transcript" else None
        timings["encode"] = (time.perf_counter() - began) * 1e3
        show(f"\n{result['file']}  ({result['duration_seconds']:.1f} s)")
        if words is not None:
            show(f"  You said   {words.text}")
        estimate = engine.model.config.emotion_source == "encoder"
        show(f"  Voice      {in_words(hearing.reading, hearing.why, estimate=estimate)}")
        result |= describe(hearing.reading, hearing.why)
        result["transcript"] = words.text if words is not None else None
    else:
        show(f"\n  You typed  {message.text}")
    show("  Reply      ", end="")
    reply = ""
    for piece in engine.reply(history, message, empathy=empathy):
        reply += piece
        show(piece.replace("\n", "\n             "), end="", flush=True)
    show()
    figures = engine.figures
    timings["prefill"] = figures.prefill_ms
    timings["first_token"] = figures.first_token_ms
    timings["reply"] = figures.reply_ms
    result["limit_reached"] = figures.limit_reached
    if isinstance(message, Spoken):
        words = engine.transcript(message)
        result["transcript"] = words.text if words else None
        if words is not None and result["path"] == "speech":
            show(f"  You said   {words.text}")
    return reply.strip()
