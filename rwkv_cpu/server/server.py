# SPDX-License-Identifier: Apache-2.0
"""The server: takes requests as they come, runs them side by side, and ends when its client does.

One thread reads. It answers what needs no computation itself, in order, and gives every other request a thread; they
share the model, whose scheduler computes together what they ask for. One thread writes. A request waits while a client
does not read what it wrote (channel.Outbox); the reader waits much longer, and then takes the client for gone.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import Busy
from rwkv_cpu.server import chats, methods  # noqa: F401 (they enter themselves into METHODS)
from rwkv_cpu.server.channel import ClientGoneError, Outbox, TooLong, lines_of
from rwkv_cpu.server.protocol import (
    INVALID_REQUEST,
    MAX_BATCH,
    MAX_LINE_BYTES,
    METHOD_NOT_FOUND,
    ProtocolError,
    Request,
    encode,
    error_of,
    parse_line,
    parse_request,
)
from rwkv_cpu.server.registry import METHODS, Call, method
from rwkv_cpu.server.shapes import either, flag, number, record, text, unknown_name
from rwkv_cpu.server.workspace import LoadOptions, Workspace

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from rwkv_cpu.cancel import CancelToken

    Respond: TypeAlias = Callable[[dict[str, Any]], None]
    _Key: TypeAlias = Any

__all__ = ["Server"]

_log = logging.getLogger("rwkv_cpu")
# How long the reader waits for a client that sends but does not read.
_PATIENCE_SECONDS = 30.0
# At the end: for requests to stop, and for their responses to be read.
_STOP_SECONDS = 5.0
_DRAIN_SECONDS = 1.0
# Windows: a wait without end cannot be interrupted by Ctrl-C.
_WAIT_SECONDS = 0.25 if sys.platform == "win32" else None

_ID = either(text(), number(), about="id of a request")


@method(
    "cancel",
    "End a request under way; it is answered as usual. The notification $/cancelRequest does the same.",
    quick=True,
    required={"id": _ID},
    result=record({"cancelled": flag("false: no such request is running (any more)")}),
)
@method("$/cancelRequest", "As cancel.", quick=True, required={"id": _ID}, result=record({"cancelled": flag()}))
def _cancel(call: Call) -> dict[str, Any]:
    return {"cancelled": call.cancel_request(call.params["id"])}


@method("shutdown", "End all requests, then answer this one, then the process.", quick=True, result=record())
def _shutdown(call: Call) -> dict[str, Any]:
    del call
    return {}


class Server:
    """Serves one client.

    Args:
        read: gives at most so many bytes, b"" at the end. write: writes all of its bytes, or raises OSError.
        options: of the command line.
    """

    def __init__(self, read: Callable[[int], bytes], write: Callable[[bytes], None], options: LoadOptions) -> None:
        self._read = read
        self._workspace = Workspace(options)
        self._ended = threading.Event()
        self._outbox = Outbox(write, self._ended.set)
        self._reader = 0  # its thread
        self._changed = threading.Condition()
        self._running: dict[_Key, CancelToken] = {}
        self._n_active = 0
        self._closing = False
        self._goodbyes: list[Callable[[], None]] = []

    def run(self) -> None:
        """Serve until the client goes away or asks to end. Everything is closed then."""
        if self._workspace.options.model is not None:
            self._load_first(self._workspace.options.model)
        threading.Thread(target=self._read_all, name="rwkv-cpu requests", daemon=True).start()
        try:
            while not self._ended.wait(_WAIT_SECONDS):
                pass
        finally:
            self._close()

    def _load_first(self, name: str) -> None:
        """Open the command line's model as if a request with the id null had asked for it, but without a response."""
        request = Request("load", {"model": name})
        token = self._register(object())

        def respond(message: dict[str, Any]) -> None:
            if "error" in message:
                self._workspace.first_error = message["error"]
            self._workspace.first_done.set()

        self._start(request, Call(self._workspace, request.params, {}, token, self._emitter(request)), respond)

    # ------------------------------------------------------------------------------------- reading

    def _read_all(self) -> None:
        self._reader = threading.get_ident()
        try:
            for line in lines_of(self._read, MAX_LINE_BYTES):
                self._take_line(line)
                if self._goodbyes:
                    break
        except (OSError, ValueError, ClientGoneError) as error:
            _log.debug("the client is gone: %r", error)
        except Exception:  # noqa: BLE001 (a thread's last line of defence: the server ends, and says so in the log)
            _log.exception("reading requests failed")
        finally:
            self._ended.set()

    def _take_line(self, line: bytes | TooLong) -> None:
        try:
            if isinstance(line, TooLong):
                raise ProtocolError(
                    INVALID_REQUEST,
                    f"a line is longer than {MAX_LINE_BYTES} bytes",
                    hint="Give long texts in pieces, or as files.",
                )
            value = parse_line(line)
            if isinstance(value, list):
                self._take_batch(value)
            else:
                self._take(_parsed(value), self._send)
        except ProtocolError as error:
            self._send(_failure(None, error))

    def _take_batch(self, values: list[Any]) -> None:
        if not 0 < len(values) <= MAX_BATCH:
            raise ProtocolError(INVALID_REQUEST, f"a batch has from 1 to {MAX_BATCH} requests, not {len(values)}")
        requests = [_parsed(value) for value in values]
        batch = _Batch(self._send, sum(not (isinstance(r, Request) and r.is_notification) for r in requests))
        for request in requests:
            self._take(request, batch.add)

    def _take(self, request: Request | ProtocolError, respond: Respond) -> None:
        """Answer a request, here or in a thread of its own."""
        if isinstance(request, ProtocolError):
            respond(_failure(request.id, request))
            return
        if request.is_notification:
            respond = _nobody
        try:
            found = METHODS.get(request.method)
            if found is None:
                hint = unknown_name(request.method, request.method, METHODS).hint
                raise ProtocolError(METHOD_NOT_FOUND, f"no method {request.method!r}", hint=hint)
            params, sampling = found.divide(request.params)
            key = object() if request.is_notification else _key(request.id)
            token = None if found.quick else self._register(key)
        except Exception as error:  # noqa: BLE001 (the client is told)
            respond(_failure(request.id, error))
            return
        call = Call(self._workspace, params, sampling, token, self._emitter(request), self._cancel)
        if request.method == "shutdown":
            self._goodbyes.append(lambda: respond(_result_of(request, call)))
        elif found.quick:
            respond(_result_of(request, call))
        else:
            self._start(request, call, respond)

    # ------------------------------------------------------------------------------------- running

    def _register(self, key: _Key) -> CancelToken:
        """From now on the request can be cancelled. Raises: Busy, ProtocolError: it cannot be taken."""
        from rwkv_cpu.cancel import CancelToken

        token = CancelToken()
        with self._changed:
            if self._closing:
                raise Busy("the server is ending")
            if self._n_active >= methods.MAX_REQUESTS:
                raise Busy(f"{self._n_active} requests are running", hint="Wait for a response, or cancel one of them.")
            if key in self._running:
                raise ProtocolError(INVALID_REQUEST, "a request with this id is running", hint="Use another id.")
            self._running[key] = token
            self._n_active += 1
        return token

    def _start(self, request: Request, call: Call, respond: Respond) -> None:
        def work() -> None:
            try:
                message = _result_of(request, call)
                with self._changed:  # before the response: then the client may use the id again
                    self._running = {key: token for key, token in self._running.items() if token is not call.cancel}
                respond(message)
            except ClientGoneError:
                pass
            finally:
                with self._changed:
                    self._n_active -= 1
                    self._changed.notify_all()

        threading.Thread(target=work, name=f"rwkv-cpu {request.method}", daemon=True).start()

    def _cancel(self, id: Any) -> bool:  # noqa: A002 (its name)
        with self._changed:
            token = self._running.get(_key(id))
        if token is not None:
            token.cancel()
        return token is not None

    # ------------------------------------------------------------------------------------- writing

    def _send(self, message: Any) -> None:
        in_reader = threading.get_ident() == self._reader
        self._outbox.put(encode(message), _PATIENCE_SECONDS if in_reader else None)

    def _emitter(self, request: Request) -> Callable[..., None]:
        def emit(kind: str, **more: Any) -> None:
            if not request.is_notification:
                params = {"id": request.id, "kind": kind, **more}
                self._send({"jsonrpc": "2.0", "method": "event", "params": params})

        return emit

    # -------------------------------------------------------------------------------------- ending

    def _close(self) -> None:
        with self._changed:
            self._closing = True
            tokens = list(self._running.values())
        for token in tokens:
            token.cancel()
        if not self._wait_for_requests(_DRAIN_SECONDS):
            if not self._outbox.drain(0):  # they wait for a client that does not read
                self._outbox.give_up()
            self._wait_for_requests(_STOP_SECONDS)
        self._workspace.close()
        with suppress(ClientGoneError):
            for goodbye in self._goodbyes:
                goodbye()
        self._outbox.drain(_DRAIN_SECONDS)
        self._outbox.give_up()  # which ends its thread

    def _wait_for_requests(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._n_active == 0, seconds)


class _Batch:
    """Collects the responses of a batch, which are sent together."""

    def __init__(self, send: Callable[[Any], None], n_expected: int) -> None:
        self._send = send
        self._n_expected = n_expected
        self._lock = threading.Lock()
        self._responses: list[dict[str, Any]] = []

    def add(self, message: dict[str, Any]) -> None:
        """A response; the last one sends them all."""
        with self._lock:
            self._responses.append(message)
            if len(self._responses) < self._n_expected:
                return
        self._send(self._responses)


def _parsed(value: Any) -> Request | ProtocolError:
    try:
        return parse_request(value)
    except ProtocolError as error:
        return error


def _result_of(request: Request, call: Call) -> dict[str, Any]:
    """The response to a request, whatever becomes of it."""
    try:
        return {"jsonrpc": "2.0", "id": request.id, "result": METHODS[request.method].run(call)}
    except ClientGoneError:
        raise
    except Exception as error:  # noqa: BLE001 (the client is told)
        _log.debug("%s failed", request.method, exc_info=True)
        return _failure(request.id, error)


def _failure(id: Any, error: BaseException) -> dict[str, Any]:  # noqa: A002 (its name)
    return {"jsonrpc": "2.0", "id": id, "error": error_of(error)}


def _nobody(message: dict[str, Any]) -> None:
    """A notification's response."""
    del message


def _key(id: Any) -> _Key:  # noqa: A002 (its name)
    """Of an id: 1 and "1" are two, 1 and 1.0 are one."""
    return isinstance(id, str), id
