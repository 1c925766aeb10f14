"""How much of a model's context the next prompt can use."""

from __future__ import annotations

from collections.abc import Sequence

from axzoo.runtime.model import Model


def keep_common(model: Model, ids: Sequence[int]) -> int:
    """Rewinds the context to what it shares with the prompt `ids`; returns that length. The prompt's last token is
    read in any case: it brings the logits."""
    length = _common_length(model.tokens, ids[:-1])
    model.rewind(length)
    return length


class Reuse:
    """Keeps account of which tokens of `model`'s context were read as a prompt in an empty context is: in whole chunks.

    A token's keys and values depend in their last bits on how many tokens were read with it, and so do the logits
    behind it. Logits behind whole chunks alone are those an empty context gives, bit for bit.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._chunk = model.geometry.chunk_len
        self._settled = 0

    def keep(self, ids: Sequence[int], repeatable: bool) -> int:
        """Rewinds the context to what the prompt `ids` can use of it, and returns that length; the rest of the prompt
        is to be read next. With `repeatable` its logits will not depend on what the context held before."""
        length = keep_common(self._model, ids)
        self._settled = min(self._settled, length)
        if repeatable:
            length = self._whole(self._settled)
            self._model.rewind(length)
        if length == self._whole(self._settled):
            self._settled = self._whole(len(ids))
        return length

    def _whole(self, length: int) -> int:
        return length // self._chunk * self._chunk


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
