# SPDX-License-Identifier: Apache-2.0
"""A chat window with Qt: pip install rwkv_cpu PySide6-Essentials

    python examples/desktop_qt/chat.py [MODEL]

rwkv_cpu.desktop.Desk does everything that takes time; this file shows it. Click a question of yours to edit it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from string import Template

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QCloseEvent, QResizeEvent
from PySide6.QtWidgets import (
    QApplication,
    QFrame,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QListWidget,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)  # fmt: skip
from widgets import Bubble, Choice, Entry

from rwkv_cpu.chat import Chat
from rwkv_cpu.chat.sessions import list_sessions
from rwkv_cpu.desktop import POLL_MS, Desk, DeskEvent, last_session, model_choices, new_session, progress_of, status_of
from rwkv_cpu.errors import RwkvError

LIGHT = {
    "window": "#ffffff", "side": "#f1f3f6", "text": "#1c1e21", "dim": "#6b7280", "field": "#f6f7f9", "line": "#d9dde4",
    "user": "#2f6fed", "on_user": "#ffffff", "answer": "#eef1f5", "accent": "#2f6fed", "chosen": "#dbe5f8",
}  # fmt: skip
DARK = {
    "window": "#1d1f24", "side": "#16181c", "text": "#e6e8ed", "dim": "#949baa", "field": "#282b33", "line": "#383c47",
    "user": "#2a5cc7", "on_user": "#ffffff", "answer": "#282b33", "accent": "#3d78ea", "chosen": "#2b3347",
}  # fmt: skip
STYLE = Template(Path(__file__).with_name("style.qss").read_text("utf-8"))


class Window(QWidget):
    """Conversations on the left, the chosen one on the right."""

    def __init__(self, model: str = "demo", *, dark: bool = False) -> None:
        super().__init__(windowTitle="rwkv_cpu")
        self.resize(980, 680)
        self.setMinimumSize(640, 420)
        self.desk, self.dark = Desk(), dark
        self.bubbles: list[Bubble] = []
        self.room = 500
        whole = QHBoxLayout(self, spacing=0)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(self.build_side())
        whole.addLayout(self.build_talk(), 1)
        self.timer = QTimer(self, interval=POLL_MS)
        self.timer.timeout.connect(self.pump)
        self.paint()
        self.load(model)

    @property
    def chat(self) -> Chat:
        if self.desk.chat is None:
            raise RwkvError("No model is loaded yet.")
        return self.desk.chat

    # ------------------------------------------------------------------------------------ the window

    def build_side(self) -> QFrame:
        side = QFrame(objectName="side")
        side.setFixedWidth(250)
        column = QVBoxLayout(side, spacing=10)
        column.setContentsMargins(14, 16, 14, 16)
        column.addWidget(self.button("+  New chat", lambda: self.act(lambda: self.desk.open(new_session())), "accent"))
        self.talks = QListWidget()
        self.talks.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.talks.itemClicked.connect(lambda item: self.choose(item.text()))
        column.addWidget(self.talks, 1)
        column.addWidget(QLabel("Model, and memory it needs", objectName="dim"))
        self.models = Choice(placeholderText="none")
        for choice in model_choices():
            self.models.addItem(choice.label, choice.name)
        self.models.setCurrentIndex(-1)
        self.models.activated.connect(lambda i: self.load(self.models.itemData(i)))
        column.addWidget(self.models)
        column.addWidget(self.button("Light / dark", self.turn))
        return side

    def build_talk(self) -> QVBoxLayout:
        column = QVBoxLayout(spacing=10)
        column.setContentsMargins(18, 0, 18, 8)
        inner = QWidget()
        self.talk = QVBoxLayout(inner, spacing=10)
        self.talk.setContentsMargins(4, 18, 10, 8)
        self.talk.addStretch(1)
        self.area = QScrollArea(widget=inner, widgetResizable=True, frameShape=QFrame.Shape.NoFrame)
        self.area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.at_end = True
        bar = self.area.verticalScrollBar()
        bar.valueChanged.connect(lambda value: setattr(self, "at_end", value >= bar.maximum() - 4))
        bar.rangeChanged.connect(lambda _, most: bar.setValue(most) if self.at_end else None)
        column.addWidget(self.area, 1)
        row = QHBoxLayout(spacing=8)
        acts = {"Undo": self.undo, "Retry": lambda: self.act(self.desk.retry), "Branch": self.branch}
        self.buttons = {name: self.button(name, act) for name, act in acts.items()}
        for button in self.buttons.values():
            row.addWidget(button)
        self.branches = Choice(minimumWidth=130)
        self.branches.textActivated.connect(lambda name: self.act(lambda: self.chat.switch(name)))
        row.addWidget(self.branches)
        row.addStretch(1)
        column.addLayout(row)
        self.progress = QProgressBar(maximum=1000, textVisible=False, maximumHeight=3)
        column.addWidget(self.progress)
        row = QHBoxLayout(spacing=10)
        self.entry = Entry(placeholderText="Message")
        self.entry.sent.connect(self.send)
        self.entry.stopped.connect(self.desk.cancel)
        self.entry.setFixedHeight(78)
        row.addWidget(self.entry, 1)
        self.go = self.button("Send", self.send_or_stop, "accent")
        self.go.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Expanding)
        self.go.setMaximumHeight(78)
        self.go.setFixedWidth(84)
        row.addWidget(self.go)
        column.addLayout(row)
        self.status = QLabel(objectName="dim", alignment=Qt.AlignmentFlag.AlignRight)
        column.addWidget(self.status)
        return column

    def button(self, text: str, act: Callable[[], object], name: str = "") -> QPushButton:
        """One that does not take the focus from the entry."""
        button = QPushButton(text, objectName=name, focusPolicy=Qt.FocusPolicy.NoFocus)
        button.clicked.connect(lambda _checked: act())
        return button

    def paint(self) -> None:
        self.setStyleSheet(STYLE.substitute(DARK if self.dark else LIGHT))

    def turn(self) -> None:
        self.dark = not self.dark
        self.paint()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Bubbles are as wide as three quarters of the window."""
        super().resizeEvent(event)
        self.room = max(200, (self.width() - 310) * 3 // 4)
        for bubble in self.bubbles:
            bubble.fit(self.room)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Stop what is going on; everything is written down already."""
        self.timer.stop()
        self.desk.close()
        event.accept()

    # ------------------------------------------------------------------------------ the conversation

    def refresh(self) -> None:
        self.clear()
        if not self.desk.chat:
            self.add("No model is loaded. Choose one on the left.", "note")
            return
        for i, turn in enumerate(self.chat.turns):
            self.add(turn.user, "user", i)
            self.add(turn.text, "answer")
        if not self.chat.turns:
            self.add("Ask something. Everything stays on this computer.", "note")
        self.branches.clear()
        self.branches.addItems(list(self.chat.branches))
        self.talks.clear()
        self.talks.addItems([talk.name for talk in list_sessions()])
        for item in self.talks.findItems(self.chat.session, Qt.MatchFlag.MatchExactly):
            self.talks.setCurrentItem(item)

    def clear(self) -> None:
        for bubble in self.bubbles:
            bubble.hide()
            bubble.deleteLater()
        self.bubbles, self.at_end = [], True

    def add(self, text: str, kind: str, i: int | None = None) -> None:
        """A bubble below; the *i*-th question can be edited."""
        bubble = Bubble(text, kind, None if i is None else lambda: self.edit(i))
        sides = {"user": Qt.AlignmentFlag.AlignRight, "answer": Qt.AlignmentFlag.AlignLeft}
        self.talk.insertWidget(self.talk.count() - 1, bubble, 0, sides.get(kind, Qt.AlignmentFlag.AlignHCenter))
        bubble.fit(self.room)
        self.bubbles.append(bubble)

    def pump(self) -> None:
        """What happened since the last time; the timer stops when nothing is going on."""
        for event in self.desk.poll():
            self.show_event(event)
        busy = self.desk.busy
        self.go.setText("Stop" if busy else "Send")
        for button in self.buttons.values():
            button.setEnabled(not busy and self.desk.chat is not None)
        if busy != self.timer.isActive():
            (self.timer.start if busy else self.timer.stop)()

    def show_event(self, event: DeskEvent) -> None:
        self.progress.setValue(int(1000 * (progress_of(event) or 0)))
        self.status.setText("" if event.kind == "failed" and event.hint else status_of(event))
        if event.kind == "text":
            if self.bubbles[-1].objectName() != "answer":
                self.add(event.text, "answer")
            else:
                self.bubbles[-1].setText(self.bubbles[-1].text() + event.text)
                self.bubbles[-1].fit(self.room)
            return
        if event.kind == "ready":
            path = self.desk.model.path
            if self.models.findText(path.stem) < 0 and self.models.findData(path.stem) < 0:
                self.models.addItem(path.stem, str(path))
            self.models.setCurrentIndex(max(self.models.findData(path.stem), self.models.findText(path.stem)))
            self.setWindowTitle(f"{self.chat.session} – rwkv_cpu")
        if event.kind in ("ready", "done", "failed"):
            self.refresh()
        if event.kind == "failed" and event.hint:  # when the buttons say already that nothing is going on
            words = f"{event.message}\n\n{event.hint}"
            QTimer.singleShot(0, self, lambda: QMessageBox.warning(self, "rwkv_cpu", words))

    # ---------------------------------------------------------------------------------- what users do

    def act(self, what: Callable[[], object]) -> None:
        """Do something that takes no time; show what came of it, or why it could not be done."""
        try:
            what()
            if not self.desk.busy and self.desk.chat:
                self.refresh()
        except RwkvError as error:
            self.status.setText(str(error))
        self.pump()

    def load(self, name: str) -> None:
        session = self.desk.chat.session if self.desk.chat else last_session()
        self.act(lambda: self.desk.load(name, session=session))

    def choose(self, name: str) -> None:
        if name != self.chat.session:
            self.act(lambda: self.desk.open(name))

    def send_or_stop(self) -> None:
        (self.desk.cancel if self.desk.busy else self.send)()

    def send(self) -> None:
        text = self.entry.toPlainText().strip()
        if not text or self.desk.busy or not self.desk.chat:
            return
        if not self.chat.turns:
            self.clear()
        self.entry.clear()
        self.at_end = True
        self.add(text, "user")
        self.act(lambda: self.desk.send(text))

    def undo(self) -> None:
        """Take the last question back, into the entry."""
        if self.chat.turns:
            self.entry.setPlainText(self.chat.turns[-1].user)
            self.act(self.chat.undo)

    def edit(self, i: int) -> None:
        """Change a question; the conversation as it was stays as a branch."""
        if self.desk.busy:
            return
        before = self.chat.turns[i].user
        text, good = QInputDialog.getMultiLineText(self, "Edit", "The question instead:", before)
        if good and text.strip() and text != before:
            self.act(lambda: self.desk.edit(i, text))

    def branch(self) -> None:
        """Go on under another name; the branch left behind stays as it is."""
        self.act(lambda: self.chat.start_branch(f"branch {len(self.chat.branches) + 1}"))


if __name__ == "__main__":
    application = QApplication(sys.argv[:1])
    window = Window(*sys.argv[1:2])
    window.show()
    sys.exit(application.exec())
