"""Translations: the English texts are the keys of the tables in resources/translations.

A language is a folder of TOML files with entries `"English" = "..."`. Where one English text has two meanings, the
second argument of `tr` tells them apart: `"English|note" = "..."`. Qt's context (the class) is ignored, so that each
text is translated once.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files

from PySide6.QtCore import QCoreApplication, QLibraryInfo, QLocale, QTranslator

LANGUAGES = {"en": "English", "zh": "中文"}
"""The languages to choose from, each under its own name."""

_QT = {"zh": "qtbase_zh_CN"}


class TableTranslator(QTranslator):
    """Looks texts up in a table. Texts that it lacks stay English."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__()
        self._texts = texts

    def isEmpty(self) -> bool:
        """Qt ignores empty translators."""
        return not self._texts

    def translate(self, _context: str, text: str, note: str | None = None, _n: int = -1) -> str:
        """Return the translation, or None to make Qt ask the next translator."""
        return self._texts.get(f"{text}|{note}" if note else text)  # type: ignore[return-value]


_installed: list[QTranslator] = []
_language = ""
_texts: dict[str, str] = {}


def tr(text: str, note: str = "") -> str:
    """Translate a text outside of a QObject. Safe on any thread, because it takes no Qt lock.

    Args:
        text: the English text, the key of the tables.
        note: tells two meanings of one English text apart.
    """
    return _texts.get(f"{text}|{note}" if note else text, text)


def table(language: str) -> dict[str, str]:
    """Return all texts of a language; empty for English."""
    folder = files("resources") / "translations" / language
    if not folder.is_dir():
        return {}
    texts: dict[str, str] = {}
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if file.name.endswith(".toml"):
            texts |= tomllib.loads(file.read_text("utf-8"))
    return texts


def resolve_language(language: str) -> str:
    """Return the language that "system", "en" or "zh" stands for."""
    if language != "system":
        return language
    return "zh" if QLocale.system().language() is QLocale.Language.Chinese else "en"


def install(language: str) -> None:
    """Switch to a language, with its dates and numbers. Windows get a LanguageChange event when it changes."""
    global _language, _texts
    chosen = resolve_language(language)
    if chosen == _language:
        return
    _language = chosen
    system, numbers = QLocale.system(), QLocale(chosen)
    QLocale.setDefault(system if system.language() is numbers.language() else numbers)
    while _installed:
        QCoreApplication.removeTranslator(_installed.pop())
    if chosen in _QT:  # Qt's own menus and file dialogs
        own = QTranslator()
        if own.load(_QT[chosen], QLibraryInfo.path(QLibraryInfo.LibraryPath.TranslationsPath)):
            _installed.append(own)
    _texts = table(chosen)
    if _texts:
        _installed.append(TableTranslator(_texts))
    for translator in _installed:
        QCoreApplication.installTranslator(translator)
