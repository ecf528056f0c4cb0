"""`python -m training prepare`: labelled manifests to a tokenised data set in Arrow files.

Every row's ids are the original's; its limits also count the positions of the speech and the instruction before it,
which the original does not. SAVE_DIR is a run folder with train.arrow, validation.arrow (Arrow IPC streams, for memory
mapping), dropped.jsonl and prepared.json, the counts. Rows are processed in chunks that are kept, so a command that was
killed can be resumed.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import compute

from assistant.events import EMOTIONS
from model.audio.features import encoder_frames
from model.checkpoints.safe_reader import read_config
from model.config import ENCODER_FRAME_SECONDS
from model.errors import BadInput
from model.files import replacing, write_atomically
from training.data.batches import IGNORED, TrainingRow, tokenise
from training.data.chat import Chat, read_chat
from training.data.feature_cache import FeatureCache
from training.data.manifest import (
    KEY,
    BadRow,
    Clip,
    Found,
    OnDropped,
    Report,
    Row,
    Rules,
    find_manifests,
    inspect,
    read_rows,
)
from training.data.sources import fetching, model_folder
from training.runs.config import PrepareOptions
from training.runs.run_folder import OPTIONS, Run, open_run

CHUNK_ROWS = 500
SPLITS = ("train", "validation")
DONE = "prepared.json"

_IDS = pyarrow.list_(pyarrow.int32())
SCHEMA = pyarrow.schema(
    [
        *((name, _IDS) for name in ("opening", "speech_instruction", "text_instruction", "text", "closing", "answer")),
        ("emotion", pyarrow.int32()),
        ("encoder_frames", pyarrow.int32()),
        ("speech_positions", pyarrow.int32()),
        ("length", pyarrow.int32()),
        ("audio", pyarrow.string()),
        ("start", pyarrow.int64()),
        ("frames", pyarrow.int64()),
        ("key", pyarrow.string()),
        ("transcript", pyarrow.string()),
        ("reply", pyarrow.string()),
        ("speaker", pyarrow.list_(pyarrow.string())),
        ("split", pyarrow.string()),
        ("manifest", pyarrow.string()),
        ("line", pyarrow.int64()),
    ]
)
"""One row: the fields of `TrainingRow`; positions of the speech and of the whole spoken row; the recording, `frames`
samples at its own rate from `start` on (-1: all), and its key in a feature cache; the result of `speakers`; the row's
manifest and line."""

_MOST_SHARE = 0.25  # largest share of the rows that one speaker may take for validation
_SPEAKER_FIELDS = ("speaker", "speaker_id", "voice")


class Tokens(NamedTuple):
    """What turns rows into ids.

    Attributes:
        chat: tokenizer and system message.
        kernels: convolutions of the adapter; None: a CFormer or CTC adapter, which makes about as many tokens as the
            transcript has.
    """

    chat: Chat
    kernels: int | None

    def positions(self, frames: int, row: TrainingRow) -> int:
        """Number of the language model's positions that the speech takes."""
        if self.kernels is None:
            return len(row.text)
        for _ in range(self.kernels):
            frames = (frames - 1) // 2 + 1
        return frames


def load_tokens(folder: Path, options: PrepareOptions) -> Tokens:
    """Read the tokenizer and the adapter's shape of a checkpoint, or of a language model with `options.kernels`.

    Raises:
        WeightsMissing: there is no tokenizer, or it has no chat template.
    """
    config = read_config(folder)
    kernels: int | None = len(options.kernels)
    if config.get("model_type") == "blsp_emo":
        kernels = len(config["adapter_kernel_sizes"]) if config.get("adapter_type", "conv") == "conv" else None
    return Tokens(read_chat(folder), kernels)


def prepare(options: PrepareOptions, notify: OnDropped | None = None) -> dict[str, Any]:
    """Prepare a data set, or resume it.

    Args:
        options: of the command.
        notify: called with every dropped row.

    Returns:
        The counts of prepared.json; or "stopped".

    Raises:
        BadInput: there is no usable row, the options differ from before, or another process is at work.
        WeightsMissing: the model is missing.
    """
    manifests = find_manifests(options.dataroot, options.manifest_files)
    contents = hashlib.sha256()
    for path in manifests:
        contents.update(path.read_bytes() if path.is_file() else b"")
    about = options.plain() | {"manifests_sha256": contents.hexdigest()}
    with open_run(options.save_dir, about, changeable=("num_proc",)) as run:
        if (run.folder / DONE).exists():
            return dict(json.loads((run.folder / DONE).read_text("utf-8")))
        with fetching(run) as progress:
            tokens = load_tokens(model_folder(options.model, progress), options)
        caches = [FeatureCache.open(Path(folder)) for folder in options.features]
        report = Report(notify)
        valid = _of_a_split(read_rows(manifests, _rules(options), report), options.split_field, report)
        chunks = _chunks(valid, run.folder / "chunks")
        with run.bar("prepare", sum(len(rows) for _, rows in chunks)) as bar, ExitStack() as stack:
            pool: Executor | None = None
            if options.num_proc > 1:
                pool = stack.enter_context(ProcessPoolExecutor(options.num_proc, mp_context=get_context("spawn")))
            for path, rows in chunks:
                if run.stop_requested:
                    return {"stopped": True, "of": sum(len(rows) for _, rows in chunks)}
                if not path.exists():
                    _write_chunk(path, rows, tokens, caches, options, pool)
                bar.advance(len(rows))
        return _finish(run, [path for path, _ in chunks], report, options)


def _rules(options: PrepareOptions) -> Rules:
    own = (options.instruction_field, options.audio_instruction_field)
    return Rules(
        audio=options.audio_field,
        text=options.input_field,
        required=(options.output_field,),
        strings=tuple(name for name in own if name),
        emotions="required" if options.use_emotion else "optional",
        emotion_map=options.emotion_map,
        where=options.where,
    )


def _of_a_split(rows: Iterable[Row], field: str, report: Report) -> Iterator[Row]:
    """Drop rows that are neither for training nor for validation, such as the test voices of a corpus."""
    for row in rows:
        split = str(row.data.get(field, ""))
        if not field or split in SPLITS:
            yield row
        else:
            report.drop(row.file, row.line, "not wanted", f"{field} is {split[:40]!r}, neither train nor validation")


def _chunks(rows: Iterable[Row], folder: Path) -> list[tuple[Path, list[Row]]]:
    folder.mkdir(exist_ok=True)
    listed = list(rows)
    starts = range(0, len(listed), CHUNK_ROWS)
    return [(folder / f"{start // CHUNK_ROWS:06}.arrow", listed[start : start + CHUNK_ROWS]) for start in starts]


def _write_chunk(
    path: Path,
    rows: list[Row],
    tokens: Tokens,
    caches: list[FeatureCache],
    options: PrepareOptions,
    pool: Executor | None,
) -> None:
    """Write the chunk's valid rows; dropped rows are in the file's metadata, so both exist or neither."""
    report, table = Report(), []
    limits = (options.min_duration, options.max_duration, options.audio_root)
    looked = (pool.map if pool else map)(inspect, rows, *(repeat(limit) for limit in limits))
    for row, found in zip(rows, looked, strict=True):
        try:
            table.append(_prepared(row, found, tokens, caches, options))
        except BadRow as problem:
            report.drop(row.file, row.line, problem.reason, str(problem))
    schema = SCHEMA.with_metadata({"dropped": json.dumps([list(one) for one in report.dropped])})
    with _arrow_writer(path, schema) as writer:
        writer.write_table(pyarrow.Table.from_pylist(table, schema=schema))


@contextmanager
def _arrow_writer(path: Path, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatchStreamWriter]:
    with (
        replacing(path) as partial,
        pyarrow.OSFile(str(partial), "wb") as sink,
        pyarrow.ipc.new_stream(sink, schema) as writer,
    ):
        yield writer


def _prepared(
    row: Row, found: Found, tokens: Tokens, caches: list[FeatureCache], options: PrepareOptions
) -> dict[str, Any]:
    """The row of the data set.

    Raises:
        BadRow: the recording cannot be used, the row is too long, or it has nothing to learn from.
    """
    if found.problem:
        raise BadRow(*found.problem)
    frames = encoder_frames(found.samples) if found.clip else _cached_frames(found.key, caches, options)
    ids = row_ids(row, tokens.chat, options)
    positions = tokens.positions(frames, ids)
    around = len(ids.opening) + len(ids.closing) + len(ids.answer)
    spoken = around + len(ids.speech_instruction) + positions
    written = around + len(ids.text_instruction) + len(ids.text)
    if max(spoken, written) > options.max_length:
        lengths = f"{spoken} tokens with the speech, {written} with the text"
        raise BadRow("too many tokens", f"{lengths}: more than {options.max_length} (--max-length)")
    if not ids.answer:
        raise BadRow("empty output", "the continuation is empty and cut off: there is nothing to learn from")
    clip = found.clip or Clip(Path())
    return {name: list(getattr(ids, name)) for name in SCHEMA.names[:6]} | {
        "emotion": ids.emotion,
        "encoder_frames": frames,
        "speech_positions": positions,
        "length": spoken,
        "audio": str(clip.path) if found.clip else "",
        "start": clip.start,
        "frames": clip.frames,
        "key": found.key,
        "transcript": row.text,
        "reply": row.data[options.output_field],
        "speaker": speakers(row, options.speaker_field),
        "split": str(row.data.get(options.split_field, "")),
        "manifest": str(row.file),
        "line": row.line,
    }


def _cached_frames(key: str, caches: list[FeatureCache], options: PrepareOptions) -> int:
    for cache in caches:
        if key in cache:
            frames = cache.frames(key)
            seconds = frames * ENCODER_FRAME_SECONDS
            if not options.min_duration <= seconds <= options.max_duration:
                reason = "too short" if seconds < options.min_duration else "too long"
                raise BadRow(reason, f"{seconds:.2f} s in the feature cache, not within the limits")
            return frames
    raise BadRow("missing audio", f"no audio, and its key {key[:12]} is in no feature cache: see --features")


def row_ids(row: Row, chat: Chat, options: PrepareOptions) -> TrainingRow:
    """The row's token ids as in the original: instruction and text tokenised apart, a newline after "assistant"."""
    instruction = str(row.data.get(options.instruction_field, options.instruction))
    heard = options.heard_instruction
    return tokenise(
        chat.tokenizer,
        system=chat.system(use_emotion=options.use_emotion),
        text=row.text,
        answer=row.data[options.output_field],
        text_instruction=instruction,
        speech_instruction=row.data.get(options.audio_instruction_field, heard),
        emotion=row.emotion,
        complete=not row.data.get("early_stop", False),
    )


def speakers(row: Row, field: str = "") -> list[str]:
    """Candidates for the speaker of a row, best first: a field's value, the start of the file's name, the file.

    The start of a name ends at its first "-" or "_"; a name without one gives none.
    """
    named = next((str(row.data[name]) for name in ((field,) if field else _SPEAKER_FIELDS) if row.data.get(name)), "")
    stem = Path(row.audio).name.partition(".")[0]
    start = re.split("[-_]", stem)[0] if re.search("[-_]", stem) else ""
    return [named, start, row.audio or str(row.data.get(KEY, ""))]


def choose_validation(rows: list[list[str]], share: float, seed: int) -> tuple[list[bool], str]:
    """Choose validation rows so that no speaker is in both splits.

    Args:
        rows: the result of `speakers` for each row.
        share: maximum share of validation rows; at least one speaker is chosen.
        seed: of the choice.

    Returns:
        The choice, and "speaker field", "file name" or "recording": the first criterion that every row has and under
            which one speaker has at most a quarter of the rows, or `share`. Or "nothing", and all rows are for
            training.
    """
    for level, basis in enumerate(("speaker field", "file name", "recording")):
        counts = Counter(row[level] for row in rows)
        least = min(counts.values(), default=0)
        if "" in counts or len(counts) < 2 or not share or least > max(_MOST_SHARE, share) * len(rows):
            continue
        order = sorted(counts)
        random.Random(seed).shuffle(order)  # noqa: S311 (a choice that can be repeated, no secret)
        chosen: set[str] = set()
        held = 0
        for speaker in order:
            if held + counts[speaker] <= max(least, share * len(rows)):
                chosen.add(speaker)
                held += counts[speaker]
        return [row[level] in chosen for row in rows], basis
    return [False] * len(rows), "nothing"


def _finish(run: Run, chunks: list[Path], report: Report, options: PrepareOptions) -> dict[str, Any]:
    """Divide the chunks' rows into train.arrow and validation.arrow and count them."""
    tables = [read_table(path) for path in chunks]
    for table in tables:
        for dropped in json.loads(table.schema.metadata[b"dropped"]):
            report.drop(*dropped)
    report.write(run.folder)
    if not any(map(len, tables)):
        # Nothing to resume: other options may be used in the same folder.
        shutil.rmtree(run.folder / "chunks")
        (run.folder / OPTIONS).unlink()
        raise BadInput(f"{options.dataroot} has no usable row{report.first()}.")
    if options.split_field:
        held = [split == "validation" for table in tables for split in table["split"].to_pylist()]
        basis = f"field {options.split_field}"
    else:
        known = [one for table in tables for one in table["speaker"].to_pylist()]
        held, basis = choose_validation(known, options.validation, options.seed)
    masks = iter(held)
    chosen = [pyarrow.array(list(islice(masks, len(table))), pyarrow.bool_()) for table in tables]
    counts = {}
    for split in SPLITS:
        parts = (
            t.filter(m if split == "validation" else compute.invert(m)) for t, m in zip(tables, chosen, strict=True)
        )
        counts[split] = _write_split(run.folder / f"{split}.arrow", parts)
    summary = {"data": str(run.folder), **counts, "split_by": basis, "dropped": report.counts()}
    write_atomically(run.folder / DONE, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    shutil.rmtree(run.folder / "chunks")
    return summary


def _write_split(path: Path, parts: Iterable[pyarrow.Table]) -> dict[str, Any]:
    """Write one split's rows; return its counts."""
    rows, frames, longest, emotions = 0, 0, 0, Counter[str]()
    with _arrow_writer(path, SCHEMA) as writer:
        for part in parts:
            writer.write_table(part.replace_schema_metadata(None))
            rows += len(part)
            frames += sum(part["encoder_frames"].to_pylist())
            longest = max([longest, *part["length"].to_pylist()])
            emotions.update("none" if e == IGNORED else EMOTIONS[e] for e in part["emotion"].to_pylist())
    hours = round(frames * ENCODER_FRAME_SECONDS / 3600, 3)
    return {"rows": rows, "hours": hours, "longest_tokens": longest, "emotions": dict(emotions)}


def read_table(path: Path) -> pyarrow.Table:
    """A file of the data set, memory-mapped."""
    with pyarrow.memory_map(str(path)) as source:
        return pyarrow.ipc.open_stream(source).read_all()


class PreparedRows:
    """A split of a prepared data set by number, memory-mapped.

    Attributes:
        lengths: tokens of every row with its speech, for batches of equal length.
    """

    def __init__(self, folder: Path, split: str) -> None:
        """Open a split.

        Raises:
            BadInput: `folder` has no finished data set.
        """
        if not (folder / DONE).is_file():
            raise BadInput(f"{folder} has no finished data set: run `python -m training prepare`.")
        self._table = read_table(folder / f"{split}.arrow")
        self.lengths: list[int] = self._table["length"].to_pylist()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The columns of `SCHEMA`."""
        return dict(self._table.slice(number, 1).to_pylist()[0])

    def ids(self, number: int) -> TrainingRow:
        """A row without its speech, which is in `clip_of(row)` or in a feature cache under its key.

        Args:
            number: of the row.

        Returns:
            The tokenised row.
        """
        row = self[number]
        return TrainingRow(**{name: row[name] for name in (*SCHEMA.names[:6], "emotion", "encoder_frames")})


def clip_of(row: Mapping[str, Any]) -> Clip | None:
    """The recording of a row of `PreparedRows`; None: it is only in a feature cache."""
    return Clip(Path(row["audio"]), row["start"], row["frames"]) if row["audio"] else None
