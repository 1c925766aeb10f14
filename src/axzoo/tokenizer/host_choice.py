"""Choosing a tokenizer.txt by measuring: the variant with which a board makes the same ids of texts as the model.

Hosts divide texts in a few fixed ways, none of which is that of GPT-2 and SmolLM. What they do with newlines can be
repaired: a token listed as special is taken out of a text before it is divided. Only tokens of white space are listed
so, which no template and no user can misuse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import write_bytes, write_text
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.host_tokenizer import HostTokenizer, host_tokenizer
from axzoo.tokenizer.host_vocabulary import HostVocabulary, host_vocabulary
from axzoo.tokenizer.host_words import in_byte_alphabet
from axzoo.tokenizer.local import LocalTokenizer
from axzoo.tokenizer.sample_texts import CONVERSATIONS, TEXTS
from axzoo.tokenizer.tokenizer_txt import NOT_AVAILABLE, NotAvailable, TokenizerTxt

CHATS = "chat"
FAMILY_ORDER = (0, 2, 1, 3, 4)
"""Of families with equal results, the first is taken. All hosts know family 0."""
_MAX_BLANKS = 32
_MAX_COMPARISONS = 50_000


@dataclass(frozen=True)
class Sample:
    """A text, or a conversation as its template renders it, and the model's own ids of it."""

    text: str
    ids: tuple[int, ...]


Samples = Mapping[str, Sequence[Sample]]
"""Samples by the kind of text."""


@dataclass(frozen=True)
class Variant:
    """A way to write a tokenizer: the family, and the tokens listed as special, which include those of `repairs`."""

    family: int
    repairs: tuple[str, ...]
    special: tuple[int, ...]


@dataclass(frozen=True)
class Agreement:
    """How many of the model's ids the host yields too: by the kind of text, the number of equal ids and of all; and the
    number of conversations of which all ids are equal."""

    counts: Mapping[str, tuple[int, int]]
    equal_chats: int
    chats: int

    @property
    def shares(self) -> dict[str, float]:
        """From 0 to 1, by the kind of text."""
        return {kind: equal / total if total else 1.0 for kind, (equal, total) in self.counts.items()}

    @property
    def total(self) -> float:
        """The share of all ids."""
        equal, total = (sum(column) for column in zip(*self.counts.values(), strict=True))
        return equal / total if total else 1.0

    @property
    def mean(self) -> float:
        """The mean of the shares, which gives each kind of text the same weight."""
        shares = self.shares
        return sum(shares.values()) / len(shares)


@dataclass(frozen=True)
class HostFile:
    """A tokenizer.txt and how well it does. `older` is the agreement on hosts that do not know families."""

    txt: TokenizerTxt
    variant: Variant
    agreement: Agreement
    older: Agreement
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The entry in a bundle's manifest."""
        return {
            "kind": self.txt.kind.value,
            "family": self.variant.family,
            "repairs": list(self.variant.repairs),
            "special_ids": len(self.txt.special),
            "stop_ids": list(self.txt.stop),
            "prefix_ids": list(self.txt.prefix),
            "equal_ids": {kind: _floored(share) for kind, share in self.agreement.shares.items()},
            "equal_chats": [self.agreement.equal_chats, self.agreement.chats],
            "equal_ids_on_older_hosts": {kind: _floored(share) for kind, share in self.older.shares.items()},
            "differs": [kind for kind, share in self.agreement.shares.items() if share < 1],
            "notes": list(self.notes),
        }


def choose(
    tokenizer: LocalTokenizer, rows: int, end_ids: Sequence[int], chat: bool = True, writes_bos: bool = False
) -> HostFile:
    """The best variant for a tokenizer. `rows` is the number of rows of the model's embedding, `chat` whether prompts
    go through the chat template, `writes_bos` whether the host's template contains the first token as text.

    Raises NotAvailable when there is no tokenizer.txt for it.
    """
    vocabulary = host_vocabulary(tokenizer, rows, end_ids)
    samples = take_samples(tokenizer, TEXTS, CONVERSATIONS)
    base = host_tokenizer(vocabulary.txt)
    measured: list[tuple[Variant, Agreement]] = []
    for variant in variants(vocabulary):
        measured.append((variant, agreement(base.changed(variant.special, variant.family), samples)))
        if measured[-1][1].mean == 1:
            break
    variant, best = max(measured, key=lambda pair: (pair[1].equal_chats, pair[1].mean))  # the first of equal ones
    older = best if variant.family == 0 else agreement(base.changed(variant.special), samples)
    prefix = () if writes_bos else _prefix_ids(tokenizer, chat)
    txt = replace(vocabulary.txt, special=variant.special, family=variant.family, prefix=prefix)
    notes = [f"added tokens have {flag}, which hosts do not know" for flag in vocabulary.unheard]
    if vocabulary.blank_first:
        after = agreement(base.changed(variant.special, variant.family), samples, before=" ")
        share = "".join(f" {kind} {_floored(share):.4f}" for kind, share in after.shares.items() if kind != CHATS)
        notes.append(f"the model expects a blank before every text, which hosts do not add; equal ids with it:{share}")
    return HostFile(txt, variant, best, older, tuple(notes))


def write_tokenizer_txt(
    path: Path,
    tokenizer: LocalTokenizer | None,
    rows: int,
    end_ids: Sequence[int],
    chat: bool = True,
    writes_bos: bool = False,
) -> dict[str, Any]:
    """Write the best variant (`choose`) to `path`, and return its entry in the manifest.

    If there is none for this tokenizer, the file contains only the reason, so that no host loads it.
    """
    try:
        if tokenizer is None:
            raise NotAvailable("the model has no tokenizer")
        found = choose(tokenizer, rows, end_ids, chat, writes_bos)
        data = found.txt.to_bytes()
    except NotAvailable as reason:
        write_text(path, f"{NOT_AVAILABLE} {reason}\n")
        return {"not_available": str(reason)}
    write_bytes(path, data)
    return found.to_dict()


def take_samples(
    tokenizer: LocalTokenizer, texts: Mapping[str, Sequence[str]], conversations: Sequence[Sequence[Message]]
) -> Samples:
    """Encode texts with the model's own tokenizer. Conversations need a chat template, and one that renders them."""
    samples = {
        kind: [Sample(text, tuple(tokenizer.encode(text, add_special_tokens=False))) for text in listed]
        for kind, listed in texts.items()
    }
    chats = [chat for turns in conversations if (chat := _chat_sample(tokenizer, turns)) is not None]
    return {**samples, CHATS: chats} if chats else samples


def _chat_sample(tokenizer: LocalTokenizer, turns: Sequence[Message]) -> Sample | None:
    if tokenizer.renderer is None:
        return None
    try:
        text = tokenizer.renderer.render(turns, add_generation_prompt=True)
    except AxzooError:  # the template does not know system messages, for example
        return None
    return Sample(text, tuple(tokenizer.encode(text, add_special_tokens=False)))


def agreement(host: HostTokenizer, samples: Samples, before: str = "") -> Agreement:
    """Compare the host's ids with those of the model. `before` is put before every text for the host."""
    counts = {}
    chats = 0
    for kind, listed in samples.items():
        pairs = [(sample.ids, tuple(host.encode(before + sample.text, with_prefix=False))) for sample in listed]
        equal = sum(_equal_ids(*pair) for pair in pairs)
        counts[kind] = equal, sum(max(len(one), len(other)) for one, other in pairs)
        chats += sum(one == other for one, other in pairs) if kind == CHATS else 0
    return Agreement(counts, chats, len(samples.get(CHATS, ())))


def _equal_ids(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The number of ids that two sequences share in order; regardless of the order, where that would take long."""
    if one == other:
        return len(one)
    counts, others = Counter(one), Counter(other)
    if sum(count * others[index] for index, count in counts.items()) > _MAX_COMPARISONS:
        return (counts & others).total()
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())


def variants(vocabulary: HostVocabulary) -> Iterator[Variant]:
    """All ways to write a tokenizer, the simplest first."""
    txt = vocabulary.txt
    if not vocabulary.divides_words:
        yield Variant(0, (), txt.special)
        return
    repairs = list(_repairs(txt).items())
    for count in range(len(repairs) + 1):
        listed = {index for _, indices in repairs[:count] for index in indices}
        repaired = sorted(listed, key=lambda index: (-len(txt.tokens[index]), index))
        for family in FAMILY_ORDER:
            yield Variant(family, tuple(name for name, _ in repairs[:count]), (*txt.special, *repaired))


def _repairs(txt: TokenizerTxt) -> dict[str, tuple[int, ...]]:
    """Tokens to list as special, by the name of the repair. Each repair needs those before it.

    By GPT-2's rules, a newline is not part of the word before it, and the last blank of an indentation belongs to the
    word after it: of a newline and 4 blanks, the newline and 3 blanks are a token. No family has these rules. An
    indentation is usually even, so only tokens with an odd number of blanks are listed.
    """
    ids = {token: index for index, token in reversed(list(enumerate(txt.tokens)))}
    odd = [b" " * blanks for blanks in range(1, _MAX_BLANKS, 2)]
    texts = {
        "newline": [b"\n"],
        "indentation": [b"\n" + blanks for blanks in odd],
        "indentation after a blank line": [b"\n\n" + blanks for blanks in odd],
    }
    found = {
        name: tuple(ids[token] for text in listed if (token := in_byte_alphabet(text).encode()) in ids)
        for name, listed in texts.items()
    }
    return {name: indices for name, indices in found.items() if indices} if found["newline"] else {}


def _prefix_ids(tokenizer: LocalTokenizer, chat: bool) -> tuple[int, ...]:
    """The ids that the model expects before a conversation, or, without chat template, before a text."""
    if chat and tokenizer.renderer is not None:
        ids = tokenizer.encode_chat([{"role": "user", "content": "?"}])
        bos = tokenizer.bos_token_id
        # A token before every message, such as <|im_start|>, is what the host's own template writes.
        return (bos,) if bos is not None and ids[:1] == [bos] and ids.count(bos) == 1 else ()
    ids, bare = (tokenizer.encode("A", add_special_tokens=special) for special in (True, False))
    count = len(ids) - len(bare)
    return tuple(ids[:count]) if count > 0 and ids[count:] == bare else ()


def _floored(share: float) -> float:
    """Four digits, so that only what is equal throughout becomes 1."""
    return math.floor(share * 10_000) / 10_000
