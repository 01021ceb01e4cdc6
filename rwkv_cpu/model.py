# SPDX-License-Identifier: Apache-2.0
"""A model: opened, run, closed."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast, overload

import numpy as np

from . import engine
from .computing import Computing
from .errors import ArgumentError, Cancelled, ModelClosedError, StateError, TokenError
from .modelfile import ModelFile
from .preload import Preloader
from .scheduler import Job, Scheduler
from .state import State, StateLayout
from .tokenizer import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from .asynchronous import AsyncSteps
    from .cancel import CancelToken
    from .chat.conversation import Chat
    from .config import ModelConfig
    from .generation.loop import Reply
    from .generation.sampling import SamplingParams
    from .generation.score import Score
    from .generation.speculative import Workshop
    from .generation.structured import Grammar
    from .prefix_cache import PrefixCache
    from .tokenizer.base import Tokenizer

__all__ = ["Model"]

Tokens = "Sequence[int] | NDArray[np.integer[Any]]"
Progress = "Callable[[int, int], None]"

_PROGRESS_SECONDS = 0.03

_open_models: weakref.WeakSet[Model] = weakref.WeakSet()


class Model:
    """An open model. Threads may share it: what they ask for at the same time is computed together.

    ``Model.load("demo")`` opens the bundled model, a .rwkv file or a checkpoint. Weights are mapped, not read: several
    processes share them. Use it as a context manager, or close() it.

    Attributes:
        path: the .rwkv file that is open. metadata: what the file says about its origin.
        config: sizes. tokenizer: None if the file has none. chat_template: bytes of the file's template, or None.
        prefix_cache: None, or a PrefixCache for generate() and chats to use.
    """

    prefix_cache: PrefixCache | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        isa: str | None = None,
        preload: bool = False,
        low_priority: bool = False,
    ) -> None:
        """Open the .rwkv file at *path*; Model.load also takes names and checkpoints."""
        self._lock = threading.RLock()
        self._computing = Computing(threads, isa, low_priority=low_priority)
        self._file: ModelFile | None = None
        self._preloader: Preloader | None = None
        file = ModelFile(os.fspath(path))
        try:
            self._engine = engine.OpenModel(file.buffer, str(file.path))
        except BaseException:
            file.close()
            raise
        self._file = file
        try:
            self._bind(file)
            self._computing.context()
            self.low_priority = low_priority
            if preload:
                self._preloader = Preloader(file)
        except BaseException:
            self.close()
            raise
        _open_models.add(self)

    def _bind(self, file: ModelFile) -> None:
        self.path: Path = file.path
        self.metadata: Mapping[str, str] = file.metadata
        self.config: ModelConfig = self._engine.config.public()
        self._layout = StateLayout.of(self._engine)
        self._scheduler = Scheduler(self._engine.token_bytes, self.config.n_vocab)
        template = self._engine.bytes_of("chat_template")
        self.chat_template: bytes | None = None if template is None else bytes(template)
        self._tokenizer: Tokenizer | None = None
        self._workshop: Workshop | None = None
        self._tokenizer_kind = next(
            (kind for kind in KINDS if self._engine.bytes_of(f"tokenizer.{kind}") is not None),
            None,
        )

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str] = "demo",
        *,
        format: str | None = None,  # noqa: A002  its name everywhere
        threads: int | None = None,
        embedded: bool = False,
        low_priority: bool = False,
        isa: str | None = None,
        preload: bool = False,
        lora: str | os.PathLike[str] | None = None,
        lora_alpha: float | None = None,
        pissa_init: str | os.PathLike[str] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> Model:
        """Open "demo", a .rwkv file, or a checkpoint, which is converted first, into the user's cache.

        Args:
            format: of a converted checkpoint: "q8" (the default), "q6", "q5", "q4", "f16" or "f32" (exact).
            threads: None: one per physical core that this process may use, or what set_default_threads() says.
            embedded: in a program with a window: one thread less than that, at least 1, which leaves it a core.
            low_priority: let other programs and the rest of this one go first, see low_priority.
            isa: None: the best, or what RWKV_CPU_ISA says.
            preload: map the weights' pages in the background, behind everything else, so that the first forward finds
                them there; close() ends it. Without it that forward maps, or reads from the disk, what it needs.
            lora: an adapter to merge into a checkpoint, with lora_alpha or pissa_init as quantize() takes them.
            on_progress: called with (bytes done, bytes in all) while converting. cancel: stops that.

        Raises: ModelNotFoundError, FormatError, UnsupportedModelError, ShapeError, NonFiniteError, OutOfMemory,
            Cancelled.
        """
        from .loading import Adapter, resolve

        if lora is None and (lora_alpha is not None or pissa_init is not None):
            raise ArgumentError("lora_alpha and pissa_init belong to an adapter, and none is given", hint="Give lora.")
        init = None if pissa_init is None else Path(pissa_init)
        adapter = None if lora is None else Adapter(Path(lora), lora_alpha, init)
        path = resolve(name_or_path, format=format, adapter=adapter, on_progress=on_progress, cancel=cancel)
        if embedded and threads is None:
            threads = max(1, engine.default_threads() - 1)
        return cls(path, threads=threads, isa=isa, preload=preload, low_priority=low_priority)

    # ------------------------------------------------------------------------------------- about it

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer. Raises ArgumentError if it has none (a model for token ids only)."""
        with self._lock:
            if self._tokenizer is None:
                if self._tokenizer_kind is None:
                    raise ArgumentError(
                        f"{self.path}: this model file has no tokenizer",
                        hint="Convert the checkpoint with --tokenizer FILE, or work with token ids.",
                    )
                from .tokenizer import from_bytes

                data = self._opened().bytes_of(f"tokenizer.{self._tokenizer_kind}") or b""
                self._tokenizer = from_bytes(self._tokenizer_kind, bytes(data))
            return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file has a tokenizer."""
        return self._tokenizer_kind is not None

    @property
    def workshop(self) -> Workshop:
        """What answers with drafts share (rwkv_cpu.generation.speculative)."""
        from .generation.speculative import Workshop

        with self._lock:
            if self._workshop is None:
                self._workshop = Workshop(self)
            return self._workshop

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary: token ids are 0..n_vocab - 1."""
        return self.config.n_vocab

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._running().isa

    @property
    def threads(self) -> int:
        """Threads that compute; may be set at any time (None: the default), and holds from the next pass on. The bits
        stay the same.
        """
        self._mapped()
        return self._computing.threads

    @threads.setter
    def threads(self, threads: int | None) -> None:
        self._mapped()
        self._computing.threads = threads

    @property
    def low_priority(self) -> bool:
        """Whether other programs, and the other threads of this one, go first; may be set at any time, and holds from
        the next pass on.

        Then all that is computed is computed in threads of the engine, whose priority is lowered: nice + 10 on Linux,
        the quality of service "utility" on macOS, "below normal" on Windows. The thread that called waits meanwhile;
        the host's own threads stay as they are.
        """
        return self._computing.low_priority

    @low_priority.setter
    def low_priority(self, low_priority: bool) -> None:
        self._mapped()
        self._computing.low_priority = self._scheduler.lowered = bool(low_priority)

    @property
    def weight_bytes(self) -> int:
        """Size of the mapped file."""
        return self._mapped().info.size_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that one decoded token reads when no zero is skipped."""
        return self._opened().token_bytes

    @property
    def state_bytes(self) -> int:
        """Size of a state, whatever the length of the text."""
        return self._layout.floats * 4

    @property
    def scratch_bytes(self) -> int:
        """Working memory held now; bounded by the chunk, not by the prompt."""
        return self._running().scratch_bytes

    def tensors(self) -> list[engine.TensorInfo]:
        """Every tensor of the file."""
        return self._opened().tensors()

    @property
    def context(self) -> engine.Context:
        """The engine's context, for measurements."""
        return self._running()

    def preload(
        self, *, on_progress: Callable[[int, int], None] | None = None, cancel: CancelToken | None = None
    ) -> bool:
        """Read and map all weights now, so that no later call waits for the disk.

        Args:
            on_progress: called with (bytes done, bytes in all), about 30 times a second.
            cancel: ends it within milliseconds.

        Returns: False if the file is larger than the free memory: then nothing is done.
        Raises: Cancelled, ModelClosedError.
        """
        if cancel is not None and cancel.cancelled:
            raise Cancelled
        with self._lock:
            file = self._mapped()
            if self._preloader is not None:
                self._preloader.stop()
            preloader = self._preloader = Preloader(file, awaited=True)
        size, running = file.info.size_bytes, True
        try:
            if cancel is not None:
                cancel.link(preloader.ask_to_stop)
            while running:  # the end is told too, however soon it comes
                preloader.wait(_PROGRESS_SECONDS)
                running = preloader.running
                if on_progress is not None:
                    on_progress(preloader.done_bytes, size)
        finally:
            if cancel is not None:
                cancel.unlink(preloader.ask_to_stop)
            preloader.stop()
        if cancel is not None and cancel.cancelled:
            raise Cancelled
        self._mapped()
        return preloader.done_bytes == size

    # ------------------------------------------------------------------------------------- running

    def new_state(self) -> State:
        """The state before the first token."""
        data = self._layout.block()
        self._opened().init_state(data)
        return State(self._layout, data)

    def state_from_bytes(self, data: bytes, where: str = "the state") -> State:
        """The state whose State.to_bytes() *data* is; *where* stands in errors. Raises: as load_state()."""
        return State.from_bytes(data, self._layout, where)

    def load_state(self, path: str | os.PathLike[str]) -> State:
        """A state that State.save wrote, or a starting state of state tuning (a .pth or .st file with time_state).

        Raises: FormatError: no state file. StateError: of another model, or damaged. RwkvError: cannot be read.
        """
        from .checkpoint.tuned_state import is_tuned_state, read_tuned_state

        self._opened()
        path = Path(path)
        try:
            tuned = path.is_file() and is_tuned_state(path)
        except (OSError, ValueError):  # State.load says what is wrong with it
            tuned = False
        if not tuned:
            return State.load(path, self._layout)
        state = self.new_state()
        wkv = state.parts().get("wkv")
        if wkv is None:
            raise StateError(f"{path}: {self.config.name} has no state that can be tuned")
        wkv[...] = read_tuned_state(path, self.config.n_layer, self.config.n_head, self.config.head_size)
        state.begin_here()
        return state

    @overload
    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        state: State | None = None,
        *,
        logits: Literal["last", "all"] = "last",
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[NDArray[np.float32], State]: ...
    @overload
    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        state: State | None = None,
        *,
        logits: Literal["none"],
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[None, State]: ...
    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        state: State | None = None,
        *,
        logits: engine.LogitsChoice = "last",
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[NDArray[np.float32] | None, State]:
        """Run *tokens* from *state* (a new one if None); the given state is not changed.

        Args:
            tokens: ids in 0..n_vocab - 1, shape [T], T ≥ 1.
            logits: "last" → [V], "all" → [T, V], "none" → None.
            progress: called with (tokens done, T) after each chunk.
        Returns: (logits f32, natural-log scale, unnormalised; the state after the last token). Time O(T), memory
            independent of T but for the logits.
        Raises: TokenError naming the position, StateError, Cancelled, NonFiniteError, OutOfMemory.
        Source: RWKV-7, arXiv:2503.14456.
        """
        found, states = self.forward_batch([tokens], [state], logits=logits, cancel=cancel, progress=progress)
        return found[0], states[0]

    def forward_batch(
        self,
        tokens: Sequence[Sequence[int] | NDArray[np.integer[Any]]],
        states: Sequence[State | None] | None = None,
        *,
        logits: engine.LogitsChoice = "last",
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[list[NDArray[np.float32] | None], list[State]]:
        """forward() of several independent sequences, of any lengths, in one call that reads the weights once a chunk.

        Every sequence gives the same bits as it would alone.
        """
        _check_logits(logits)
        states = [None] * len(tokens) if states is None else states
        _check_batch(tokens, states)
        jobs = [
            Job(
                self._ids(ids),
                logits,
                State(self._layout, self._layout.block()),
                fresh=True,
                source=None if state is None else self._own(state),
            )
            for ids, state in zip(tokens, states, strict=True)
        ]
        self._run(jobs, cancel, progress)
        return [job.found for job in jobs], [job.state for job in jobs]

    @overload
    def advance(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        state: State,
        *,
        logits: Literal["last", "all"] = "last",
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def advance(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        state: State,
        *,
        logits: Literal["none"],
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None: ...
    def advance(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        state: State,
        *,
        logits: engine.LogitsChoice = "last",
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32] | None:
        """forward() that moves *state* on in place, without a copy: what generation uses.

        Raises: as forward(). After Cancelled the state stands behind the last finished chunk (error.n_done tokens on);
            after any other error it is as it was.
        """
        return self.advance_batch([tokens], [state], logits=logits, cancel=cancel, progress=progress)[0]

    def advance_batch(
        self,
        tokens: Sequence[Sequence[int] | NDArray[np.integer[Any]]],
        states: Sequence[State],
        *,
        logits: engine.LogitsChoice = "last",
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[NDArray[np.float32] | None]:
        """advance() of several independent sequences in one call that reads the weights once a chunk: the same bits,
        and no new memory, which forward_batch() takes for a state of each.

        Raises: as advance(). After Cancelled each state stands behind its own last finished chunk.
        """
        _check_logits(logits)
        _check_batch(tokens, states)
        jobs = [Job(self._ids(ids), logits, self._own(state)) for ids, state in zip(tokens, states, strict=True)]
        self._run(jobs, cancel, progress)
        return [job.found for job in jobs]

    def look_ahead(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        state: State,
        states: NDArray[np.float32],
        *,
        cancel: CancelToken | None = None,
    ) -> NDArray[np.float32]:
        """Logits f32 [T, V] after each of a few *tokens*, in one pass; *state* stays where it is.

        Args:
            states: f32 [T, state_bytes / 4], receives the numbers of the state after each token.
        """
        job = Job(self._ids(tokens), "all", self._own(state), every_state=states)
        self._run([job], cancel, None)
        return cast("NDArray[np.float32]", job.found)

    def hidden_states(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        state: State,
        *,
        cancel: CancelToken | None = None,
    ) -> NDArray[np.float32]:
        """Move *state* on by *tokens*; f32 [T, n_embd]: what the head would multiply after each of them."""
        ids = self._ids(tokens)
        job = Job(ids, "none", self._own(state), hidden=np.empty((len(ids), self.config.n_embd), np.float32))
        self._run([job], cancel, None)
        return cast("NDArray[np.float32]", job.hidden)

    def _run(self, jobs: list[Job], cancel: CancelToken | None, progress: Callable[[int, int], None] | None) -> None:
        self._opened()
        self._scheduler.run(jobs, self._forward, cancel=cancel, progress=progress)

    def _forward(
        self, runs: Sequence[engine.SequenceRun], *, cancel: Any, out: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        self._mapped()
        return self._computing.fitting().forward(self._opened(), runs, cancel=cancel, out=out)

    def _ids(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
        if type(tokens) is list and len(tokens) == 1 and type(tokens[0]) is int and 0 <= tokens[0] < self.n_vocab:
            return np.array(tokens, np.uint32)  # a step of decoding, without what an array costs to look at
        try:
            ids = np.asarray(tokens)
        except ValueError:  # lists of unequal lengths
            ids = np.empty((0, 0), np.int64)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            what = "no tokens" if ids.size == 0 else f"{ids.dtype} of shape {list(ids.shape)}"
            raise TokenError(f"{what}: expected a list of token ids", hint="Encode text with model.tokenizer.encode.")
        wrong = np.flatnonzero((ids < 0) | (ids >= self.n_vocab))
        if wrong.size:
            at = int(wrong[0])
            raise TokenError(
                f"token {int(ids[at])} at position {at}: the vocabulary has {self.n_vocab}",
                hint="Encode text with the model's own tokenizer.",
            )
        return np.array(ids, np.uint32)  # a copy: the caller may change what he gave

    def _own(self, state: State) -> State:
        if not isinstance(state, State):
            raise StateError(f"{type(state).__name__}: expected a State", hint="Make one with model.new_state().")
        if state.layout.floats != self._layout.floats or state.layout.fingerprint != self._layout.fingerprint:
            raise StateError("this state belongs to another model", hint="Make one with model.new_state().")
        return state

    # -------------------------------------------------------------------------- generation and chat

    def generate(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        state: State | None = None,
        params: SamplingParams | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] | str = (),
        logprobs: bool = False,
        top_logprobs: int = 0,
        grammar: Grammar | None = None,
        speculative: bool = True,
        draft_model: Model | None = None,
        cancel: CancelToken | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **sampling: Any,
    ) -> Reply:
        """Continue *prompt* (text, or token ids); iterate over the Reply for pieces of text as they come.

        Args:
            state: to continue from; moved on in place. None: a new one. With an empty prompt, generation goes on
                from the state's own logits, as after load_state().
            params: how to sample; keywords change single settings, which SamplingParams lists: temperature, seed, ...
            logprobs, top_logprobs: collect log-probabilities in the Reply: of each token, of so many likeliest ones.
            grammar: the form of the reply: Grammar.json_schema(...), Grammar.regex(...) and others.
            speculative, draft_model: whether to check drafts of several tokens in one pass, and a smaller model of the
                same vocabulary to write them. The reply stays the same, token for token.
            stop: texts that end the reply and are not part of it. on_progress: (prompt tokens done, all of them).

        Source: rwkv_cpu.generation.loop.
        """
        from .generation.loop import DEFAULT_MAX_TOKENS, generate
        from .generation.sampling import SamplingParams

        chosen = (SamplingParams() if params is None else params).replace(**sampling)
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, (str, bytes)) else list(prompt)
        return generate(
            self,
            self.new_state() if state is None else self._own(state),
            ids,
            chosen,
            logits=state.logits if state is not None and not ids else None,
            max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
            stop=(stop,) if isinstance(stop, str) else stop,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            grammar=grammar,
            speculative=speculative,
            draft_model=draft_model,
            cancel=cancel,
            on_progress=on_progress,
            prefix_cache=self.prefix_cache,
        )

    def agenerate(
        self, prompt: str | bytes | Sequence[int], *, cancel: CancelToken | None = None, **options: Any
    ) -> AsyncSteps[str]:
        """generate() for asyncio: ``async for piece in model.agenerate("Once upon a time"): ...``. Cancelling the task
        stops it. Arguments as generate().
        """
        from .asynchronous import AsyncSteps
        from .cancel import CancelToken

        token = CancelToken() if cancel is None else cancel
        return AsyncSteps(self.generate(prompt, cancel=token, **options), token.cancel)

    def score(self, text: str | bytes | Sequence[int], **options: Any) -> Score:
        """How likely each token of *text* is: ``model.score("Hi").total``. Options: of rwkv_cpu.generation.score()."""
        from .generation.score import score

        return score(self, text, **options)

    def embed(self, text: str | bytes | Sequence[int], **options: Any) -> NDArray[np.float32]:
        """A vector for *text*, f32 [n_embd] (experimental). Options: of rwkv_cpu.generation.embed()."""
        from .generation.score import embed

        return embed(self, text, **options)

    def create_completion(self, prompt: str | Sequence[int], **options: Any) -> Any:
        """generate() with the arguments and dictionaries of OpenAI and llama-cpp-python; stream=True: an iterator of
        chunks. See rwkv_cpu.compat.completions.
        """
        from .compat.completions import create_completion

        return create_completion(self, prompt, **options)

    def create_chat_completion(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """The same for a list of messages. See rwkv_cpu.compat.chat_completions."""
        from .compat.chat_completions import create_chat_completion

        return create_chat_completion(self, messages, **options)

    def chat(self, system: str | None = None, **options: Any) -> Chat:
        """A conversation: ``for piece in chat.send("Hello"): ...``. Options: of rwkv_cpu.chat.Chat."""
        from .chat.conversation import Chat

        return Chat(self, system, **options)

    # ------------------------------------------------------------------------------------- its end

    def close(self) -> None:
        """Free threads, scratch memory and the mapping. Later calls raise ModelClosedError, and so do those that other
        threads are in the middle of; their states stay valid.

        Raises: Busy: in a progress callback.
        """
        self._scheduler.close(self._closed_error)
        with self._lock:
            self._computing.close()
            self._workshop = None
            if self._preloader is not None:
                self._preloader.stop()
                self._preloader = None
            if self._file is not None:
                self._engine.close()
                self._file.close()
                self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # At the end of the interpreter modules are gone already, and so will be the memory.
        at_end = sys is None or sys.is_finalizing()
        if not at_end and getattr(self, "_file", None) is not None and getattr(self, "_engine", None) is not None:
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Model cannot be copied or pickled: load it again, or share it")

    def __repr__(self) -> str:
        c = self.config
        return f"<Model {self.path.name}: {c.name}, {c.n_layer} layers of {c.n_embd}>"

    def _mapped(self) -> ModelFile:
        if self._file is None:
            raise self._closed_error()
        return self._file

    def _closed_error(self) -> ModelClosedError:
        return ModelClosedError(f"{self.path}: the model is closed")

    def _opened(self) -> engine.OpenModel:
        self._mapped()
        return self._engine

    def _running(self) -> engine.Context:
        self._mapped()
        return self._computing.context()

    def _after_fork(self) -> None:
        """In a child of fork(): the threads stayed in the parent, another thread may have held the lock."""
        self._lock = threading.RLock()
        self._scheduler = Scheduler(self._engine.token_bytes, self.config.n_vocab)
        self._scheduler.lowered = self._computing.low_priority
        self._computing.forget()


def _check_batch(tokens: Sequence[object], states: Sequence[object]) -> None:
    if len(states) != len(tokens) or not tokens:
        raise ArgumentError(f"{len(tokens)} sequences and {len(states)} states")


def _check_logits(choice: str) -> None:
    if choice not in ("last", "all", "none"):
        raise ArgumentError(f"logits={choice!r}: choose 'last', 'all' or 'none'")


def _after_fork_in_child() -> None:
    for model in list(_open_models):
        model._after_fork()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
