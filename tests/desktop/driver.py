# SPDX-License-Identifier: Apache-2.0
"""Uses an example's window as a person does: real clicks and keys from xdotool, on the display that DISPLAY names.

    python tests/desktop/driver.py tk|qt [SHOTS]

Prints a JSON object: what was seen, and the longest time in which the window could not have repainted itself, by a
heartbeat in its own event loop. With SHOTS, a folder: pictures on the way.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

CHECKOUT = Path(__file__).resolve().parents[2]
BEAT_MS = 5
STEP_MS = 20
LONG_TOKENS = 5000
GIVE_UP_SECONDS = 120
LONG = "The river is long and slow. " * 12 + "\n"

Step = tuple[str, object]


def example(kit: str) -> Any:
    """The example's module."""
    path = CHECKOUT / "examples" / f"desktop_{kit}" / "chat.py"
    sys.path.insert(0, str(path.parent))  # as for a script
    spec = importlib.util.spec_from_file_location(f"desktop_{kit}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hand:
    """Mouse and keyboard: xdotool in a process of its own, so that the window's thread is free to be measured."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def busy(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def do(self, *arguments: object) -> None:
        self._process = subprocess.Popen(["xdotool", *map(str, arguments)])


class TkKit:
    """The Tk window for a script."""

    def __init__(self, **options: Any) -> None:
        self.window = example("tk").Window("demo", **options)
        self.later: Callable[[int, Callable[[], object]], object] = self.window.after

    def run(self) -> None:
        self.window.mainloop()

    def end(self) -> None:
        self.window.leave()

    def middle(self, widget: Any) -> tuple[int, int]:
        return widget.winfo_rootx() + widget.winfo_width() // 2, widget.winfo_rooty() + widget.winfo_height() // 2

    def paste(self, text: str) -> None:
        self.window.entry.insert("end", text)

    def typed(self) -> str:
        return str(self.window.entry.get("1.0", "end").strip())

    def status(self) -> str:
        return str(self.window.status.cget("text"))

    def shown(self) -> str:
        return str(self.window.talk.get("1.0", "end"))

    def question(self) -> tuple[int, int]:
        x, y, width, height = self.window.talk.dlineinfo("1.0")[:4]
        return self.window.talk.winfo_rootx() + x + width - 40, self.window.talk.winfo_rooty() + y + height // 2

    def confirm(self) -> Step:
        return "key", "Return"

    def resize(self, width: int, height: int) -> None:
        self.window.geometry(f"{width}x{height}")


class QtKit:
    """The Qt window for a script."""

    def __init__(self, **options: Any) -> None:
        from PySide6.QtCore import QTimer
        from PySide6.QtWidgets import QApplication

        self.application = QApplication([])
        self.window = example("qt").Window("demo", **options)
        self.window.show()
        self.window.activateWindow()
        self.later = QTimer.singleShot

    def run(self) -> None:
        self.application.exec()

    def end(self) -> None:
        self.window.close()
        self.application.quit()

    def middle(self, widget: Any) -> tuple[int, int]:
        point = widget.mapToGlobal(widget.rect().center())
        return point.x(), point.y()

    def paste(self, text: str) -> None:
        self.window.entry.insertPlainText(text)

    def typed(self) -> str:
        return str(self.window.entry.toPlainText().strip())

    def status(self) -> str:
        return str(self.window.status.text())

    def shown(self) -> str:
        return "\n".join(bubble.text() for bubble in self.window.bubbles)

    def question(self) -> tuple[int, int]:
        return self.middle(self.window.bubbles[0])

    def confirm(self) -> Step:
        from PySide6.QtWidgets import QDialogButtonBox

        dialog = self.application.activeModalWidget()
        point = self.middle(dialog.findChild(QDialogButtonBox).button(QDialogButtonBox.StandardButton.Ok))
        return "click at", lambda: point

    def resize(self, width: int, height: int) -> None:
        self.window.resize(width, height)


def script(kit: Any, seen: dict[str, Any]) -> Generator[Step, None, None]:
    """What the person does, step by step."""
    window = kit.window
    desk = window.desk

    def idle() -> bool:
        return not desk.busy

    yield "wait", lambda: idle() and desk.chat is not None
    yield "click", window.entry
    yield "type", "My name is Ada."
    seen["typed"] = kit.typed()
    yield "click", window.go
    yield "wait", lambda: desk.chat.n_turns == 1 and idle()
    yield "click", window.entry  # no window manager is here that would keep the focus
    yield "type", "What is my name?"
    yield "key", "Return"
    yield "wait", lambda: desk.chat.n_turns == 2 and idle()
    seen["answers"] = [turn.text for turn in desk.chat.turns]
    seen["speed"] = kit.status()
    yield "type", "Tell me a joke."
    yield "key", "Return"
    yield "wait", lambda: desk.chat.n_turns == 3 and idle()
    yield "shot", "talk"
    # A long prompt, stopped while it is read.
    long = LONG * (LONG_TOKENS // len(desk.model.tokenizer.encode(LONG)) + 1)
    kit.paste(long)
    yield "beat", True
    yield "click", window.go
    yield "wait", lambda: "Reading" in kit.status()
    yield "shot", "reading"
    seen["while_reading"] = kit.status()
    yield "click", window.go
    yield "wait", idle
    seen["after_stop"] = kit.status()
    seen["turns_after_stop"] = desk.chat.n_turns
    # And read to its end.
    kit.paste(f"{long}What is my name?")
    began = time.monotonic()
    yield "click", window.go
    yield "wait", lambda: desk.chat.n_turns == 4 and idle()
    seen["long_seconds"] = round(time.monotonic() - began, 2)
    yield "beat", False
    seen["long_tokens"] = desk.chat.n_tokens
    yield "click", window.buttons["Undo"]
    yield "wait", lambda: desk.chat.n_turns == 3
    seen["taken_back"] = len(kit.typed())
    yield "click", window.entry
    yield "key", "ctrl+a"
    yield "key", "BackSpace"
    yield "click", window.buttons["Branch"]
    yield "wait", lambda: desk.chat.branch == "branch 2"
    asked = len(desk.chat.turns[-1].text)
    yield "click", window.buttons["Retry"]
    yield "wait", idle
    seen["asked_again"] = asked > 0
    yield "click at", kit.question
    yield "key later", ("ctrl+a", 500)
    yield "type blind", "My name is Zelda."
    yield "shot", "edit"
    yield kit.confirm()
    yield "wait", lambda: idle() and desk.chat.turns[0].user == "My name is Zelda."
    seen["branches"] = sorted(desk.chat.branches)
    yield "resize", (1160, 760)
    yield "shot", "resized"
    yield "resize", (660, 460)
    yield "shot", "small"


class Driver:
    """Runs the script in the window's own event loop."""

    def __init__(self, kit: Any, shots: Path | None) -> None:
        self.kit, self.shots, self.hand = kit, shots, Hand()
        self.seen: dict[str, Any] = {"kit": type(kit).__name__, "beats": 0, "longest_gap_ms": 0.0}
        self.steps = script(kit, self.seen)
        self.until: Callable[[], bool] | None = None
        self.measuring, self.last = False, time.perf_counter()
        self.began = time.monotonic()

    def beat(self) -> None:
        """The window's thread was free just now."""
        now = time.perf_counter()
        if self.measuring:
            self.seen["beats"] += 1
            self.seen["longest_gap_ms"] = max(self.seen["longest_gap_ms"], round(1000 * (now - self.last), 1))
        self.last = now
        self.kit.later(BEAT_MS, self.beat)

    def go(self) -> None:
        """The next step, if the last one is over."""
        if time.monotonic() - self.began > GIVE_UP_SECONDS:
            self.seen["failed"] = f"stuck; shown: {self.kit.shown()[:200]!r}; status: {self.kit.status()!r}"
            self.finish()
            return
        if not self.hand.busy and (self.until is None or self.until()):
            self.until = None
            try:
                self.do(*next(self.steps))
            except StopIteration:
                self.finish()
                return
            except Exception as error:  # noqa: BLE001  reported, not swallowed
                self.seen["failed"] = repr(error)
                self.finish()
                return
        self.kit.later(STEP_MS, self.go)

    def finish(self) -> None:
        """Say what was seen."""
        print(json.dumps(self.seen), flush=True)
        self.kit.end()

    def do(self, what: str, argument: Any) -> None:
        """Begin one step."""
        if what == "wait":
            self.until = argument
        elif what == "click":
            x, y = self.kit.middle(argument)
            self.hand.do("mousemove", x, y, "click", 1)
        elif what == "click at":
            x, y = argument()
            self.hand.do("mousemove", x, y, "click", 1)
        elif what == "type":
            self.hand.do("type", "--delay", 8, argument)
            self.until = lambda: self.kit.typed() == argument
        elif what == "type blind":
            self.hand.do("type", "--delay", 8, argument)
        elif what == "key":
            self.hand.do("key", argument)
        elif what == "key later":
            key, ms = argument
            self.hand.do("sleep", ms / 1000, "key", key)
        elif what == "beat":
            self.measuring = argument
        elif what == "resize":
            self.kit.resize(*argument)
            self.hand.do("sleep", 0.3)
        elif what == "shot" and self.shots:
            name = f"{type(self.kit).__name__[:2].lower()}-{'dark' if self.kit.window.dark else 'light'}-{argument}.png"
            code = "import sys; from PIL import ImageGrab; ImageGrab.grab(xdisplay='').save(sys.argv[1])"
            self.hand._process = subprocess.Popen([sys.executable, "-c", code, str(self.shots / name)])


def main() -> None:
    """One window."""
    kinds = {"tk": TkKit, "qt": QtKit}
    kit = kinds[sys.argv[1]](dark="dark" in sys.argv[2:])
    folder = next((Path(argument) for argument in sys.argv[2:] if argument != "dark"), None)
    driver = Driver(kit, folder)
    kit.later(BEAT_MS, driver.beat)
    kit.later(STEP_MS, driver.go)
    kit.run()


if __name__ == "__main__":
    main()
