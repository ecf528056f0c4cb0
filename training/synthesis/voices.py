"""The speech that corpora start from: sentences, synthesis engines, human recordings.

Every engine returns mono float32 at 16 kHz and raises `BadInput` with a remedy when it is missing. espeak-ng (GPL-3) is
loaded only in the corpus command's child processes.
"""

from __future__ import annotations

import ctypes
import functools
import gzip
import importlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from assistant.events import SAMPLE_RATE, Samples
from model.errors import BadInput


def _names(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


KOKORO = _names(
    "af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky am_adam "
    "am_echo am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa bf_alice bf_emma bf_isabella bf_lily "
    "bm_daniel bm_fable bm_george bm_lewis"
)
# "accent+variant" as espeak-ng names them.
ESPEAK = _names(
    "en-us+m1 en+m2 en-us+m3 en-gb-scotland+m4 en-us+m5 en+m6 en-us+m7 en-029+m8 en-us+f1 en+f2 en-us+f3 "
    "en-gb-scotland+f4 en-us+f5 en-us+klatt2 en+klatt4 en-us+Andy en+Annie en-us+Alicia en-us+Michael "
    "en+linda en-us+steph en+edward en-us+Reed en+caleb en-us+belinda en+quincy"
)
FLITE = ("slt", "rms", "awb", "kal16")

# Voices that are never trained on: one group sets temperature and threshold, the other is for tests only.
CALIBRATION_VOICES = frozenset(
    _names("af_kore af_aoede am_liam am_onyx bf_lily bm_fable en-us+m5 en+f2 en-us+Alicia en+caleb")
)
TEST_VOICES = frozenset(
    _names("af_sarah af_sky am_puck am_eric bf_emma bm_george en-us+m3 en-gb-scotland+f4 en+edward en-us+belinda")
)

ALLISON = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ALLISON_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")


@dataclass(frozen=True, slots=True)
class Source:
    """One sentence by one voice, before any prosody rule. `where` is a recording's file, "" for synthesis."""

    id: str
    engine: str
    voice: str
    split: str
    text: str
    where: str = ""


_FRAMES = (
    "{who} put the {thing} {place} {when}.",
    "There is a {adj} {thing} {place}.",
    "I think {who} will bring the {thing} {when}.",
    "{when} we are going to {verb} the {thing}.",
    "Did {who} {verb} the {thing} {when}?",
    "Could you {verb} the {adj} {thing} for me?",
    "Please tell {who} that the {thing} is {place}.",
    "They say it was {adj}, so {who} left {when}.",
    "Where can I {verb} a {adj} {thing}?",
    "My {relative} wants to {verb} the {thing} {when}.",
    "It has been a {adj} day, and {who} is still here.",
    "You know that {who} came back {when}.",
    "The {thing} {place} belongs to my {relative}.",
    "I heard from {who} {when}, it is about the {thing}.",
)
_SLOTS = {
    "who": "Anna|my neighbour|the doctor|your brother|Mister Young|the teacher|everyone|Maria|the driver|our team|the "
    "girl next door|Peter|the landlord|somebody|the children|Doctor Hill|my boss|the new nurse|Olivia|the mayor",
    "thing": "letter|window|bicycle|kettle|garden|phone|ticket|blanket|report|piano|jacket|camera|sandwich|ladder|"
    "engine|mirror|suitcase|lamp|guitar|newspaper|medicine|umbrella|painting|calendar|hammer|carpet|boat|recipe|cheese",
    "place": "on the table|behind the house|under the bridge|at the station|in the kitchen|near the river|by the door|"
    "in the garage|at the office|outside the school|upstairs|on the roof|across the street|in the back of the car",
    "when": "yesterday|this morning|on Thursday|after dinner|before the meeting|next week|at seven o'clock|tonight|"
    "last winter|in a few minutes|every evening|at the weekend|around noon|in October|once a year",
    "adj": "blue|quiet|strange|large|broken|simple|expensive|warm|empty|famous|narrow|early|perfect|wooden|heavy|"
    "terrible|beautiful|ordinary|difficult|bright|lonely|wonderful|cheap|dirty|modern",
    "verb": "find|repair|carry|paint|sell|borrow|clean|open|check|move|return|order|hide|wrap|deliver|choose|measure",
    "relative": "sister|father|cousin|grandmother|uncle|daughter|husband|friend|wife|colleague",
}


def sentence(random: np.random.Generator) -> str:
    """One everyday sentence; its words do not depend on the emotion it will be spoken in."""
    frame = _FRAMES[random.integers(len(_FRAMES))]
    for slot, words in _SLOTS.items():
        while "{" + slot + "}" in frame:
            choice = words.split("|")
            frame = frame.replace("{" + slot + "}", choice[random.integers(len(choice))], 1)
    return frame[0].upper() + frame[1:]


def _split_of(engine: str, voice: str) -> str:
    if engine == "flite":
        return "engine"
    return "calibrate" if voice in CALIBRATION_VOICES else "test" if voice in TEST_VOICES else "train"


def synthetic_sources(clips: int, seed: int, training_clips: int = 0) -> list[Source]:
    """`clips` sentences divided among the engines: 52 % Kokoro, 28 % espeak-ng, 20 % flite (test only).

    Training voices get as many as with `training_clips` sentences, if that is more.
    """
    shares = (("kokoro", KOKORO, 0.52), ("espeak", ESPEAK, 0.28), ("flite", FLITE, 0.20))
    return [
        Source(
            id=f"{engine}-{voice}-{i:04d}",
            engine=engine,
            voice=voice,
            split=split,
            text=sentence(np.random.default_rng([seed, number, i])),
        )
        for number, (engine, voices, share) in enumerate(shares)
        for i in range(round(max(clips, training_clips) * share))
        for voice in (voices[i % len(voices)],)
        for split in (_split_of(engine, voice),)
        if i < round(clips * share) or split == "train"
    ]


def human_sources(prompts: int) -> list[Source]:
    """Untrained human speech: LibriVox sentences and `prompts` Asterisk prompts of 3 to 14 words, if installed."""
    found = []
    if LIBRIVOX.is_dir():
        lines = (LIBRIVOX / "transcription").read_text().splitlines()
        for line in lines:
            words, name = re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip()).groups()  # type: ignore[union-attr]
            found.append(("librivox", name, words, LIBRIVOX / f"{name}.wav"))
    if ALLISON.is_dir() and ALLISON_TEXTS.is_file():
        pairs = (p for p in gzip.decompress(ALLISON_TEXTS.read_bytes()).decode().splitlines() if ": " in p)
        spoken = [
            (n, t) for n, t in (p.split(": ", 1) for p in pairs) if not set("[(") & set(t) and 3 <= len(t.split()) <= 14
        ]
        step = max(1, len(spoken) // max(1, prompts))
        found += [("allison", n, t, ALLISON / f"{n}.g722") for n, t in spoken[::step][:prompts]]
    return [
        Source(f"human-{voice}-{name}".replace("/", "-"), "human", voice, "human", text, str(path))
        for voice, name, text, path in found
    ]


@functools.cache
def _espeak() -> Any:
    """libespeak-ng in synchronous mode, and the list of blocks that its callback fills."""
    loader = importlib.import_module("espeakng_loader")
    library = ctypes.CDLL(loader.get_library_path())
    if library.espeak_Initialize(2, 0, loader.get_data_path().encode(), 0) != 22_050:
        raise BadInput("espeak-ng did not start: reinstall the package espeakng-loader")
    blocks: list[Samples] = []

    def collect(wav: Any, count: int, _events: int) -> int:
        if wav and count:
            blocks.append(np.ctypeslib.as_array(wav, (count,)).astype(np.float32) / np.float32(32_768))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(collect)
    library.espeak_SetSynthCallback(callback)
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    return library, blocks, callback  # without a reference the callback would be garbage-collected


def _espeak_as(voice: str) -> tuple[Any, list[Samples]]:
    """espeak-ng with that voice, and its blocks; an unknown name would leave the previous voice active."""
    library, blocks, _ = _espeak()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise BadInput(f"espeak-ng has no voice {voice!r}")
    blocks.clear()
    return library, blocks


def _espeak_speak(source: Source, random: np.random.Generator) -> Samples:
    library, blocks = _espeak_as(source.voice)
    for parameter, value in (
        (1, random.integers(135, 185)),
        (3, random.integers(30, 70)),
        (4, random.integers(35, 75)),
    ):
        library.espeak_SetParameter(parameter, int(value), 0)  # 1 words per minute, 3 pitch, 4 pitch range
    text = source.text.encode() + b"\0"
    library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, 1, None, None)
    return soxr.resample(np.concatenate(blocks), 22_050, SAMPLE_RATE) if blocks else np.zeros(0, np.float32)


def _phonemes(text: str, voice: str) -> str:
    """IPA of `text`, clause by clause, punctuation kept (it steers Kokoro's prosody)."""
    library, _ = _espeak_as(voice)
    spoken = []
    for clause, mark in re.findall(r"([^,.?!]+)([,.?!]?)", text):
        pointer = ctypes.c_char_p(clause.encode())
        ipa = library.espeak_TextToPhonemes(ctypes.byref(pointer), 1, 2)
        spoken.append(ipa.decode().strip() + mark)
    return " ".join(spoken)


# Kokoro's symbol table (kokoro-onnx config, MIT): the ids of the symbols that espeak-ng's English can produce.
_KOKORO_RUNS = "1 ;:,.!? 16 _ 43 abcdefghijklmnopqrstuvwxyz 69 ɑɐɒæ 76 ɔ 81 ðʤə 85 ɚɛɜ 92 ɡ 102 ɪ 112 ŋ"
_KOKORO_RUNS += " 119 θ 123 ɹ 125 ɾ 131 ʃ 133 ʧ 135 ʊ 138 ʌ 147 ʒʔ 156 ˈˌː 177 ᵻ"
_PAIRS = iter(_KOKORO_RUNS.split())
_KOKORO_IDS = {c: i for start, run in zip(_PAIRS, _PAIRS, strict=True) for i, c in enumerate(run, int(start))}
_KOKORO_IDS[" "] = _KOKORO_IDS.pop("_")


@functools.cache
def _kokoro(folder: Path) -> Any:
    models = sorted(folder.glob("*.onnx"))
    if not models:
        raise BadInput(
            f"no Kokoro model (*.onnx, voices/*.bin) in {folder}: pass --kokoro DIR, or --engines espeak,flite"
        )
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(models[0]), options, providers=["CPUExecutionProvider"])


def _kokoro_speak(source: Source, random: np.random.Generator, folder: Path) -> Samples:
    session = _kokoro(folder)
    accent = "en" if source.voice.startswith("b") else "en-us"
    ids = [_KOKORO_IDS[c] for c in _phonemes(source.text, accent) if c in _KOKORO_IDS][:500]
    styles = np.fromfile(folder / "voices" / f"{source.voice}.bin", np.float32).reshape(-1, 1, 256)
    audio = session.run(
        None,
        {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": styles[len(ids)],
            "speed": np.array([random.uniform(0.9, 1.15)], np.float32),
        },
    )[0]
    return np.asarray(soxr.resample(np.asarray(audio, np.float32).reshape(-1), 24_000, SAMPLE_RATE), np.float32)


def _flite_speak(source: Source) -> Samples:
    if not shutil.which("flite"):
        raise BadInput("flite is missing: apt-get install flite, or leave it out of --engines")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.wav")
        subprocess.run(["flite", "-voice", source.voice, "-t", source.text, "-o", str(path)], check=True)
        return _read(path)


def _read(path: Path) -> Samples:
    if path.suffix == ".g722":
        if not shutil.which("ffmpeg"):
            raise BadInput(f"{path.name}: G.722 needs ffmpeg (apt-get install ffmpeg)")
        command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path), "-f", "f32le", "-ar", str(SAMPLE_RATE), "-"]
        try:
            sound = subprocess.run(command, check=True, capture_output=True).stdout
        except subprocess.CalledProcessError as error:
            why = error.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"]
            raise BadInput(f"{path.name}: {why[-1]}") from None
        return np.frombuffer(sound, np.float32).copy()
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(soxr.resample(audio.mean(axis=1), rate, SAMPLE_RATE), np.float32)


def speak(source: Source, seed: int, kokoro: Path) -> Samples:
    """The source's speech, float32 [n] at 16 kHz, peak 0.7, silence at both ends cut to 0.1 s.

    Raises:
        BadInput: the engine or the recording is missing, or gave less than 0.6 s of sound.
    """
    random = np.random.default_rng([seed, *source.id.encode()])
    engines: dict[str, Callable[[], Samples]] = {
        "kokoro": lambda: _kokoro_speak(source, random, kokoro),
        "espeak": lambda: _espeak_speak(source, random),
        "flite": lambda: _flite_speak(source),
        "human": lambda: _read(Path(source.where)),
    }
    samples = engines[source.engine]()
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max(initial=1e-9))
    if loud.size == 0 or loud[-1] - loud[0] < 0.6 * SAMPLE_RATE:
        raise BadInput(f"{source.id}: under 0.6 s of speech")
    samples = samples[max(0, loud[0] - SAMPLE_RATE // 10) : loud[-1] + SAMPLE_RATE // 10]
    return samples * np.float32(0.7 / np.abs(samples).max())
