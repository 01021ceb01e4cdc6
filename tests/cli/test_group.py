# SPDX-License-Identifier: Apache-2.0
"""The command line around the commands: help, suggestions, exit codes, errors."""

from __future__ import annotations

import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from rwkv_cpu import errors
from rwkv_cpu._version import __version__
from rwkv_cpu.cli import COMMANDS, _errors, main


def run(*args, **kwargs):
    return CliRunner().invoke(main, list(args), **kwargs)


def test_without_arguments_it_says_what_to_try_first():
    result = run()
    assert result.exit_code == 0
    assert "rwkv-cpu chat " in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command(option):
    result = run(option)
    assert result.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert name in result.stdout
        assert line in result.stdout


def test_kernels_are_measured_without_a_model():
    result = run("bench", "model.rwkv", "--kernels")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "rwkv-cpu: error: --kernels measures no model"


def test_version_is_the_packages():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"rwkv-cpu {__version__}\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("caht", "rwkv-cpu chat`"),
        ("quantise", "rwkv-cpu quantize`"),
        ("x.pth", "chat x.pth`"),
        ("model.rwkv", "chat model.rwkv`"),
    ],
)
def test_a_wrong_command_gets_the_nearest_one(typed, meant):
    result = run(typed)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Did you mean" in result.stderr
    assert meant in result.stderr


def test_a_wrong_option_is_a_usage_error_in_two_lines():
    result = run("--verson")
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert first.startswith("rwkv-cpu: error: ")
    assert second.startswith("hint: ")


@pytest.mark.parametrize("args", [["generate", "-p"], ["generate", "--nope"], ["chat", "--top-p", "x"]])
def test_the_hint_names_the_command(args):
    result = run(*args)
    assert result.exit_code == 2
    assert f"rwkv-cpu {args[0]} --help" in result.stderr.splitlines()[1]


def test_help_imports_no_command_and_nothing_heavy():
    code = (
        "import sys\n"
        "from rwkv_cpu.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'rich', 'prompt_toolkit', 'sentencepiece', 'rwkv_cpu._engine', 'rwkv_cpu.cli.chat'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_module_and_checkout_scripts_are_the_same_command():
    done = subprocess.run([sys.executable, "-m", "rwkv_cpu", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"rwkv-cpu {__version__}\n"


def ending(error):
    def command():
        raise error

    return _errors.run(command)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.FormatError("x.pth: bad", hint="give another"), 1, "error: x.pth: bad\nhint: give another\n"),
        (errors.OutOfMemory("no memory for 3 GB"), 1, "error: no memory for 3 GB\n"),
        (MemoryError(), 1, "error: out of memory\nhint: "),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), 1, "a.txt: No such file\nhint: Check the path"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), 1, "d: Is a directory\nhint: This is a directory"),
        (click.UsageError("no such thing"), 2, "error: no such thing\nhint: "),
        (_errors.CommandFailed("it is broken", hint="mend it"), 1, "error: it is broken\nhint: mend it\n"),
        (KeyboardInterrupt(), 130, ""),
        (errors.Cancelled(), 130, ""),
        (click.Abort(), 130, ""),
        (ZeroDivisionError("oh"), 1, "error: unexpected ZeroDivisionError: oh\nhint: this is a bug"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
    ],
)  # fmt: skip
def test_every_error_has_its_exit_code_and_its_line(error, code, text, capsys):
    assert ending(error) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert (captured.err == "") == (text == "")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-n", "x"), "'--max-tokens' / '-n': 'x' is not a whole number.\n"),
        (("--temp", "hot"), "'--temperature' / '--temp': 'hot' is not a number.\n"),
    ],
)
def test_a_word_where_a_number_is_wanted(rwkv, words, said):
    done = rwkv("generate", "-p", "x", *words)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "--text", "{}/none"),
        ("eval", "--text", "{}"),
        ("eval", "--text", "{}/binary"),
        ("eval", "--text", "{}/text", "--plot", "{}/none/x.png"),
        ("compare", "demo", "demo", "-f", "{}/none"),
        ("generate", "-f", "{}"),
        ("info", "/dev/null"),
    ],
)
def test_every_wrong_file_comes_with_a_hint(rwkv, tmp_path, words):
    (tmp_path / "binary").write_bytes(b"PNG\0\0")
    (tmp_path / "text").write_text("Some words.")
    done = rwkv(*(word.format(tmp_path) for word in words))
    assert done.returncode == 1
    first, hint = done.stderr.splitlines()
    assert first.startswith("rwkv-cpu: error: ")
    assert hint.startswith("hint: ")


def test_an_error_of_several_lines_becomes_one(capsys):
    ending(errors.RwkvError("first\nsecond"))
    assert capsys.readouterr().err == "rwkv-cpu: error: first second\n"


def test_debug_shows_the_traceback(capsys):
    def command():
        raise errors.FormatError("bad")

    assert _errors.run(command, debug=lambda: True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly():
    done = subprocess.run(
        f"{sys.executable} -m rwkv_cpu --help | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_standard_streams_are_no_reason_to_fail(closed):
    done = subprocess.run(
        f"{sys.executable} -m rwkv_cpu --help {closed}", shell=True, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
