# SPDX-License-Identifier: Apache-2.0
"""chat.py without its window: what `make freeze` freezes to see that a frozen program works.

    python examples/desktop_tk/headless.py ANSWER.json [MODEL ...]

Asks each model a question, as the window does, and writes what came of it. It may have no console: nothing is printed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rwkv_cpu.desktop import POLL_MS, Desk, DeskEvent, last_session, model_choices, status_of


def events(desk: Desk) -> list[DeskEvent]:
    """Poll as a window does until nothing is going on."""
    found: list[DeskEvent] = []
    while desk.busy:
        time.sleep(POLL_MS / 1000)
        found += desk.poll()
    return found


def ask(name: str, question: str) -> dict[str, object]:
    """Load a model, open the conversation used last, ask."""
    desk = Desk()
    desk.load(name, session=last_session(), chat_options={"temperature": 0})
    loaded = events(desk)
    if desk.chat is None:
        return {"model": name, "error": status_of(loaded[-1])}
    desk.send(question)
    answered = events(desk)
    told = {"model": name, "answer": desk.chat.turns[-1].text, "status": status_of(answered[-1])}
    desk.close()
    return told


def main() -> int:
    """0 if every model answered."""
    target, *names = sys.argv[1:] or ["answer.json"]
    found = [ask(name, "My name is Ada.") for name in names or ["demo"]]
    about = {"choices": [choice.label for choice in model_choices()], "console": sys.stdout is not None}
    Path(target).write_text(json.dumps({**about, "asked": found}, ensure_ascii=False, indent=1), "utf-8")
    return 0 if all(one.get("answer") for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
