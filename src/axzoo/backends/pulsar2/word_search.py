"""Finds many short sequences of 32-bit words in a table, in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

MAGNITUDE = np.uint32(0x7FFF_FFFF)
"""Masks the sign of fp32 words."""
_CHUNK = 1 << 20
"""Words searched at a time, which bounds memory."""
_MAX_WORK = 1 << 26
"""Comparisons per key. Tables and sequences that repeat themselves more often are not searched for that key."""


def words_of(table: memoryview) -> Words:
    """The table as little-endian words, without a copy; up to three bytes at its end are left out."""
    return np.frombuffer(table[: len(table) // 4 * 4], "<u4")


def find_sequences(words: Words, wanted: Words, matters: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Where each of `wanted` [sequences, length] starts in `words`, ascending, by sequence.

    Only words that matter, bool [sequences, length], are compared, without their sign bits. A sequence without two
    consecutive ones that matter is not found.
    """
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(wanted)
    masked = np.where(matters, wanted & MAGNITUDE, 0)
    both = matters[:, :-1] & matters[:, 1:]
    searchable = np.nonzero(both.any(axis=1))[0]
    if not searchable.size:
        return found
    anchors = both.argmax(axis=1)
    keys = _pairs(masked[searchable, anchors[searchable]], masked[searchable, anchors[searchable] + 1])
    unique, inverse = np.unique(keys, return_inverse=True)
    places, which = _find_pairs(words, unique)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(unique) + 1))
    by_key = np.split(searchable[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1])
    for key, sequences in enumerate(by_key):
        positions = places[order[starts[key] : starts[key + 1]]]
        if positions.size * len(sequences) > _MAX_WORK:
            continue
        for sequence in sequences:
            found[sequence] = _complete(words, positions - anchors[sequence], masked[sequence], matters[sequence])
    return found


def _pairs(first: Words, second: Words) -> NDArray[np.uint64]:
    return first.astype(np.uint64) << np.uint64(32) | second


def _find_pairs(words: Words, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions at which two words form a key of the sorted `keys`, ascending, and the index of that key."""
    places, which = [], []
    for start in range(0, max(0, len(words) - 1), _CHUNK):
        chunk = words[start : start + _CHUNK + 1] & MAGNITUDE
        pairs = _pairs(chunk[:-1], chunk[1:])
        nearest = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
        hits = np.nonzero(keys[nearest] == pairs)[0]
        places.append(hits + start)
        which.append(nearest[hits])
    empty = [np.empty(0, np.int64)]
    return np.concatenate(places or empty), np.concatenate(which or empty)


def _complete(words: Words, starts: NDArray[np.int64], masked: Words, matters: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The starts at which the whole sequence follows."""
    starts = starts[(starts >= 0) & (starts + len(masked) <= len(words))]
    kept = [
        piece[((words[piece[:, None] + np.arange(len(masked))] & MAGNITUDE == masked) | ~matters).all(axis=1)]
        for piece in _split(starts)
    ]
    return np.concatenate(kept or [starts])


def _split(values: NDArray[np.int64], size: int = 1 << 16) -> Iterator[NDArray[np.int64]]:
    return (values[start : start + size] for start in range(0, len(values), size))
