"""Colours, text sizes and the style sheet: light, dark and high contrast.

Widgets that paint themselves call `colours()` each time; a change of theme sends them a palette change. The emotion
hues come from the colour-blind-safe palette of Okabe and Ito, in a light and a dark variant that keep a contrast of
3:1. They mark emotions only, always together with a word and a glyph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication

GRID = 8
"""The spacing unit in pixels; margins are two or three of it."""
SIZES = {"small": 12, "body": 14, "lead": 16, "title": 20, "display": 28}
"""Heights of text in pixels, before the user's own factor."""


@dataclass(frozen=True, slots=True)
class Colours:
    """The colours of one theme. A test checks the contrast: text at least 4.5:1, shapes at least 3:1."""

    window: str
    raised: str
    sunken: str
    text: str
    muted: str
    hairline: str
    accent: str
    on_accent: str
    danger: str
    outline: str
    scroll: str
    emotions: Mapping[str, str]

    def emotion(self, label: str) -> QColor:
        """Return the hue of an emotion, or the muted colour for "unsure"."""
        return QColor(self.emotions.get(label, self.muted))


_DEEP = {"neutral": "#767676", "happy": "#B07800", "angry": "#D55E00", "sad": "#0072B2", "surprise": "#BC6596"}
_PALE = {"neutral": "#B4B4B4", "happy": "#F0B23C", "angry": "#FF8B45", "sad": "#5CB2EA", "surprise": "#E3A0C6"}

LIGHT = Colours(
    window="#FAF8F4",
    raised="#FFFFFF",
    sunken="#F2EFE9",
    text="#211F1B",
    muted="#655F57",
    hairline="#E0DBD2",
    accent="#0F665F",
    on_accent="#FFFFFF",
    danger="#B3261E",
    outline="#8A8378",
    scroll="#CFC8BC",
    emotions=_DEEP,
)
DARK = Colours(
    window="#1B1A18",
    raised="#252320",
    sunken="#141312",
    text="#EEEBE5",
    muted="#ABA59B",
    hairline="#393632",
    accent="#63C7BE",
    on_accent="#0A2421",
    danger="#FF8F85",
    outline="#7C766C",
    scroll="#4A4641",
    emotions=_PALE,
)
CONTRAST = Colours(
    window="#000000",
    raised="#000000",
    sunken="#000000",
    text="#FFFFFF",
    muted="#FFFFFF",
    hairline="#FFFFFF",
    accent="#FFE04D",
    on_accent="#000000",
    danger="#FFB3AC",
    outline="#FFFFFF",
    scroll="#FFFFFF",
    emotions=_PALE,
)
THEMES = {"light": LIGHT, "dark": DARK, "contrast": CONTRAST}

_current = LIGHT
_scale = 1.0


def colours() -> Colours:
    """Return the current theme."""
    return _current


def pixels(size: str) -> int:
    """Return the height of a text size (a key of `SIZES`) at the user's scale."""
    return round(SIZES[size] * _scale)


def apply(application: QApplication, theme: str, text_size: float = 1.0) -> None:
    """Apply a theme ("system" follows the desktop) and a text scale to all windows."""
    global _current, _scale
    if theme == "system":
        dark = QGuiApplication.styleHints().colorScheme() is Qt.ColorScheme.Dark
        theme = "dark" if dark else "light"
    _current, _scale = THEMES[theme], text_size
    application.setStyle("Fusion")
    font = application.font()
    font.setPixelSize(pixels("body"))
    application.setFont(font)
    application.setPalette(_palette(_current))
    application.setStyleSheet(_style_sheet(_current))


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2, 1.4.3), 1 to 21."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    value = QColor(colour)
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value.redF(), value.greenF(), value.blueF())
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _palette(c: Colours) -> QPalette:
    palette = QPalette()
    roles = {
        QPalette.ColorRole.Window: c.window,
        QPalette.ColorRole.WindowText: c.text,
        QPalette.ColorRole.Base: c.raised,
        QPalette.ColorRole.AlternateBase: c.sunken,
        QPalette.ColorRole.Text: c.text,
        QPalette.ColorRole.PlaceholderText: c.muted,
        QPalette.ColorRole.Button: c.raised,
        QPalette.ColorRole.ButtonText: c.text,
        QPalette.ColorRole.ToolTipBase: c.raised,
        QPalette.ColorRole.ToolTipText: c.text,
        QPalette.ColorRole.Highlight: c.accent,
        QPalette.ColorRole.HighlightedText: c.on_accent,
        QPalette.ColorRole.Accent: c.accent,
        QPalette.ColorRole.Link: c.accent,
        QPalette.ColorRole.Mid: c.hairline,
    }
    for role, colour in roles.items():
        palette.setColor(role, QColor(colour))
    for role in (QPalette.ColorRole.WindowText, QPalette.ColorRole.Text, QPalette.ColorRole.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, role, QColor(c.outline))
    return palette


def _style_sheet(c: Colours) -> str:
    """Properties that widgets set: role (title, lead, small, muted, error), kind (primary, quiet, danger, tab)."""
    ring = f"border: 2px solid {c.accent};"
    return f"""
* {{ outline: none; }}
QToolTip {{ background: {c.raised}; color: {c.text}; border: 1px solid {c.hairline}; padding: 6px; }}
QLabel {{ background: transparent; }}
QLabel[role="display"] {{ font-size: {pixels("display")}px; font-weight: 600; }}
QLabel[role="title"] {{ font-size: {pixels("title")}px; font-weight: 600; }}
QLabel[role="lead"] {{ font-size: {pixels("lead")}px; }}
QLabel[role="heading"] {{ font-size: {pixels("body")}px; font-weight: 600; }}
QLabel[role="muted"] {{ color: {c.muted}; }}
QLabel[role="small"] {{ font-size: {pixels("small")}px; color: {c.muted}; }}
QLabel[role="error"] {{ color: {c.danger}; }}
QFrame[role="raised"] {{ background: {c.raised}; border: 1px solid {c.hairline}; border-radius: 10px; }}
QFrame[role="sunken"] {{ background: {c.sunken}; border-radius: 10px; }}
QFrame[role="line"] {{ background: {c.hairline}; border: none; }}
QPushButton {{ background: {c.raised}; color: {c.text}; border: 1px solid {c.outline}; border-radius: 10px;
  padding: 7px 15px; }}
QPushButton:hover {{ background: {c.sunken}; }}
QPushButton:pressed {{ background: {c.hairline}; }}
QPushButton:focus {{ {ring} padding: 6px 14px; }}
QPushButton:disabled {{ color: {c.outline}; border-color: {c.hairline}; }}
QPushButton[kind="primary"] {{ background: {c.accent}; color: {c.on_accent}; border-color: {c.accent}; }}
QPushButton[kind="primary"]:hover {{ border-color: {c.text}; }}
QPushButton[kind="primary"]:focus {{ border: 2px solid {c.text}; }}
QPushButton[kind="primary"]:disabled {{ background: {c.sunken}; color: {c.outline}; border-color: {c.hairline}; }}
QPushButton[kind="danger"] {{ color: {c.danger}; border-color: {c.danger}; }}
QPushButton[kind="quiet"] {{ background: transparent; border-color: transparent; color: {c.accent}; }}
QPushButton[kind="quiet"]:hover {{ background: {c.sunken}; }}
QPushButton[kind="quiet"]:focus {{ {ring} }}
QPushButton[kind="danger"]:disabled {{ color: {c.outline}; border-color: {c.hairline}; }}
QPushButton[kind="quiet"]:disabled {{ color: {c.outline}; }}
QPushButton[kind="tab"] {{ background: transparent; border: 2px solid transparent; border-radius: 10px;
  padding: 6px 12px; color: {c.muted}; }}
QPushButton[kind="tab"]:hover {{ background: {c.sunken}; }}
QPushButton[kind="tab"]:checked {{ background: {c.sunken}; color: {c.text}; border-bottom-color: {c.accent}; }}
QPushButton[kind="tab"]:focus {{ border-color: {c.accent}; }}
QPushButton[kind="narrow tab"] {{ background: transparent; border: 2px solid transparent; border-radius: 10px;
  padding: 6px 4px; color: {c.muted}; }}
QPushButton[kind="narrow tab"]:checked {{ color: {c.text}; border-bottom-color: {c.accent}; }}
QPushButton[kind="narrow tab"]:focus {{ border-color: {c.accent}; }}
QToolButton {{ background: transparent; border: 2px solid transparent; border-radius: 8px; padding: 4px;
  color: {c.text}; }}
QToolButton:hover {{ background: {c.sunken}; }}
QToolButton:pressed {{ background: {c.hairline}; }}
QToolButton:focus {{ border-color: {c.accent}; }}
QToolButton::menu-indicator {{ image: none; }}
QLineEdit, QPlainTextEdit, QTextEdit, QSpinBox, QDoubleSpinBox, QComboBox, QKeySequenceEdit QLineEdit {{
  background: {c.raised}; color: {c.text}; border: 1px solid {c.outline}; border-radius: 8px; padding: 6px 10px;
  selection-background-color: {c.accent}; selection-color: {c.on_accent}; }}
QLineEdit:focus, QPlainTextEdit:focus, QTextEdit:focus, QSpinBox:focus, QDoubleSpinBox:focus, QComboBox:focus {{
  {ring} padding: 5px 9px; }}
QLineEdit:disabled, QSpinBox:disabled, QComboBox:disabled {{ color: {c.outline}; border-color: {c.hairline}; }}
QSpinBox::up-button, QSpinBox::down-button, QDoubleSpinBox::up-button, QDoubleSpinBox::down-button {{
  background: transparent; border: none; width: 20px; }}
QComboBox::drop-down {{ border: none; width: 24px; }}
QComboBox QAbstractItemView {{ background: {c.raised}; color: {c.text}; border: 1px solid {c.hairline};
  selection-background-color: {c.accent}; selection-color: {c.on_accent}; }}
QListView, QTableView, QTreeView {{ background: {c.window}; color: {c.text}; border: none;
  alternate-background-color: {c.sunken}; selection-background-color: {c.sunken}; selection-color: {c.text};
  gridline-color: {c.hairline}; }}
QListView:focus, QTableView:focus, QTreeView:focus {{ border: none; }}
QHeaderView::section {{ background: {c.window}; color: {c.muted}; border: none;
  border-bottom: 1px solid {c.hairline}; padding: 6px 8px; }}
QScrollArea {{ background: transparent; border: none; }}
QScrollArea > QWidget > QWidget {{ background: transparent; }}
QScrollBar:vertical {{ background: transparent; width: 10px; margin: 2px; }}
QScrollBar:horizontal {{ background: transparent; height: 10px; margin: 2px; }}
QScrollBar::handle {{ background: {c.scroll}; border-radius: 3px; min-height: 32px; min-width: 32px; }}
QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {{ background: none;
  border: none; width: 0; height: 0; }}
QProgressBar {{ background: {c.hairline}; border: none; border-radius: 3px; height: 6px; text-align: center; }}
QProgressBar::chunk {{ background: {c.accent}; border-radius: 3px; }}
QSlider::groove:horizontal {{ background: {c.hairline}; height: 4px; border-radius: 2px; }}
QSlider::sub-page:horizontal {{ background: {c.accent}; border-radius: 2px; }}
QSlider::handle:horizontal {{ background: {c.raised}; border: 2px solid {c.accent}; width: 14px; height: 14px;
  margin: -7px 0; border-radius: 9px; }}
QSlider::handle:horizontal:focus {{ background: {c.accent}; }}
QRadioButton, QCheckBox {{ spacing: 10px; color: {c.text}; background: transparent; }}
QMenu {{ background: {c.raised}; color: {c.text}; border: 1px solid {c.hairline}; padding: 6px; }}
QMenu::item {{ padding: 6px 20px; border-radius: 6px; }}
QMenu::item:selected {{ background: {c.accent}; color: {c.on_accent}; }}
QSplitter::handle {{ background: {c.hairline}; }}
"""
