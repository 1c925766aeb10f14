"""The one token that ends an answer, for host programs that know only one."""

from __future__ import annotations

from itertools import takewhile

from axzoo.errors import AxzooError
from axzoo.tokenizer.local import LocalTokenizer

_QUESTION = {"role": "user", "content": "?"}


def turn_end_id(tokenizer: LocalTokenizer, chat: bool) -> int | None:
    """What the chat template puts after an answer: the first of `eos_token_ids` there, else the first special token.
    Without a template, or where it puts none, the eos_token, else the first of `eos_token_ids`.

    Llama-3 and Phi-3 name another eos_token than ends their answers, and a folder with a tokenizer alone has no
    generation_config.json to say so.
    """
    if chat:
        written = _written_after_answer(tokenizer)
        for ends in (tokenizer.eos_token_ids, [index for index in written if _is_special(tokenizer, index)]):
            if found := [index for index in written if index in ends]:
                return found[0]
    eos = tokenizer.eos_token_id
    return eos if eos is not None else next(iter(tokenizer.eos_token_ids), None)


def _written_after_answer(tokenizer: LocalTokenizer) -> list[int]:
    """What two conversations that differ in the answer alone have in common behind it."""
    try:
        one, other = (
            tokenizer.encode_chat([_QUESTION, {"role": "assistant", "content": answer}], add_generation_prompt=False)
            for answer in ("!", "a")
        )
    except AxzooError:
        return []
    pairs = zip(reversed(one), reversed(other), strict=False)
    return [index for index, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)][::-1]


def _is_special(tokenizer: LocalTokenizer, index: int) -> bool:
    return tokenizer.decode([index]) != tokenizer.decode([index], skip_special_tokens=False)
