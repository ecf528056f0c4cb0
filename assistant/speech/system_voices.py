"""The system's voices, as the synthesis child uses them: pyttsx3 on espeak-ng, or on the platform's driver.

espeak-ng is GPL-3: its library is loaded here, and this module is imported by the synthesis child alone, a
separate program that talks to the assistant over pipes. That is also what survives libespeak's exit(1).
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

WORDS_PER_MINUTE = 175
"""The pace that a rate of 1.0 stands for (espeak's own default)."""

Mark = tuple[int, int, int]
"""A word: first and past-the-last character in the spoken text, first sample."""


class Request(TypedDict):
    """One sentence to speak; rate, pitch and liveliness are factors of the voice's normal."""

    op: str
    text: str
    language: str
    voice: str | None
    rate: float
    pitch: float
    liveliness: float


class Result(TypedDict):
    """What an engine made of a sentence. `exact`: the word times are measured, not estimated."""

    samples: NDArray[np.int16]
    rate: int
    words: list[Mark]
    exact: bool


class Engine(Protocol):
    """One way of making speech."""

    def speak(self, request: Request) -> Result: ...

    def voices(self) -> list[dict[str, Any]]: ...


def _load_packaged_espeak() -> str | None:
    """Load espeakng-loader's library globally, so that pyttsx3 finds it by its soname; its data folder.

    Without the package the system's espeak-ng serves, if there is one.
    """
    try:
        import espeakng_loader
    except ImportError:
        return None
    data = str(espeakng_loader.get_data_path())
    os.environ["ESPEAK_DATA_PATH"] = data
    ctypes.CDLL(espeakng_loader.get_library_path(), mode=ctypes.RTLD_GLOBAL)
    return data


def choose(voices: list[dict[str, Any]], language: str, name: str | None) -> str | None:
    """The voice `name` if it speaks `language`, else that language's first; None if it has none.

    Raises:
        ValueError: there is no voice of that name. A variant may follow it ("gmw/en-US+f3").
    """
    languages = {voice["name"]: voice["language"] for voice in voices}
    plain = (name or "").partition("+")[0]
    if name and plain not in languages:
        raise ValueError(f"there is no voice {name!r}: choose one from the list of voices")
    if name and languages[plain].split("-")[0] == language:
        return name
    tag = "en-us" if language == "en" else language
    fitting = [key for key, spoken in languages.items() if spoken.split("-")[0] == language]
    return min(fitting, key=lambda key: languages[key] != tag, default=None)


class Espeak:
    """pyttsx3's espeak bindings in synchronous mode: samples and word events come back in the call."""

    def __init__(self) -> None:
        data = _load_packaged_espeak()
        from pyttsx3.drivers import _espeak

        self._api = _espeak
        self._rate = _espeak.Initialize(_espeak.AUDIO_OUTPUT_SYNCHRONOUS, 60, data.encode() if data else None, 0)
        if self._rate <= 0:  # -1: internal error
            raise RuntimeError("espeak-ng did not start: its data folder is missing or damaged")
        self._chunks: list[NDArray[np.int16]] = []
        self._words: list[Mark] = []
        _espeak.SetSynthCallback(self._receive)
        self._voices = self.voices()

    def _receive(self, wav: Any, count: int, events: Any) -> int:
        if wav and count:
            self._chunks.append(np.ctypeslib.as_array(wav, (count,)).copy())
        index = 0
        while (event := events[index]).type != self._api.EVENT_LIST_TERMINATED:
            if event.type == self._api.EVENT_WORD:
                start = event.text_position - 1
                self._words.append((start, start + event.length, event.sample))
            index += 1
        return 0

    def use_voice(self, language: str, name: str | None = None) -> None:
        """Select the voice `name` if it speaks `language`, else the language's default.

        Raises:
            ValueError: espeak has no such voice, or none for the language.
        """
        wanted = choose(self._voices, language, name)
        if wanted is None:
            raise ValueError(f"espeak-ng has no voice for the language {language!r}")
        self._api.SetVoiceByName(wanted.encode())

    def speak(self, request: Request) -> Result:
        self.use_voice(request["language"], request["voice"])
        api = self._api
        for parameter, value, low, high in (
            (api.RATE, WORDS_PER_MINUTE * request["rate"], 80, 450),
            (api.PITCH, _octaves(request["pitch"]), 0, 99),
            # The intonation's range in Hz grows with the pitch, as in a human voice.
            (api.RANGE, _octaves(request["pitch"] * request["liveliness"]), 0, 99),
            (api.VOLUME, 100, 0, 100),
        ):
            api.SetParameter(parameter, round(min(max(value, low), high)), 0)
        self._chunks.clear()
        self._words.clear()
        if api.Synth(request["text"].encode(), flags=api.CHARS_UTF8 | api.ENDPAUSE) != api.EE_OK:
            raise RuntimeError("espeak-ng could not speak the sentence")
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return Result(samples=samples, rate=self._rate, words=list(self._words), exact=True)

    def voices(self) -> list[dict[str, Any]]:
        return [
            {
                "name": voice.identifier.decode(),
                "title": voice.name.decode(),
                "language": _tag(voice.languages[1:].decode(errors="replace")),  # after a priority byte
            }
            for voice in self._api.ListVoices(None)
        ]

    def phonemes(self, text: str, british: bool) -> str:
        """English IPA of `text`, multi-letter sounds tied by "^", words apart by spaces."""
        self.use_voice("en", "gmw/en" if british else "gmw/en-US")
        translate = self._api.dll.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        translate.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_int]
        buffer = ctypes.create_string_buffer(text.encode())
        rest = ctypes.c_void_p(ctypes.addressof(buffer))
        ipa_tied_by_caret = 0x02 | 0x80 | ord("^") << 8
        clauses = []
        while rest.value:  # one clause a call; the pointer becomes NULL at the end
            clauses.append(translate(ctypes.byref(rest), self._api.CHARS_UTF8, ipa_tied_by_caret).decode())
        return " ".join(clauses)


class Portable:
    """pyttsx3's public interface: any system voice, one sentence per process, written to a file.

    A second sentence in the same process can come out at the first one's rate or overwrite its file, so
    the assistant starts a fresh process for each.
    """

    def __init__(self) -> None:
        _load_packaged_espeak()
        import pyttsx3

        self._engine = pyttsx3.init()

    def speak(self, request: Request) -> Result:
        import soundfile

        engine = self._engine
        # Without a voice for the language the system's own is better than silence.
        if name := choose(self.voices(), request["language"], request["voice"]):
            engine.setProperty("voice", name)
        engine.setProperty("rate", round(WORDS_PER_MINUTE * request["rate"]))
        if str(engine) == "espeak":  # the other drivers know no pitch
            engine.setProperty("pitch", _octaves(request["pitch"]))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("speech.aiff" if sys.platform == "darwin" else "speech.wav")
            engine.save_to_file(request["text"], str(path))
            if str(engine) == "espeak":
                # runAndWait begins by cancelling what espeak does, and with it a rate just set (1 in 40).
                engine.startLoop()
            else:
                engine.runAndWait()
            while not path.exists():  # a driver may write late; the assistant bounds this wait
                time.sleep(0.01)
            samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        mono = np.ascontiguousarray(samples[:, 0])
        return Result(samples=mono, rate=int(rate), words=_estimated(request["text"], len(mono)), exact=False)

    def voices(self) -> list[dict[str, Any]]:
        return [
            {
                "name": voice.id,
                "title": voice.name,
                "language": _tag(voice.languages[0] if voice.languages else ""),
            }
            for voice in self._engine.getProperty("voices")
        ]


def _octaves(factor: float) -> float:
    """espeak's scale of pitch: 50 is the voice's own, 50 more is an octave."""
    return 50 + 50 * math.log2(max(factor, 0.1))


def _tag(language: str) -> str:
    return language.lower().replace("_", "-").replace("cmn", "zh")


def _estimated(text: str, samples: int) -> list[Mark]:
    """Word times in proportion to the number of letters, for drivers that report none."""
    return [
        (match.start(), match.end(), round(samples * match.start() / len(text)))
        for match in re.finditer(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+", text)
    ]
