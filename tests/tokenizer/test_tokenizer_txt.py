"""tokenizer.txt: the bytes that are written, and the faults that the reader names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.tokenizer_txt import Kind, PieceType, TokenizerTxt, parse, shortcomings

MERGES = TokenizerTxt(
    Kind.MERGES,
    special=(4, 3),
    stop=(4,),
    prefix=(),
    tokens=(b"a", "Ġ".encode(), "Ġa".encode(), b"<|end|>", b"<|end|>\n", b"", b"b64:x"),
    merges=(("Ġ".encode(), b"a"), (b"b64:", b"x"), (b"a", b"b c")),
    family=2,
)
MERGES_FILE = """430 3
2 1 0
4 3 4
7 3 2
a
Ġ
Ġa
<|end|>
b64:PHxlbmR8Pgo=

b64:YjY0Ong=
Ġ a
b64:YjY0Og== b64:eA==
a b c
""".encode()

PIECES = TokenizerTxt(
    Kind.PIECES,
    special=(2, 1),
    stop=(2,),
    prefix=(1,),
    tokens=(b"<unk>", b"<s>", b"</s>", b"<0x0A>", b" a", b"<unused5>"),
    scores=(0.0, 0.0, 0.0, 0.0, -0.5, 0.0),
    types=(2, 3, 3, 6, 1, 5),
)
PIECES_FILE = b"""430 0
2 1 1
2 1 2 1
6
PHVuaz4= 0.0 2
PHM+ 0.0 3
PC9zPg== 0.0 3
PDB4MEE+ 0.0 6
IGE= -0.5 1
PHVudXNlZDU+ 0.0 5
"""


@pytest.mark.parametrize(("txt", "data"), [(MERGES, MERGES_FILE), (PIECES, PIECES_FILE)], ids=["merges", "pieces"])
def test_golden_bytes(txt: TokenizerTxt, data: bytes) -> None:
    assert txt.to_bytes() == data
    assert parse(data, "tokenizer.txt") == txt


def test_family_0_is_not_written_because_all_hosts_know_it() -> None:
    assert b"\n7 3\n" in replace(MERGES, family=0).to_bytes()


@pytest.mark.parametrize("kind", [1, 2])
def test_kinds_that_axzoo_does_not_write_are_read(kind: int) -> None:
    found = parse(b"430 %d\n0 1 0\n1\n2\nYQ==\n/w==\n" % kind, "tokenizer.txt")
    assert (found.kind, found.stop, found.tokens) == (kind, (1,), (b"a", b"\xff"))


def test_a_line_of_ids_is_there_even_if_there_are_none_and_may_end_in_a_blank() -> None:
    assert parse(b"430 1\n0 0 0\n\n1\nYQ==\n", "t").special == ()
    assert parse(b"430 1\n1 1 0\n0 0 \n1\nYQ==", "t").stop == (0,)


FAULTS = {
    "byte order mark": (b"\xef\xbb\xbf" + MERGES_FILE, "t:1: the file begins with a byte order mark"),
    "CR LF": (MERGES_FILE.replace(b"\n", b"\r\n"), "t:1: the line ends in CR LF"),
    "CR LF in the middle": (MERGES_FILE.replace(b"\na\n", b"\na\r\n"), "t:5: the line ends in CR LF"),
    "another magic number": (MERGES_FILE.replace(b"430 ", b"431 "), "t:1: the file does not begin with 430"),
    "unknown kind": (MERGES_FILE.replace(b"430 3", b"430 4"), "t:1: the kind must be one of 0 to 3"),
    "no kind": (MERGES_FILE.replace(b"430 3", b"430"), "t:1: the kind must be"),
    "two counts": (MERGES_FILE.replace(b"2 1 0", b"2 1"), "t:2: there must be three counts"),
    "an id too few": (MERGES_FILE.replace(b"4 3 4", b"4 3"), "t:3: there are 2 ids, but the line before says 3"),
    "an id too many": (MERGES_FILE.replace(b"4 3 4", b"4 3 4 4"), "t:3: there are 4 ids"),
    "an id beyond the vocabulary": (
        MERGES_FILE.replace(b"4 3 4", b"4 3 7"),
        "t:3: id 7 is outside the vocabulary of 7",
    ),
    "no line of ids": (b"430 1\n0 0 0\n1\nYQ==\n", "t:3: there are 1 ids"),
    "ids as text": (MERGES_FILE.replace(b"4 3 4", b"4 3 x"), "t:3: the line must hold the special, stop and prefix"),
    "unknown family": (MERGES_FILE.replace(b"7 3 2", b"7 3 9"), "t:4: the family must be one of 0 to 4, not 9"),
    "too high a count": (MERGES_FILE.replace(b"7 3 2", b"7 4 2"), "t:11: 4 lines must follow this one for a merge"),
    "too low a count": (MERGES_FILE.replace(b"7 3 2", b"7 2 2"), "t:13: 1 lines follow that no count includes"),
    "tokens counted too high": (MERGES_FILE.replace(b"7 3 2", b"8 2 2"), None),
    "tokens counted too low": (MERGES_FILE.replace(b"7 3 2", b"6 4 2"), "t:11: b'b64:YjY0Ong=' is not a merge"),
    "empty merge": (MERGES_FILE.replace("Ġ a\n".encode(), b"\n"), "t:12: b'' is not a merge of two tokens"),
    "half a merge in base64": (MERGES_FILE.replace(b" b64:eA==", b" x"), "t:13: .* encodes only one of its tokens"),
    "damaged base64": (MERGES_FILE.replace(b"b64:YjY0Ong=", b"b64:YjY0Ong"), "t:11: .* is not base64"),
    "piece without a type": (PIECES_FILE.replace(b" -0.5 1", b" -0.5"), "t:9: .* is not a token"),
    "piece of an unknown type": (PIECES_FILE.replace(b" -0.5 1", b" -0.5 7"), "t:9: .* is not a token"),
    "score that is no number": (PIECES_FILE.replace(b" -0.5 1", b" nan 1"), "t:9: the score b'nan' is not a number"),
    "piece without a text": (PIECES_FILE.replace(b"IGE= -0.5 1", b" -0.5 1"), "t:9: .* is not a token"),
    "empty": (b"", "t:1: 1 lines must follow this one"),
    "a number that is not of 32 bits": (MERGES_FILE.replace(b"7 3 2", b"99999999999 3"), "t:4: .* not a 32-bit number"),
    "the reason why there is none": (b"not available: its BPE is odd\n", "t: not available: its BPE is odd$"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_line(name: str) -> None:
    data, message = FAULTS[name]
    if message is None:  # the host takes a merge for a token, and this cannot be told from a vocabulary that has it
        assert parse(data, "t").tokens[-1] == "Ġ a".encode()
        return
    with pytest.raises(AxzooError, match=message.replace("(", r"\(")) as caught:
        parse(data, "t")
    assert "\n" not in str(caught.value)


def test_shortcomings() -> None:
    assert list(shortcomings(MERGES, [4])) == []
    assert list(shortcomings(MERGES, [4, 2])) == [
        "it does not list id 2 as a stop id: answers that end there go on",
    ]
    assert "lists no stop id" in next(shortcomings(replace(MERGES, stop=())))
    assert "the longest token" in next(shortcomings(parse(b"430 1\n0 1 0\n0\n1\nYQ==\n", "t")))


TOKENS = st.lists(st.binary(max_size=4) | st.text(max_size=4).map(lambda text: text.encode()), min_size=1, max_size=6)
NOT_EMPTY = st.binary(min_size=1, max_size=4)


@given(TOKENS, st.lists(st.tuples(NOT_EMPTY, NOT_EMPTY), max_size=4), st.integers(0, 4), st.data())
def test_any_tokens_and_merges_are_read_as_they_were_written(
    tokens: list[bytes], merges: list[tuple[bytes, bytes]], family: int, data: st.DataObject
) -> None:
    ids = st.lists(st.integers(0, len(tokens) - 1), max_size=3).map(tuple)
    special, stop, prefix = (data.draw(ids) for _ in range(3))
    txt = TokenizerTxt(Kind.MERGES, special, stop, prefix, tuple(tokens), merges=tuple(merges), family=family)
    assert parse(txt.to_bytes(), "t") == txt


@given(st.lists(st.tuples(NOT_EMPTY, st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1))
def test_any_pieces_are_read_as_they_were_written(rows: list[tuple[bytes, float]]) -> None:
    tokens, scores = zip(*rows, strict=True)
    txt = TokenizerTxt(Kind.PIECES, (), (), (), tokens, scores, (PieceType.NORMAL.value,) * len(rows))
    assert parse(txt.to_bytes(), "t") == txt


@given(
    st.binary(max_size=200) | st.sampled_from([MERGES_FILE, PIECES_FILE]), st.integers(0, 120), st.binary(max_size=3)
)
def test_any_file_is_read_or_refused(data: bytes, at: int, inserted: bytes) -> None:
    try:
        parse(data[:at] + inserted + data[at:], "t")
    except AxzooError as error:
        assert str(error).startswith("t:")
