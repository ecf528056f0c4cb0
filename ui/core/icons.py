"""The icons of resources/icons, drawn in the theme's colours."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from PySide6.QtCore import QByteArray, QRectF, Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from ui.core import theme


def application_icon() -> QIcon:
    """Return the program's icon."""
    icon = QIcon()
    for size in (16, 24, 32, 48, 64, 128, 256):
        icon.addPixmap(_pixmap("undertone", "#000000", size))
    return icon


def icon(name: str, role: str = "text", gap: float = 0.0) -> QIcon:
    """Return an icon in one of the theme's colours, fainter when disabled.

    Args:
        name: a file of resources/icons, without suffix.
        role: a field of `theme.Colours`.
        gap: empty space on the right, as a share of the icon's width.
    """
    made = QIcon()
    colours = theme.colours()
    for size in (16, 20, 24, 32, 48, 64):
        made.addPixmap(_pixmap(name, getattr(colours, role), size, gap), QIcon.Mode.Normal)
        made.addPixmap(_pixmap(name, colours.outline, size, gap), QIcon.Mode.Disabled)
    return made


def paint(painter: QPainter, name: str, rect: QRectF, colour: QColor) -> None:
    """Draw the icon into `rect`."""
    _renderer(name, colour.name()).render(painter, rect)


@cache
def _source(name: str) -> str:
    return (files("resources") / "icons" / f"{name}.svg").read_text("utf-8")


@cache
def _renderer(name: str, colour: str) -> QSvgRenderer:
    return QSvgRenderer(QByteArray(_source(name).replace("currentColor", colour).encode()))


@cache
def _pixmap(name: str, colour: str, size: int, gap: float = 0.0) -> QPixmap:
    """Draw an icon. Cached, because six sizes take as long to draw as the page that shows them."""
    pixmap = QPixmap(round(size * (1 + gap)), size)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    _renderer(name, colour).render(painter, QRectF(0, 0, size, size))
    painter.end()
    return pixmap
