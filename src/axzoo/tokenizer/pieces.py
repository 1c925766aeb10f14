"""tokenizer.model, read by the `sentencepiece` library, with tokens around its pieces that it does not know.

transformers 5 turns these files into tokenizers of its own, which give other ids (Llama-2, MiniCPM); the models were
trained on the ids that sentencepiece gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from axzoo.errors import AxzooError

_MAX_BYTES = 64 << 20


class Pieces:
    """SentencePiece's pieces, and `added` tokens (text -> id) that stand for themselves."""

    def __init__(self, processor: SentencePieceProcessor, added: Mapping[str, int]) -> None:
        self._processor = processor
        self._added = dict(added)
        self._added_text = {index: text for text, index in added.items()}
        self._size: int = processor.get_piece_size()
        self.vocab_size = max([self._size, *(index + 1 for index in self._added_text)])

    def encode(self, text: str) -> list[int]:
        """Ids of a text; added tokens written in it are nothing special here."""
        return list(self._processor.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of each run of pieces by itself, as it was encoded, and of the added tokens between them."""
        known = (index for index in ids if index < self._size or index in self._added_text)
        runs = groupby(known, self._added_text.get)
        return "".join(
            self._processor.decode(list(run)) if text is None else text * len(list(run)) for text, run in runs
        )

    def token_to_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        index: int = self._processor.piece_to_id(token)
        return index if self._processor.id_to_piece(index) == token else None


def load_processor(path: Path) -> SentencePieceProcessor:
    """Reads a tokenizer.model. Raises AxzooError when it is none, or larger than 64 MiB."""
    if path.stat().st_size > _MAX_BYTES:
        raise AxzooError(f"{path} has {path.stat().st_size} bytes; no tokenizer.model has more than {_MAX_BYTES}")
    try:
        processor = SentencePieceProcessor(model_proto=path.read_bytes())
        for index in range(processor.get_piece_size()):
            processor.id_to_piece(index)  # a piece that is not UTF-8 would show in some later text only
    except (RuntimeError, UnicodeDecodeError):
        raise AxzooError(f"{path} is not a SentencePiece model: fetch it again") from None
    if processor.get_piece_size() == 0:
        raise AxzooError(f"{path} holds no pieces: fetch it again")
    return processor
