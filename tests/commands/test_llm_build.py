"""The options of `llm_build`, and errors that are reported before the build starts."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import pytest

from axzoo.bundle.boards.lengths import recipe_lengths
from axzoo.cli import main
from axzoo.commands import llm_build
from axzoo.commands._arguments import recipe_from
from axzoo.core.errors import AxzooError
from axzoo.llm_build.project import CHIPS, MATRIX, Project
from axzoo.matrix.entries import load_zoo
from tiny_model import Checkpoint, make_checkpoint

OPTIONS = """
    --input_path --output_path --prefill_len --parallel --model_config --kv_cache_len --post_topk --post_weight_type -t
    --hidden_state_type -w --weight_type -c --check_level --chip --prompt --last_kv_cache_len --model_type
    --ret_postnorm --image_size
"""


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    llm_build.add_arguments(parser)
    return parser


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("qwen") / "Qwen2-tiny", model_type="qwen2")


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config and tokenizer of a checkpoint with the dimensions of Llama-2-7b."""
    folder = tmp_path_factory.mktemp("large") / "Llama-2-7b"
    tiny = make_checkpoint(folder)
    config = json.loads((tiny.folder / "config.json").read_text()) | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def build_error(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str | Path) -> str:
    """The error message, of one line, of a build that does not start."""
    assert main(["llm_build", "--work_path", str(tmp_path / "work"), *map(str, words)]) == 1
    shown, error = capsys.readouterr()
    assert shown == ""  # not even the Config block
    assert not (tmp_path / "work/results").exists()
    assert re.fullmatch(r"axzoo: [^\n]+\n", error)
    return error.removeprefix("axzoo: ")


def test_every_documented_option_exists(parser: argparse.ArgumentParser) -> None:
    help_text = parser.format_help()
    for option in OPTIONS.split():
        assert re.search(rf"(^|[\s,\[]){option}\b", help_text), option


def test_help_states_the_defaults(parser: argparse.ArgumentParser) -> None:
    defaults = {action.dest: action.default for action in parser._actions if action.dest != "help"}
    for action in parser._actions:
        default = defaults.get(action.dest)
        if default is not None and default is not False and default != []:
            assert re.search(rf"\({re.escape(str(default))}[:)]", str(action.help)), action.option_strings


def test_documented_defaults(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--input_path", "x"])
    assert (args.prefill_len, args.kv_cache_len, args.parallel, args.post_topk) == (None, 127, 1, 0)
    assert (args.hidden_state_type, args.weight_type, args.post_weight_type, args.check_level) == (
        "bf16",
        "s8",
        "s8",
        0,
    )
    assert (args.output_path, args.prompt, args.chip, args.ret_postnorm) == (Path(), "1+1=", "AX650", False)


@pytest.mark.parametrize(
    ("words", "prefill_len"),
    [([], 127), (["--kv_cache_len", "1023"], 128), (["--kv_cache_len", "31"], 31), (["--prefill_len", "0"], 0)],
)
def test_prefill_groups_end_where_the_cache_does(
    parser: argparse.ArgumentParser, words: list[str], prefill_len: int
) -> None:
    recipe = recipe_from(parser.parse_args(["--input_path", "x", *words]))
    assert recipe.prefill_len == prefill_len
    assert recipe_lengths(recipe).fit == (prefill_len > 0)


@pytest.mark.parametrize(
    "words",
    [
        ["-w", "s3"],
        ["-t", "s8"],
        ["-c", "3"],
        ["--parallel", "0"],
        ["--parallel", "x"],
        ["--weight_group_size", "16"],
        ["--npu_mode", "NPU1"],
    ],
)
def test_invalid_option_values(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["llm_build", "--input_path", "x", *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "usage: axzoo llm_build" in error
    assert "_positive" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prefill_len", "256"], "kv_cache_len 127 is too small for a prefill of 256 tokens"),
        (
            ["--prefill_len", "0", "--last_kv_cache_len", "128"],
            "last_kv_cache_len requires prefill groups, but prefill_len is 0",
        ),
        (["-w", "bf16", "--weight_group_size", "32"], "weight_group_size 32 requires integer weights"),
        (["--calibration_tokens", "512"], "--calibration_tokens is for --rounding gptq"),
        (["--calibration_text", "x"], "--calibration_text is for --rounding gptq"),
        (
            ["--kv_cache_len", "31", "--chip", "AX1"],
            "--chip: unknown chip 'AX1': use one of AX650, AX620E, AX650N (= AX650), AX630C (= AX620E)",
        ),
        (["--kv_cache_len", "31", "--prompt", ""], "--prompt: '' is not text of one or more characters"),
        (["--model_type", "gpt2"], "config.json (overridden by --model_type): model_type 'gpt2' is not supported"),
        (["--ignore_config_keys", "nosuchkey"], "--ignore_config_keys nosuchkey: "),
        (["--kv_cache_len", "129"], "--kv_cache_len 129 needs 129 positions, and the model supports 128"),
        (["--kv_cache_len", "31", "--post_topk", "263"], "--post_topk 263 exceeds the vocabulary of 262 tokens"),
        (
            ["--kv_cache_len", "31", "--weight_group_size", "64"],
            "--weight_group_size 64 does not divide the input features of every matrix, 32 and 48: use 0",
        ),
        (
            ["--kv_cache_len", "31", "-c", "2", "--prompt", "a" * 32],
            "--prompt has 32 tokens, and the KV cache holds 31: shorten it, or raise --kv_cache_len",
        ),
        (["--kv_cache_len", "31", "--output_path", "/proc/out"], "--output_path /proc/out cannot be written: /proc: "),
        (["--model_config", "nothing.json"], "nothing.json is missing"),
    ],
)
def test_errors_before_the_build(
    qwen: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    paths = ("--input_path", qwen.folder, "--output_path", tmp_path / "out")
    assert message in build_error(capsys, tmp_path, *paths, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--kv_cache_len", "1023"],
            "AX620E has 3072 MB, Llama-2-7b-w8a16 needs 8227 MB: 7691 of weights, 536 of KV cache. "
            "It would fit with --chip AX650\n",
        ),
        (
            ["--kv_cache_len", "4096", "-w", "bf16", "--chip", "AX650"],
            "AX650 has 11317 MB, Llama-2-7b-w16a16 needs 28205 MB: 26058 of weights, 2147 of KV cache. "
            "It would fit with -w s8\n",
        ),
        (
            ["--kv_cache_len", "4096", "-w", "s8", "--post_weight_type", "bf16", "-t", "fp32", "--chip", "AX650"],
            "AX650 has 11317 MB, Llama-2-7b-w8a32 needs 12358 MB: 8063 of weights, 4295 of KV cache. "
            "It would fit with -w s4, or with --kv_cache_len 3103\n",
        ),
        (["--kv_cache_len", "4096", "-w", "fp32"], "It would fit with -w s8 --chip AX650\n"),
    ],
)
def test_model_that_does_not_fit_its_chip_is_rejected_with_suggestions(
    seven_billion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    chip = [] if "--chip" in words else ["--chip", "AX630C"]
    paths = ["--input_path", seven_billion, "--output_path", tmp_path / "out"]
    assert message in build_error(capsys, tmp_path, *paths, *words, *chip)


def test_error_in_a_config_names_the_file(qwen: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"hidden_act": "relu"}')
    error = build_error(capsys, tmp_path, "--input_path", qwen.folder, "--model_config", mine)
    assert error.startswith(
        f"{qwen.folder}/config.json (overridden by {mine}): hidden_act is 'relu', but must be 'silu'"
    )
    mine.write_text('{"model_name": 3}')
    error = build_error(capsys, tmp_path, "--input_path", qwen.folder, "--model_config", mine)
    assert error == f"{mine}: model_name is 3, but must be text\n"


def test_image_size_is_rejected(qwen: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = build_error(capsys, tmp_path, "--input_path", qwen.folder, "--image_size", "224")
    assert error.startswith("--image_size 224: Qwen2-tiny is a qwen2 model without a vision tower: omit --image_size")
    folder = tmp_path / "MiniCPM-V-2"
    shutil.copytree(qwen.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    kept = {
        key: config[key]
        for key in config
        if key.endswith(("_size", "_eps", "_heads", "hidden_layers", "position_embeddings"))
    }
    (folder / "config.json").write_text(json.dumps({**kept, "model_type": "minicpmv", "vision_encoder": "vit"}))
    error = build_error(capsys, tmp_path, "--input_path", folder, "--image_size", "224")
    assert "vision_encoder is 'vit', but must be 'vit_so400m_patch14_siglip_384.webli'" in error
    (folder / "config.json").write_text(json.dumps({**kept, "model_type": "minicpmv"}))
    error = build_error(capsys, tmp_path, "--input_path", folder, "--image_size", "225")
    assert error == "image_size 225 is not a multiple of the patch size 14 up to 980: use 224\n"


def test_checkpoint_folder_is_rejected_as_output(
    qwen: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(qwen.folder)
    before = sorted(qwen.folder.iterdir())
    assert "contains a checkpoint (model.safetensors)" in build_error(capsys, tmp_path, "--input_path", ".")
    assert sorted(qwen.folder.iterdir()) == before


def test_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = build_error(capsys, tmp_path, "--input_path", tmp_path / "nothing")
    assert "nothing is not a folder: give the folder of" in error


@pytest.mark.parametrize("is_option", [True, False], ids=["--compiler", "AXZOO_COMPILER"])
def test_a_compiler_with_a_relative_path(
    is_option: bool,
    qwen: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The build runs in the project's folder, where the path would be another one."""
    compiler = json.dumps({"native": "tools", "version": "7.0", "environment": {}})
    given = ["--compiler", compiler] if is_option else []
    monkeypatch.setenv("AXZOO_COMPILER", "native:/no/such/folder" if is_option else compiler)
    monkeypatch.chdir(tmp_path)

    def stop(*_arguments: object, **_options: object) -> None:
        raise AxzooError("the plan is made")

    monkeypatch.setattr(Project, "make", stop)
    words = ["--input_path", str(qwen.folder), "--output_path", "out", "--work_path", "work", "--chip", "AX650"]
    assert main(["llm_build", "--backend", "pulsar2", *words, *given]) == 1
    assert "the plan is made" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "work")
    (build,) = load_zoo(Path(MATRIX), Path(CHIPS)).builds()
    assert json.loads(build.compiler_settings)["native"] == str(tmp_path / "tools")
