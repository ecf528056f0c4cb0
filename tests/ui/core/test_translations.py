"""The Chinese translation: complete, with the same placeholders, and applied at once."""

from __future__ import annotations

import string
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QCoreApplication, QLocale, QObject
from PySide6.QtGui import QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QComboBox, QWidget
from pytestqt.qtbot import QtBot

from assistant.events import EMOTIONS, UNSURE
from tests.ui.settings.test_page import hold, page, services
from tests.ui.support import wording
from tests.ui.tour import all_text, turn_events
from ui.core import translations
from ui.core.app import App
from ui.core.translations import LANGUAGES, table, tr
from ui.finetune.recording_table import EmotionDelegate
from ui.sessions.formatting import format_day
from ui.sessions.search import search
from ui.sessions.summary import Summary
from ui.settings.page import SECTIONS, SettingsPage
from ui.talk.page import TalkPage

__all__ = ["page", "services"]  # fixtures


@pytest.fixture(autouse=True)
def english_again() -> Iterator[None]:
    yield
    translations.install("en")


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one != "en"])
def test_tables_are_complete_and_keep_the_places_of_values(language: str) -> None:
    assert wording.missing(language) == {}
    assert wording.unused(language) == []
    for english, other in table(language).items():
        assert other, english
        key = english.partition("|")[0]
        fields = [sorted(name for _, name, _, _ in string.Formatter().parse(one) if name) for one in (key, other)]
        assert fields[0] == fields[1], english


def test_no_text_stands_in_two_tables_with_two_meanings() -> None:
    folder = files("resources") / "translations" / "zh"
    seen: dict[str, str] = {}
    for file in folder.iterdir():
        for english, other in tomllib.loads(file.read_text("utf-8")).items():
            assert seen.setdefault(english, other) == other, english


@pytest.mark.parametrize("file", wording.files(), ids=lambda file: file.name)
def test_what_is_shown_goes_through_translation(file: Path) -> None:
    assert list(wording.bare(file.read_text("utf-8"))) == []


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


def test_every_page_changes_its_language_at_once_and_the_settings_stay_where_they_are(
    app: App, page: SettingsPage, qtbot: QtBot
) -> None:
    app.settings_changed.connect(lambda settings: translations.install(settings.looks.language))
    window: Any = page.window()
    others = {name: window.show_page(name) for name in ("talk", "sessions")}
    looks: Any = window.show_page("settings").show_section("appearance")
    looks.language.buttons["zh"].click()
    qtbot.waitUntil(lambda: window.pages["settings"] is not page)
    anew = window.pages["settings"]
    assert anew.view_state == "appearance"
    assert anew.show_section("appearance").accessibleName() == "外观"
    assert anew.list.item(0).text() == "声音"
    assert window.tabs["talk"].text() == "对话"
    for name in SECTIONS:
        assert anew.show_section(name).isVisible()
    assert window.show_page("talk") is others["talk"]  # it holds the conversation, and follows by itself
    others["sessions"].busy = True
    assert window.show_page("sessions") is others["sessions"]
    others["sessions"].busy = False
    assert window.show_page("sessions") is not others["sessions"]


def test_the_talk_page_follows_with_its_conversation(app: App, qtbot: QtBot) -> None:
    page = TalkPage(app)
    window = hold(page, qtbot)
    talk: Any = app.talk
    talk.happen(*turn_events(1, "something-is-terribly-wrong", "sad", "Tell me what happened."))
    qtbot.waitUntil(lambda: "Voice sounds sad" in all_text(window))
    translations.install("zh")
    qtbot.waitUntil(lambda: "您" in all_text(page) and "声音听起来难过" in all_text(page.panel))
    assert page.panel.shown == 1
    assert [entry.reply for entry in page.view.entries] == ["Tell me what happened."]
    qtbot.waitUntil(lambda: "Voice sounds" not in all_text(window))
    page.hide()
    translations.install("en")
    qtbot.waitUntil(lambda: page.view.accessibleName() == "Conversation")
    page.show()
    assert [view.accessibleName().startswith("You") for view in page.view.views] == [True]
    translations.install("zh")
    talk.happen(*turn_events(2, "weasels", "angry", "That must be maddening."))
    qtbot.waitUntil(lambda: "声音听起来生气" in all_text(page.panel))


def test_an_emotion_is_chosen_in_chinese_and_kept_as_its_label(qtbot: QtBot) -> None:
    translations.install("zh")
    model = QStandardItemModel(1, 1)
    model.setItem(0, 0, QStandardItem("happy"))
    editor, parent = EmotionDelegate(), QWidget()
    qtbot.addWidget(parent)
    box = editor.createEditor(parent, None, model.index(0, 0))
    assert isinstance(box, QComboBox)
    editor.setEditorData(box, model.index(0, 0))
    assert box.currentText() == "高兴"
    box.setCurrentText("难过")
    editor.setModelData(box, model, model.index(0, 0))
    assert model.index(0, 0).data() == "sad"


def test_every_label_has_a_word() -> None:
    assert {*EMOTIONS, UNSURE} <= table("zh").keys()


def test_dates_and_numbers_follow_the_language() -> None:
    translations.install("zh")
    assert QLocale().language() is QLocale.Language.Chinese
    assert format_day(date(2025, 11, 21), date(2026, 11, 22)) == "2025年11月21日"
    translations.install("en")
    assert QLocale().language() is QLocale.Language.English
    assert format_day(date(2025, 11, 21), date(2026, 11, 22)) == "21 November 2025"


def test_what_the_list_shows_of_a_session_finds_it_in_both_languages(tmp_path: Path) -> None:
    today = date(2026, 11, 21)
    for days in (0, 1, 3, 40, 400):
        day = today - timedelta(days=days)
        started = datetime.combine(day, time(9))
        session = Summary(tmp_path, started, 1.0, 1, ("surprise",), "", "")
        other = replace(session, started=started - timedelta(days=33), emotions=("neutral",))
        for language in LANGUAGES:
            translations.install(language)
            words = [word for word in format_day(day, today).split() if not word.isdecimal() or len(word) == 4]
            for query in (" ".join(words), tr("surprise")):
                assert search(query, today)(session), query
                assert not search(query, today)(other), query
