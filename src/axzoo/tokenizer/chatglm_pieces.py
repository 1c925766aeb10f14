"""ChatGLM3's tokenizer.model: pieces, and after them the tokens that its published code adds by number.

A user cannot write these tokens: in a text they are letters like others. So no template can write a conversation
either; it is put together from ids (THUDM/chatglm3-6b, tokenization_chatglm.py, build_chat_input).
"""

from __future__ import annotations

from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor

from axzoo.errors import AxzooError
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.pieces import Pieces

ADDED = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""Numbered upward from the number of pieces."""

ROLES = ("system", "user", "assistant", "observation")


class ChatGlmPieces:
    """A backend that can also write conversations."""

    def __init__(self, processor: SentencePieceProcessor) -> None:
        size: int = processor.get_piece_size()
        self._added = {token: size + number for number, token in enumerate(ADDED)}
        self._pieces = Pieces(processor, self._added)
        self._special = {*self._added.values(), processor.bos_id(), processor.eos_id(), processor.unk_id()}
        self._begin = [self._added["[gMASK]"], self._added["sop"]]
        self.eos_token_ids = (processor.eos_id(), self._added["<|user|>"], self._added["<|observation|>"])

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [*(self._begin if add_special_tokens else []), *self._pieces.encode(text)]

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """Ids of a conversation. Raises AxzooError for a role ChatGLM3 does not have."""
        ids = list(self._begin)
        for message in messages:
            if message["role"] not in ROLES:
                raise AxzooError(f"ChatGLM3 has the roles {', '.join(ROLES)}, not {message['role']!r}")
            ids += [self._added[f"<|{message['role']}|>"], *self._pieces.encode("\n")]
            ids += self._pieces.encode(message["content"])
        return [*ids, self._added["<|assistant|>"]] if add_generation_prompt else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._pieces.decode([i for i in ids if i not in self._special] if skip_special_tokens else ids)

    def token_to_id(self, token: str) -> int | None:
        return self._pieces.token_to_id(token)
