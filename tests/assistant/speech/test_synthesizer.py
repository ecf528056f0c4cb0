import ast
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
import soundfile

from assistant.errors import SpeechUnavailable
from assistant.events import EMOTIONS, UNSURE, EmotionReading
from assistant.speech.kokoro_voice import KOKORO_TOKENS, align
from assistant.speech.sentences import Sentence, sentences
from assistant.speech.synthesizer import (
    KokoroSynthesizer,
    Mood,
    Pyttsx3Synthesizer,
    Speech,
    VoiceSettings,
    Word,
    heard,
    mood_of,
    write_wav,
)
from tests import ROOT
from tests.support.fakes import eventually

TEXT = "The **quick** brown fox costs $3.50, and the well-known dog sleeps."


def sentence(text=TEXT):
    (only,) = sentences(text)
    return only


@pytest.fixture(scope="module")
def synthesizer():
    with Pyttsx3Synthesizer() as made:
        yield made


def fundamental(speech):
    """The median pitch in Hz, by autocorrelation of 40 ms frames."""
    size, found = speech.rate // 25, []
    for start in range(0, len(speech.samples) - size, size):
        frame = speech.samples[start : start + size]
        if np.abs(frame).max() < 0.1:
            continue
        frame = frame - frame.mean()
        correlation = np.correlate(frame, frame, "full")[size - 1 :]
        low, high = speech.rate // 250, speech.rate // 60
        found.append(speech.rate / (low + int(correlation[low:high].argmax())))
    return float(np.median(found))


def reading(label, strongest=None, certainty=1.0):
    probabilities = np.full(5, (1 - certainty) / 4, np.float32)
    probabilities[EMOTIONS.index(strongest or label)] = certainty
    return EmotionReading(probabilities, label, 0.16, np.zeros((1, 5), np.float32), np.zeros(5, np.float32))


def of(samples, words=(), text="a b", start=0, rate=100):
    return Speech(np.zeros(samples, np.float32), rate, words, Sentence(text, text, start, start + len(text), "en"))


def test_a_sentence_becomes_audible_speech_with_its_words_in_order(synthesizer):
    spoken = sentence()
    speech = synthesizer.speak(spoken)
    assert 2.5 < speech.seconds < 8
    assert 0.2 < np.abs(speech.samples).max() <= 1
    assert speech.exact
    said = [TEXT[word.text_start : word.text_end] for word in speech.words]
    assert said == ["The", "quick", "brown", "fox", "costs", "$3.50", "and", "the", "well-known", "dog", "sleeps"]
    starts = [word.sample for word in speech.words]
    assert starts == sorted(set(starts))
    assert starts[0] >= 0
    assert starts[-1] < len(speech.samples)
    # Every word is heard between its start and the next one's.
    for start, end in zip(starts, [*starts[1:], len(speech.samples)], strict=True):
        assert np.abs(speech.samples[start:end]).max() > 0.05


def test_rate_pitch_and_volume_take_effect_each_time(synthesizer):
    spoken = sentence()
    for _ in range(3):  # the engine of pyttsx3 mixes up consecutive rates; the child must not
        normal = synthesizer.speak(spoken)
        fast = synthesizer.speak(spoken, VoiceSettings(rate=1.5))
        high = synthesizer.speak(spoken, VoiceSettings(pitch=1.3))
        quiet = synthesizer.speak(spoken, VoiceSettings(volume=0.25))
        assert fast.seconds / normal.seconds == pytest.approx(1 / 1.5, abs=0.08)
        assert fundamental(high) / fundamental(normal) == pytest.approx(1.3, abs=0.1)
        assert np.abs(quiet.samples).max() / np.abs(normal.samples).max() == pytest.approx(0.25, abs=0.03)


def test_the_voice_follows_the_reading_gently_or_stays_fixed(synthesizer):
    spoken = sentence()
    sad, happy = mood_of(reading("sad")), mood_of(reading("happy"))
    plain, slow = synthesizer.speak(spoken), synthesizer.speak(spoken, mood=sad)
    assert 1.05 < slow.seconds / plain.seconds < 1.2
    assert np.abs(slow.samples).max() < np.abs(plain.samples).max()
    assert 1.0 < fundamental(synthesizer.speak(spoken, mood=happy)) / fundamental(plain) < 1.2
    fixed = synthesizer.speak(spoken, VoiceSettings(follow_mood=False), sad)
    assert fixed.seconds == pytest.approx(plain.seconds, abs=0.05)


def test_moods_weigh_the_probabilities_and_an_unsure_reading_changes_nothing():
    assert mood_of(None) == mood_of(reading(UNSURE, "sad")) == Mood()
    half, whole = mood_of(reading("angry", certainty=0.5)), mood_of(reading("angry"))
    assert whole.volume < half.volume < 1
    assert all(0.9 <= mood_of(reading(label)).rate <= 1.1 for label in EMOTIONS)
    assert mood_of(reading("neutral")) == Mood()


def test_the_language_chooses_the_voice(synthesizer):
    chinese = sentence("今天是2026年11月21日。")
    speech = synthesizer.speak(chinese)
    assert [chinese.text[w.text_start : w.text_end] for w in speech.words][:4] == ["今", "天", "是", "2026"]
    english_voice = VoiceSettings(name="gmw/en-US")
    assert len(synthesizer.speak(chinese, english_voice).words) == len(speech.words)
    british = synthesizer.speak(sentence(), VoiceSettings(name="gmw/en"))
    assert len(british.samples) != len(synthesizer.speak(sentence(), english_voice).samples)


def test_voices_are_listed_with_their_languages(synthesizer):
    voices = {voice.name: voice for voice in synthesizer.voices()}
    assert voices["gmw/en-US"].language == "en-us"
    assert voices["sit/cmn"].language == "zh"


@pytest.mark.parametrize("language", ["de", "fr", "es", "it", "pt", "ja", "ko", "ru", "el", "ar", "he", "hi"])
def test_every_language_that_is_recognised_has_a_voice(synthesizer, language):
    assert synthesizer.speak(Sentence("ok", "ok", 0, 2, language)).seconds > 0.1


def test_an_unknown_voice_is_refused_and_the_child_lives_on(synthesizer):
    pid = synthesizer.pid
    with pytest.raises(SpeechUnavailable, match="no voice 'nobody'"):
        synthesizer.speak(sentence(), VoiceSettings(name="nobody"))
    assert synthesizer.speak(sentence()).seconds > 1
    assert synthesizer.pid == pid


def test_a_child_killed_in_the_middle_of_a_sentence_is_replaced(synthesizer):
    first = synthesizer.speak(sentence())
    pid = synthesizer.pid
    os.kill(pid, signal.SIGSTOP)  # so that the kill surely falls between request and answer
    found = []
    speaking = threading.Thread(target=lambda: found.append(synthesizer.speak(sentence())))
    speaking.start()
    os.kill(pid, signal.SIGKILL)
    speaking.join()
    assert len(found[0].words) == len(first.words)
    assert synthesizer.pid != pid


@pytest.mark.real
def test_a_child_that_hangs_is_replaced_after_the_timeout():
    with Pyttsx3Synthesizer(timeout_seconds=15) as synthesizer:  # enough for the next child on a busy machine
        synthesizer.speak(sentence())
        pid = synthesizer.pid
        os.kill(pid, signal.SIGSTOP)
        assert synthesizer.speak(sentence()).seconds > 1
        assert not psutil.pid_exists(pid)


def test_the_end_does_not_wait_for_a_child_that_hangs():
    synthesizer = Pyttsx3Synthesizer(timeout_seconds=1e6)  # what waits for the child does not return
    synthesizer.speak(sentence())
    os.kill(synthesizer.pid, signal.SIGSTOP)
    refused = []

    def speak():
        with pytest.raises(SpeechUnavailable) as error:
            synthesizer.speak(sentence())
        refused.append(error)

    speaking = threading.Thread(target=speak)
    speaking.start()
    eventually(synthesizer._child._lock.locked)
    synthesizer.close()
    speaking.join()
    assert refused
    assert synthesizer.pid is None


def test_a_child_that_keeps_ending_is_reported_in_one_line(monkeypatch, tmp_path):
    program = tmp_path / "exits"
    program.write_text('#!/bin/sh\necho started >> "$0.log"\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with Pyttsx3Synthesizer() as synthesizer, pytest.raises(SpeechUnavailable, match="twice") as error:
        synthesizer.speak(sentence())
    assert "\n" not in str(error.value)
    assert (tmp_path / "exits.log").read_text().count("started") == 2


def test_the_child_ends_with_its_parent():
    program = (
        "import os; from assistant.speech.synthesizer import Pyttsx3Synthesizer as S; s = S(); s.voices(); "
        "print(s.pid, flush=True); os._exit(0)"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    try:
        child = psutil.Process(int(parent.stdout))
        if child.status() != psutil.STATUS_ZOMBIE:
            child.wait()
    except psutil.NoSuchProcess:
        pass


def test_the_child_maps_neither_torch_nor_qt(synthesizer):
    synthesizer.speak(sentence())
    mapped = [entry.path for entry in psutil.Process(synthesizer.pid).memory_maps()]
    assert any("espeak" in path for path in mapped)
    assert not [path for path in mapped if "torch" in path or "Qt6" in path or "PySide6" in path]


def test_only_the_child_imports_the_espeak_library():
    folder = ROOT / "assistant"
    importing = {
        path.name
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and ("system_voices" in ast.unparse(node) or "espeak" in ast.unparse(node))
    }
    assert importing == {"kokoro_voice.py", "synthesis_child.py", "system_voices.py"}


def test_the_portable_way_keeps_to_the_rate_of_each_sentence():
    with Pyttsx3Synthesizer(portable=True) as synthesizer:
        normal = synthesizer.speak(sentence())
        fast = synthesizer.speak(sentence(), VoiceSettings(rate=1.5))
    assert not normal.exact
    assert fast.seconds / normal.seconds == pytest.approx(1 / 1.5, abs=0.08)
    assert [w.sample for w in normal.words] == sorted({w.sample for w in normal.words})
    assert normal.words[-1].sample < len(normal.samples)


def test_kokoro_without_its_files_says_what_to_do(tmp_path):
    with KokoroSynthesizer(tmp_path) as synthesizer, pytest.raises(SpeechUnavailable, match="fetch the voice"):
        synthesizer.speak(sentence())


def test_kokoro_s_vocabulary_is_whole():
    assert len(KOKORO_TOKENS) == 114
    assert (KOKORO_TOKENS[" "], KOKORO_TOKENS["ˈ"], KOKORO_TOKENS["ᵻ"]) == (16, 156, 177)
    assert len(set(KOKORO_TOKENS.values())) == 114


def test_words_and_their_sounds_are_paired_by_length():
    assert align([3, 2], [3, 2]) == [(0, 1, 0, 1), (1, 2, 1, 2)]
    assert align([5, 3, 1, 6], [5, 4, 6]) == [(0, 1, 0, 1), (1, 3, 1, 2), (3, 4, 2, 3)]  # "was a" is one sound
    assert align([2, 6], [2, 3, 3]) == [(0, 1, 0, 1), (1, 2, 1, 3)]
    assert align([1] * 9, [1]) == [(0, 9, 0, 1)]
    assert align([], [1]) == []


@pytest.mark.real
def test_kokoro_speaks_with_exact_words_and_obeys_rate_and_pitch():
    from model.weights.fetch import ensure

    with KokoroSynthesizer(ensure("kokoro-82m")) as synthesizer:
        assert {voice.language for voice in synthesizer.voices()} == {"en-us", "en-gb"}
        speech = synthesizer.speak(sentence())
        fast = synthesizer.speak(sentence(), VoiceSettings(rate=1.4))
        high = synthesizer.speak(sentence(), VoiceSettings(name="am_adam", pitch=1.2))
        low = synthesizer.speak(sentence(), VoiceSettings(name="am_adam"))
        assert synthesizer.speak(sentence("你好，世界。")).seconds > 0.5  # by espeak
        assert synthesizer.speak(sentence(), VoiceSettings(name="bf_emma")).seconds > 2
    assert speech.exact
    assert [TEXT[w.text_start : w.text_end] for w in speech.words][:6] == [
        "The", "quick", "brown", "fox", "costs", "$3.50",
    ]  # fmt: skip
    starts = [word.sample for word in speech.words]
    assert starts == sorted(set(starts))
    assert starts[0] < speech.rate * 0.1  # no long silence in front
    for start, end in zip(starts, [*starts[1:], len(speech.samples)], strict=True):
        assert np.abs(speech.samples[start:end]).max() > 0.05
    assert fast.seconds / speech.seconds == pytest.approx(1 / 1.4, abs=0.12)
    assert fundamental(high) / fundamental(low) == pytest.approx(1.2, abs=0.1)
    assert high.seconds == pytest.approx(low.seconds, rel=0.1)


def test_what_was_heard_ends_with_a_whole_word():
    reply = "One two. **Three** four!"
    first = of(200, (Word(0, 3, 0), Word(4, 7, 100)), "One two.", 0)
    second = of(100, (Word(2, 7, 0), Word(10, 14, 60)), "**Three** four!", 9, rate=50)
    both = [first, second]
    assert heard(reply, both, 0.0) == ""
    assert heard(reply, both, 0.99) == ""
    assert heard(reply, both, 1.0) == "One"
    assert heard(reply, both, 2.0) == "One two."
    assert heard(reply, both, 3.18) == "One two."
    assert heard(reply, both, 3.2) == "One two. **Three"
    assert heard(reply, both, 9.0) == reply
    assert heard(reply, [], 1.0) == ""


def test_replies_are_written_in_order_into_one_file(tmp_path):
    tone = np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000).astype(np.float32) * 0.5
    sentence_ = Sentence("a", "a", 0, 1, "en")
    path = tmp_path / "reply.wav"
    write_wav(path, [Speech(tone, 8000, (), sentence_), Speech(np.zeros(16000, np.float32), 16000, (), sentence_)])
    samples, rate = soundfile.read(path)
    assert rate == 16000
    assert len(samples) == 32000
    assert np.sqrt((samples[1000:15000] ** 2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    assert np.abs(samples[16100:]).max() < 0.01
    assert list(tmp_path.iterdir()) == [path]


def test_no_speech_is_an_empty_file_and_a_bad_place_is_refused(tmp_path):
    write_wav(tmp_path / "none.wav", [])
    assert soundfile.info(tmp_path / "none.wav").frames == 0
    (tmp_path / "folder").mkdir()
    for bad in (tmp_path / "missing" / "x.wav", tmp_path / "folder"):
        with pytest.raises(SpeechUnavailable, match="choose another file"):
            write_wav(bad, [of(10)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "none.wav"]
