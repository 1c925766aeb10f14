"""The flags of main_prefill: they mean the same as on the board and give the same answer as the bundle."""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import EXACT, LAYERS, VOCAB_SIZE, Oracle

from axzoo.cli import main
from axzoo.commands import run
from axzoo.runtime.prompting import PROMPT_FORMATS, TokenizerChoice, open_tokenizer
from axzoo.runtime.setup import FLAGS
from axzoo.tokenizer.local import load_tokenizer
from axzoo.weights.recipe import Recipe

BOARD = {
    "template_filename_axmodel": "tinyllama-int8/tinyllama_l%d.axmodel",
    "filename_post_axmodel": "tinyllama-int8/tinyllama_post.axmodel",
    "filename_tokens_embed": "tinyllama.model.embed_tokens.weight.bfloat16.bin",
    "tokenizer_type": 0,
    "filename_tokenizer_model": "tokenizer.model",
    "axmodel_num": 22,
    "tokens_embed_num": 32000,
    "tokens_embed_size": 2048,
    "bos": True,
    "eos": False,
    "use_topk": False,
    "use_mmap_load_embed": False,
    "dynamic_load_axmodel_layer": False,
    "post_config_path": "post_config.json",
    "live_print": False,
    "continue": False,
    "filename_vpm_resampler_axmodel": "",
    "filename_vpm_encoder_axmodel": "",
    "vpm_width": 280,
    "vpm_height": 280,
    "vpm_two_stage": False,
}
"""The flags of ax-llm's main_prefill, except --prompt, and their defaults."""


def _flags(folder: Path) -> dict[str, str]:
    return {
        "template_filename_axmodel": f"{folder}/llama_p4_l%d_together.axmodel",
        "axmodel_num": str(LAYERS),
        "filename_post_axmodel": f"{folder}/llama_post.axmodel",
        "filename_tokens_embed": f"{folder}/embed.bin",
        "tokens_embed_num": str(VOCAB_SIZE),
        "tokens_embed_size": "32",
        "filename_tokenizer_model": f"{folder}/tokenizer",
        "post_config_path": f"{folder}/greedy.json",
    }


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (folder / "greedy.json").write_text('{"top_k": 1}')
    return folder


Run = Callable[..., str]


@pytest.fixture
def answer(copy: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run with the flags of main_prefill, some of them changed; return stdout."""

    def run_flags(*arguments: str, **changed: str) -> str:
        flags = _flags(copy) | changed
        assert main(["run", *(f"--{name}={value}" for name, value in flags.items()), *arguments]) == 0
        return capfd.readouterr().out

    return run_flags


def _by_bundle(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["run", *arguments]) == 0
    return capfd.readouterr().out


def test_names_and_defaults_match_the_board() -> None:
    assert {flag.name: flag.default for flag in FLAGS} == BOARD
    assert [type(flag.default) for flag in FLAGS] == [type(BOARD[flag.name]) for flag in FLAGS]


@pytest.mark.parametrize("form", ["--{} {}", "--{}={}"])
def test_both_ways_to_write_a_flag(copy: Path, capfd: pytest.CaptureFixture[str], form: str) -> None:
    words = [word for item in _flags(copy).items() for word in form.format(*item).split(" ")]
    assert main(["run", *words, "-p", "hi", "--max-tokens", "5"]) == 0
    found = capfd.readouterr().out
    assert found == _by_bundle(capfd, str(copy), "--greedy", "--max-tokens", "5", "--prompt", "hi")


def test_a_tokenizer_file_means_its_folder(copy: Path, answer: Run) -> None:
    words = ("--prompt", "hi", "--max-tokens", "4")
    assert answer(*words) == answer(*words, filename_tokenizer_model=f"{copy}/tokenizer/tokenizer.json")


@pytest.mark.parametrize("flag", ["use_mmap_load_embed", "dynamic_load_axmodel_layer", "live_print"])
def test_flags_that_do_not_change_the_answer(answer: Run, flag: str) -> None:
    words = ("--prompt", "hi", "--max-tokens", "5")
    assert answer(*words, **{flag: "0"}) == answer(*words, **{flag: "1"}) == answer(*words)


def _oracle_answer(oracle: Oracle, folder: Path, prompt: list[int], tokens: int) -> str:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(oracle.logits(ids).argmax()))
    text = load_tokenizer(folder / "tokenizer").decode(ids[len(prompt) :])
    return text.rstrip("\ufffd") + "\n"  # an incomplete character at the end is dropped


@pytest.mark.parametrize(("bos", "eos"), [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")])
def test_bos_and_eos(copy: Path, oracle: Oracle, answer: Run, bos: str, eos: str) -> None:
    tokens = json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"})
    (copy / "tokenizer" / "tokenizer_config.json").write_text(tokens)
    text = "<bos>" * int(bos) + "<user>hi" + "<eos>" * int(eos)
    found = answer("--prompt", "hi", "--max-tokens", "3", bos=bos, eos=eos)
    assert found == _oracle_answer(oracle, copy, load_tokenizer(copy / "tokenizer").encode(text), 3)
    (copy / "tokenizer" / "chat_template.jinja").write_text("<bos>{{ messages[0].content }}<eos>")
    found = answer("--prompt", "hi", "--max-tokens", "3", bos=bos, eos=eos)  # not added twice
    assert found == _oracle_answer(oracle, copy, load_tokenizer(copy / "tokenizer").encode("<bos>hi<eos>"), 3)


@pytest.mark.parametrize(
    ("kind", "expected_prompt"),
    [
        ("0", "<|user|>\nhi</s><|assistant|>\n"),
        (
            "1",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("3", "<|user|>hi <|end|><|assistant|>"),
        ("4", "<用户>hi<AI>"),
    ],
)
def test_without_a_chat_template_the_type_selects_the_prompt_format(
    oracle: Oracle, copy: Path, answer: Run, kind: str, expected_prompt: str
) -> None:
    """The formats are those of ax-llm's main.cpp."""
    (copy / "tokenizer" / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(copy / "tokenizer")
    choice = TokenizerChoice(int(kind), str(copy / "tokenizer"), False, False, None)
    assert open_tokenizer(choice, chat=True).encode([{"role": "user", "content": "hi"}]) == tokenizer.encode(
        expected_prompt
    )
    if kind == "4":
        expected = _oracle_answer(oracle, copy, tokenizer.encode(expected_prompt), 1)
        assert answer("--prompt", "hi", "--max-tokens", "1", tokenizer_type=kind) == expected


def test_prompt_formats_render_whole_conversations() -> None:
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert {kind: prompt_format.render(messages) for kind, prompt_format in PROMPT_FORMATS.items()} == {
        0: "<|system|>\nS</s><|user|>\na</s><|assistant|>\nb</s><|user|>\nc</s><|assistant|>\n",
        1: "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
        3: "<|system|>S <|end|><|user|>a <|end|><|assistant|>b<|end|><|user|>c <|end|><|assistant|>",
        4: "S<用户>a<AI>b<用户>c<AI>",
    }


def test_use_topk_selects_the_top_token_of_the_post_layer(
    build_bundle: Callable[[Recipe], Path], copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listed = build_bundle(replace(EXACT, post_topk=5))
    (copy / "hot.json").write_text('{"temperature": 50.0}')
    words = ("--prompt", "hi", "--max-tokens", "5")
    hot = ("--post_config_path", str(copy / "hot.json"))
    greedy = _by_bundle(capfd, str(copy), "--greedy", *words)
    assert _by_bundle(capfd, str(listed), "--use_topk", "1", *hot, *words) == greedy
    assert len({_by_bundle(capfd, str(listed), *hot, *words) for _ in range(4)}) > 1
    assert main(["run", str(copy), "--use_topk", "1", *words]) == 1
    assert "has no top-k outputs: omit --use_topk" in capfd.readouterr().err


def test_the_embedding_is_read_or_mapped(copy: Path, answer: Run) -> None:
    """With a sparse table of 256 MiB, only reading takes that much memory."""
    path = copy / "embed.bin"
    with path.open("r+b") as file:
        file.truncate(1 << 28)

    def peak(mmap: str) -> int:
        tracemalloc.start()
        try:
            answer("--prompt", "hi", "--max-tokens", "2", tokens_embed_num=str(1 << 22), use_mmap_load_embed=mmap)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak("1") < 1 << 26 < 1 << 28 <= peak("0")


def test_invalid_flags_give_one_line_errors(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str, **changed: str) -> str:
        flags = _flags(copy) | changed
        assert main(["run", *(f"--{name}={value}" for name, value in flags.items()), *arguments]) == 1
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err

    ask = ("--prompt", "hi")
    assert "need option: --prompt TEXT, or pass a bundle folder" in error()
    assert "omit --template_filename_axmodel, or the bundle folder" in error(str(copy), *ask)
    assert "must contain one %d" in error(*ask, template_filename_axmodel="layer.axmodel")
    assert "l3_together.axmodel is missing" in error(*ask, axmodel_num="4")
    assert "--axmodel_num must be 1 or more, not 0" in error(*ask, axmodel_num="0")
    assert "but 7 rows of 32 bf16 values take 448" in error(*ask, tokens_embed_num="7")
    assert "embed is missing" in error(*ask, filename_tokens_embed=f"{copy}/embed")
    assert "--tokenizer_type must be 0 to 4, not 5" in error(*ask, tokenizer_type="5")
    assert "--tokenizer_type 2 uses a tokenizer server" in error(*ask, tokenizer_type="2")
    assert "add --tokenizer_type 2" in error(*ask, filename_tokenizer_model="http://127.0.0.1:1")
    server = {"tokenizer_type": "2", "filename_tokenizer_model": "http://127.0.0.1:1"}
    assert "--raw needs a local tokenizer" in error(*ask, "--raw", **server)
    assert "no tokenizer server responds at http://127.0.0.1:1" in error(*ask, **server)


@pytest.mark.parametrize("word", ["--bos=2", "--continue=yes", "--axmodel_num=many"])
def test_invalid_values_are_refused(copy: Path, capfd: pytest.CaptureFixture[str], word: str) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(copy), "--prompt", "hi", word])
    assert word.split("=")[0] in capfd.readouterr().err


def test_an_empty_prompt_starts_the_interactive_mode(answer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    output = answer("--prompt", "", "--max-tokens", "3")
    start = 'Type "q" to exit, Ctrl+c to stop current running\n>> '
    assert output == f"{start}{answer('--prompt=hi', '--max-tokens', '3')}>> \n"


def test_the_guide_lists_every_option() -> None:
    """The defaults in its table match the code."""
    page = (Path(__file__).parents[2] / "docs" / "run.md").read_text()
    rows = dict(re.findall(r"^\| `--(\w+)` \| `([^|`]+)` \|", page, re.MULTILINE))
    defaults = {flag.name: int(flag.default) if isinstance(flag.default, bool) else flag.default for flag in FLAGS}
    shown = {name: str(default) or '""' for name, default in defaults.items()}
    assert rows == shown
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    for action in parser._actions:
        for word in action.option_strings:
            assert word in ("-h", "--help") or f"`{word}" in page, word
