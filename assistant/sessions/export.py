"""Export and import of sessions: WAV, JSON, SRT, Markdown, and an archive that another machine imports.

An archive comes from strangers: its reader takes names of its own making only, bounds every size before it
unpacks, and lets nothing into the sessions' folder before all of it was read and found whole.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from assistant.errors import AssistantError, BadInput
from assistant.events import SAMPLE_RATE, Samples, Spoken, Typed
from assistant.files import replacing
from assistant.sessions.maintenance import COMING
from assistant.sessions.reader import Session, as_json, as_text, read_flac, read_session, words_of
from assistant.sessions.recorder import EVENTS, new_name

FORMATS = ("archive", "wav", "json", "srt", "markdown")
_ENDINGS = {"archive": ".undertone", "wav": ".wav", "json": ".json", "srt": ".srt", "markdown": ".md"}
_GAP_SECONDS = 0.5
_MOST_BYTES = 2 << 30  # of an archive, unpacked
_MOST_FILES = 20_000
_MALFORMED = (
    AssistantError, zipfile.BadZipFile, NotImplementedError, RuntimeError, LookupError, ValueError, TypeError,
)  # fmt: skip
_AUDIO_NAME = re.compile(r"audio/\d{4,6}-(user|reply)\.flac")


def export(session: Session, form: str, target: Path) -> Path:
    """Write a session in one of `FORMATS`; `target` may be a folder. Returns the file.

    Raises:
        AssistantError: it cannot be written, or a recording of it cannot be read.
    """
    path = target / f"{session.folder.name}{_ENDINGS[form]}" if target.is_dir() else target
    try:
        with replacing(path, mode=None) as partial:
            if form == "archive":
                _write_archive(session, partial)
            elif form == "wav":
                _write_wav(session, partial)
            else:
                texts = {"json": lambda s: as_text(as_json(s)) + "\n", "srt": as_srt, "markdown": as_markdown}
                partial.write_text(texts[form](session), encoding="utf-8")
    except OSError as error:
        raise AssistantError(f"{path} cannot be written ({error.strerror or error}): choose another folder.") from error
    return path


def timeline(session: Session) -> list[tuple[float, float, str, str]]:
    """Start and end in seconds, who speaks ("you", "assistant"), and the words, as `wav` plays them."""
    rows, at = [], 0.0
    for recorded in session.turns:
        turn = recorded.turn
        spoken = len(turn.message.samples) / SAMPLE_RATE if isinstance(turn.message, Spoken) else 2.0
        reply = 0.0
        if recorded.reply_audio is not None:
            samples, rate = read_flac(recorded.reply_audio)
            reply = len(samples) / rate
        rows.append((at, at + spoken, "you", words_of(turn)))
        at += spoken + _GAP_SECONDS
        if turn.heard or reply:
            length = reply or max(1.0, 0.3 * len(turn.heard.split()))
            rows.append((at, at + length, "assistant", turn.heard))
            at += length + _GAP_SECONDS
    return rows


def joined(session: Session) -> Samples:
    """The whole conversation, one speaker after the other, mono 16 kHz; typed messages are silence."""
    import soxr

    gap = np.zeros(int(_GAP_SECONDS * SAMPLE_RATE), np.float32)
    parts: list[Samples] = []
    for recorded in session.turns:
        message = recorded.turn.message
        parts += [message.samples if isinstance(message, Spoken) else np.zeros(2 * SAMPLE_RATE, np.float32), gap]
        if recorded.reply_audio is not None:
            samples, rate = read_flac(recorded.reply_audio)
            parts += [soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32), gap]
        elif recorded.turn.heard:
            parts += [np.zeros(int(max(1.0, 0.3 * len(recorded.turn.heard.split())) * SAMPLE_RATE), np.float32), gap]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _write_wav(session: Session, path: Path) -> None:
    import soundfile

    samples = np.clip(joined(session), -1, 1)
    try:
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    except soundfile.LibsndfileError as error:
        raise OSError(str(error)) from error


def as_srt(session: Session) -> str:
    """Subtitles that fit `joined`."""

    def clock(seconds: float) -> str:
        whole = round(seconds * 1000)
        hours, minutes, rest = whole // 3_600_000, whole // 60_000 % 60, whole % 60_000
        return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d},{rest % 1000:03d}"

    blocks = []
    for number, (start, end, who, words) in enumerate(timeline(session), 1):
        line = " ".join(words.split()) or "..."
        blocks.append(f"{number}\n{clock(start)} --> {clock(end)}\n{who.capitalize()}: {line}\n")
    return "\n".join(blocks)


def as_markdown(session: Session) -> str:
    """The conversation as Markdown."""
    lines = [f"# Conversation of {session.started or session.folder.name}", ""]
    for recorded in session.turns:
        turn = recorded.turn
        sounded = f" *(voice sounds {turn.reading.label}, {turn.reading.confidence:.0%})*" if turn.reading else ""
        how = "You typed" if isinstance(turn.message, Typed) else "You"
        lines.append(f"**{how}:** {_plain(words_of(turn)) or '*(no transcript)*'}{sounded}")
        lines.append("")
        cut = f" *({turn.outcome.value})*" if turn.heard != turn.reply else ""
        lines.append(f"**Undertone:** {_plain(turn.heard)}{cut}")
        lines.append("")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Escape text for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


# ---- archives


def _write_archive(session: Session, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(session.folder / EVENTS, EVENTS)
        for recorded in session.turns:
            for audio in (recorded.user_audio, recorded.reply_audio):
                if audio is not None:
                    archive.write(audio, f"audio/{audio.name}")


def import_archive(path: Path, root: Path) -> Path:
    """Import an archive as a new session in `root`; returns its folder, named after the current time.

    Raises:
        BadInput: it is no archive of a session, or is damaged.
        AssistantError: it cannot be read or written.
    """
    staging = root / f"{COMING}{secrets.token_hex(4)}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging.mkdir(mode=0o700)
        (staging / "audio").mkdir(mode=0o700)
        with zipfile.ZipFile(path) as archive:
            _unpack(archive, staging)
        session = read_session(staging)
        for recorded in session.turns:
            if recorded.reply_audio is not None:
                read_flac(recorded.reply_audio)
        if not session.turns or session.damaged:
            raise ValueError("damaged")
        target = root / new_name()
        staging.rename(target)
    except _MALFORMED as error:
        why = "is no archive of a session, or is damaged"
        raise BadInput(f"{path} {why}: choose a file that Undertone exported.") from error
    except FileNotFoundError as error:
        raise BadInput(f"There is no file {path}: choose one that Undertone exported.") from error
    except OSError as error:
        raise AssistantError(f"{path} cannot be imported ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    entries = archive.infolist()
    if len(entries) > _MOST_FILES or sum(entry.file_size for entry in entries) > _MOST_BYTES:
        raise ValueError("too large")
    for entry in entries:
        if entry.filename != EVENTS and not _AUDIO_NAME.fullmatch(entry.filename):
            raise ValueError(f"unexpected {entry.filename!r}")
        descriptor = os.open(folder / entry.filename, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out, archive.open(entry) as packed:
            left = entry.file_size
            while part := packed.read(1 << 20):
                left -= len(part)
                if left < 0:
                    raise ValueError("larger than it says")
                out.write(part)


def differences(session: Session, answers: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Compare another model's answers to the same recordings with the recorded ones, turn by turn as they come."""
    for recorded, answer in zip(session.turns, answers, strict=True):
        turn = recorded.turn
        before = {
            "reading": turn.reading.label if turn.reading else None,
            "reply": turn.reply,
            "encode_ms": turn.figures.get("encode_ms"),
            "first_token_ms": turn.figures.get("first_token_ms"),
        }
        yield {"turn": turn.number, "words": words_of(turn), "before": before, "after": answer}
