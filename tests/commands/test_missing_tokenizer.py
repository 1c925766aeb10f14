"""Models without a tokenizer, chat template or end token, and tokenizers of other models, at the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from axzoo.bundle.completion import complete_bundle
from axzoo.cli import main
from tiny_model import Built, Checkpoint

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def _bundle_without(built: Built, folder: Path, *missing: str) -> Built:
    """A completed bundle of a checkpoint that lacks some files, and names no end token in config.json."""
    moved = built.moved(folder / "results/AX650/tiny-w8a16")
    locks = Path(shutil.copytree(built.locks, folder / "locks"))
    index = json.loads((locks / "index.json").read_text())
    kept = {name: digest for name, digest in index["tokenizer_files"].items() if name not in (*missing, "config.json")}
    (locks / "index.json").write_text(json.dumps(index | {"tokenizer_files": kept}))
    complete_bundle(replace(moved.plan, lock=locks))
    return moved


@pytest.fixture
def without(s8: Built, tmp_path: Path) -> Built:
    return _bundle_without(s8, tmp_path, *TOKENIZER)


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_run_and_serve_say_what_is_missing(without: Built, verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main([verb, str(without.folder), *(["--prompt", "hi"] if verb == "run" else ["--port", "0"])]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "has no tokenizer, so it cannot read text" in err
    assert "`axzoo run --filename_tokenizer_model DIR` or `axzoo serve --tokenizer DIR`" in err


def test_the_printed_option_helps(without: Built, checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--filename_tokenizer_model", str(checkpoint.folder), "--max-tokens", "2", "--greedy"]
    assert main(["run", str(without.folder), "--prompt", "hi", *options]) == 0
    out, err = capfd.readouterr()
    assert out and "no chat template" not in err and "no end token" not in err  # both come with the tokenizer


def test_a_missing_template_and_end_token_are_said(
    s8: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    built = _bundle_without(s8, tmp_path, *TOKENIZER[1:])
    caplog.clear()
    assert main(["run", str(built.folder), "--prompt", "hi", "--max-tokens", "2", "--greedy"]) == 0
    assert capfd.readouterr().out
    assert caplog.messages == [
        "tiny-w8a16 has no chat template: prompts are continued as text",
        "tiny-w8a16 has no end token: answers end at their token limit, or when the context is full",
    ]


def test_it_verifies_and_its_checks_take_token_ids(without: Built, tmp_path: Path) -> None:
    assert main(["verify", str(without.folder)]) == 0
    where = ["--lock", str(without.locks), "--source", str(without.source), "--prompt", "1+1="]
    for verb in ("check-layers", "check-generation"):
        assert main([verb, str(without.folder), *where, "--output", str(tmp_path / f"{verb}.json")]) == 0
    assert json.loads((tmp_path / "check-layers.json").read_text())["prompt_tokens"] == 4
    generation = json.loads((tmp_path / "check-generation.json").read_text())
    assert generation["prompt"] == "<49><43><49><61>"
    assert generation["answer"].startswith("<") and generation["hit_eos"] is False


def _of_another_model(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"<{number}>" for number in range(9)])
    tokenizer.save(str(path))


def _empty(path: Path) -> None:
    Tokenizer(models.BPE({}, [])).save(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_of_another_model, "the tokenizer does not belong to this model, whose embedding has 262 rows: '<4>', '<5>'"),
        (_empty, "tokenizer.json has no tokens: its vocabulary is empty"),
    ],
)
def test_a_wrong_tokenizer_is_refused_before_any_tensor_is_read(
    checkpoint: Checkpoint, tmp_path: Path, change: object, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "checkpoint"))
    (folder / "model.safetensors").write_bytes(b"reading this file would give another error")
    change(folder / "tokenizer.json")  # type: ignore[operator]
    model = ["--model_type", "llama", "--num_hidden_layers", "2"]
    where = ["--source", str(folder / "source.json"), "--output", str(tmp_path / "lock")]
    assert main(["lock", *model, *where]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "lock").exists()
    work = ["--output_path", str(tmp_path / "output"), "--work_path", str(tmp_path / "work")]
    assert main(["llm_build", "--input_path", str(folder), *work]) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "output").exists()
