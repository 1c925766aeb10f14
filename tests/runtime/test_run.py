"""`axzoo run` from its arguments to its output."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import Oracle

from axzoo.cli import main
from axzoo.tokenizer.local import load_tokenizer

INIT_LINES = """max_token_len : 15
kv_cache_size : 16, kv_cache_num: 15
prefill_token_num : 4
LLM init ok
"""


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def _answer(oracle: Oracle, bundle: Path, prompt: list[int], tokens: int) -> str:
    """Return the greedy answer of the oracle as text, without an incomplete character at the end."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(oracle.logits(ids).argmax()))
    return load_tokenizer(bundle / "tokenizer").decode(ids[len(prompt) :]).rstrip("\ufffd")


def test_the_answer_goes_to_stdout_and_status_lines_to_stderr(
    bundle: Path, oracle: Oracle, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(bundle), "--prompt", "hi", "--greedy", "--max-tokens", "6"]
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    prompt = load_tokenizer(bundle / "tokenizer").encode("<user>hi")
    assert out == _answer(oracle, bundle, prompt, 6) + "\n"
    assert re.fullmatch(
        INIT_LINES + r"ttft: \d+\.\d\d ms\n\nhit max tokens,avg \d+\.\d\d token/s\n\n",
        err,
    )


def test_system_raw_and_the_settings_of_the_bundle(
    copy: Path, oracle: Oracle, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(copy / "tokenizer")

    def check(options: list[str], prompt: str) -> None:
        assert main(["run", str(copy), "--prompt", "hi", "--greedy", "--max-tokens", "2", *options]) == 0
        assert capfd.readouterr().out == _answer(oracle, copy, tokenizer.encode(prompt), 2) + "\n"

    config = json.loads((copy / "config.json").read_text())
    check(["--system", "abc"], "<system>abc<user>hi")
    check(["--raw"], "hi")
    (copy / "config.json").write_text(json.dumps({**config, "system_prompt": "xy"}))
    check([], "<system>xy<user>hi")
    check(["--system", ""], "<user>hi")
    (copy / "config.json").write_text(json.dumps({**config, "chat": False}))
    check([], "hi")


def test_the_stop_reason_is_printed(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(copy), "--prompt", "hi", "--greedy"]
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert "hit context full,avg" in err
    assert "the context is full" in err
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "eos_token_ids": list(range(300))}))
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert out == "\n"
    assert re.search(r"\nttft: \d+\.\d\d ms\n\nhit eos,avg 0\.00 token/s\n\n$", err)


def test_sampling_follows_the_seed_and_post_config(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def answer(*options: str) -> str:
        assert main(["run", str(copy), "--prompt", "hi", *options]) == 0
        return capfd.readouterr().out

    (copy / "post_config.json").write_text('{"temperature": 50.0, "top_k": 200}')
    assert answer("--seed", "1") == answer("--seed", "1")
    assert len({answer("--seed", str(seed)) for seed in range(4)}) > 1
    (copy / "post_config.json").write_text('{"top_k": 1}')
    assert answer() == answer("--greedy")
    (copy / "post_config.json").unlink()
    assert answer() == answer("--greedy")


def test_fast_mode_answers(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(bundle), "--prompt", "hi", "--mode", "fast", "--max-tokens", "2"]) == 0
    assert "hit max tokens" in capfd.readouterr().err


def test_errors_are_one_line(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def error(folder: Path, prompt: str) -> str:
        assert main(["run", str(folder), "--prompt", prompt]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.removeprefix(INIT_LINES).count("\n") == 1
        return err

    assert "is not a bundle" in error(tmp_path / "nothing", "hi")
    assert "the prompt has 101 tokens, but the context holds only 15" in error(copy, "x" * 100)
    assert "not valid UTF-8" in error(copy, "\udcff")
    (copy / "chat_template.jinja").touch()
    (copy / "tokenizer" / "chat_template.jinja").unlink()
    assert "chat: false" in error(copy, "hi")
    model = copy / "llama_p4_l2_together.axmodel"
    model.write_bytes(model.read_bytes()[:-500])
    assert "llama_p4_l2_together.axmodel cannot be loaded" in error(copy, "hi")


def test_max_tokens_must_be_positive(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in ("0", "-1", "many"):
        with pytest.raises(SystemExit):
            main(["run", str(bundle), "--prompt", "hi", "--max-tokens", number])
        assert "--max-tokens" in capfd.readouterr().err


def test_neither_torch_nor_transformers_are_imported(bundle: Path) -> None:
    code = (
        "import sys; from axzoo.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'onnx', 'jinja2', 'pydantic') if m in sys.modules])"
    )
    arguments = [sys.executable, "-c", code, "run", str(bundle), "--prompt", "hi", "--max-tokens", "1"]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.endswith("[]\n")
