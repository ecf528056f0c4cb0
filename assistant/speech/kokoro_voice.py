"""The neural voice Kokoro-82M, as the synthesis child runs it: phonemes, tokens, samples, word times."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assistant.speech.system_voices import Espeak, Mark, Request, Result

# Kokoro-82M's vocabulary: token ids of its phoneme characters, in runs of consecutive ids
# (hexgrad/Kokoro-82M, config.json, Apache-2.0).
_KOKORO_RUNS = {
    1: ";:,.!?", 9: '—…"()“” ̃ʣʥʦʨᵝꭧAI', 31: "O", 33: "Q", 35: "ST", 39: "W", 41: "Yᵊabcdef",
    50: "hijklmnopqrstuvwxyzɑɐɒæ", 75: "βɔɕç", 80: "ɖðʤə", 85: "ɚɛɜ", 90: "ɟ", 92: "ɡ", 99: "ɥ",
    101: "ɨɪʝ", 110: "ɯɰŋɳɲɴø", 118: "ɸθœ", 123: "ɹ", 125: "ɾɻ", 128: "ʁɽʂʃʈʧ", 135: "ʊʋ",
    138: "ʌɣɤ", 142: "χʎ", 147: "ʒʔ", 156: "ˈˌː", 162: "ʰ", 164: "ʲ", 169: "↓", 171: "→↗↘", 177: "ᵻ",
}  # fmt: skip
KOKORO_TOKENS = {sound: base + i for base, run in _KOKORO_RUNS.items() for i, sound in enumerate(run)}

# espeak's IPA rewritten in the alphabet that Kokoro was trained on, in this order.
_KOKORO_SOUNDS = (
    ("ʔn̩", "tᵊn"), ("a^ɪ", "I"), ("a^ʊ", "W"), ("d^ʒ", "ʤ"), ("e^ɪ", "A"), ("t^ʃ", "ʧ"), ("ɔ^ɪ", "Y"),
    ("ə^l", "ᵊl"), ("ʲo", "jo"), ("ʲə", "jə"), ("ʲ", ""), ("r", "ɹ"), ("x", "k"), ("ç", "k"), ("ɐ", "ə"),
    ("ɬ", "l"), ("\u0303", ""), ("n̩", "ᵊn"), ("l̩", "ᵊl"),
)  # fmt: skip
_KOKORO_AMERICAN = (
    ("o^ʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɚ", "əɹ"), ("ɾ", "T"), ("ʔ", "t"), ("ː", ""), ("^", ""),
)  # fmt: skip
_KOKORO_BRITISH = (("ə^ʊ", "Q"), ("e^ə", "ɛː"), ("i^ə", "ɪə"), ("ʔ", "t"), ("^", ""))


class Kokoro:
    """The neural voice: Kokoro-82M (ONNX) on espeak's phonemes. Languages other than English by espeak.

    The model predicts a duration for every phoneme; the graph does not return them, so they are made a
    second output, and word times are as exact as the model's own alignment (25 ms frames).
    """

    RATE = 24_000
    FRAME = 600  # samples per frame of the duration predictor
    LONGEST = 510  # phonemes per call: the rows of a voice file
    DURATIONS = "/encoder/Clip_output_0"

    def __init__(self, folder: Path, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeError("the neural voice needs onnxruntime: install Undertone's dependencies again") from error

        self._espeak = Espeak()
        self._folder = folder
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        models = sorted(folder.glob("*.onnx"))
        if not models:
            raise FileNotFoundError(f"no .onnx file in {folder}: fetch the voice again")
        # Protobuf messages merge by concatenation: ModelProto.graph (7) . GraphProto.output (12) .
        # ValueInfoProto.name (1), appended to the file, names one more output.
        output = b"\x0a" + bytes([len(self.DURATIONS)]) + self.DURATIONS.encode()
        graph = b"\x62" + bytes([len(output)]) + output
        model = models[0].read_bytes() + b"\x3a" + bytes([len(graph)]) + graph
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def voices(self) -> list[dict[str, Any]]:
        files = sorted(self._folder.glob("voices/[ab][fm]_*.bin"))
        return [
            {
                "name": f.stem,
                "title": f.stem[3:].title(),
                "language": "en-us" if f.stem[0] == "a" else "en-gb",
            }
            for f in files
        ]

    def speak(self, request: Request) -> Result:
        if request["language"] != "en":
            return self._espeak.speak({**request, "voice": None})
        name = request["voice"] or "af_heart"
        path = self._folder / "voices" / f"{name}.bin"
        if name not in {voice["name"] for voice in self.voices()}:
            raise ValueError(f"there is no voice {name!r}: choose one that the list of voices names")
        styles = np.fromfile(path, "<f4").reshape(-1, 256)
        # A higher pitch is the same speech played faster, so it is first spoken that much slower.
        pitch = min(max(request["pitch"], 0.5), 2.0)
        speed = min(max(request["rate"], 0.5), 2.0) / pitch
        parts, words, first = [], [], 0
        for sounds, starts in self._clauses(request["text"], british=name[0] == "b"):
            # One clause beyond the limit is cut short; assistant.speakable keeps sentences below it.
            ids = [KOKORO_TOKENS[sound] for sound in sounds[: self.LONGEST]]
            audio, durations = self._session.run(
                ["audio", self.DURATIONS],
                {
                    "tokens": np.array([[0, *ids, 0]], np.int64),
                    "style": styles[[min(len(ids), len(styles)) - 1]],
                    "speed": np.array([speed], np.float32),
                },
            )
            ends = np.cumsum(durations.reshape(-1)) * self.FRAME
            # The model begins with a third of a second of silence: a twentieth is enough.
            skipped = max(int(ends[0]) - self.RATE // 20, 0)
            words += [(start, end, first + int(ends[i]) - skipped) for start, end, i in starts if i < len(ids)]
            parts.append(audio.reshape(-1)[skipped:])
            first += len(parts[-1])
        return self._finish(np.concatenate(parts or [np.zeros(0, np.float32)]), words, pitch)

    def _finish(self, audio: NDArray[np.float32], words: list[Mark], pitch: float) -> Result:
        if abs(pitch - 1) > 1e-3 and len(audio):
            import soxr

            audio = soxr.resample(audio, self.RATE * pitch, self.RATE)
            words = [(start, end, round(sample / pitch)) for start, end, sample in words]
        samples = (np.clip(audio, -1, 1) * 32767).astype(np.int16)
        return Result(samples=samples, rate=self.RATE, words=words, exact=True)

    def _clauses(self, text: str, british: bool) -> list[tuple[str, list[Mark]]]:
        """Phonemes of at most LONGEST each, with (start, end, index of first phoneme) for every word."""
        out: list[tuple[str, list[Mark]]] = []
        sounds, starts = "", list[Mark]()
        for match in re.finditer(r"([^,.;:!?…—()]+)([,.;:!?…—()\s]*)", text):
            groups = self._words(match[1], match.start(1), british)
            if sounds and len(sounds) + sum(len(s) + 1 for s, _, _ in groups) > self.LONGEST - 2:
                out.append((sounds.rstrip(), starts))
                sounds, starts = "", []
            for spoken, start, end in groups:
                starts.append((start, end, len(sounds)))
                sounds += spoken + " "
            sounds = sounds.rstrip() + match[2].strip()[:1] + " "
        return [*out, (sounds.rstrip(), starts)] if starts else out

    def _words(self, clause: str, offset: int, british: bool) -> list[tuple[str, int, int]]:
        """(phonemes, start, end) per group of words: espeak joins some ("was a"), and spells out others."""
        spoken = [self._sounds(word, british) for word in self._espeak.phonemes(clause, british).split()]
        spoken = [word for word in spoken if word]
        text = list(re.finditer(r"\S+", clause))
        alone = [len(self._espeak.phonemes(word[0], british).replace(" ", "")) for word in text]
        return [
            (" ".join(spoken[j0:j1]), offset + text[i0].start(), offset + text[i1 - 1].end())
            for i0, i1, j0, j1 in align(alone, [len(word) for word in spoken])
        ]

    def _sounds(self, ipa: str, british: bool) -> str:
        for old, new in _KOKORO_SOUNDS + (_KOKORO_BRITISH if british else _KOKORO_AMERICAN):
            ipa = ipa.replace(old, new)
        return "".join(sound for sound in ipa if sound in KOKORO_TOKENS)


def align(texts: list[int], sounds: list[int]) -> list[tuple[int, int, int, int]]:
    """Group two lists of word lengths so that groups have the nearest total length; (i0, i1, j0, j1) each.

    A group is one to three words on one side against one on the other (dynamic programming, O(n m)).
    """
    if not texts or not sounds:
        return []
    if len(texts) == len(sounds):
        return [(i, i + 1, i, i + 1) for i in range(len(texts))]
    best: dict[tuple[int, int], tuple[float, int, int]] = {(0, 0): (0.0, 0, 0)}
    for i in range(len(texts) + 1):
        for j in range(len(sounds) + 1):
            for di, dj in ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3)):
                before = best.get((i - di, j - dj))
                if before is None:
                    continue
                gap = abs(sum(texts[i - di : i]) - sum(sounds[j - dj : j]))
                cost = before[0] + gap + 0.5 * (di + dj - 2)
                if (i, j) not in best or cost < best[i, j][0]:
                    best[i, j] = (cost, i - di, j - dj)
    i, j = len(texts), len(sounds)
    if (i, j) not in best:  # too unlike to pair up: the clause is one group
        return [(0, i, 0, j)]
    groups = []
    while i:
        _, i0, j0 = best[i, j]
        groups.append((i0, i, j0, j))
        i, j = i0, j0
    return groups[::-1]
