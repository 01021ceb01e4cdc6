# SPDX-License-Identifier: Apache-2.0
"""Jinja chat templates, as GGUF files and Hugging Face's tokenizer_config.json bring them.

They come with a stranger's model, so they run in jinja2's sandbox: no attributes of Python's own, no changes to what
they are given, and a limit to the length of what they write.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import ArgumentError, FormatError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template

__all__ = ["Message", "render", "stops_of", "writes_world"]

Message = dict[str, str]

_MAX_CHARACTERS = 200_000
_LLAMA_CPP_NAME = "rwkv-world"
_SAMPLE = (
    {"role": "user", "content": "Question one"},
    {"role": "assistant", "content": "Answer one"},
    {"role": "user", "content": "Question two"},
)
_SAMPLE_TEXT = "User: Question one\n\nAssistant: Answer one\n\nUser: Question two\n\nAssistant:"
# The World tokenizer has these as ids, not as text; a conversation begins and ends without them.
_WORLD_MARKS = ("<|rwkv_tokenizer_end_of_text|>", "<|endoftext|>")


def render(text: str, messages: Sequence[Message], *, prompt: bool = True) -> str:
    """What the template *text* writes for *messages* ({"role": "system" | "user" | "assistant", "content": …}).

    Args:
        prompt: with the beginning of the assistant's next answer.

    Raises:
        UnsupportedModelError: jinja2 is not installed.
        FormatError: the template is wrong, or does what the sandbox forbids. ArgumentError: it refuses the messages.
    """
    template = _compiled(text)

    from jinja2.exceptions import SecurityError, TemplateError

    try:
        written = "".join(_limited(template, messages, prompt=prompt))
    except (SecurityError, RecursionError, MemoryError, OverflowError) as error:
        raise FormatError(f"the chat template does what it must not: {error}") from error
    except ArgumentError:
        raise
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise FormatError(f"the chat template cannot write this conversation: {error}") from error
    for mark in _WORLD_MARKS:
        written = written.replace(mark, "")
    return written


def writes_world(text: str) -> bool:
    """Whether the template *text* writes what ChatTemplate's own fields do."""
    if text.strip() == _LLAMA_CPP_NAME:
        return True
    if "User" not in text or "Assistant" not in text:
        return False
    try:
        return render(text, _SAMPLE).strip() == _SAMPLE_TEXT
    except UnsupportedModelError:  # it has the words, and there is nothing to see more with
        return True
    except (FormatError, ArgumentError):
        return False


def stops_of(text: str) -> tuple[str, ...]:
    """What ends an answer: the text that the template writes between an answer and the next question."""
    try:
        written = render(text, _SAMPLE, prompt=False)
        between = written.partition("Answer one")[2].partition("Question two")[0].rstrip()
    except (FormatError, ArgumentError):
        return ()
    if between.strip() == "":
        return ()
    # "<|im_end|>\n<|im_start|>user": the mark alone ends it. "\n\nUser:": a blank line alone may be the text's.
    mark = between.split("\n")[0]
    return (mark if mark.strip() else between,)


def _limited(template: Template, messages: Sequence[Message], *, prompt: bool) -> list[str]:
    """The text in parts, with a limit to it."""
    parts, size = [], 0
    limit = _MAX_CHARACTERS + 10 * sum(len(message["content"]) for message in messages)
    for part in template.generate(
        messages=[dict(message) for message in messages],
        add_generation_prompt=prompt,
        bos_token="",
        eos_token="",
        tools=None,
    ):
        size += len(part)
        if size > limit:
            raise FormatError("the chat template writes without end")
        parts.append(part)
    return parts


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> Template:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UnsupportedModelError(
            "this model brings a Jinja chat template, and jinja2 is not installed",
            hint="pip install 'rwkv-cpu[jinja]', or choose a built-in template: --template world",
        ) from None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)  # what Hugging Face's templates expect
    environment.filters["tojson"] = _json
    try:
        return environment.from_string(text)
    except (TemplateError, RecursionError) as error:
        raise FormatError(f"the chat template is no Jinja: {error}") from error


def _refuse(reason: object) -> None:
    raise ArgumentError(f"the chat template refuses this conversation: {reason}")


def _now(pattern: str) -> str:
    return dt.datetime.now().astimezone().strftime(pattern)


def _json(value: Any, indent: int | None = None, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
