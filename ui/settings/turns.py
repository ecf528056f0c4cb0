"""Settings: who speaks when."""

from __future__ import annotations

from collections.abc import Callable

from assistant.messages import BargeIn
from assistant.settings import Settings
from ui.core.app import App
from ui.core.translations import tr
from ui.settings.shortcuts import key_text
from ui.widgets.common import Switch, button, label
from ui.widgets.forms import Choices, Section, actions


class TurnsSettings(Section):
    """Hands-free, patience, interrupting, empathy.

    Args:
        go: shows another section.
    """

    def __init__(self, app: App, go: Callable[[str], object]) -> None:
        super().__init__(tr("Turns"), tr("Who speaks when."))
        self.hands_free = Switch(tr("Hands-free"), lambda on: app.change("turns", hands_free=on))
        self.empathy = Switch(tr("Answer the feeling, too"), lambda on: app.change("turns", empathy=on))
        self.patience = Choices(
            [
                ("quick", tr("Quick"), tr("It answers after 0.4 seconds of silence.")),
                ("normal", tr("Normal"), tr("0.6 seconds: for most people.")),
                ("patient", tr("Patient"), tr("A whole second: for those who think while they speak.")),
            ],
            app.settings.turns.patience,
            tr("Patience"),
        )
        self.patience.chosen.connect(lambda value: app.change("turns", patience=value))
        self.barge_in = Choices(
            [
                (BargeIn.VOICE, tr("By speaking"), tr("A cough does not stop it; a few words do.")),
                (BargeIn.KEY, tr("With the talk key only"), tr("Voices in the room never stop it.")),
                (BargeIn.OFF, tr("Not at all"), tr("Only Stop ends a reply.")),
            ],
            app.settings.turns.barge_in,
            tr("Interrupting a reply"),
        )
        self.barge_in.chosen.connect(lambda value: app.change("turns", barge_in=value))
        self.key = label()
        self.add(
            self.hands_free,
            label(tr("It listens by itself and notices when you have finished. Off: it hears you while you hold the "
                     "talk key."), "small"),
        )  # fmt: skip
        self.add_field(tr("Talk key"), actions(self.key, button(tr("Change…"), lambda: go("shortcuts"), "quiet")))
        self.add_field(tr("Patience"), self.patience)
        self.add_field(tr("Interrupting a reply"), self.barge_in)
        self.add(
            self.empathy,
            label(tr("The model is asked to respond to how you sound as well as to what you say."), "small"),
        )
        app.settings_changed.connect(self._follow)
        self._follow(app.settings)

    def _follow(self, settings: Settings) -> None:
        turns = settings.turns
        self.hands_free.setChecked(turns.hands_free)
        self.empathy.setChecked(turns.empathy)
        self.patience.choose(turns.patience)
        self.barge_in.choose(turns.barge_in)
        self.key.setText(key_text(turns.shortcut))
