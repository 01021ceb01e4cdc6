# SPDX-License-Identifier: Apache-2.0
"""How every command ends: one line on stderr with a hint, and the exit code. Never a traceback, unless asked for.

Exit codes: 0 done · 1 runtime error · 2 wrong use of the command line · 130 interrupted (Ctrl-C).
A reader that goes away early (``| head``) is no error: the command ends quietly with 0.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# What to do about errors of the system, where the command knows nothing better.
_SYSTEM_HINTS = {
    errno.ENOENT: "Check the path; a relative one begins at the working directory.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EISDIR: "This is a directory: name a file.",
    errno.EACCES: "Check its permissions.",
    errno.ENOSPC: "Make room on the disk, or write elsewhere.",
}
# click's words for options that are numbers
_NO_NUMBER = re.compile(r"is not a valid (integer|float)( range)?\.")

_PIPE_ERRORS = (errno.EPIPE, errno.EINVAL)  # EINVAL: Windows' word for a closed pipe


class CommandFailed(click.ClickException):
    """A command's own failure with a hint: exit code 1."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class WrongUse(click.UsageError):
    """A wrong command line, with a hint of its own: exit code 2."""

    def __init__(self, message: str, ctx: click.Context | None = None, *, hint: str = "") -> None:
        super().__init__(message, ctx)
        self.hint = hint


def report(message: str, hint: str = "", *, label: str = "error") -> None:
    """Write "rwkv-cpu: error: message" and "hint: …" to stderr; silent where there is no stderr."""
    text = f"rwkv-cpu: {label}: {_one_line(message)}\n"
    if hint:
        text += f"hint: {_one_line(hint)}\n"
    _write(sys.stderr, text)


def warn(message: str, hint: str = "") -> None:
    """The same as a warning; the command goes on."""
    report(message, hint, label="warning")


def run(command: Callable[[], object], *, debug: Callable[[], bool] = lambda: False) -> int:
    """Call *command* and turn whatever ends it into an exit code, with its text on stderr.

    Args:
        command: called without arguments; its result is ignored.
        debug: asked after a failure whether the traceback is wanted too.
    """
    prepare_streams()
    try:
        code = _run(command, debug)
        _flush(sys.stdout)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError as error:
        if not _is_closed_pipe(error):
            _report_os_error(error)
            code = EXIT_ERROR
        else:
            _forget_stdout()
            code = EXIT_OK
    return code


def _run(command: Callable[[], object], debug: Callable[[], bool]) -> int:
    from rwkv_cpu.errors import Cancelled, RwkvError

    try:
        command()
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt, Cancelled):
        return EXIT_INTERRUPTED
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "rwkv-cpu"
        hint = getattr(error, "hint", "") or f"{where} --help lists what it takes"
        report(_NO_NUMBER.sub(_no_number, error.format_message()), hint)
        return EXIT_USAGE
    except CommandFailed as error:
        report(error.message, error.hint)
    except click.ClickException as error:
        report(error.format_message())
        return error.exit_code
    except RwkvError as error:
        _debug_traceback(debug)
        report(str(error) or type(error).__name__, error.hint)
    except MemoryError as error:
        _debug_traceback(debug)
        report(str(error) or "out of memory", "close other programs, or use a smaller model or format (--format q8)")
    except OSError as error:
        if _is_closed_pipe(error):
            raise
        _debug_traceback(debug)
        _report_os_error(error)
    except RecursionError:
        _debug_traceback(debug)
        report("the input is nested too deeply")
    except Exception as error:  # noqa: BLE001 (the last line of defence: a user never sees a traceback unasked)
        _debug_traceback(debug)
        report(
            f"unexpected {type(error).__name__}: {error}",
            "this is a bug in rwkv-cpu; run the command again as `rwkv-cpu --debug …` and report what it prints",
        )
    else:
        return EXIT_OK
    return EXIT_ERROR


def prepare_streams() -> None:
    """Make the standard streams usable whatever the host handed over.

    A character that the terminal's encoding lacks becomes "?", not an exception; a stream that was closed before
    the start (``>&-``) or does not exist (a windowed program) becomes the null device.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _null_device("r" if name == "stdin" else "w"))
        elif hasattr(stream, "reconfigure"):
            # An in-memory or detached stream has nothing to reconfigure.
            # Windows gives pipes and files its old code page, and other programs expect UTF-8 there as elsewhere.
            utf8 = {"encoding": "utf-8"} if os.name == "nt" and not stream.isatty() else {}
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="replace", **utf8)


def _null_device(mode: str) -> TextIO:
    return Path(os.devnull).open(mode, encoding="utf-8")  # type: ignore[return-value]


def _report_os_error(error: OSError) -> None:
    reason = error.strerror or str(error) or type(error).__name__
    text = f"{error.filename}: {reason}" if error.filename is not None else reason
    report(text, _SYSTEM_HINTS.get(error.errno or 0, ""))


def _no_number(found: re.Match[str]) -> str:
    return "is not a whole number." if found[1] == "integer" else "is not a number."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_closed_pipe(error: OSError) -> bool:
    return isinstance(error, BrokenPipeError) or (error.errno in _PIPE_ERRORS and error.filename is None)


def _forget_stdout() -> None:
    """Point stdout at the null device, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush(stream: TextIO | None) -> None:
    if stream is not None and not stream.closed:
        stream.flush()


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None or stream.closed:
        return
    # Nobody is left to hear about an error in reporting an error.
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def _debug_traceback(debug: Callable[[], bool]) -> None:
    if debug():
        import traceback

        _write(sys.stderr, traceback.format_exc())
