# SPDX-License-Identifier: Apache-2.0
"""The generation loop: read a prompt, then choose, show and read one token after the other."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, cast

from rwkv_cpu.errors import ArgumentError, Busy, Cancelled
from rwkv_cpu.generation.sampling import MAX_TOP_LOGPROBS, SamplingParams, make_sampler
from rwkv_cpu.generation.speculative import Drafts
from rwkv_cpu.generation.stop import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from typing import Literal

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.sampling import Sampler
    from rwkv_cpu.generation.structured import Grammar, Matcher
    from rwkv_cpu.model import Model
    from rwkv_cpu.prefix_cache import PrefixCache
    from rwkv_cpu.state import State

    FinishReason = Literal["stop", "end", "length", "cancelled"]

__all__ = ["DEFAULT_MAX_TOKENS", "Reply", "Stats", "generate"]

DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True)
class Stats:
    """Figures of a reply. Time that the caller spends between pieces of text does not count.

    Attributes:
        prompt_tokens: given to read.
        generated_tokens: chosen, the end of the text not counted.
        decode_steps: generated tokens that the model read.
        prefill_seconds: reading the prompt.
        decode_seconds: the model's and the sampler's time after the first token was chosen.
        first_token_seconds: from the start until the first token was chosen; 0.0 before.
        drafted_tokens: tokens of drafts that were checked (rwkv_cpu.generation.speculative).
        accepted_tokens: those that were right.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Speed of generation; 0.0 if there was no step."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds > 0 else 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed of reading the prompt; 0.0 if there was none."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0


class Reply:
    """Text that a model is writing: iterate it for pieces as they come. Made by generate() or Model.generate().

    Nothing is computed before the first piece is asked for. close(), leaving a ``with`` block and the CancelToken all
    end it; the state is valid after every token. An error of the model is raised by every further use of the iterator.

    What the state has read: the prompt, then ``tokens[:consumed_tokens]``. The token chosen last is not read when
    generation stops, as its own logits are not needed; neither is the end-of-text token, which is not in ``tokens``.
    Tokens before the last may belong to a stop string already: where that matters, compare decode_bytes() of the
    consumed tokens with ``text``.

    Attributes:
        tokens: ids chosen so far, those of a stop string included.
        logprobs: natural logarithm of each one's probability, before all settings; empty unless asked for.
        top_logprobs: for each one, the likeliest ids at its place with their logprobs, best first (none with logprobs
            alone); empty unless one of the two is asked for.
        finish_reason: None while it runs; "end" (end of text, or of what the grammar allows), "stop" (a stop string),
            "length" (max_tokens) or "cancelled".
        stop: the stop string that ended it, else None. It is not part of the text.
        state: the model's state, advanced in place.
        seed: gives the same reply again, in SamplingParams.
    """

    def __init__(
        self,
        *,
        model: Model,
        state: State,
        prompt: list[int],
        logits: NDArray[np.float32] | None,
        sampler: Sampler,
        max_tokens: int | None,
        stops: StopMatcher,
        end_ids: frozenset[int],
        with_logprobs: bool,
        n_top: int = 0,
        matcher: Matcher | None = None,
        drafts: Drafts | None = None,
        history: Sequence[int] | NDArray[np.uint32] = (),
        cancel: CancelToken | None,
        on_progress: Callable[[int, int], None] | None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[list[tuple[int, float]]] = []
        self.finish_reason: FinishReason | None = None
        self.state = state
        self.seed = sampler.seed
        self._model = model
        self._prompt = prompt
        self._logits = logits
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._stops = stops
        self._end_ids = end_ids
        self._with_logprobs = with_logprobs
        self._n_top = n_top
        self._matcher = matcher
        self._drafts = drafts
        self._history = history
        self._cancel = cancel
        self._on_progress = on_progress
        self._prefix_cache = prefix_cache
        self._tokens_before = state.n_tokens
        self._decoder = model.tokenizer.stream(continuing=True)
        self._text: list[str] = []
        self._decode_steps = 0
        self._prefill_seconds = self._decode_seconds = self._first_token_seconds = 0.0
        self._pieces = self._run()
        self._error: Exception | None = None

    @property
    def text(self) -> str:
        """The text so far: all the pieces."""
        return "".join(self._text)

    @property
    def stop(self) -> str | None:
        """The stop string that ended the reply."""
        return self._stops.matched

    @property
    def consumed_tokens(self) -> int:
        """How many of ``tokens`` the state has read."""
        return max(0, self.state.n_tokens - self._tokens_before - len(self._prompt))

    @property
    def consumed_prompt_tokens(self) -> int:
        """How many tokens of the prompt the state has read: fewer than all only if it was cancelled then."""
        return min(self.state.n_tokens - self._tokens_before, len(self._prompt))

    @property
    def stats(self) -> Stats:
        """Figures up to now."""
        return Stats(
            prompt_tokens=len(self._prompt),
            generated_tokens=len(self.tokens),
            decode_steps=self._decode_steps,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            first_token_seconds=self._first_token_seconds,
            drafted_tokens=0 if self._drafts is None else self._drafts.drafted,
            accepted_tokens=0 if self._drafts is None else self._drafts.accepted,
        )

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration:
            if self._error is not None:  # it never came to an end: saying so once is easily missed
                raise self._error from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read(self, on_text: Callable[[str], object] | None = None) -> str:
        """Run to the end and return the whole text.

        Args:
            on_text: called with every piece; returning False ends the reply.
        """
        for piece in self:
            if on_text is not None and on_text(piece) is False:
                self.close()
        return self.text

    def close(self) -> None:
        """End the reply here. Harmless if it ended already."""
        try:
            self._pieces.close()
        except ValueError:  # the generator is running
            raise Busy("this is running in another thread", hint="Stop it with a CancelToken.") from None
        if self.finish_reason is None:
            self.finish_reason = "cancelled"

    def _run(self) -> Generator[str, None, None]:
        try:
            yield from self._generate()
        except Cancelled:
            self.finish_reason = "cancelled"
        except Exception as error:
            self._error = error
            raise
        except BaseException:
            # Ctrl-C, or close(): the reply ends here all the same.
            if self.finish_reason is None:
                self.finish_reason = "cancelled"
            raise
        finally:
            if self._drafts is not None:
                self._drafts.end()
        if self.finish_reason == "stop":
            return
        tail = self._stops.feed(self._decoder.flush()) + self._stops.flush()
        if tail:
            self._text.append(tail)
            yield tail

    def _generate(self) -> Iterator[str]:
        logits: NDArray[np.float32] | None = self._read_prompt()
        for before in (self._history, self._prompt):
            self._sampler.observe(before)
            if self._drafts is not None and len(before):
                self._drafts.begin(before)
        self._history = ()
        if self._max_tokens == 0:
            self.finish_reason = "length"
        while self.finish_reason is None:
            # None: a draft went wrong, and its last check chose the next token already.
            piece = "" if logits is None else self._choose(logits)
            if self.finish_reason is None:
                if piece:
                    self._text.append(piece)
                    yield piece
                    piece = ""
                draft = self._draft()
                if draft:
                    piece, logits = self._check(draft)
                else:
                    logits = self._read_last()
            if piece:
                self._text.append(piece)
                yield piece

    def _read_prompt(self) -> NDArray[np.float32]:
        self._check_cancelled()
        if not self._prompt:
            return cast("NDArray[np.float32]", self._logits)
        started = perf_counter()
        try:
            if self._prefix_cache is not None:
                return self._prefix_cache.advance(
                    self._model, self._prompt, self.state, cancel=self._cancel, progress=self._on_progress
                )
            return self._advance(self._prompt, self._on_progress)
        finally:
            self._prefill_seconds = perf_counter() - started

    def _read_last(self) -> NDArray[np.float32]:
        self._check_cancelled()
        started = perf_counter()
        logits = self._advance(self.tokens[-1:], None)
        seconds = perf_counter() - started
        if self._drafts is not None:
            self._drafts.note_pass(seconds)
        self._decode_steps += 1
        self._decode_seconds += seconds
        return logits

    def _draft(self) -> list[int]:
        """What probably comes next, to be checked in one pass; [] if that does not pay."""
        if self._drafts is None:
            return []
        started = perf_counter()
        room = None if self._max_tokens is None else self._max_tokens - len(self.tokens) - 1
        draft = self._drafts.propose(self._sampler, room, self._cancel)
        if self._matcher is not None and draft:
            draft = self._matcher.valid_part(draft)
        self._decode_seconds += perf_counter() - started
        return draft

    def _check(self, draft: list[int]) -> tuple[str, NDArray[np.float32] | None]:
        """Read the last token and the *draft* in one pass, as far as the text really goes that way.

        Returns: (the text this lets through; the logits after the draft if all of it was right, else None: the token in
            place of the first wrong one is chosen).
        """
        self._check_cancelled()
        drafts = cast("Drafts", self._drafts)
        started = perf_counter()
        ahead = drafts.check(self.tokens[-1], draft, self.state, self._cancel)
        self._decode_seconds += perf_counter() - started
        piece, n_right = "", 0
        try:
            while n_right < len(draft):
                piece += self._choose(ahead.logits[n_right])
                if self.finish_reason is not None or self.tokens[-1] != draft[n_right]:
                    break
                n_right += 1
        finally:
            started = perf_counter()
            # A token that ends the answer is not read, right or wrong.
            n_read = 1 + n_right
            ahead.keep(n_read)
            self._decode_steps += n_read
            self._decode_seconds += perf_counter() - started
        drafts.learn(len(draft), n_right)
        return piece, ahead.logits[-1] if n_right == len(draft) else None

    def _choose(self, logits: NDArray[np.float32]) -> str:
        """Choose a token; the text it lets through. Sets finish_reason if it is the last."""
        started = perf_counter()
        allowed = None if self._matcher is None else self._matcher.allowed()
        if self._with_logprobs:
            token, logprob = self._sampler.sample_with_logprob(logits, allowed)
        else:
            token, logprob = self._sampler.sample(logits, allowed), 0.0
        if (self._with_logprobs or self._n_top) and token not in self._end_ids:
            self.top_logprobs.append(self._sampler.top_logprobs(logits, self._n_top) if self._n_top else [])
        piece = self._take(token, logprob)
        seconds = perf_counter() - started
        if self._first_token_seconds == 0:
            self._first_token_seconds = self._prefill_seconds + seconds
        else:
            self._decode_seconds += seconds
        return piece

    def _take(self, token: int, logprob: float) -> str:
        if token in self._end_ids:
            self.finish_reason = "end"
            return ""
        self._sampler.accept(token)
        self.tokens.append(token)
        if self._drafts is not None:
            self._drafts.note_token(token)
        if self._matcher is not None:
            self._matcher.accept(token)
        if self._with_logprobs:
            self.logprobs.append(logprob)
        piece = self._stops.feed(self._decoder.step(token))
        if self._stops.matched is not None:
            self.finish_reason = "stop"
        elif self._matcher is not None and self._matcher.finished:
            self.finish_reason = "end"
        elif len(self.tokens) == self._max_tokens:
            self.finish_reason = "length"
        return piece

    def _advance(self, tokens: list[int], progress: Callable[[int, int], None] | None) -> NDArray[np.float32]:
        return self._model.advance(tokens, self.state, logits="last", cancel=self._cancel, progress=progress)

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.cancelled:
            raise Cancelled


def generate(
    model: Model,
    state: State,
    prompt: Sequence[int],
    params: SamplingParams | None = None,
    *,
    max_tokens: int | None = DEFAULT_MAX_TOKENS,
    stop: str | Iterable[str] = (),
    end_ids: Iterable[int] | None = None,
    logits: NDArray[np.float32] | None = None,
    logprobs: bool = False,
    top_logprobs: int = 0,
    grammar: Grammar | None = None,
    history: Sequence[int] | NDArray[np.uint32] = (),
    speculative: bool = True,
    draft_model: Model | None = None,
    cancel: CancelToken | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    prefix_cache: PrefixCache | None = None,
) -> Reply:
    """Continue *prompt* from *state*.

    Args:
        model: the model.
        state: where to begin; it is advanced in place.
        prompt: token ids of the whole text (encoded at once: prompts may end inside a word).
        params: how to choose tokens; None: SamplingParams().
        max_tokens: most tokens to choose; None: no limit.
        stop: texts that end the reply; they are not part of it, wherever token borders lie.
        end_ids: ids that end it; None: the tokenizer's.
        logits: where *prompt* is empty, the model's logits after *state*, float32 [n_vocab].
        logprobs: also collect each token's log-probability.
        top_logprobs: also collect so many of the likeliest tokens at each place, at most 1024.
        grammar: the form of the reply. Where max_tokens or a stop string cuts it short, it is a beginning of one.
        history: what the state has read before, if that is known: DRY and drafts look at it.
        speculative: whether several tokens may be checked in one pass (rwkv_cpu.generation.speculative). The reply is
            the same with and without.
        draft_model: a smaller model with the same vocabulary that says what may come next.
        cancel: ends the reply from any thread, the reading of a long prompt too.
        on_progress: called with (tokens read, tokens of the prompt) while the prompt is read.
        prefix_cache: what it knows of the prompt is not read again.

    Returns:
        A Reply to iterate; nothing is computed before that. Its iteration raises TokenError for a prompt that is not
        this model's, NonFiniteError for logits that are no numbers, ModelClosedError.

    Raises:
        ArgumentError: no prompt and no logits, a negative max_tokens, an empty stop string, a grammar that cannot be
            followed, a draft model with another vocabulary.
        TokenError: a banned or biased id outside the vocabulary.
        UnsupportedModelError: a grammar is given and llguidance is not installed.
    """
    ids = list(prompt)
    if not ids and logits is None:
        raise ArgumentError(
            "the prompt is empty", hint="give at least one token; id 0 stands for the start of a document"
        )
    if ids and logits is not None:
        raise ArgumentError("logits go with an empty prompt only")
    if max_tokens is not None and (not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 0):
        raise ArgumentError(f"max_tokens must be a whole number from 0, or None, not {max_tokens!r}")
    if isinstance(grammar, str):
        raise ArgumentError("a text is no Grammar yet", hint="Grammar.read(text) makes one of GBNF or Lark.")
    if not isinstance(top_logprobs, int) or not 0 <= top_logprobs <= min(MAX_TOP_LOGPROBS, model.n_vocab):
        raise ArgumentError(f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, not {top_logprobs!r}")
    params = SamplingParams() if params is None else params
    ends = model.tokenizer.end_ids if end_ids is None else frozenset(end_ids)
    sampler = make_sampler(model, params)
    matcher = None
    if grammar is not None:
        from rwkv_cpu.generation.structured import Matcher

        matcher = Matcher(grammar, model, ends)
    drafts = Drafts(model, params, sampler.seed, draft_model) if speculative or draft_model is not None else None
    return Reply(
        model=model,
        state=state,
        prompt=ids,
        logits=logits,
        sampler=sampler,
        max_tokens=max_tokens,
        stops=StopMatcher(stop),
        end_ids=ends,
        with_logprobs=logprobs,
        n_top=top_logprobs,
        matcher=matcher,
        drafts=drafts,
        history=history,
        cancel=cancel,
        on_progress=on_progress,
        prefix_cache=prefix_cache,
    )
