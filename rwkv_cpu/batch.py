# SPDX-License-Identifier: Apache-2.0
"""Many prompts from a file, several at a time: ``rwkv-cpu generate --batch``.

Each line of the input is a JSON object: "prompt" (a text to continue) or "messages" (to answer); "id", to come back;
and options for this line: fields of SamplingParams, max_tokens, stop. Each line of the output is one too: "index" (of
the input line, from 0), "of" (a checksum of it), "id", and "text", "finish_reason", "prompt_tokens" and
"generated_tokens", or "error". Output lines stand in the order in which they were finished, and are written one by one:
a run that was interrupted, however, goes on where it was.
"""

from __future__ import annotations

import json
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.compat.chat_completions import prompt_of
from rwkv_cpu.compat.completions import texts_of
from rwkv_cpu.errors import ArgumentError, ModelClosedError, OutOfMemory, RwkvError
from rwkv_cpu.generation.sampling import SamplingParams

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from typing import BinaryIO

    from rwkv_cpu.model import Model

__all__ = ["BatchProgress", "run_batch"]

_OWN = ("prompt", "messages", "id")
_OPTIONS = ("max_tokens", "stop", *(one.name for one in fields(SamplingParams)))


@dataclass
class BatchProgress:
    """How far it is: lines in all, of which done (earlier runs included) and failed; tokens of this run."""

    total: int
    done: int = 0
    failed: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True)
class _Line:
    index: int
    raw: bytes

    @property
    def checksum(self) -> str:
        return f"{zlib.crc32(self.raw):08x}"


@dataclass
class _Run:
    """What the threads share."""

    model: Model
    options: Mapping[str, Any]
    lines: Iterator[_Line]
    output: BinaryIO
    progress: BatchProgress
    on_progress: Callable[[BatchProgress], None] | None
    cancel: CancelToken
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> None:
        """Answer one line after the other."""
        try:
            while not self.cancel.cancelled:
                with self.lock:
                    line = next(self.lines, None)
                if line is None:
                    return
                result = self._answer(line)
                if result is not None:
                    self._write({"index": line.index, "of": line.checksum, **result})
        except BaseException:
            self.cancel.cancel()  # the others need not go on
            raise

    def _answer(self, line: _Line) -> dict[str, Any] | None:
        """What to write; None if it was cancelled."""
        about: dict[str, Any] = {}
        try:
            request = _parsed(line.raw)
            about = {"id": request["id"]} if "id" in request else {}
            prompt, stops = self._prompt(request)
            options = {**self.options, **_options(request)}
            stops += texts_of(options.pop("stop", None))
            reply = self.model.generate(prompt, stop=stops, cancel=self.cancel, **options)
            reply.read()
        except (ModelClosedError, OutOfMemory):
            raise
        except RwkvError as error:
            return {**about, "error": str(error)}
        if reply.finish_reason == "cancelled":
            return None
        text = reply.text.strip() if "messages" in request else reply.text
        stats = reply.stats
        return {
            **about,
            "text": text,
            "finish_reason": reply.finish_reason,
            "prompt_tokens": stats.prompt_tokens,
            "generated_tokens": stats.generated_tokens,
        }

    def _prompt(self, request: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """The text to continue, and what ends it."""
        if ("prompt" in request) == ("messages" in request):
            raise ArgumentError('the line must have either "prompt" or "messages"')
        if "messages" not in request:
            if not isinstance(request["prompt"], str):
                raise ArgumentError(f"the prompt must be text, not {request['prompt']!r}")
            return request["prompt"], ()
        template = ChatTemplate.from_bytes(self.model.chat_template)
        return prompt_of(template, request["messages"])

    def _write(self, result: dict[str, Any]) -> None:
        data = json.dumps(result, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self.lock:
            self.output.write(data)
            self.output.flush()
            self.progress.done += 1
            self.progress.failed += "error" in result
            self.progress.generated_tokens += result.get("generated_tokens", 0)
            if self.on_progress is not None:
                self.on_progress(self.progress)


def run_batch(
    model: Model,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    parallel: int = 8,
    options: Mapping[str, Any] | None = None,
    on_progress: Callable[[BatchProgress], None] | None = None,
    cancel: CancelToken | None = None,
) -> BatchProgress:
    """Answer every line of *source* that *target* has no answer of yet, and add the answers to it.

    Args:
        parallel: how many are decoded together.
        options: for lines that give none: fields of SamplingParams, max_tokens, stop.
        on_progress: called after each line, in some thread.
        cancel: stops it; answers that were not finished are not written.

    Raises:
        ArgumentError: *target* was made from another file. OSError: a file cannot be read or written.
    """
    if not isinstance(parallel, int) or not 1 <= parallel <= 256:
        raise ArgumentError(f"parallel must be from 1 to 256, not {parallel!r}")
    raw = Path(source).read_bytes().split(b"\n")
    lines = [_Line(i, line.strip()) for i, line in enumerate(raw) if line.strip()]
    progress = BatchProgress(len(lines))
    done = _finished(Path(target), {line.index: line for line in lines}, progress)
    token = CancelToken() if cancel is None else cancel
    with Path(target).open("ab") as output:
        todo = iter([line for line in lines if line.index not in done])
        run = _Run(model, options or {}, todo, output, progress, on_progress, token)
        with ThreadPoolExecutor(parallel, thread_name_prefix="rwkv-cpu batch") as pool:
            workers = [pool.submit(run.work) for _ in range(min(parallel, len(lines) - len(done)))]
        for worker in workers:
            worker.result()
    return progress


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"the line is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ArgumentError("the line is JSON, but no object")
    return found


def _options(request: Mapping[str, Any]) -> dict[str, Any]:
    """A line's own options. Raises: ArgumentError: there is none of that name."""
    found = {name: value for name, value in request.items() if name not in _OWN}
    for name in found:
        if name not in _OPTIONS:
            raise ArgumentError(f"no option {name!r}; a line may have {', '.join((*_OWN, *_OPTIONS))}")
    return found


def _finished(target: Path, lines: Mapping[int, _Line], progress: BatchProgress) -> set[int]:
    """Which lines *target* has answers of. A last line that was cut off is taken away."""
    if not target.exists():
        return set()
    data = target.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    found: set[int] = set()
    for raw in whole.splitlines():
        try:
            result = _parsed(raw)
        except ArgumentError:
            result = {}
        line = lines.get(result.get("index", -1))
        if line is None or result.get("of") != line.checksum:
            raise ArgumentError(
                f"{target}: is there already, and was not made from these lines", hint="Write to another file."
            )
        progress.failed += "error" in result and line.index not in found
        found.add(line.index)
    if len(whole) < len(data):
        with target.open("r+b") as file:
            file.truncate(len(whole))
    progress.done = len(found)
    return found
