# SPDX-License-Identifier: Apache-2.0
"""Conversations and texts that hold facts to be asked for: what is planted, what stands between, how it is asked.

Two styles. "chat": facts, filler and questions are turns of the model's own chat template. "plain": sentences of a
running text, and a fact is asked for by beginning its sentence again; for models that were not trained to chat.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rwkv_cpu.chat import jinja
from rwkv_cpu.errors import ArgumentError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rwkv_cpu.chat.template import ChatTemplate

__all__ = ["FACTS", "Chat", "Fact", "Plain", "Style", "chat_filler", "text_filler"]


@dataclass(frozen=True)
class Fact:
    """A kind of fact: its sentence, the question for it, how the answer begins, and values it may have.

    No value occurs in the built-in filler.
    """

    name: str
    says: str
    asks: str
    answer: str
    values: tuple[str, ...]


FACTS: tuple[Fact, ...] = (
    Fact(
        "name",
        "My name is {}.",
        "What is my name?",
        "Your name is",
        ("Ada", "Floyd", "Wendy", "Nolan", "Stella", "Ravi", "Frida", "Leo", "Opal", "Tom"),
    ),
    Fact(
        "colour",
        "My favourite colour is {}.",
        "What is my favourite colour?",
        "Your favourite colour is",
        ("green", "blue", "red", "yellow", "purple", "orange", "black", "white", "pink", "silver"),
    ),
    Fact(
        "city",
        "I live in {}.",
        "Where do I live?",
        "You live in",
        ("Oslo", "Lyon", "Kyoto", "Chicago", "Hamburg", "York", "Dublin", "Boston", "Quito", "Milan"),
    ),
    Fact(
        "dog",
        "My dog is called {}.",
        "What is my dog called?",
        "Your dog is called",
        ("Buddy", "Pearl", "Max", "Noodle", "Peanut", "Olive", "Domino", "Biscuit", "Rocky", "Daisy"),
    ),
    Fact(
        "word",
        "The magic word is {}.",
        "What is the magic word?",
        "The magic word is",
        ("saddle", "feather", "paper", "copper", "kettle", "anchor", "lemon", "rocket", "candle", "forest"),
    ),
    Fact(
        "job",
        "I am a {}.",
        "What is my job?",
        "You are a",
        ("painter", "carpenter", "baker", "singer", "teacher", "farmer", "nurse", "pilot", "gardener", "doctor"),
    ),
)

_OPENING = ("Hello!", "Hello! How can I help you?")
_NOTED = "I will remember that."
# Questions whose answers say nothing about the user and hold no fact's value.
_SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("How many legs does a bee have?", "A bee has six legs."),
    ("What day comes after Friday?", "Saturday comes after Friday."),
    ("How many days does April have?", "April has 30 days."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("What is the plural of mouse?", "The plural of mouse is mice."),
    ("What is a baby cat called?", "A baby cat is called a kitten."),
    ("What sound does a sheep make?", "A sheep says baa."),
    ("What do plants need to grow?", "Plants need light, water, air and good soil."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius at sea level."),
    ("What is the past tense of go?", "The past tense of go is went."),
    ("What do you use to cut bread?", "You need a knife to cut bread."),
    ("Is light faster than sound?", "Light is much faster than sound."),
    ("What is the opposite of day?", "The opposite of day is night."),
)
_PARAGRAPH_WORDS = 60


class Style(Protocol):
    """How everything is written. Texts follow each other without anything between."""

    name: str

    def opening(self) -> str:
        """What stands before everything."""
        ...

    def plant(self, fact: Fact, value: str) -> str:
        """The fact."""
        ...

    def ask(self, fact: Fact) -> tuple[str, str]:
        """The question up to where the model writes, and the beginning of an answer behind which its value stands."""
        ...

    def stops(self) -> tuple[str, ...]:
        """What ends an answer."""
        ...


class Chat:
    """Turns of a chat template."""

    name = "chat"

    def __init__(self, template: ChatTemplate) -> None:
        if template.raw:
            raise ArgumentError("this model has no chat template", hint="Use --style plain.")
        self._template = template
        self._past = _messages(*_OPENING)

    def turn(self, user: str, assistant: str) -> str:
        """A question and its answer, behind others."""
        if not self._template.jinja:
            return self._template.user_part(user) + self._template.answer_part(assistant)
        return self._behind([*self._past, *_messages(user, assistant)], prompt=False)

    def opening(self) -> str:
        """The first turn."""
        if not self._template.jinja:
            return self.turn(*_OPENING)
        return jinja.render(self._template.jinja, self._past, prompt=False)

    def plant(self, fact: Fact, value: str) -> str:
        """A turn in which the user tells it."""
        return self.turn(fact.says.format(value), _NOTED)

    def ask(self, fact: Fact) -> tuple[str, str]:
        """The user's question."""
        if not self._template.jinja:
            return self._template.user_part(fact.asks), f" {fact.answer}"
        prompt = self._behind([*self._past, {"role": "user", "content": fact.asks}], prompt=True)
        return prompt, fact.answer if prompt[-1:].isspace() else f" {fact.answer}"

    def stops(self) -> tuple[str, ...]:
        """The template's."""
        return self._template.stops() or (jinja.stops_of(self._template.jinja) if self._template.jinja else ())

    def _behind(self, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
        before = self.opening()
        written = jinja.render(self._template.jinja, messages, prompt=prompt)
        if not written.startswith(before):
            raise UnsupportedModelError(
                "this model's chat template writes the past anew with every turn", hint="Use --style plain."
            )
        return written[len(before) :]


class Plain:
    """Sentences of a text."""

    name = "plain"

    def opening(self) -> str:
        """Nothing."""
        return ""

    def plant(self, fact: Fact, value: str) -> str:
        """The sentence as a paragraph."""
        return f"{fact.says.format(value)}\n\n"

    def ask(self, fact: Fact) -> tuple[str, str]:
        """The sentence's beginning again."""
        return fact.says.partition(" {}")[0], ""

    def stops(self) -> tuple[str, ...]:
        """The end of the paragraph."""
        return ("\n",)


def _messages(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def chat_filler(style: Chat, seed: int) -> Iterator[str]:
    """Turns without end: small sums and small questions."""
    draw = random.Random(seed)  # noqa: S311 (text, not secrets)
    while True:
        if draw.random() < 1 / 3:
            yield style.turn(*draw.choice(_SMALL_TALK))
            continue
        a = draw.randint(1, 12)
        b = draw.randint(1, min(8, a) if draw.random() < 0.5 else 8)
        if b <= a and draw.random() < 0.5:
            yield style.turn(f"What is {a} minus {b}?", f"{a} minus {b} is {a - b}.")
        else:
            yield style.turn(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.")


def text_filler(style: Style, text: str, seed: int) -> Iterator[str]:
    """Paragraphs of a text, from a place that the seed chooses, and from its beginning again."""
    paragraphs = [part for raw in re.split(r"\n\s*\n", text) for part in _pieces(raw)]
    if not paragraphs:
        raise ArgumentError("the filler text is empty")
    begin = random.Random(seed).randrange(len(paragraphs))  # noqa: S311
    for i in itertools.count(begin):
        paragraph = paragraphs[i % len(paragraphs)]
        yield style.turn(paragraph, "I see.") if isinstance(style, Chat) else f"{paragraph}\n\n"


def _pieces(paragraph: str) -> Iterator[str]:
    """A paragraph, cut where it is long."""
    words = re.findall(r"\S+\s*", paragraph)
    for at in range(0, len(words), _PARAGRAPH_WORDS):
        piece = "".join(words[at : at + _PARAGRAPH_WORDS]).strip()
        if piece:
            yield piece
