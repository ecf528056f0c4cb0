"""Settings: turn-taking."""

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
    """Hands-free, patience, interruption, empathy.

    Args:
        go: shows another section.
    """

    def __init__(self, app: App, go: Callable[[str], object]) -> None:
        super().__init__(tr("Turn-taking"), tr("When it listens and when it replies."))
        self.hands_free = Switch(tr("Hands-free"), lambda on: app.change("turns", hands_free=on))
        self.empathy = Switch(tr("Empathy"), lambda on: app.change("turns", empathy=on))
        self.patience = Choices(
            [
                ("quick", tr("Quick"), tr("Replies after 0.4 seconds of silence.")),
                ("normal", tr("Normal"), tr("Replies after 0.6 seconds. For most people.")),
                ("patient", tr("Patient"), tr("Replies after 1 second. For people who pause to think.")),
            ],
            app.settings.turns.patience,
            tr("Patience"),
        )
        self.patience.chosen.connect(lambda value: app.change("turns", patience=value))
        self.barge_in = Choices(
            [
                (BargeIn.VOICE, tr("By speaking"), tr("A few words stop it. A cough does not.")),
                (BargeIn.KEY, tr("Only with the talk key"), tr("Other voices never stop it.")),
                (BargeIn.OFF, tr("Never"), tr("Only Stop ends a reply.")),
            ],
            app.settings.turns.barge_in,
            tr("Interrupt a reply"),
        )
        self.barge_in.chosen.connect(lambda value: app.change("turns", barge_in=value))
        self.key = label()
        self.add(
            self.hands_free,
            label(tr("It listens all the time and notices when you finish. When off, it listens while you hold the "
                     "talk key."), "small"),
        )  # fmt: skip
        self.add_field(tr("Talk key"), actions(self.key, button(tr("Change…"), lambda: go("shortcuts"), "quiet")))
        self.add_field(tr("Patience"), self.patience)
        self.add_field(tr("Interrupt a reply"), self.barge_in)
        self.add(
            self.empathy,
            label(tr("Replies respond to how you sound as well as to what you say."), "small"),
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
