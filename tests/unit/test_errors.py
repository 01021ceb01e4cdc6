# SPDX-License-Identifier: Apache-2.0
"""Messages quote strangers' files: a reader of them, or a terminal, must not suffer."""

from __future__ import annotations

import json

import pytest

from rwkv_cpu.errors import FormatError, RwkvError
from rwkv_cpu.tokenizer.huggingface import HuggingFaceTokenizer


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    text = str(FormatError(f"the file says {'a' * 400_000}, which ends here"))
    assert len(text) < 1000
    assert text.startswith("the file says aaa")
    assert text.endswith("aaa, which ends here")


def test_no_control_character_reaches_a_terminal() -> None:
    error = RwkvError("a\x1b]0;title\x07\u202eb\udc80\nsecond line: é 日本", hint="\x9b31m")
    assert str(error) == "a\\x1b]0;title\\x07\\u202eb\\udc80\nsecond line: é 日本"
    assert error.hint == "\\x9b31m"


def test_what_other_packages_quote_is_cut_too() -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(FormatError) as caught:  # their message repeats the whole string
        HuggingFaceTokenizer(json.dumps("a" * 400_000).encode())
    assert len(str(caught.value)) < 1000
