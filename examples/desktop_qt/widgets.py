# SPDX-License-Identifier: Apache-2.0
"""What Qt does not have ready: a message, a choice with an arrow, and an entry that sends."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QPoint, Qt, Signal
from PySide6.QtGui import QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QComboBox, QLabel, QPlainTextEdit

# Longer messages are shown without their middle: laying them out takes a label too long.
LONG = 4000


class Bubble(QLabel):
    """One message."""

    def __init__(self, text: str, kind: str, on_click: Callable[[], None] | None = None) -> None:
        super().__init__(text if len(text) <= LONG else f"{text[: LONG // 2]}\n\n…\n\n{text[-LONG // 4 :]}")
        self.setObjectName(kind)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(True)
        self.on_click = on_click
        if on_click:
            self.setCursor(Qt.CursorShape.PointingHandCursor)
        else:
            self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def fit(self, room: int) -> None:
        """As wide as the text, but no wider than the room."""
        self.ensurePolished()  # the style sheet's font
        lines = self.text().split("\n")
        width = min(room, max(self.fontMetrics().horizontalAdvance(line) for line in lines) + 44)
        self.setFixedSize(width, max(self.heightForWidth(width), self.fontMetrics().height() + 20))

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        super().mouseReleaseEvent(event)
        if self.on_click:
            self.on_click()


class Choice(QComboBox):
    """With an arrow in the text's colour: a style sheet takes the system's away."""

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self.palette().text().color(), 1.5))
        x, y = self.width() - 18, self.height() // 2
        painter.drawPolyline([QPoint(x - 4, y - 2), QPoint(x, y + 2), QPoint(x + 4, y - 2)])


class Entry(QPlainTextEdit):
    """Return sends, with Shift it begins a line; Escape stops."""

    sent, stopped = Signal(), Signal()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and not event.modifiers():
            self.sent.emit()
        elif event.key() == Qt.Key.Key_Escape:
            self.stopped.emit()
        else:
            super().keyPressEvent(event)
