"""tokenizer.txt, the tokenizer file of ax-llm's host program `axllm`: reading and writing it.

The host checks almost nothing of it: with a wrong line, it encodes texts to nothing, or to other tokens. `parse`
accepts only files that the host reads as they are meant, and names the fault of any other. docs/boards.md describes the
format.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from axzoo.core.errors import AxzooError

FILE_NAME = "tokenizer.txt"
MAGIC = 430
NOT_AVAILABLE = "not available:"
"""How the file begins, followed by the reason, where the format cannot hold a model's tokenizer."""
MAX_BYTES = 256 << 20
FAMILIES = (0, 1, 2, 3, 4)
"""Rules by which hosts since the summer of 2026 divide a text into words (`host_tokenizer.py`). Older hosts use 0."""

_BASE64 = b"b64:"
_INT_LIMIT = 1 << 31


class NotAvailable(AxzooError):
    """The format cannot hold a tokenizer; the message is the reason."""


class Kind(IntEnum):
    """What the vocabulary is."""

    PIECES = 0
    TRIE = 1
    WORD_PIECE = 2
    MERGES = 3


class PieceType(IntEnum):
    """Types of a token of Kind.PIECES. The host merges characters to tokens of the type NORMAL only."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class TokenizerTxt:
    """The content of a file.

    `tokens` are ordered by id. For Kind.MERGES they are UTF-8 and, if the tokenizer works on bytes, in GPT-2's alphabet
    of bytes; for Kind.PIECES they have blanks instead of "▁". `special` ids are recognized in every text, in this order
    of precedence; `stop` ids end an answer; `prefix` ids are put before every text.

    `scores` and `types` belong to Kind.PIECES, `merges` and `family` to Kind.MERGES.
    """

    kind: Kind
    special: tuple[int, ...]
    stop: tuple[int, ...]
    prefix: tuple[int, ...]
    tokens: tuple[bytes, ...]
    scores: tuple[float, ...] = ()
    types: tuple[int, ...] = ()
    merges: tuple[tuple[bytes, bytes], ...] = ()
    family: int = 0

    def to_bytes(self) -> bytes:
        """The file. Raises NotAvailable when hosts would read another tokenizer from it."""
        lines = [b"%d %d" % (MAGIC, self.kind), b"%d %d %d" % (len(self.special), len(self.stop), len(self.prefix))]
        lines.append(b" ".join(b"%d" % index for index in (*self.special, *self.stop, *self.prefix)))
        lines += self._vocabulary()
        data = b"\n".join([*lines, b""])
        try:
            if parse(data, FILE_NAME) == self:
                return data
        except AxzooError:
            pass
        raise NotAvailable("the format cannot hold its tokens and merges")

    def _vocabulary(self) -> Iterator[bytes]:
        if self.kind == Kind.MERGES:
            family = b" %d" % self.family if self.family else b""
            yield b"%d %d%s" % (len(self.tokens), len(self.merges), family)
            yield from map(_token_line, self.tokens)
            yield from map(_merge_line, self.merges)
            return
        yield b"%d" % len(self.tokens)
        encoded = map(base64.b64encode, self.tokens)
        if self.kind == Kind.PIECES:
            rows = zip(encoded, self.scores, self.types, strict=True)
            yield from (b"%s %s %d" % (piece, repr(score).encode(), kind) for piece, score, kind in rows)
        else:
            yield from encoded


def parse(data: bytes, name: str) -> TokenizerTxt:
    """Read a file; `name` is for messages. Raises AxzooError for one that hosts refuse, or read as something else."""
    if data.startswith(NOT_AVAILABLE.encode()):
        raise AxzooError(f"{name}: {data[:400].decode(errors='replace').strip()}")
    if data.startswith(b"\xef\xbb\xbf"):
        raise _fault(name, 1, "the file begins with a byte order mark, and the host refuses it")
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.endswith(b"\r"):
            raise _fault(name, number, "the line ends in CR LF, and the host would encode every text to nothing")
    reader = _Lines(lines[:-1] if not lines[-1] else lines, name)
    magic = reader.numbers("the magic number and the kind")
    if magic[:1] != [MAGIC]:
        raise reader.fault(f"the file does not begin with {MAGIC}, and the host refuses it")
    if len(magic) != 2 or magic[1] not in tuple(Kind):
        raise reader.fault(f"the kind must be one of 0 to 3, not {magic[1:]}")
    kind = Kind(magic[1])
    counts = reader.numbers("the counts of special, stop and prefix ids")
    if len(counts) != 3 or min(counts) < 0:
        raise reader.fault("there must be three counts, of special, stop and prefix ids")
    ids = reader.numbers("the special, stop and prefix ids")
    if len(ids) != sum(counts):
        raise reader.fault(f"there are {len(ids)} ids, but the line before says {sum(counts)}")
    where = reader.number
    read = {Kind.PIECES: _pieces, Kind.MERGES: _merges}.get(kind, _encoded)
    tokens, scores, types, merges, family = read(reader)
    reader.require_end()
    for index in ids:
        if not 0 <= index < len(tokens):
            raise _fault(name, where, f"id {index} is outside the vocabulary of {len(tokens)} tokens")
    special, stop = counts[0], counts[0] + counts[1]
    groups = tuple(ids[:special]), tuple(ids[special:stop]), tuple(ids[stop:])
    return TokenizerTxt(kind, *groups, tuple(tokens), tuple(scores), tuple(types), tuple(merges), family)


def shortcomings(txt: TokenizerTxt, end_ids: Sequence[int] = ()) -> Iterator[str]:
    """What a file that hosts load lacks. `end_ids` are the ids that end the model's answers."""
    if not txt.stop:
        yield "it lists no stop id: answers do not end before the context is full"
    elif missing := [index for index in end_ids if index not in txt.stop]:
        yield f"it does not list id {missing[0]} as a stop id: answers that end there go on"
    if txt.kind == Kind.TRIE:
        yield "it is of kind 1: the host takes the longest token at each place, and not the merges of the model"


_Vocabulary = tuple[
    Sequence[bytes], Sequence[float], Sequence[int], Sequence[tuple[bytes, bytes]], int
]  # tokens, scores, types, merges, family


def _pieces(lines: _Lines) -> _Vocabulary:
    tokens, scores, types = [], [], []
    for line in lines.take(lines.count(), "a token"):
        fields = line.split()
        try:
            piece, score, kind = fields
            tokens.append(_decoded(piece))
            scores.append(float(score))
            types.append(PieceType(int(kind)).value)
        except ValueError:
            raise lines.fault(
                f"{line!r:.60} is not a token: write its text in base64, its score and its type"
            ) from None
        if not piece or not math.isfinite(scores[-1]):
            raise lines.fault(f"the score {score!r:.40} is not a number")
    return tokens, scores, types, (), 0


def _encoded(lines: _Lines) -> _Vocabulary:
    tokens = []
    for line in lines.take(lines.count(), "a token"):
        try:
            tokens.append(_decoded(line))
        except ValueError:
            raise lines.fault(f"{line!r:.60} is not base64") from None
    return tokens, (), (), (), 0


def _merges(lines: _Lines) -> _Vocabulary:
    counts = lines.numbers("the numbers of tokens and merges")
    if len(counts) not in (2, 3) or min(counts) < 0:
        raise lines.fault("there must be the numbers of tokens and of merges, and optionally the family")
    family = counts[2] if len(counts) == 3 else 0
    if family not in FAMILIES:
        raise lines.fault(f"the family must be one of 0 to {FAMILIES[-1]}, not {family}")
    tokens = [_plain(line, lines) for line in lines.take(counts[0], "a token")]
    merges = []
    for line in lines.take(counts[1], "a merge"):
        left, blank, right = line.partition(b" ")
        if not (left and blank and right):
            raise lines.fault(
                f"{line!r:.60} is not a merge of two tokens, and the host would encode every text to nothing"
            )
        if left.startswith(_BASE64) and not right.startswith(_BASE64):
            raise lines.fault(f"{line!r:.60} encodes only one of its tokens, which the host refuses")
        merges.append((left, right) if not left.startswith(_BASE64) else (_plain(left, lines), _plain(right, lines)))
    return tokens, (), (), merges, family


def _plain(text: bytes, lines: _Lines) -> bytes:
    if not text.startswith(_BASE64):
        return text
    try:
        return _decoded(text[len(_BASE64) :])
    except ValueError:
        raise lines.fault(f"{text!r:.60} is not base64") from None


def _token_line(token: bytes) -> bytes:
    return _BASE64 + base64.b64encode(token) if _needs_base64(token) else token


def _merge_line(pair: tuple[bytes, bytes]) -> bytes:
    left, right = pair
    if _needs_base64(left) or _needs_base64(right) or b" " in left:
        return b"%s%s %s%s" % (_BASE64, base64.b64encode(left), _BASE64, base64.b64encode(right))
    return b"%s %s" % pair


def _needs_base64(token: bytes) -> bool:
    """Hosts before 2026 do not know base64 here, so that it is used only for tokens that would break a line."""
    return token.startswith(_BASE64) or b"\n" in token or b"\r" in token


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(error) from None


class _Lines:
    """The lines of a file, one after the other. `number` is that of the last line taken, counted from 1."""

    def __init__(self, lines: Sequence[bytes], name: str) -> None:
        self._lines = lines
        self._name = name
        self.number = 0

    def take(self, count: int, what: str) -> Iterator[bytes]:
        """The next `count` lines. Raises AxzooError before the first when there are fewer."""
        if count > len(self._lines) - self.number:
            raise self.fault(
                f"{count} lines must follow this one for {what}, but the file has {len(self._lines) - self.number}: "
                "a count is too high, or the file is cut off"
            )
        for _ in range(count):
            self.number += 1
            yield self._lines[self.number - 1]

    def numbers(self, what: str) -> list[int]:
        """The integers of the next line."""
        (line,) = self.take(1, what)
        try:
            found = [int(field) for field in line.split(b" ") if field]
        except ValueError:
            raise self.fault(f"the line must hold {what}, not {line!r:.60}") from None
        if any(not -_INT_LIMIT <= number < _INT_LIMIT for number in found):
            raise self.fault(f"the line must hold {what}, and one is not a 32-bit number")
        return found

    def count(self) -> int:
        counts = self.numbers("the number of tokens")
        if len(counts) != 1 or counts[0] < 0:
            raise self.fault("the line must hold the number of tokens")
        return counts[0]

    def require_end(self) -> None:
        if rest := [line for line in self._lines[self.number :] if line]:
            raise self.fault(f"{len(rest)} lines follow that no count includes: a count is too low")

    def fault(self, text: str) -> AxzooError:
        return _fault(self._name, max(self.number, 1), text)


def _fault(name: str, line: int, text: str) -> AxzooError:
    return AxzooError(f"{name}:{line}: {text}: build the bundle again, or copy the file again")
