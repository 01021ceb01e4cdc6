# SPDX-License-Identifier: Apache-2.0
"""What a text probably goes on with, to judge by itself: what followed where its end occurred before.

All earlier places that agree with the end say what comes next, each with a weight that grows with the length of the
agreement; those that were right go on together. So a guess has a kind, how long the agreement is and how many share it,
and how often guesses of that kind are right can be learnt (rwkv_cpu.generation.speculative).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = ["FIRST_CHANCES", "WINDOW", "Repetition", "SpacelessIds"]

# How far back the text is searched, how many of the last places are asked, and how long an agreement is counted.
WINDOW = 16384
_FIRST_ROOM = 1024
_MOST_PLACES = 64
_LONGEST_MATCH = 16
# A place that agrees with one token more counts so many times as much; the last of equals counts this much more.
_WEIGHT_OF_TOKEN = 6.0
_WEIGHT_OF_LAST = 0.3
_LONGEST_WEIGHED = 12
# Kinds: by the length of the longest agreement, and by who says so: one place alone, all of several, most, fewer.
_BUCKET_OF_LENGTH = (0, 0, 1, 2, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 6, 7)
_CHANCES_OF_LENGTH = (0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.85, 0.9)
_CHANCES_OF_SHARE = (1.0, 1.1, 0.8, 0.5)
_SHARES = (0.95, 0.6)

# Before there is experience: how often a guess of each kind is right.
FIRST_CHANCES = [min(of_length * of_share, 0.95) for of_length in _CHANCES_OF_LENGTH for of_share in _CHANCES_OF_SHARE]


class SpacelessIds:
    """For every id of a vocabulary the one of the same text without the space at its start, where there is one.

    A word is the same word at the start of a quotation, of a cell of a table or of a JSON string. Threads may share it.
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self._tokenizer = tokenizer
        self._ids = np.arange(n_vocab, dtype=np.uint32)
        self._known = np.zeros(n_vocab, bool)

    def of_one(self, token: int) -> int:
        """That of one id."""
        if not self._known.item(token):
            self._ids[token] = self._find(token)
            self._known[token] = True
        return self._ids.item(token)

    def of(self, ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Those of many."""
        known = self._known[ids]
        if not known.all():
            for unknown in set(ids[~known].tolist()):
                self.of_one(unknown)
        return self._ids[ids]

    def _find(self, token: int) -> int:
        tokenizer = self._tokenizer
        if token >= tokenizer.n_vocab or token in tokenizer.end_ids:
            return token
        text = tokenizer.decode_bytes([token])
        if len(text) < 2 or text[:1] != b" ":
            return token
        ids = tokenizer.encode(text[1:])
        return ids[0] if len(ids) == 1 else token


class Repetition:
    """A text that grows."""

    def __init__(self, spaceless: SpacelessIds) -> None:
        self._spaceless = spaceless
        # Guesses stand behind the text while they are made: a text that repeats itself right away goes on doing so.
        self._ids = np.empty(_FIRST_ROOM, np.uint32)
        self._keys = np.empty(_FIRST_ROOM, np.uint32)
        self._n = 0

    def close(self) -> None:
        """Nothing is asked any more: forget the text."""
        self._ids = self._keys = np.empty(0, np.uint32)
        self._n = 0

    def append(self, tokens: Sequence[int] | NDArray[np.uint32]) -> None:
        """The text goes on with *tokens*."""
        if len(tokens) == 1:  # as in every step: without arrays
            self._make_room(1)
            self._ids[self._n] = tokens[0]
            self._keys[self._n] = self._spaceless.of_one(tokens[0])
            self._n += 1
            return
        new = np.array(tokens[-WINDOW:], np.uint32)
        self._make_room(len(new))
        end = self._n + len(new)
        self._ids[self._n : end] = new
        self._keys[self._n : end] = self._spaceless.of(new)
        self._n = end

    def _make_room(self, n_more: int) -> None:
        needed = self._n + n_more
        if needed <= len(self._ids):
            return
        kept = self._n if needed <= 2 * WINDOW else min(self._n, 2 * WINDOW - n_more, WINDOW)
        room = min(max(2 * len(self._ids), needed), 2 * WINDOW)
        self._ids, self._keys = (_with_room(array[self._n - kept : self._n], room) for array in (self._ids, self._keys))
        self._n = kept

    def guesses(self, most: int) -> Iterator[tuple[int, int]]:
        """What comes next, token by token, each if those before it are right: (id, its kind)."""
        self._make_room(most)
        places, lengths = self._places()
        if not places:
            return
        ids, n = self._ids, self._n
        id_at = ids.item
        says = ids[np.array(places) + 1].tolist()
        weights = [
            _WEIGHT_OF_TOKEN ** min(length, _LONGEST_WEIGHED) * (1 + _WEIGHT_OF_LAST * place / n)
            for place, length in zip(places, lengths, strict=True)
        ]
        for i in range(most):
            token, share, n_places = says[0], 1.0, len(says)
            if says.count(token) < n_places:
                votes: dict[int, float] = {}
                for said, weight in zip(says, weights, strict=True):
                    votes[said] = votes.get(said, 0.0) + weight
                token = max(votes, key=votes.__getitem__)
                share = votes[token] / sum(votes.values())
                kept = [j for j, said in enumerate(says) if said == token]
                places, lengths = [places[j] for j in kept], [lengths[j] for j in kept]
                weights = [weights[j] for j in kept]
            ids[n + i] = token
            yield token, _kind(max(lengths) + i, n_places, share)
            says = [id_at(place + i + 2) for place in places]

    def _places(self) -> tuple[list[int], list[int]]:
        """Where the text's last token stood before, and how many tokens up to there agree with the text's end."""
        first = max(0, self._n - WINDOW)
        keys = self._keys[first : self._n]
        if len(keys) < 2:
            return [], []
        places = np.flatnonzero(keys[:-1] == keys[-1])[-_MOST_PLACES:]
        longer = (keys[places - 1] == keys[-2]) & (places > 0)
        lengths = [1] * len(places)
        end = keys[-_LONGEST_MATCH:][::-1].tolist()
        for j in np.flatnonzero(longer).tolist():
            place = int(places[j])
            before = keys[max(0, place + 1 - _LONGEST_MATCH) : place + 1][::-1].tolist()
            length = 2
            while length < len(before) and before[length] == end[length]:
                length += 1
            lengths[j] = length
        return (places + first).tolist(), lengths


def _with_room(ids: NDArray[np.uint32], room: int) -> NDArray[np.uint32]:
    array = np.empty(room, np.uint32)
    array[: len(ids)] = ids
    return array


def _kind(length: int, n_places: int, share: float) -> int:
    """The index in FIRST_CHANCES."""
    bucket = _BUCKET_OF_LENGTH[min(length, len(_BUCKET_OF_LENGTH) - 1)]
    who = 0 if n_places == 1 else 1 + sum(share <= limit for limit in _SHARES)
    return bucket * len(_CHANCES_OF_SHARE) + who
