"""The window in Chinese: complete, with the same places for values, and in force at once."""

from __future__ import annotations

import string
from collections.abc import Iterator

import pytest
from PySide6.QtCore import QCoreApplication, QObject
from pytestqt.qtbot import QtBot

from tests.ui import wording
from tests.ui.test_settings_page import page, services
from ui import translations
from ui.app import App
from ui.settings_page import SECTIONS, SettingsPage
from ui.translations import LANGUAGES, table, tr

__all__ = ["page", "services"]  # fixtures

COMPLETE = {
    "diagnostics.py", "looks_settings.py", "main_window.py", "model_card.py", "model_settings.py", "model_words.py",
    "recording_settings.py", "settings_page.py", "settings_parts.py", "shortcut_settings.py", "sound_check.py",
    "sound_settings.py", "turn_settings.py", "value_slider.py", "voice_settings.py", "window.py",
}  # fmt: skip
"""Files of ui/ whose texts are all translated."""


@pytest.fixture(autouse=True)
def english_again() -> Iterator[None]:
    yield
    translations.install("en")


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one != "en"])
def test_tables_are_complete_and_keep_the_places_of_values(language: str) -> None:
    left = {file: texts for file, texts in wording.missing(language).items() if file in COMPLETE}
    assert left == {}
    for english, other in table(language).items():
        assert other, english
        key = english.partition("|")[0]
        fields = [sorted(name for _, name, _, _ in string.Formatter().parse(one) if name) for one in (key, other)]
        assert fields[0] == fields[1], english


def test_no_text_stands_in_two_tables_with_two_meanings() -> None:
    folder = translations.files("resources") / "translations" / "zh"
    seen: dict[str, str] = {}
    for file in folder.iterdir():
        for english, other in translations.tomllib.loads(file.read_text("utf-8")).items():
            assert seen.setdefault(english, other) == other, english


@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_what_is_shown_goes_through_translation(name: str) -> None:
    source = (wording.UI / name).read_text("utf-8")
    assert [text for _, text in wording.bare(source) if text.strip() != "dB"] == []


def test_bare_texts_are_found() -> None:
    source = 'label("Hello")\nlabel(tr("Hello"))\nx.setText(f"{n} turns")\nbutton(self.tr("Go", "verb"), act)\n'
    assert list(wording.bare(source)) == [(1, "Hello"), (3, " turns")]
    assert sorted(wording.texts(source)) == ["Go|verb", "Hello"]


def test_a_language_is_put_in_force_and_taken_back(qapp: QCoreApplication) -> None:
    translations.install("zh")
    assert (tr("Talk"), QObject().tr("Talk")) == ("对话", "对话")
    assert tr("Space", "key") == "空格键"
    assert tr("nothing has this text") == "nothing has this text"
    assert QCoreApplication.translate("QFileDialog", "Directory:") != "Directory:"  # Qt's own
    translations.install("en")
    assert tr("Talk") == "Talk"


def test_the_settings_change_their_language_at_once(app: App, page: SettingsPage, qtbot: QtBot) -> None:
    app.settings_changed.connect(lambda settings: translations.install(settings.looks.language))
    looks = page.show_section("looks")
    looks.language.buttons["zh"].click()  # type: ignore[attr-defined]
    qtbot.waitUntil(lambda: page.show_section("looks").accessibleName() == "外观")
    assert page._list.item(0).text() == "声音"
    assert page.window()._tabs["talk"].text() == "对话"  # type: ignore[attr-defined]
    for name in SECTIONS:
        assert page.show_section(name).isVisible()
