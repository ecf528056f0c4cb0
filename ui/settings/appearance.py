"""Settings: appearance."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtWidgets import QSystemTrayIcon

from assistant.settings import Settings
from ui.core import desktop_entry
from ui.core.app import App
from ui.core.translations import LANGUAGES, tr
from ui.widgets.common import Switch, label
from ui.widgets.forms import Choices, InlineMessage, Section
from ui.widgets.value_slider import ValueSlider


class AppearanceSettings(Section):
    """Theme, text size, language, tray icon, menu entry."""

    def __init__(self, app: App) -> None:
        super().__init__(tr("Appearance"))
        looks = app.settings.looks
        self._command = app.services.command
        self.theme = Choices(
            [
                ("system", tr("System"), ""),
                ("light", tr("Light"), ""),
                ("dark", tr("Dark"), ""),
                ("contrast", tr("High contrast"), ""),
            ],
            looks.theme,
            tr("Theme"),
        )
        self.theme.chosen.connect(lambda value: app.change("looks", theme=value))
        self.text_size = ValueSlider(tr("Text size"), 0.75, 2.0, 0.05, looks.text_size, lambda v: f"{v:.0%}")
        self.text_size.settled.connect(lambda value: app.change("looks", text_size=value))
        self.language = Choices(
            [("system", tr("System"), ""), *((code, name, "") for code, name in LANGUAGES.items())],
            looks.language,
            tr("Language"),
        )
        self.language.chosen.connect(lambda value: app.change("looks", language=value))
        self.tray = Switch(tr("Show a tray icon"), lambda on: app.change("looks", tray=on))
        self.add_field(tr("Theme"), self.theme)
        self.add_field(tr("Text size"), self.text_size)
        self.add_field(tr("Language"), self.language)
        here = QSystemTrayIcon.isSystemTrayAvailable()
        note = tr("Opens the window and the compact window, and switches hands-free and mute.")
        self.add(self.tray, label(note if here else tr("This desktop has no system tray."), "small"))
        self.error = InlineMessage()
        self.menu = Switch(tr("Show in the applications menu"), self._show_in_menu)
        if desktop_entry.possible():
            self.menu.setChecked(desktop_entry.installed())
            self.add(self.menu, self.error)
        app.settings_changed.connect(self._follow)
        self._follow(app.settings)

    def _show_in_menu(self, on: bool) -> None:
        try:
            if on:
                desktop_entry.install(self._command, Path(__file__).parents[2])
            else:
                desktop_entry.remove()
        except OSError as error:
            self.menu.setChecked(desktop_entry.installed())
            self.error.report(tr("Could not change the menu ({why}).").format(why=error.strerror), error=True)
        else:
            self.error.report("")

    def _follow(self, settings: Settings) -> None:
        looks = settings.looks
        self.theme.choose(looks.theme)
        self.language.choose(looks.language)
        self.tray.setChecked(looks.tray)
        if not self.text_size.slider.isSliderDown():
            self.text_size.show_value(looks.text_size)
