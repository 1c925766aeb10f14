"""Tokens and flags that stand in other files than tokenizer.json, compared with transformers.

The installed version 5 runs. Version 4 does not run here: `EXPECTED` records what its rules give, as read from the
sources of 4.44 (PreTrainedTokenizerBase._from_pretrained and PreTrainedTokenizerFast.__init__).
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.local import load_tokenizer
from axzoo.tokenizer.tokenizer_folder import read_tokenizer_folder
from axzoo.tokenizer.tokenizer_process import load_backend

START, END, NOTE, PAD = "<|im_start|>", "<|im_end|>", "<note>", "<pad>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<note><|im_end|>\n{% endfor %}"
    "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}"
)
TEXTS = [
    "<|im_start|>user\nHi  <|im_end|> you<note>s <note> <pad><img>",
    " <|im_end|>  <note>\n<|im_start|><|im_start|>x",
    "no tokens at all",
]
FLAGS = {
    "plain": {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False},
    "lstrip": {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False},
    "rstrip": {"lstrip": False, "rstrip": True, "normalized": True, "single_word": False},
    "single word": {"lstrip": False, "rstrip": False, "normalized": False, "single_word": True},
}

Folder = dict[str, Any]
"""Contents of tokenizer_config.json, special_tokens_map.json and added_tokens.json, and tokens of tokenizer.json."""


def _listed(flags: str, special: bool) -> dict[str, Any]:
    tokens = {256: (START, special), 257: (END, special), 258: (NOTE, False)}
    return {
        str(i): {"content": text, "special": is_special, **FLAGS[flags]} for i, (text, is_special) in tokens.items()
    }


def _config(**values: Any) -> Folder:
    return {"tokenizer_config.json": values}


def _map(**values: Any) -> Folder:
    return {"special_tokens_map.json": values}


def _in_tokenizer_json(flags: str, special: bool) -> Folder:
    return {"tokens": [AddedToken(text, special=special, **FLAGS[flags]) for text in (START, END, NOTE)]}


PLACES: dict[str, Folder] = {
    "nowhere": {},
    "tokenizer.json": _in_tokenizer_json("plain", True),
    "tokenizer.json, not special": _in_tokenizer_json("plain", False),
    "tokenizer.json, flags": _in_tokenizer_json("lstrip", True),
    "added_tokens_decoder": _config(added_tokens_decoder=_listed("plain", True)),
    "added_tokens_decoder, not special": _config(added_tokens_decoder=_listed("plain", False)),
    **{f"added_tokens_decoder, {flags}": _config(added_tokens_decoder=_listed(flags, True)) for flags in FLAGS},
    "added_tokens.json": {"added_tokens.json": {START: 256, END: 257, NOTE: 258}},
    "added_tokens.json, other order": {"added_tokens.json": {NOTE: 258, END: 256, START: 257}},
    "config names": _config(bos_token=START, eos_token=END),
    "config names, null": _config(bos_token=None, eos_token=END, pad_token=None),
    "config names, objects": _config(
        bos_token={"__type": "AddedToken", "content": START, **FLAGS["rstrip"]},
        eos_token={"__type": "AddedToken", "content": END, **FLAGS["lstrip"]},
    ),
    "config additional": _config(additional_special_tokens=[START, END]),
    "config extra": _config(extra_special_tokens=[END, START]),
    "config extra by name": _config(extra_special_tokens={"image_token": "<img>", "turn_token": END}),
    "map names": _map(bos_token=START, eos_token=END, pad_token=END),
    "map names, objects": _map(
        bos_token={"content": START, **FLAGS["lstrip"]}, eos_token={"content": END, **FLAGS["rstrip"]}, pad_token=PAD
    ),
    "map additional": _map(additional_special_tokens=[START, END]),
    "map names, null": _map(eos_token=None),
    "split": _config(split_special_tokens=True),
}


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_folder(base: Tokenizer, folder: Path, *places: Folder) -> Path:
    """Write a tokenizer folder that lists tokens in several places; later ones win inside a file."""
    tokenizer = Tokenizer.from_str(base.to_str())
    config: Folder = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files: dict[str, Folder] = {"tokenizer_config.json": config | {"chat_template": TEMPLATE}}
    for place in places:
        tokenizer.add_tokens(place.get("tokens", []))
        for name, values in place.items():
            if name != "tokens":
                files[name] = files.get(name, {}) | values
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return folder


def _flags(tokenizer: Any) -> dict[int, str]:
    return {index: repr(token) for index, token in tokenizer.get_added_tokens_decoder().items()}


@pytest.mark.parametrize("first", PLACES)
def test_every_pair_of_places_gives_what_transformers_gives(base: Tokenizer, tmp_path: Path, first: str) -> None:
    for number, second in enumerate(list(PLACES)[list(PLACES).index(first) :]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_folder(base, folder, PLACES[first], PLACES[second])
        ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        pair = f"{first} + {second}"
        backend = load_backend(read_tokenizer_folder(folder), None).backend
        assert _flags(backend._tokenizer) == _flags(theirs.backend_tokenizer), pair  # type: ignore[attr-defined]
        for text, skip in product(TEXTS, (True, False)):
            ids = ours.encode(text)
            assert ids == theirs.encode(text), pair
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), pair
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        assert [ours.special_tokens.get(name) for name in names] == [getattr(theirs, name) for name in names], pair


@pytest.mark.parametrize("place", PLACES)
def test_templates_get_the_tokens_of_every_place(base: Tokenizer, tmp_path: Path, place: str) -> None:
    write_folder(base, tmp_path, PLACES[place])
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "  Hi <pad>"}]
    assert ours.encode_chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


EXPECTED: dict[str, tuple[Folder, dict[str, int], set[str]]] = {
    "added_tokens_decoder": (PLACES["added_tokens_decoder"], {START: 256, END: 257, NOTE: 258}, {START, END}),
    "added_tokens_decoder, other ids": (
        _config(added_tokens_decoder={"300": {"content": END, "special": True}, "290": {"content": START}}),
        {START: 256, END: 257},
        {END},
    ),
    "added_tokens_decoder, named": (
        _config(added_tokens_decoder={"256": {"content": END, "special": False}}, eos_token=END),
        {END: 256},
        {END},
    ),
    "added_tokens.json": (PLACES["added_tokens.json"], {START: 256, END: 257, NOTE: 258}, set()),
    "added_tokens.json, named in the map": (
        PLACES["added_tokens.json"] | _map(eos_token=END, bos_token=START),
        {START: 256, END: 257, NOTE: 258},
        {START, END},
    ),
    "the map alone": (
        _map(pad_token=PAD, bos_token=START, additional_special_tokens=[END]),
        {START: 256, PAD: 257, END: 258},
        {START, PAD, END},
    ),
    "the config alone": (
        _config(eos_token=END, additional_special_tokens=[START, END]),
        {END: 256, START: 257},
        {START, END},
    ),
    "the map after an added_tokens_decoder": (
        PLACES["added_tokens_decoder"] | _map(pad_token=PAD) | {"added_tokens.json": {"<other>": 259}},
        {START: 256, END: 257, NOTE: 258},
        {START, END},
    ),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_ids_and_special_flags_are_those_of_versions_4_and_5(base: Tokenizer, tmp_path: Path, case: str) -> None:
    place, ids, special = EXPECTED[case]
    ours = load_tokenizer(write_folder(base, tmp_path, place))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert {t.content: i for i, t in theirs.backend_tokenizer.get_added_tokens_decoder().items()} == ids
    assert ours.vocab_size == 256 + len(ids)
    text = "".join(ids)
    assert ours.encode(text) == list(ids.values()) == theirs.encode(text)
    visible = "".join(token for token in ids if token not in special)
    assert ours.decode(list(ids.values())) == visible == theirs.decode(list(ids.values()), skip_special_tokens=True)


def test_special_tokens_map_overrides_only_without_an_added_tokens_decoder(base: Tokenizer, tmp_path: Path) -> None:
    names = _config(eos_token=END, bos_token=START) | _map(eos_token=NOTE)
    assert load_tokenizer(write_folder(base, tmp_path, names)).special_tokens["eos_token"] == NOTE
    listed = PLACES["added_tokens_decoder"]
    write_folder(base, tmp_path, names, listed)
    assert load_tokenizer(tmp_path).special_tokens["eos_token"] == END
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == END


def test_an_id_that_transformers_changes_is_reported(
    base: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_tokenizer(write_folder(base, tmp_path, {"added_tokens.json": {START: 256, END: 300}}))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} lists token '<|im_end|>' with id 300, but it gets id 257, as in transformers: the ids before it "
        "are not all in the vocabulary"
    ]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (_config(eos_token=5), "eos_token must hold tokens as text, not 5"),
        (_config(additional_special_tokens="<x>"), "additional_special_tokens must be a list"),
        (_map(bos_token={"text": "<x>"}), "special_tokens_map.json: bos_token must hold tokens as text"),
        (_map(additional_special_tokens=[1]), "must hold tokens as text, not 1"),
        (_config(added_tokens_decoder=[1]), "added_tokens_decoder is not valid"),
        (_config(added_tokens_decoder={"-1": {"content": "x"}}), "token ids out of range"),
        ({"added_tokens.json": {"<x>": "5"}}, "must map tokens to their ids"),
    ],
)
def test_lists_in_another_form_are_refused(base: Tokenizer, tmp_path: Path, place: Folder, message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        load_tokenizer(write_folder(base, tmp_path, place))


def test_an_empty_vocabulary_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.BPE({}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(AxzooError, match=r"tokenizer\.json has no tokens: its vocabulary is empty"):
        load_tokenizer(tmp_path)
