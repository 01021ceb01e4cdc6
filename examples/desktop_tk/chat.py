# SPDX-License-Identifier: Apache-2.0
"""A chat window with Python's standard library and rwkv_cpu alone.

    python examples/desktop_tk/chat.py [MODEL]

rwkv_cpu.desktop.Desk does everything that takes time; this file shows it. Click a question of yours to edit it.
"""

from __future__ import annotations

import sys
import tkinter as tk
from collections.abc import Callable
from tkinter import messagebox, simpledialog, ttk
from tkinter.font import Font, families, nametofont

from rwkv_cpu.chat import Chat
from rwkv_cpu.chat.sessions import list_sessions
from rwkv_cpu.desktop import POLL_MS, Desk, DeskEvent, last_session, model_choices, new_session, progress_of, status_of
from rwkv_cpu.errors import RwkvError

LIGHT = {
    "window": "#ffffff", "side": "#f1f3f6", "text": "#1c1e21", "dim": "#6b7280", "field": "#f6f7f9", "line": "#d9dde4",
    "user": "#e3ecfd", "accent": "#2f6fed", "chosen": "#dbe5f8",
}  # fmt: skip
DARK = {
    "window": "#1d1f24", "side": "#16181c", "text": "#e6e8ed", "dim": "#949baa", "field": "#282b33", "line": "#383c47",
    "user": "#27406f", "accent": "#3d78ea", "chosen": "#2b3347",
}  # fmt: skip
FONTS = ("Inter", "Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans")


class Window(tk.Tk):
    """Conversations on the left, the chosen one on the right."""

    def __init__(self, model: str = "demo", *, dark: bool = False) -> None:
        super().__init__(className="rwkv-cpu-chat")
        self.title("rwkv_cpu")
        self.geometry("980x680")
        self.minsize(620, 400)
        self.desk, self.dark = Desk(), dark
        family = next((name for name in FONTS if name in families(self)), nametofont("TkDefaultFont").actual("family"))
        self.font = Font(family=family, size=11)
        for name in ("TkDefaultFont", "TkTextFont", "TkMenuFont"):
            nametofont(name).configure(family=family, size=10)
        self.style = ttk.Style(self)
        self.style.theme_use("clam")
        self.build_side()
        self.build_talk()
        self.paint()
        self.protocol("WM_DELETE_WINDOW", self.leave)
        self.load(model)

    @property
    def chat(self) -> Chat:
        if self.desk.chat is None:
            raise RwkvError("No model is loaded yet.")
        return self.desk.chat

    # ------------------------------------------------------------------------------------ the window

    def build_side(self) -> None:
        side = ttk.Frame(self, style="Side.TFrame", padding=(14, 16))
        side.pack(side="left", fill="y")
        ttk.Button(side, text="+  New chat", command=self.new, style="Accent.TButton").pack(fill="x")
        self.talks = tk.Listbox(side, width=24, borderwidth=0, highlightthickness=0, activestyle="none", font=self.font)
        self.talks.configure(exportselection=False)
        self.talks.pack(fill="both", expand=True, pady=14)
        self.talks.bind("<<ListboxSelect>>", lambda _: self.choose())
        ttk.Label(side, text="Model, and memory it needs", style="Side.TLabel").pack(anchor="w")
        self.choices = model_choices()
        self.models = ttk.Combobox(side, state="readonly", values=[choice.label for choice in self.choices], width=22)
        self.models.pack(fill="x", pady=(6, 12))
        self.models.bind("<<ComboboxSelected>>", lambda _: self.load(self.choices[self.models.current()].name))
        ttk.Button(side, text="Light / dark", command=self.turn).pack(fill="x")

    def build_talk(self) -> None:
        main = ttk.Frame(self)
        main.pack(side="left", fill="both", expand=True)
        bottom = ttk.Frame(main, padding=(18, 8, 18, 6))
        bottom.pack(side="bottom", fill="x")
        bar = ttk.Frame(bottom)
        bar.pack(fill="x", pady=(0, 10))
        acts = {"Undo": self.undo, "Retry": self.retry, "Branch": self.branch}
        self.buttons = {name: ttk.Button(bar, text=name, width=0, command=act) for name, act in acts.items()}
        for button in self.buttons.values():
            button.pack(side="left", padx=(0, 6))
        self.branches = ttk.Combobox(bar, state="readonly", width=10)
        self.branches.bind("<<ComboboxSelected>>", lambda _: self.act(lambda: self.chat.switch(self.branches.get())))
        self.branches.pack(side="left")
        self.progress = ttk.Progressbar(bottom, maximum=1.0)
        self.progress.pack(fill="x", pady=(0, 10))
        row = ttk.Frame(bottom)
        row.pack(fill="x")
        self.entry = tk.Text(row, height=3, width=20, wrap="word", font=self.font, borderwidth=0, padx=12, pady=9)
        self.entry.configure(highlightthickness=1, undo=True)
        self.entry.pack(side="left", fill="x", expand=True)
        self.entry.bind("<Return>", self.enter)
        self.event_delete("<<LineStart>>", "<Control-a>")
        self.event_add("<<SelectAll>>", "<Control-a>")
        self.entry.bind("<Escape>", lambda _: self.desk.cancel())
        self.go = ttk.Button(row, text="Send", command=self.send_or_stop, style="Accent.TButton", width=7)
        self.go.pack(side="left", fill="y", padx=(10, 0))
        self.status = ttk.Label(bottom, style="Dim.TLabel", anchor="e")
        self.status.pack(fill="x", pady=(6, 0))
        scroll = ttk.Scrollbar(main)
        scroll.pack(side="right", fill="y")
        self.talk = tk.Text(main, wrap="word", font=self.font, borderwidth=0, highlightthickness=0, state="disabled")
        self.talk.configure(padx=18, pady=12, cursor="arrow", yscrollcommand=scroll.set, spacing2=3)
        self.talk.pack(fill="both", expand=True)
        scroll.configure(command=self.talk.yview)
        self.talk.tag_configure("user", lmargin1=16, lmargin2=16, rmargin=16, spacing1=10, spacing3=10)
        self.talk.tag_configure("answer", lmargin1=16, lmargin2=16, rmargin=16, spacing1=5, spacing3=5)
        self.talk.tag_configure("gap", font=(self.font.actual("family"), 5))
        self.talk.tag_configure("note", justify="center", spacing1=90)
        self.entry.focus_set()

    def paint(self) -> None:
        c = DARK if self.dark else LIGHT
        self.configure(background=c["window"])
        self.talks.configure(background=c["side"], foreground=c["text"])
        self.talks.configure(selectbackground=c["chosen"], selectforeground=c["text"])
        for text, back in ((self.talk, "window"), (self.entry, "field")):
            text.configure(background=c[back], foreground=c["text"], insertbackground=c["text"])
            text.configure(highlightbackground=c["line"], highlightcolor=c["accent"], selectbackground=c["accent"])
        self.talk.tag_configure("user", background=c["user"], lmargincolor=c["user"], rmargincolor=c["user"])
        self.talk.tag_configure("note", foreground=c["dim"])
        set_style, set_map = self.style.configure, self.style.map
        edges = {"bordercolor": c["line"], "lightcolor": c["field"], "darkcolor": c["field"]}
        set_style(".", background=c["window"], foreground=c["text"], fieldbackground=c["field"], **edges)
        set_style("Side.TFrame", background=c["side"])
        set_style("Side.TLabel", background=c["side"], foreground=c["dim"])
        set_style("Dim.TLabel", foreground=c["dim"])
        set_style("TButton", background=c["field"], padding=(10, 6), focuscolor=c["field"])
        set_map("TButton", background=[("active", c["chosen"])], foreground=[("disabled", c["dim"])])
        accent = dict.fromkeys(("background", "focuscolor", *edges), c["accent"])
        set_style("Accent.TButton", foreground="#ffffff", **accent)
        set_map("Accent.TButton", background=[("active", c["accent"])], foreground=[("disabled", "#ffffff")])
        set_style("TCombobox", arrowcolor=c["text"], background=c["field"], padding=5)
        shown = {"fieldbackground": c["field"], "foreground": c["text"], "selectbackground": c["field"]}
        set_map("TCombobox", selectforeground=[("", c["text"])], **{k: [("", v)] for k, v in shown.items()})
        set_style("TScrollbar", troughcolor=c["window"], background=c["line"], bordercolor=c["window"], gripcount=0)
        set_map("TScrollbar", background=[("disabled", c["window"])], arrowcolor=[("", c["window"])])
        set_style("TProgressbar", troughcolor=c["window"], background=c["accent"], thickness=3, borderwidth=0)
        set_style("TProgressbar", **dict.fromkeys(edges, c["window"]))
        for option, colour in (("background", "field"), ("foreground", "text"), ("selectBackground", "chosen")):
            self.option_add(f"*TCombobox*Listbox.{option}", c[colour])

    def turn(self) -> None:
        self.dark = not self.dark
        self.paint()

    # ------------------------------------------------------------------------------ the conversation

    def refresh(self) -> None:
        self.clear()
        if not self.desk.chat:
            self.append("No model is loaded. Choose one on the left.", "note")
            return
        for i, turn in enumerate(self.chat.turns):
            self.show_question(turn.user, i)
            self.append(f"{turn.text}\n", "answer")
            self.append("\n", "gap")
        if not self.chat.turns:
            self.append("Ask something. Everything stays on this computer.", "note")
        self.talk.yview_moveto(1)
        self.branches.configure(values=list(self.chat.branches))
        self.branches.set(self.chat.branch)
        self.names = [talk.name for talk in list_sessions()]
        self.talks.delete(0, "end")
        self.talks.insert("end", *(f" {name}" for name in self.names))
        if self.chat.session in self.names:
            self.talks.selection_set(self.names.index(self.chat.session))

    def clear(self) -> None:
        self.talk.configure(state="normal")
        self.talk.delete("1.0", "end")
        self.talk.configure(state="disabled")

    def show_question(self, text: str, i: int) -> None:
        """A question that a click edits."""
        tag = f"question {i}"
        self.talk.tag_bind(tag, "<Button-1>", lambda _: self.edit(i))
        self.append(f"{text}\n", "user", tag)
        self.append("\n", "gap")

    def append(self, text: str, *tags: str) -> None:
        """Below; the view follows if it was at the end."""
        at_end = self.talk.yview()[1] > 0.99
        self.talk.configure(state="normal")
        self.talk.insert("end", text, tags)
        self.talk.configure(state="disabled")
        if at_end:
            self.talk.yview_moveto(1)

    def pump(self) -> None:
        """What happened since the last time; again in a moment, while something is going on."""
        for event in self.desk.poll():
            self.show(event)
        busy = self.desk.busy
        self.go.configure(text="Stop" if busy else "Send")
        for button in self.buttons.values():
            button.configure(state="disabled" if busy or not self.desk.chat else "normal")
        if busy:
            self.after(POLL_MS, self.pump)

    def show(self, event: DeskEvent) -> None:
        self.progress.configure(value=progress_of(event) or 0)
        self.status.configure(text="" if event.kind == "failed" and event.hint else status_of(event))
        if event.kind == "text":
            self.append(event.text, "answer")
        elif event.kind == "done":
            self.refresh()
        elif event.kind == "ready":
            name = self.desk.model.path.stem
            self.models.set(next((choice.label for choice in self.choices if choice.name == name), name))
            self.title(f"{self.chat.session} – rwkv_cpu")
            self.refresh()
        elif event.kind == "failed":
            self.refresh()
            if event.hint:  # when the buttons say already that nothing is going on
                self.after_idle(lambda: messagebox.showerror("rwkv_cpu", event.message, detail=event.hint, parent=self))

    # ---------------------------------------------------------------------------------- what users do

    def act(self, what: Callable[[], object]) -> None:
        """Do something that takes no time; show what came of it, or why it could not be done."""
        try:
            what()
            if not self.desk.busy and self.desk.chat:
                self.refresh()
        except RwkvError as error:
            self.status.configure(text=str(error))
        self.pump()

    def load(self, name: str) -> None:
        session = self.desk.chat.session if self.desk.chat else last_session()
        self.act(lambda: self.desk.load(name, session=session))

    def new(self) -> None:
        self.act(lambda: self.desk.open(new_session()))

    def choose(self) -> None:
        chosen = self.talks.curselection()
        if chosen and self.names[chosen[0]] != self.chat.session:
            self.act(lambda: self.desk.open(self.names[chosen[0]]))

    def enter(self, event: tk.Event[tk.Text]) -> str | None:
        """Return sends, with Shift it begins a line."""
        if event.state & 1:
            return None
        if not self.desk.busy:
            self.send_or_stop()
        return "break"

    def send_or_stop(self) -> None:
        text = self.entry.get("1.0", "end").strip()
        if self.desk.busy:
            self.desk.cancel()
        elif text and self.desk.chat:
            if not self.chat.turns:
                self.clear()
            self.entry.delete("1.0", "end")
            self.talk.yview_moveto(1)
            self.show_question(text, self.chat.n_turns)
            self.act(lambda: self.desk.send(text))

    def undo(self) -> None:
        """Take the last question back, into the entry."""
        taken = self.chat.turns[-1:]
        self.act(lambda: taken and self.chat.undo())
        if taken:
            self.entry.insert("1.0", taken[0].user)

    def retry(self) -> None:
        self.act(self.desk.retry)

    def edit(self, i: int) -> None:
        """Change a question; the conversation as it was stays as a branch."""
        if self.desk.busy:
            return
        before = self.chat.turns[i].user
        text = simpledialog.askstring("Edit", "The question instead:", initialvalue=before, parent=self)
        if text and text != before:
            self.act(lambda: self.desk.edit(i, text))

    def branch(self) -> None:
        """Go on under another name; the branch left behind stays as it is."""
        self.act(lambda: self.chat.start_branch(f"branch {len(self.chat.branches) + 1}"))

    def leave(self) -> None:
        """Stop what is going on; everything is written down already."""
        self.desk.close()
        self.destroy()


if __name__ == "__main__":
    Window(*sys.argv[1:2]).mainloop()
