"""The window in other languages: English texts are the keys, tables in resources/translations hold the others.

A language is a folder of TOML files, read together; each holds pairs `"English" = "..."`. Where one English text needs
two translations, the second argument of `tr` tells them apart: `"English|note" = "..."`. The context that Qt hands
over (the class) plays no part, so a text is translated once for all pages.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files

from PySide6.QtCore import QCoreApplication, QLibraryInfo, QLocale, QTranslator

LANGUAGES = {"en": "English", "zh": "中文"}
"""What can be chosen, each by its own name."""

_QT = {"zh": "qtbase_zh_CN"}


class TableTranslator(QTranslator):
    """A translator that looks into a table; what it does not hold stays English."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__()
        self._texts = texts

    def isEmpty(self) -> bool:
        """Qt takes no empty translator."""
        return not self._texts

    def translate(self, _context: str, text: str, note: str | None = None, _n: int = -1) -> str:
        """The text in this language; None, which Qt takes for "ask the next", where there is none."""
        return self._texts.get(f"{text}|{note}" if note else text)  # type: ignore[return-value]


_installed: list[QTranslator] = []
_language = ""
_texts: dict[str, str] = {}


def tr(text: str, note: str = "") -> str:
    """Translate a text outside of a QObject. Safe on any thread: it takes no lock of Qt's.

    Args:
        text: the English text, the key of the tables.
        note: tells two meanings of one English text apart.
    """
    return _texts.get(f"{text}|{note}" if note else text, text)


def table(language: str) -> dict[str, str]:
    """All texts of a language; English has none, it is the key."""
    folder = files("resources") / "translations" / language
    if not folder.is_dir():
        return {}
    texts: dict[str, str] = {}
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if file.name.endswith(".toml"):
            texts |= tomllib.loads(file.read_text("utf-8"))
    return texts


def resolve_language(language: str) -> str:
    """The language that "system", "en" or "zh" comes to."""
    if language != "system":
        return language
    return "zh" if QLocale.system().language() is QLocale.Language.Chinese else "en"


def install(language: str) -> None:
    """Put a language in force, with its dates and numbers; the windows get a LanguageChange where it is another one."""
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
