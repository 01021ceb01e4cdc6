# SPDX-License-Identifier: Apache-2.0
"""The chat's loop: read a message, answer it or run a command, until the user leaves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_cpu import memory
from rwkv_cpu.chat.thoughts import THINK_MODES
from rwkv_cpu.errors import ArgumentError, Cancelled, RwkvError
from rwkv_cpu.terminal import commands
from rwkv_cpu.terminal.live import terminal_size
from rwkv_cpu.terminal.prompt import Reader, make_reader
from rwkv_cpu.terminal.screen import Screen
from rwkv_cpu.terminal.streaming import stream
from rwkv_cpu.terminal.typeahead import TypeAhead
from rwkv_cpu.terminal.view import LiveView, fitted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.chat import Answer, Chat
    from rwkv_cpu.generation.loop import Stats
    from rwkv_cpu.model import Model

__all__ = ["THOUGHTS", "Session", "run_chat", "speed_line"]

THOUGHTS = ("fold", "show", "hide")


class Session:
    """One run of the chat: what its commands work on."""

    def __init__(self, model: Model, chat: Chat, screen: Screen, *, show_stats: bool = False) -> None:
        self.reader: Reader | None = None
        self.thoughts = "fold"
        self.model = model
        self.chat = chat
        self.screen = screen
        self.show_stats = show_stats
        self.failed = False
        self._last: Stats | None = None
        self._file: Path | None = None

    def loop(self, reader: Reader) -> None:
        """Serve *reader* to its end.

        Raises:
            Cancelled: Ctrl-C during an answer, with nobody at a terminal to go on.
            KeyboardInterrupt: Ctrl-C twice during an answer, or while a pipe is read.
        """
        self.reader = reader
        while True:
            try:
                line = reader.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.screen.interactive:
                    raise
                if not reader.typed:
                    self.screen.note("Ctrl-D leaves, /help lists what else there is.")
                    self.screen.blank()
                continue
            if not line.strip():
                continue
            try:
                self.serve(line)
            except commands.Leave:
                return
            except Cancelled:
                raise
            except (RwkvError, OSError, MemoryError, ValueError) as error:  # no command may cost the conversation
                if isinstance(error, BrokenPipeError):
                    raise
                self.failed = True
                self.screen.error(_text_of(error), getattr(error, "hint", ""))
            self.screen.blank()

    def serve(self, line: str) -> None:
        """Run one command, or send one message."""
        found = commands.find(line, strict=self.screen.interactive)
        if found is not None:
            entry, argument = found
            entry.run(self, argument)
        else:
            self.answer(lambda cancel, progress: self.chat.send(line, cancel=cancel, on_progress=progress))

    def answer(self, start: Callable[[CancelToken, Callable[[int, int], None]], Answer]) -> None:
        """Show the answer that *start* begins, until its end or Ctrl-C."""
        source = None if self.reader is None else self.reader.source
        typing = TypeAhead(source) if source is not None else None
        n_before = self.chat.n_tokens
        view = self.screen.view(typing, thoughts=self.thoughts, status=lambda n: self._context(n_before + n))

        def begin(cancel: CancelToken, progress: Callable[[int, int], None]) -> Answer:
            view.answer = start(cancel, progress)
            return view.answer

        with view:
            if isinstance(view, LiveView):
                answer = stream(
                    begin, view.show, pieces=lambda made: made.pieces(), progress=view.progress, tick=view.tick
                )
            else:
                answer = stream(begin, view.show, pieces=lambda made: made.pieces())
            view.end()
        self._close(answer)

    def status(self) -> str:
        """The line below the prompt."""
        speed = [] if self._last is None else [f"{self._last.tokens_per_second:.1f} tokens/s"]
        where = [f"session {self.chat.session}"] if self.chat.session else []
        branch = [f"branch {self.chat.branch}"] if len(self.chat.branches) > 1 else []
        parts = [*speed, *self._context(self.chat.n_tokens), *where, *branch]
        return fitted(parts, terminal_size()[0] - 1)

    def _context(self, n_tokens: int) -> list[str]:
        """What does not grow with the conversation, beside what does."""
        tokens = f"{n_tokens:,} token{'' if n_tokens == 1 else 's'} of context"
        return [tokens, "memory: constant", f"state {memory.human_bytes(self.model.state_bytes)}"]

    def _close(self, answer: Answer) -> None:
        if self.screen.interactive:
            remark = _remark(answer)
            if remark:
                self.screen.note(remark)
        elif answer.finish_reason == "cancelled":
            raise Cancelled
        if answer.stats is not None:
            self._last = answer.stats
            if self.show_stats:
                self.screen.note(f"[{speed_line(answer.stats)}, {memory.human_bytes(memory.resident_bytes())}]")

    def file(self, argument: str) -> Path:
        """The file a command names; without a name the conversation's own."""
        if argument:
            return Path(argument).expanduser()
        if self._file is None:
            raise ArgumentError("which file? Give its name", hint="for example /save talk.json")
        return self._file

    def belongs_to(self, file: Path) -> None:
        """The conversation was saved to or loaded from *file*."""
        self._file = file

    def settings(self) -> dict[str, Any]:
        """What /set shows and changes."""
        params = {k: v for k, v in asdict(self.chat.params).items() if isinstance(v, (int, float)) or v is None}
        return {
            **params,
            "max_tokens": self.chat.max_tokens,
            "threads": self.model.threads,
            "think": self.chat.think or "default",
            "thoughts": self.thoughts,
        }

    def change(self, name: str, value: str) -> None:
        """Set one of settings() from text.

        Raises:
            ArgumentError: not a value it can have.
        """
        if name == "seed" and value.lower() in ("random", "none", "off"):
            self.chat.params = self.chat.params_with({"seed": None})
            return
        if name == "think":
            modes = {mode or "default": mode for mode in THINK_MODES}
            if value not in modes:
                raise ArgumentError(f"think takes {', '.join(modes)}, not {value!r}")
            self.chat.think = modes[value]
            return
        if name == "thoughts":
            if value not in THOUGHTS:
                raise ArgumentError(f"thoughts takes {', '.join(THOUGHTS)}, not {value!r}")
            self.thoughts = value
            return
        whole = name in ("seed", "top_k", "max_tokens", "threads")
        try:
            number = int(value) if whole else float(value)
        except ValueError:
            raise ArgumentError(f"{name} takes a {'whole ' if whole else ''}number, not {value!r}") from None
        if name in ("max_tokens", "threads") and not 1 <= number <= 1_000_000:
            raise ArgumentError(f"{name} must be at least 1, and is {value}")
        if name == "max_tokens":
            self.chat.max_tokens = int(number)
        elif name == "threads":
            self.model.threads = int(number)
        else:
            self.chat.params = self.chat.params_with({name: number})

    def statistics(self) -> list[tuple[str, str]]:
        """What /stats shows."""
        human = memory.human_bytes
        rows = [("last answer", speed_line(self._last))] if self._last is not None else []
        n = len(self.chat.turns)
        return [
            *rows,
            ("conversation", f"{n} turn{'' if n == 1 else 's'}, {self.chat.n_tokens} tokens"),
            (
                "memory",
                f"{human(memory.resident_bytes())}, of it up to {human(self.model.weight_bytes)} mapped weights",
            ),
            ("state", f"{human(self.model.state_bytes)}, whatever the length of the conversation"),
            ("engine", f"{self.model.isa}, {self.model.threads} threads"),
        ]


def run_chat(
    model: Model,
    chat: Chat,
    *,
    show_stats: bool,
    history: bool,
    greeting: list[str],
    file: str | None = None,
    plain: bool = False,
    theme: str = "auto",
) -> int:
    """Chat until the user leaves.

    Args:
        model: open.
        chat: of that model.
        show_stats: print speed and memory after each answer.
        history: keep messages for the next run.
        greeting: paragraphs to begin with, shown to people only; the first is the headline.
        file: where the conversation was loaded from.
        plain, theme: as Screen takes them.

    Returns:
        Exit code: 1 if something in piped input failed.
    """
    screen = Screen(plain=plain, theme=theme)
    if screen.interactive:
        screen.say(greeting[0], "bold")
        for line in greeting[1:]:
            screen.note(line)
    names = [(c.name, c.help) for c in commands.COMMANDS]
    fancy = screen.interactive and screen.fancy
    session = Session(model, chat, screen, show_stats=show_stats)
    reader = make_reader(
        fancy=fancy,
        colours=screen.colours,
        commands=names,
        history=history,
        status=None if screen.painter is None else session.status,
    )
    if screen.interactive:
        _resume(chat, screen, reader)
        screen.blank()
    if file is not None:
        session.belongs_to(Path(file))
    session.loop(reader)
    return 1 if session.failed and not screen.interactive else 0


def _resume(chat: Chat, screen: Screen, reader: Reader) -> None:
    """Where a session was left: its last turn, and a question that was not answered."""
    turns = chat.turns
    if turns:
        screen.blank()
        screen.note(f"{len(turns)} turn{'' if len(turns) == 1 else 's'} so far; /show shows them. The last one:")
        screen.blank()
        screen.say(f"> {turns[-1].user}", "cyan")
        screen.markdown(turns[-1].text)
    if chat.unanswered is not None:
        text, turn = chat.unanswered
        screen.blank()
        screen.note("The last question was not answered. Enter asks it again:")
        is_edit = turn < chat.n_turns
        reader.offer(f"/edit {turn + 1} {text}" if is_edit else text)


def _remark(answer: Answer) -> str:
    """What a person should know about how an answer ended; "" if it just ended."""
    if answer.finish_reason == "cancelled":
        return "(stopped)" if answer.text else "(stopped before the first word: not sent)"
    if not answer.text:
        return "(no answer; /retry asks again)"
    if answer.finish_reason == "length":
        return f"(stopped after {len(answer.tokens)} tokens; /set max_tokens N allows more)"
    return ""


def speed_line(stats: Stats) -> str:
    """One line of figures about an answer."""
    speed = stats.tokens_per_second
    return (
        f"{stats.generated_tokens} tokens at {speed:.{1 if speed < 100 else 0}f}/s, "
        f"{stats.prompt_tokens} read in {_duration(stats.prefill_seconds)}, "
        f"first after {_duration(stats.first_token_seconds)}"
    )


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _text_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or type(error).__name__
