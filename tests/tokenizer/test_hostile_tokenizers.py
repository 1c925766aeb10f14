"""Tokenizers from strangers are refused, or used, in bounded memory and time; servers survive them."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile_tokenizers import FAILING, GROWING, HALVES, LATE, TRIGGER, base_tokenizer, replaced, write_hostile
from tokenizer_server import tokenizer_server

from axzoo.bundle.completion import complete_bundle
from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, sha256_of
from axzoo.tokenizer.local import load_tokenizer
from axzoo.tokenizer.tokenizer_folder import read_tokenizer_folder
from axzoo.tokenizer.tokenizer_process import load_backend
from tiny_model import Built, Checkpoint

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from chat_server import chat_server

MAX_MB = 1024
"""Far below what the attacks ask for."""


def assert_one_sentence(message: str, path: Path, cause: str) -> None:
    assert message.startswith(str(path)), message
    assert "\n" not in message
    assert len(message) < 1000
    assert re.search(cause, message), message


def _children_mb() -> float:
    """The largest child process so far, of any test in this process."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


@pytest.fixture(autouse=True)
def bounded_children() -> Iterator[None]:
    before = _children_mb()
    yield
    assert _children_mb() <= max(before, MAX_MB)


@pytest.mark.parametrize("name", [*GROWING, *FAILING])
def test_it_is_refused_when_it_is_loaded(tmp_path: Path, name: str) -> None:
    change, cause = {**GROWING, **FAILING}[name]
    path = write_hostile(tmp_path, change)
    with pytest.raises(AxzooError) as caught:
        load_tokenizer(tmp_path)
    assert_one_sentence(str(caught.value), path, cause)


@pytest.mark.parametrize("name", LATE)
def test_a_text_is_refused_and_the_next_one_encoded(tmp_path: Path, name: str) -> None:
    change, text, cause = LATE[name]
    path = write_hostile(tmp_path, change)
    tokenizer = load_tokenizer(tmp_path)
    before = tokenizer.encode("hi")
    with pytest.raises(AxzooError) as caught:
        tokenizer.encode(f"x{text}")
    assert_one_sentence(str(caught.value), path, f"cannot encode this text: .*({cause})")
    assert tokenizer.encode("hi") == before != []


@pytest.mark.parametrize("name", HALVES)
def test_half_a_character_in_a_token_is_refused(tmp_path: Path, name: str) -> None:
    file, content = HALVES[name]
    write_hostile(tmp_path, lambda _: None)
    (tmp_path / file).write_text(content)
    with pytest.raises(AxzooError) as caught:
        load_tokenizer(tmp_path)
    assert_one_sentence(str(caught.value), tmp_path / file, r"has the token '.*ud800.*', which is not valid Unicode")


def test_halves_of_characters_in_vocab_json(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"\\ud800": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(AxzooError, match=r"merges\.txt does not fit vocab\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_a_damaged_tokenizer_model(tmp_path: Path, size: int) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(bytes(range(256)) * (size // 256) + b"\x0a" * (size % 256))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(AxzooError) as caught:
        load_tokenizer(tmp_path)
    assert_one_sentence(str(caught.value), path, "not a SentencePiece model|has no pieces|cannot")


def test_the_native_libraries_are_not_loaded_into_this_process(tmp_path: Path) -> None:
    write_hostile(tmp_path, lambda _: None)
    script = (
        "import sys; from pathlib import Path; from axzoo.tokenizer.local import load_tokenizer\n"
        "assert load_tokenizer(Path(sys.argv[1])).encode('hi') == [ord('h') - ord('!'), ord('i') - ord('!')]\n"
        "assert not {'tokenizers', 'sentencepiece'} & {name.partition('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_threads_share_a_tokenizer_and_large_texts_pass(tmp_path: Path) -> None:
    write_hostile(tmp_path, lambda _: None)
    tokenizer = load_tokenizer(tmp_path)
    wrong: list[str] = []

    def use(letter: str) -> None:
        for size in (1, 100, 70_000, 300_000):
            text = letter * size
            ids = tokenizer.encode(text)
            if ids != [ord(letter) - ord("!")] * size or tokenizer.decode(ids) != text:
                wrong.append(text[:10])

    threads = [threading.Thread(target=use, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_killed_process_is_replaced(tmp_path: Path) -> None:
    write_hostile(tmp_path, lambda _: None)
    tokenizer = load_tokenizer(tmp_path)
    child = tokenizer.backend._child  # type: ignore[attr-defined]
    before, process = tokenizer.encode("hi"), child._process
    process.kill()
    process.wait()
    assert tokenizer.encode("hi") == before
    assert child._process is not process
    child.close()
    assert child._process is None


VERBS = ("bundle", "lock", "llm_build", "run", "serve", "tokenizer")
KINDS = {
    "growth": GROWING["a normalizer with a long replacement, twice"][0],
    "charsmap": GROWING["a charsmap of 8 GB"][0],
    "panic": FAILING["FixedLength 0"][0],
    "exception": FAILING["WordLevel without its unknown token"][0],
}


def _refused(
    verb: str, s8: Built, checkpoint: Checkpoint, change: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> Path:
    """Run a verb on a model with a hostile tokenizer, which must fail; return the path of the tokenizer."""
    if verb in ("run", "serve", "tokenizer"):
        built = s8.moved(folder / "results/AX650/tiny-w8a16")
        complete_bundle(built.plan)
        path = built.folder / "tokenizer/tokenizer.json"
        write_hostile(path.parent, change, read_json(path))
        command = {
            "run": ["run", str(built.folder), "--prompt", "hi"],
            "serve": ["serve", str(built.folder), "--port", "0"],
            "tokenizer": ["tokenizer", "--model", str(built.folder), "--port", "0"],
        }[verb]
        capfd.readouterr()
        assert main(command) == 1
        return path
    copy = Path(shutil.copytree(checkpoint.folder, folder / "checkpoint"))
    path = write_hostile(copy, change, read_json(copy / "tokenizer.json"))
    if verb == "bundle":
        locks = Path(shutil.copytree(s8.locks, folder / "locks"))
        index = json.loads((locks / "index.json").read_text())
        index["tokenizer_files"]["tokenizer.json"] = sha256_of(path)
        (locks / "index.json").write_text(json.dumps(index))
        built = s8.moved(folder / "results/AX650/tiny-w8a16")
        with pytest.raises(AxzooError) as caught:
            complete_bundle(replace(built.plan, lock=locks, source=copy / "source.json"))
        capfd.readouterr()
        sys.stderr.write(f"{caught.value}\n")
        assert not (built.folder / "manifest.json").exists()
        return built.folder / "tokenizer/tokenizer.json"
    capfd.readouterr()
    if verb == "lock":
        model = ["--model_type", "llama", "--num_hidden_layers", "2", "--source", str(copy / "source.json")]
        assert main(["lock", *model, "--output", str(folder / "lock")]) == 1
        assert not (folder / "lock").exists()
    else:
        work = ["--output_path", str(folder / "output"), "--work_path", str(folder / "work")]
        assert main(["llm_build", "--input_path", str(copy), *work]) == 1
        assert not (folder / "output").exists()
    return path


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_verb_refuses_it_in_one_line(
    s8: Built, checkpoint: Checkpoint, tmp_path: Path, verb: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _refused(verb, s8, checkpoint, KINDS[kind], tmp_path, capfd)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert f"{path} cannot " in err
    assert "Traceback" not in err


def _served(s8: Built, folder: Path, change: Any) -> Path:
    built = s8.moved(folder / "tiny-w8a16")
    complete_bundle(built.plan)
    path = built.folder / "tokenizer/tokenizer.json"
    write_hostile(path.parent, change, read_json(path))
    return built.folder


@pytest.mark.parametrize("name", ["growth", "years", "an unknown word"])
def test_the_tokenizer_server_answers_json_and_goes_on(tmp_path: Path, name: str) -> None:
    change, text, cause = LATE[name]
    write_hostile(tmp_path, change)
    with tokenizer_server(tmp_path) as server:
        before = server.post("/encode", {"text": "hi"})
        assert before.status == 200
        attack = threading.Thread(target=lambda: answers.append(server.post("/encode", {"text": f"x{text}"})))
        answers: list[Any] = []
        started = time.monotonic()
        attack.start()
        assert server.get("/get_uid").status == 200  # others are answered meanwhile
        attack.join()
        (answer,) = answers
        assert answer.status == 400
        assert re.search(f"tokenizer.json cannot encode this text: .*({cause})", answer.body["error"])
        assert server.post("/encode", {"text": "hi"}).body == before.body
        assert server.process.poll() is None
        assert time.monotonic() - started < 60


def test_a_decoder_that_grows_on_some_tokens(tmp_path: Path) -> None:
    steps = [replaced(TRIGGER, 1000 * TRIGGER)] * 4
    write_hostile(tmp_path, lambda content: content.update(decoder={"type": "Sequence", "decoders": steps}))
    index = base_tokenizer()["model"]["vocab"]
    with tokenizer_server(tmp_path) as server:
        for uid in ({}, {"uid": server.get("/get_uid").body["uid"]}):
            answer = server.post("/decode", {"token_ids": [index["q"]], **uid})
            assert answer.status == 400
            assert "tokenizer.json cannot decode these tokens: it " in answer.body["error"]
        assert server.post("/decode", {"token_ids": [index["h"]]}).body == {"text": "h"}


@pytest.mark.parametrize("name", ["growth", "an unknown word"])
def test_the_chat_server_answers_json_and_goes_on(s8: Built, tmp_path: Path, name: str) -> None:
    change, text, cause = LATE[name]
    bundle = _served(s8, tmp_path, change)
    ask = {"model": "tiny-w8a16", "max_tokens": 2, "temperature": 0}
    with chat_server(bundle, "--mode", "exact") as server:
        question = {**ask, "messages": [{"role": "user", "content": "hi"}]}
        before = server.chat(**question)
        assert before[0] == 200
        for stream in (False, True):
            attack = {**ask, "messages": [{"role": "user", "content": f"x{text}"}], "stream": stream}
            status, body = server.chat(**attack)
            assert (status, body["error"]["type"]) == (400, "invalid_request_error")
            assert "tokenizer.json cannot encode this text: " in body["error"]["message"]
            assert re.search(cause, body["error"]["message"])
        after = server.chat(**question)
        assert after[1]["choices"][0]["message"] == before[1]["choices"][0]["message"]
        assert server.resident_mb < 400


def test_it_is_the_tokenizer_that_runs_without_a_child(tmp_path: Path) -> None:
    """The functions that the child calls give what the child gives."""
    write_hostile(tmp_path, lambda _: None)
    inside = load_backend(read_tokenizer_folder(tmp_path), None).backend
    outside = load_tokenizer(tmp_path).backend
    for text in ("hi", "", "naïve 😀\n"):
        assert outside.encode(text, True) == inside.encode(text, True)
    assert outside.vocab_size == inside.vocab_size
    assert outside.tokens_from(250) == inside.tokens_from(250)
    assert [outside.token_to_id(name) for name in ("h", "none")] == [inside.token_to_id(n) for n in ("h", "none")]
