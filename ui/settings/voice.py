"""Settings: speech output."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import numpy as np

from assistant.events import EMOTIONS, EmotionReading
from assistant.settings import Settings
from assistant.speech.sentences import Sentence
from assistant.speech.synthesizer import Mood, Speech, Synthesizer, Voice, mood_of
from ui.core.app import App
from ui.core.background import Background
from ui.core.translations import tr
from ui.widgets.common import Picker, Switch, button, label
from ui.widgets.forms import Choices, InlineMessage, JobProgress, Section, actions, format_bytes
from ui.widgets.value_slider import ValueSlider

NEURAL = "kokoro-82m"

_SAMPLES = {
    "en": "The train was late, but I caught the last bus home.",
    "zh": "火车晚点了，不过我还是赶上了最后一班公共汽车。",
    "de": "Der Zug hatte Verspätung, aber ich habe den letzten Bus noch bekommen.",
    "fr": "Le train avait du retard, mais j'ai eu le dernier bus.",
    "es": "El tren llegó tarde, pero alcancé el último autobús.",
}
_NUMBERS = "1, 2, 3, 4, 5, 6, 7."  # every voice reads digits in its own language


class VoiceSettings(Section):
    """Engine, voice, rate, pitch, volume, and adapting to the mood."""

    def __init__(self, app: App) -> None:
        super().__init__(tr("Voice"))
        self.app = app
        self._background = Background()
        self.destroyed.connect(self._background.close)
        self._voices: list[Voice] = []
        voice = app.settings.voice
        self.engine = Choices(
            [
                ("system", tr("System voices"), tr("Many languages, ready at once, a little mechanical.")),
                ("kokoro", tr("Neural voice"), tr("Natural, English only, uses more CPU.")),
                ("none", tr("No voice"), tr("Replies appear as text only.")),
            ],
            voice.engine,
            tr("Speech output"),
        )
        self.engine.chosen.connect(self._choose_engine)
        self.offer = InlineMessage()
        self.progress = JobProgress()
        self.progress.ended.connect(self._fetched)
        self.voice = Picker()
        self.voice.picked.connect(lambda name: app.change("voice", name=name))
        self.preview = button(tr("Play a sample"), self._preview, icon="play")
        self.error = InlineMessage()
        self.rate = self._slider(tr("Speaking rate"), "rate", 0.5, 2.0)
        self.pitch = self._slider(tr("Pitch"), "pitch", 0.5, 2.0)
        self.volume = self._slider(tr("Volume"), "volume", 0.0, 1.0)
        self.mood = Switch(tr("Adapt to your mood"), lambda on: app.change("voice", follow_mood=on))
        names = {
            "neutral": tr("neutral"),
            "happy": tr("happy"),
            "angry": tr("angry"),
            "sad": tr("sad"),
            "surprise": tr("surprised"),
        }
        self.moods = {
            emotion: button(names[emotion], lambda emotion=emotion: self._preview(emotion), "quiet")  # type: ignore[misc]
            for emotion in EMOTIONS
        }
        self.add_field(tr("Speech output"), self.engine, self.offer, self.progress)
        self.add_field(tr("Voice"), self.voice, actions(self.preview), self.error)
        for slider in (self.rate, self.pitch, self.volume):
            self.add_field(slider.accessibleName(), slider)
        self.add(
            self.mood,
            label(
                tr("The voice is calmer when you are angry, softer and slower when you are sad, livelier when you "
                   "are happy. Rate and pitch change by at most 10 %. Play how it answers when you sound:"),
                "small",
            ),
            actions(*self.moods.values()),
        )  # fmt: skip
        app.settings_changed.connect(self._follow)
        self._follow(app.settings)
        self._list_voices()

    def _slider(self, title: str, name: str, low: float, high: float) -> ValueSlider:
        text = (lambda v: f"{v:.0%}") if name == "volume" else (lambda v: f"{v:.2f} ×")
        slider = ValueSlider(title, low, high, 0.05, getattr(self.app.settings.voice, name), text)
        slider.settled.connect(lambda value: self.app.change("voice", **{name: value}))
        return slider

    # ---- engine

    def _choose_engine(self, engine: str) -> None:
        self.offer.report("")
        if engine != "kokoro":
            self._use(engine)
            return
        self.engine.choose(self.app.settings.voice.engine)  # until it is known to be installed
        self._background.run(lambda: self._probe(engine), lambda _: self._use(engine), self._offer)

    def _probe(self, engine: str) -> None:
        self.app.services.synthesizer(engine).close()

    def _use(self, engine: str) -> None:
        self.app.change("voice", engine=engine, name=None)
        self._list_voices()

    def _offer(self, _why: str) -> None:
        amount = format_bytes(download_bytes(NEURAL))
        self.offer.report(
            tr("The neural voice is not on this computer yet. Download size: {size}.").format(size=amount),
            action=tr("Download {size}").format(size=amount),
            act=self._fetch,
        )

    def _fetch(self) -> None:
        self.offer.report("")
        if not self.progress.running:
            self.progress.follow(self.app.run("fetch", NEURAL, "--json"), tr("Downloading the neural voice…"))

    def _fetched(self, code: int, message: str, _last: object) -> None:
        if code == 0:
            self._use("kokoro")
        else:
            self.offer.report(message, error=code != 130, action=tr("Try again"), act=self._fetch)

    # ---- voices

    def _list_voices(self) -> None:
        synthesizer = self.app.synthesizer
        self.error.report("")
        if synthesizer is None:
            self._show_voices([])
        else:
            self._background.run(synthesizer.voices, self._show_voices, lambda why: self.error.report(why, error=True))

    def _show_voices(self, voices: list[Voice]) -> None:
        self._voices = sorted(voices, key=_order)
        self._follow(self.app.settings)

    def _preview(self, emotion: str = "neutral") -> None:
        synthesizer = self.app.synthesizer
        if synthesizer is None:
            return
        self.error.report("")
        self._set_ready(False)
        self._background.run(lambda: self._speak(synthesizer, emotion), self._play, self._fail)

    def _speak(self, synthesizer: Synthesizer, emotion: str) -> Speech:
        settings = self.app.settings.voice.settings
        chosen = next((one for one in self._voices if one.name == settings.name), None)
        language = chosen.language.split("-")[0] if chosen else "en"
        text = _SAMPLES.get(language, _NUMBERS)
        return synthesizer.speak(Sentence(text, text, 0, len(text), language), settings, _mood(emotion))

    def _play(self, speech: Speech) -> None:
        self._set_ready(True)
        if self.app.talk is not None:
            self.app.talk.clips.play(speech.samples, speech.rate)

    def _fail(self, why: str) -> None:
        self._set_ready(True)
        self.error.report(why, error=True)

    def _set_ready(self, on: bool) -> None:
        for one in (self.preview, *self.moods.values()):
            one.setEnabled(on)

    def _follow(self, settings: Settings) -> None:
        voice = settings.voice
        self.engine.choose(voice.engine)
        options: list[tuple[str | None, str]] = [(None, tr("Best for each language"))]
        options += [(one.name, f"{one.title} · {one.language}") for one in self._voices]
        if voice.name is not None and voice.name not in (name for name, _ in options):
            options.append((voice.name, voice.name))
        self.voice.show_options(options, voice.name)
        self.mood.setChecked(voice.follow_mood)
        speaks = voice.engine != "none"
        for one in (self.voice, self.rate, self.pitch, self.volume, self.mood):
            one.setEnabled(speaks)
        self._set_ready(speaks)
        for slider, value in ((self.rate, voice.rate), (self.pitch, voice.pitch), (self.volume, voice.volume)):
            if not slider.slider.isSliderDown():
                slider.show_value(value)


def download_bytes(name: str) -> int:
    """Return the download size of an artifact, from the shipped list."""
    entries = tomllib.loads((files("resources") / "weights.toml").read_text("utf-8"))
    return sum(package["size"] for package in entries[name]["source"][0]["package"])


def _order(voice: Voice) -> tuple[int, str]:
    """Sort English and Chinese first, the rest by name."""
    first = ("en", "zh")
    language = voice.language.split("-")[0]
    return (first.index(language) if language in first else len(first), voice.title)


def _mood(emotion: str) -> Mood:
    certain = np.array([one == emotion for one in EMOTIONS], np.float32)
    nothing = np.zeros((0, len(EMOTIONS)), np.float32)
    return mood_of(EmotionReading(certain, emotion, 0.0, nothing, np.zeros(len(EMOTIONS), np.float32)))
