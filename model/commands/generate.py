"""The batch tool: a file of JSON lines in, a file of replies out, line by line.

It works like the original's tool. In addition, an unusable line is reported and keeps its place, and a run that was
killed can be resumed. The command line reads its options here, so this module does not import torch;
`model.commands.answer_lines` generates the answers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from filelock import FileLock, Timeout
from pydantic import Field, model_validator

from assistant import options
from model.errors import BadInput
from model.files import write_atomically

DESCRIPTION = """\
Answer every line of a JSON-lines file. Each input line is an object. The fields named by the options, and "instruction"
unless --instruction is given, form the message: instruction, text, then the recording. Each output line is
{"response": ..., "reference": ...}, in the input's order. An unusable line is reported by its number and becomes
{"response": "", "reference": ..., "error": reason}; the exit code is then 2. To resume a run that was stopped, run the
same command again.
"""


_PATH: dict[str, Any] = {"metavar": "FILE"}


class Options(options.Options):
    """The options of the batch tool; names and defaults as the original's."""

    refusal: ClassVar[type[Exception]] = BadInput

    input_file: Path = Field(description="JSON lines to answer", json_schema_extra=_PATH)
    output_file: Path = Field(description="output file for the replies, one line each", json_schema_extra=_PATH)
    model: str = Field("mini", description="mini, mini-0.5b, mini-speech, or a checkpoint folder")
    instruction: str = Field("", description="precedes every message, instead of the lines' own")
    audio_field: str = Field("", description="field with a recording's path, relative to the input file or to here")
    text_field: str = Field("", description="field with text that follows the instruction")
    reference_field: str = Field("", description="field to copy to the output as the reference")
    batch_size: int = Field(
        24,
        ge=1,
        description="lines per batch; apart from rounding it changes no reply, except with --legacy-batching",
    )
    use_emotion: bool = Field(False, description="ask for empathy with the emotion in the voice")
    max_new_tokens: int = Field(128, ge=1, description="longest reply")
    min_new_tokens: int = Field(1, ge=0, description="shortest reply; its end counts")
    do_sample: bool = Field(False, description="sample instead of taking the best token")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    top_p: float = Field(0.5, gt=0, le=1, description="of sampling")
    top_k: int = Field(0, ge=0, description="of sampling; 0 for all tokens")
    seed: int = Field(0, description="of sampling; each line has its own random numbers")
    repetition_penalty: float | None = Field(None, gt=0, description="default: the checkpoint's own")
    num_beams: int = Field(1, description="must be 1: beam search is not supported")
    legacy_batching: bool = Field(
        False, description="pad batches like the original, where a row depends on its neighbours"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    quantize: Literal["auto", "none", "int8", "nf4", "nf4-all"] = Field(
        "auto", description="auto: 4 bits on a GPU, none on a CPU"
    )
    restart: bool = Field(False, description="overwrite the output")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.num_beams != 1:
            raise ValueError("Beam search is not supported: leave --num-beams at 1, or use --do-sample.")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("--min-new-tokens must lie between 0 and the maximum.")
        return self

    def decisive(self) -> dict[str, Any]:
        """The options that the output depends on.

        Returns:
            JSON values by name.
        """
        unused = {"output_file", "restart"} | (set() if self.legacy_batching else {"batch_size"})
        decisive = {name: value for name, value in self.model_dump().items() if name not in unused}
        return decisive | {"input_file": str(self.input_file.resolve())}


Result = dict[str, Any]
"""An output line: response, reference, and error where the line failed."""

Answer = Callable[[int, Sequence[bytes]], list[Result]]
"""Answers a batch of input lines, given the number of its first one (from 1)."""


class Job:
    """The input's lines and the output file, which grows batch by batch and survives a kill.

    Until the last line is written, the file `NAME.run` next to the output records the options and the input, so that a
    later start can resume. Complete lines are kept, a torn one is written again.

    Attributes:
        lines: the input.
        done: number of lines written.
        failed: number of those that contain an error.

    Raises:
        BadInput: the input cannot be read, or the output is something else.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.lines = _input_lines(options)
        self.done = self.failed = 0
        self._output = options.output_file
        self._side = self._output.with_name(self._output.name + ".run")
        self._kept_bytes = 0
        self._open = ExitStack()
        if self._output.is_dir() or not os.access(self._output.resolve().parent, os.W_OK):
            raise BadInput(f"{self._output} cannot be written: choose an existing folder with write permission.")
        if self._output.resolve() == options.input_file.resolve():
            raise BadInput("--output-file is the input file: choose another.")

    def __enter__(self) -> Self:
        """Lock the output file and read what an earlier run wrote; nothing is changed before `write`.

        Raises:
            BadInput: another process is writing it, or it cannot be resumed.
        """
        with ExitStack() as opening:
            lock = FileLock(f"{self._side}.lock", timeout=0)
            try:
                opening.enter_context(lock)
            except Timeout as error:
                raise BadInput(f"{self._output} is being written by another process: wait for it.") from error
            if os.name == "posix":  # on other systems the lock removes its file itself
                opening.callback(Path(lock.lock_file).unlink, missing_ok=True)
            kept = self._kept()
            self.done = len(kept)
            self.failed = sum("error" in json.loads(line) for line in kept)
            self._kept_bytes = sum(map(len, kept))
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the output; a finished one needs no side file."""
        if self.done == len(self.lines):
            self._side.unlink(missing_ok=True)
        self._open.close()

    def write(self, answer: Answer) -> Iterator[list[Result]]:
        """Answer and write the remaining lines batch by batch; yields each batch when it is on the disk.

        Raises:
            BadInput: the disk is full.
        """
        self._append("", begin=True)
        while self.done < len(self.lines):
            results = answer(self.done + 1, self.lines[self.done : self.done + self.options.batch_size])
            self._append("".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results))
            self.done += len(results)
            self.failed += sum("error" in result for result in results)
            yield results

    def _append(self, text: str, *, begin: bool = False) -> None:
        try:
            with self._output.open("ab") as file:
                if begin:
                    file.truncate(self._kept_bytes)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            if begin:
                # Only now: the old side file describes the old lines until they are gone.
                self._write_side()
        except OSError as error:
            raise BadInput(
                f"{self._output} cannot be written ({error.strerror}): make room and run the command again."
            ) from error

    def _kept(self) -> list[bytes]:
        """The complete lines of the output that are kept, with their line ends."""
        if self.options.restart or not self._output.exists():
            return []
        found = self._output.read_bytes()
        whole = list(takewhile(_is_result, (line + b"\n" for line in found.split(b"\n")[:-1])))
        if not self._side.exists():
            if found:
                raise BadInput(f"{self._output} already exists: delete it, choose another, or add --restart.")
        elif whole:
            self._refuse_changes(len(whole))
        if self.options.legacy_batching and len(whole) < len(self.lines):
            # A batch is answered as a whole, because its rows depend on each other.
            del whole[len(whole) - len(whole) % self.options.batch_size :]
        return whole

    def _refuse_changes(self, kept: int) -> None:
        """Raise BadInput if the kept lines could differ under the present options or input."""
        try:
            began = json.loads(self._side.read_text("utf-8"))
            options, lines, digest = dict(began["options"]), int(began["lines"]), began["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{self._side} is damaged: start over with --restart.") from error
        now = self.options.decisive()
        for name in now:
            if options.get(name) != now[name]:
                option = "--" + name.replace("_", "-")
                raise BadInput(
                    f"{self._output} was started with {option} {options.get(name)!r}, now it is {now[name]!r}: "
                    "use the same option to resume, or add --restart."
                )
        if kept > len(self.lines) or lines > len(self.lines) or digest != _digest(self.lines[:lines]):
            raise BadInput(f"{self.options.input_file} has changed since {self._output} was started: add --restart.")

    def _write_side(self) -> None:
        state = {
            "options": self.options.decisive(),
            "lines": len(self.lines),
            "sha256": _digest(self.lines),
        }
        write_atomically(self._side, json.dumps(state, indent=2))


def _digest(lines: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def _is_result(line: bytes) -> bool:
    try:
        result = json.loads(line)
    except ValueError:
        return False
    return isinstance(result, dict) and "response" in result


def _input_lines(options: Options) -> list[bytes]:
    """The lines of the input, without line ends and without blank lines at the end of the file."""
    try:
        lines = options.input_file.read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
    except OSError as error:
        raise BadInput(f"{options.input_file} cannot be read ({error.strerror}): check the path.") from error
    if lines == [b""]:
        raise BadInput(f"{options.input_file} is empty: put one JSON object in each line.")
    present: set[str] = set()
    for raw in lines:
        try:
            present.update(read_record(raw))
        except BadInput:
            continue
    for option in ("audio_field", "text_field", "reference_field"):
        name = getattr(options, option)
        if present and name and name not in present:
            raise BadInput(f"No line has the field {name!r}; the fields are {', '.join(sorted(present))}.")
    return lines


def read_record(raw: bytes) -> dict[str, Any]:
    """Parse an input line.

    Raises:
        BadInput: it is not a JSON object, or has a value that no output line can have.
    """

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        record = json.loads(raw.decode("utf-8"), parse_constant=constant)
        # Half a surrogate pair, or 1e999, can be read but not written.
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeError as error:
        raise BadInput("not valid Unicode text") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON ({error})" if raw.strip() else "empty") from error
    if not isinstance(record, dict):
        raise BadInput("not a JSON object")
    return record
