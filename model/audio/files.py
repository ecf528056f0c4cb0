"""Reading recordings: WAV, FLAC, OGG and MP3 files to mono samples, and splitting long ones at pauses.

A file is decoded block by block, so a length claimed by its header is never allocated. MP3 is decoded in a separate
process, because libmpg123 writes remarks about ordinary files to stderr and libsndfile cannot turn them off.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from assistant.events import SAMPLE_RATE, Samples
from model.errors import BadInput, NothingHeard

SHORTEST_SECONDS = 0.1
"""Shorter recordings contain no word."""
LONGEST_SECONDS = 3600.0
SILENCE_PEAK = 1e-3
"""-60 dBFS: a recording that never deviates further from its mean counts as silent."""
SAMPLE_RATES = range(2_000, 768_001)
"""Accepted sampling rates in Hz."""

_CONTAINERS = {"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"}
_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS")
_BLOCK_SAMPLES = 1 << 18  # of all channels together: 1 MiB
_LOUDEST = 2.0**31  # full scale of 32-bit integers; beyond it a float file is damaged
_OPEN_ENDED = 0x7FFF_0000  # recorders that write to a pipe claim this many bytes or more
_UNDECLARED = 2**63 - 1  # libsndfile's frame count of a FLAC stream of unknown length
_MP3_TIMEOUT_SECONDS = 300.0


def read_audio(path: Path, rate: int = SAMPLE_RATE) -> Samples:
    """The whole recording as mono float32 at `rate` Hz.

    Channels are averaged, so a signal that is equal in all of them keeps its level. A floating-point file that
    exceeds full scale is scaled down to it as a whole, which keeps the waveform where clipping would not.
    A file that holds less than its header declares is refused; OGG declares no length and is read to its end.

    Args:
        path: a WAV, FLAC, OGG (Vorbis or Opus) or MP3 file of any rate and channel count; the content decides,
            not the suffix.
        rate: the rate of the result in Hz.

    Returns:
        float32 [samples], in [-1, 1], from 0.1 s to 1 h long.

    Raises:
        NothingHeard: it is too short or silent.
        BadInput: the file is missing, unreadable, not audio, damaged, cut short or too long.
    """
    is_mp3 = _check_kind(path)
    samples = _decode_apart(path, rate) if is_mp3 else _decode(path, rate)
    seconds = len(samples) / rate
    if seconds < SHORTEST_SECONDS:
        raise NothingHeard(f"{_shown(path)}: only {seconds:.2f} s long: record at least {SHORTEST_SECONDS} s", seconds)
    if np.ptp(samples) < 2 * SILENCE_PEAK:
        raise NothingHeard(f"{_shown(path)}: silent: check that the microphone is not muted and record again", seconds)
    return samples / max(1.0, np.abs(samples).max())


def split_at_pauses(samples: Samples, rate: int = SAMPLE_RATE, longest_seconds: float = 30.0) -> list[slice]:
    """Split a recording at pauses into pieces of limited length.

    Each cut lies where the level, averaged over 0.1, 0.4 and 1.6 s around it, is lowest: in the middle of the longest
    quiet stretch rather than in the deepest gap between two words. When a recording is split, no piece is shorter than
    a sixth of `longest_seconds`.

    Args:
        samples: float32 [n], mono.
        rate: sampling rate of `samples` in Hz.
        longest_seconds: maximum length of a piece.

    Returns:
        Slices that cover `samples` in order; none for an empty recording.
    """
    longest = int(longest_seconds * rate)
    if longest < 1:
        raise ValueError(f"longest_seconds {longest_seconds} is less than one sample")
    if len(samples) <= longest:
        return [slice(0, len(samples))] if len(samples) else []
    hop = max(1, rate // 50)
    level = _smooth_level(samples, hop)
    cuts = [0]
    while len(samples) - cuts[-1] > longest:
        earliest = cuts[-1] + max(1, longest // 2)
        latest = min(cuts[-1] + longest, len(samples) - longest // 6)
        places = np.arange(-(-earliest // hop), latest // hop + 1)[::-1]  # of equally quiet ones the last
        cuts.append(int(places[level[places].argmin()]) * hop if len(places) else latest)
    return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], len(samples)], strict=True)]


def _smooth_level(samples: Samples, hop: int) -> NDArray[np.float64]:
    """The level in dB around every `hop`-th sample [samples // hop + 1], averaged over three widths."""
    padded = np.pad(samples, (hop // 2, 2 * hop), mode="edge")[: (len(samples) // hop + 1) * hop]
    frames = padded.reshape(-1, hop)
    power = np.einsum("ij,ij->i", frames, frames).astype(np.float64)
    # 60 dB below the loudest moment everything is equally silent: then length decides, not depth.
    decibels = 10 * np.log10(power + max(power.max() * 1e-6, np.finfo(np.float64).tiny))
    total = np.zeros_like(decibels)
    for width in (5, 21, 81):  # hops of 20 ms
        sums = np.pad(decibels, (width // 2 + 1, width // 2), mode="edge").cumsum()
        total += (sums[width:] - sums[:-width]) / width
    return total


class _Sequential(soundfile.SoundFile):
    """An audio file that is only read forward.

    soundfile seeks to the current position after every block; in a variable-bit-rate MP3 that is audible.
    """

    def seekable(self) -> bool:
        return False


def _bad(path: Path, problem: str) -> BadInput:
    return BadInput(f"{_shown(path)}: {problem}")


def _shown(path: Path) -> str:
    name = str(path)
    return name if name.isprintable() else ascii(name)


def _check_kind(path: Path) -> bool:
    """Refuse what is not a readable audio file of a known kind; True for MP3."""
    try:
        if path.is_dir():
            raise _bad(path, "is a folder: choose an audio file inside it")
        if path.exists() and not path.is_file():
            raise _bad(path, "is not a regular file: save the recording to a file first")
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError as error:
        raise _bad(path, "does not exist: check the path") from error
    except PermissionError as error:
        raise _bad(path, "may not be read: change its permissions") from error
    except (OSError, ValueError) as error:
        raise _bad(path, f"cannot be opened ({error}): check the path") from error
    if not head:
        raise _bad(path, "is empty: record or copy it again")
    is_mp3 = head.startswith(b"ID3") or (head[0] == 0xFF and head[1:2] >= b"\xe0")
    if not is_mp3 and not head.startswith(_MAGIC):
        raise _bad(path, "not WAV, FLAC, OGG or MP3 audio: convert it to one of these")
    return is_mp3


def _decode(path: Path, rate: int) -> Samples:
    """Decode all samples, mono, at `rate` Hz, unscaled [samples]."""
    try:
        with path.open("rb", buffering=0) as file:
            _refuse_cut_wav(path, file)
            # On POSIX the descriptor, so that neither suffix nor encoding of the name matters; a Windows
            # library has its own descriptors.
            source = file.fileno() if os.name == "posix" else os.fspath(path)
            with _Sequential(source, closefd=False) as sound:
                if sound.format not in _CONTAINERS or sound.samplerate not in SAMPLE_RATES:
                    raise _bad(path, f"odd audio ({sound.format}, {sound.samplerate} Hz): convert it to WAV")
                resampler = soxr.ResampleStream(sound.samplerate, rate, 1, dtype="float32")
                pieces = [resampler.resample_chunk(block) for block in _mono_blocks(path, sound)]
                pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
                return np.concatenate(pieces)
    except soundfile.SoundFileError as error:
        raise _bad(path, "damaged or not audio: record, copy or convert it again") from error


def _mono_blocks(path: Path, sound: soundfile.SoundFile) -> Iterator[Samples]:
    """The blocks of `sound`, each the mean of its channels [samples]."""
    rate, declared = sound.samplerate, sound.frames
    buffer = np.empty((max(1, _BLOCK_SAMPLES // sound.channels), sound.channels), np.float32)
    frames = 0
    while len(block := sound.read(out=buffer)):
        if not np.abs(block).max() < _LOUDEST:  # NaN compares as false
            raise _bad(path, "holds values that are not audio (NaN or infinite): export it again")
        frames += len(block)
        if frames > LONGEST_SECONDS * rate:
            raise _bad(path, f"longer than {LONGEST_SECONDS / 3600:.0f} h: cut it into shorter recordings")
        yield block.mean(axis=1)
    if not frames:
        raise _bad(path, "holds no audio: record or copy it again")
    if frames + SHORTEST_SECONDS * rate < declared < _UNDECLARED:
        raise _bad(path, f"ends after {frames / rate:.1f} of {declared / rate:.1f} s: copy it again")


def _refuse_cut_wav(path: Path, file: IO[bytes]) -> None:
    """Refuse a truncated WAV file. libsndfile silently shortens one whose data chunk is longer than the file."""
    size = os.fstat(file.fileno()).st_size
    kind = file.read(12)[:4]
    while kind in (b"RIFF", b"RIFX") and len(head := file.read(8)) == 8:
        length = int.from_bytes(head[4:], "little" if kind == b"RIFF" else "big")
        if head.startswith(b"data"):
            held = size - file.tell()
            if held < length < _OPEN_ENDED:
                raise _bad(path, f"cut short, {held:,} of {length:,} bytes of audio: copy it again")
            break
        file.seek(length + length % 2, os.SEEK_CUR)
    file.seek(0)


def _decode_apart(path: Path, rate: int) -> Samples:
    """`_decode` in another process: its stderr is dropped, and its crash counts as a damaged file."""
    search = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "model.audio.files", os.fspath(path), str(rate)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search)), "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_MP3_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _bad(path, "takes too long to decode: convert it to WAV") from error
    if child.returncode == 2:
        raise BadInput(child.stdout.decode())
    if child.returncode:
        raise _bad(path, "damaged: record, copy or convert it again")
    return np.frombuffer(child.stdout, np.float32)


def _main(path: str, rate: str) -> int:
    """The other process: write the samples, or what is wrong with the file, to stdout."""
    try:
        sys.stdout.buffer.write(_decode(Path(path), int(rate)).data)
    except BadInput as error:
        sys.stdout.buffer.write(str(error).encode())
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
