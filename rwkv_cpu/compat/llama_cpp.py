# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python's Llama, as far as text goes: completions, chat completions and tokens.

from rwkv_cpu.compat.llama_cpp import Llama    # instead of llama_cpp
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.compat.chat_completions import create_chat_completion
from rwkv_cpu.compat.completions import create_completion
from rwkv_cpu.model import Model

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

__all__ = ["Llama"]

# Arguments of its constructor that mean nothing here: there is no GPU, no key-value cache and no length of context.
_MEANINGLESS = {
    *("n_gpu_layers", "n_batch", "n_ubatch", "n_threads_batch", "main_gpu", "split_mode", "tensor_split", "use_mmap"),
    *("use_mlock", "logits_all", "embedding", "offload_kqv", "flash_attn", "verbose", "last_n_tokens_size"),
    *("rope_scaling_type", "rope_freq_base", "rope_freq_scale", "type_k", "type_v", "numa"),
}


class Llama:
    """A model with the interface of ``llama_cpp.Llama``.

    Args:
        model_path: whatever Model.load() opens.
        n_ctx: what n_ctx() says; texts may be longer. n_threads: None: physical cores.
        seed: for calls that give none. chat_format: a chat template's name; None: the model's.
        ignored: arguments of Llama that mean nothing here, like n_gpu_layers; another name is a TypeError.

    Attributes:
        model: the Model behind it.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_ctx: int = 512,
        n_threads: int | None = None,
        seed: int | None = None,
        chat_format: str | None = None,
        **ignored: Any,
    ) -> None:
        unknown = sorted(ignored.keys() - _MEANINGLESS)
        if unknown:
            raise TypeError(f"Llama() got an unexpected keyword argument {unknown[0]!r}")
        self._template = None if chat_format is None else ChatTemplate.named(chat_format)
        self._seed = seed
        self._n_ctx = n_ctx
        self.model_path = str(model_path)
        self.model = Model.load(model_path, threads=n_threads)

    def create_completion(self, prompt: str | Sequence[int], suffix: str | None = None, **options: Any) -> Any:
        """See compat.completions.create_completion()."""
        return create_completion(self.model, prompt, suffix=suffix, **self._named(options))

    __call__ = create_completion

    def create_chat_completion(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """See compat.chat_completions.create_chat_completion()."""
        return create_chat_completion(self.model, messages, template=self._template, **self._named(options))

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:  # noqa: ARG002
        """The ids of *text*; RWKV's vocabularies have no token that must come first."""
        return self.model.tokenizer.encode(text)

    def detokenize(self, tokens: Sequence[int], prev_tokens: object = None, special: bool = False) -> bytes:  # noqa: ARG002
        """The bytes of *tokens*."""
        return self.model.tokenizer.decode_bytes(tokens)

    def n_vocab(self) -> int:
        """Size of the vocabulary."""
        return self.model.n_vocab

    def n_ctx(self) -> int:
        """As given; texts may be longer."""
        return self._n_ctx

    def token_eos(self) -> int:
        """The id that ends a text; -1: there is none."""
        return min(self.model.tokenizer.end_ids, default=-1)

    def reset(self) -> None:
        """Nothing: calls are independent of each other."""

    def close(self) -> None:
        """Free the model."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _named(self, options: dict[str, Any]) -> dict[str, Any]:
        given = {"name": options.pop("model", None) or self.model_path, "seed": self._seed, **options}
        if given["seed"] is None:
            given["seed"] = self._seed
        return given
