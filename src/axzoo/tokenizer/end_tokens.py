"""Tokens that end an answer. A checkpoint names them in several files, none of which has to name all of them.

The answer ends at any of them. A fine-tune often keeps the generation_config.json of its base model, which does not
list the token that its chat template writes after an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.added_tokens import is_token_id, read_object

if TYPE_CHECKING:
    from axzoo.tokenizer.local import LocalTokenizer

_QUESTION = {"role": "user", "content": "?"}


def configured_end_ids(folder: Path) -> tuple[int, ...]:
    """The eos_token_id of generation_config.json and of config.json: an id or a list of ids each, negative for none.

    Raises AxzooError for any other value.
    """
    return distinct(index for name in ("generation_config.json", "config.json") for index in _listed(folder / name))


def _listed(path: Path) -> list[int]:
    listed = read_object(path).get("eos_token_id")
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(is_token_id(index) or (type(index) is int and index < 0) for index in ids):
        raise AxzooError(f"{path}: eos_token_id must be a token id or a list of them, not {listed!r:.80}")
    return [index for index in ids if index >= 0]


def distinct(ids: Iterable[int]) -> tuple[int, ...]:
    """The ids without repetitions, in the order of their first appearance."""
    return tuple(dict.fromkeys(ids))


def turn_end_id(tokenizer: LocalTokenizer) -> int | None:
    """Return the id of the token that the chat template writes after an answer.

    This is the first one there that is a known end token, else the first special token. None if there is no template,
    or it adds no such token.
    """
    suffix = _suffix_of_answer(tokenizer)
    for ends in (tokenizer.declared_end_ids, [index for index in suffix if _is_special(tokenizer, index)]):
        if found := [index for index in suffix if index in ends]:
            return found[0]
    return None


def _suffix_of_answer(tokenizer: LocalTokenizer) -> list[int]:
    """Return the ids that the template writes after an answer: the common suffix of two different answers."""
    if tokenizer.chat is None:
        return []
    try:
        one, other = (_ids_with_answer(tokenizer, answer) for answer in ("!", "a"))
    except AxzooError:
        return []
    pairs = zip(reversed(one), reversed(other), strict=False)
    return [index for index, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)][::-1]


def _ids_with_answer(tokenizer: LocalTokenizer, answer: str) -> Sequence[int]:
    return tokenizer.encode_chat([_QUESTION, {"role": "assistant", "content": answer}], add_generation_prompt=False)


def _is_special(tokenizer: LocalTokenizer, index: int) -> bool:
    return tokenizer.decode([index]) != tokenizer.decode([index], skip_special_tokens=False)
