"""Completed bundles: all files are present, match the manifest and are reproducible."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from axzoo.bundle.completion import complete_bundle
from axzoo.bundle.verification import deviations
from axzoo.core.errors import AxzooError
from axzoo.core.files import sha256_of
from axzoo.runtime.model import load_model
from axzoo.tokenizer.host_tokenizer import host_tokenizer
from axzoo.tokenizer.local import load_tokenizer
from axzoo.tokenizer.tokenizer_txt import parse, shortcomings
from tiny_model import Built, Checkpoint

FILES = [
    "config.json",
    "llama_p8_l0_together.axmodel",
    "llama_p8_l1_together.axmodel",
    "llama_post.axmodel",
    "manifest.json",
    "model.embed_tokens.weight.bfloat16.bin",
    "post_config.json",
    "run.sh",
    "tokenizer.txt",
    "tokenizer/chat_template.jinja",
    "tokenizer/config.json",
    "tokenizer/generation_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
]


@pytest.fixture
def built(s8: Built, tmp_path: Path) -> Built:
    """Compiled files of a bundle that is not complete yet."""
    return s8.moved(tmp_path / "results" / "tiny-w8a16")


@pytest.fixture
def bundle(built: Built) -> Path:
    complete_bundle(built.plan)
    return built.folder


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_tokenizer_txt_gives_a_board_the_ids_of_the_model(bundle: Path) -> None:
    tokenizer = load_tokenizer(bundle / "tokenizer")
    txt = parse((bundle / "tokenizer.txt").read_bytes(), "tokenizer.txt")
    assert list(shortcomings(txt, _json(bundle / "config.json")["eos_token_ids"])) == []
    assert tokenizer.renderer is not None
    turns = [{"role": "user", "content": "What is the capital of France?\n\n- Paris"}]
    text = tokenizer.renderer.render(turns, add_generation_prompt=True)
    assert host_tokenizer(txt).encode(text, with_prefix=False) == tokenizer.encode_chat(turns)
    entry = _json(bundle / "manifest.json")["boards"]["tokenizer_txt"]
    assert (entry["kind"], entry["stop_ids"]) == (3, list(txt.stop))
    assert entry["equal_ids"].keys() >= {"english", "chinese", "markdown", "code", "chat"}


def test_the_reason_is_written_where_the_tokenizer_does_not_fit_into_tokenizer_txt(
    built: Built, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(built.source.parent, tmp_path / "checkpoint"))
    Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    plan = _with_other_lock(built, tmp_path, **{"tokenizer.json": sha256_of(folder / "tokenizer.json")})
    complete_bundle(replace(plan, source=folder / "source.json"))
    reason = "hosts do not know the tokenizer model WordLevel"
    assert (built.folder / "tokenizer.txt").read_text() == f"not available: {reason}\n"
    assert _json(built.folder / "manifest.json")["boards"]["tokenizer_txt"] == {"not_available": reason}
    assert not list(deviations(built.folder))


def test_manifest_is_complete_and_correct(bundle: Path, built: Built) -> None:
    assert _files(bundle) == FILES
    manifest = _json(bundle / "manifest.json")
    assert sorted([*manifest["files"], "manifest.json"]) == FILES
    for name, record in manifest["files"].items():
        data = (bundle / name).read_bytes()
        assert record == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert {key: manifest[key] for key in ("name", "chip", "source")} == {
        "name": "tiny-w8a16",
        "chip": "AX650",
        "source": {"path": "tiny"},
    }
    assert manifest["recipe"] == {
        "weight_type": "s8",
        "post_weight_type": "s8",
        "hidden_state_type": "bf16",
        "prefill_len": 8,
        "kv_cache_len": 31,
        "last_kv_cache_len": [8, 16],
        "weight_group_size": 0,
        "scale_rule": "vendor",
        "rounding": "nearest",
        "post_topk": 0,
        "ret_postnorm": False,
        "embedding_scale": "graph",
        "image_size": 280,
        "image_slices": False,
        "vpm_two_stage": False,
    }
    assert manifest["spec"]["num_hidden_layers"] == 2
    parts = manifest["parts"]
    assert sorted(parts) == [name for name in FILES if name.endswith((".axmodel", ".bin"))]
    assert parts["llama_p8_l0_together.axmodel"]["weight_errors"]["q_proj"] > 0
    layer_storage = {"weight_group_size": 0, "scale_rule": "vendor", "rounding": "nearest"}
    post_storage = {"weight_group_size": 0, "scale_rule": "max_abs", "rounding": "nearest"}
    assert parts["llama_p8_l0_together.axmodel"].items() >= layer_storage.items()
    assert parts["llama_post.axmodel"].items() >= post_storage.items()
    assert parts["model.embed_tokens.weight.bfloat16.bin"].items() >= {"weight_type": "bf16"}.items()
    assert len({part["key"] for part in parts.values()}) == 4
    assert manifest["sbom"]["components"][-1]["name"] == "tiny"


def test_runtime_config(bundle: Path) -> None:
    config = _json(bundle / "config.json")
    assert config == {
        "model_name": "tiny-w8a16",
        "url_tokenizer_model": "tokenizer.txt",
        "template_filename_axmodel": "llama_p8_l%d_together.axmodel",
        "axmodel_num": 2,
        "filename_post_axmodel": "llama_post.axmodel",
        "filename_tokens_embed": "model.embed_tokens.weight.bfloat16.bin",
        "tokens_embed_num": 262,
        "tokens_embed_size": 32,
        "system_prompt": "",
        "post_config_path": "post_config.json",
        "bos": False,
        "eos": False,
        "use_mmap_load_embed": True,
        "use_mmap_load_layer": True,
        "eos_token_ids": [2, 257],
        "chat": True,
    }
    assert _json(bundle / "post_config.json") == {
        "enable_temperature": False,
        "temperature": 0.9,
        "enable_repetition_penalty": False,
        "repetition_penalty": 1.2,
        "penalty_window": 20,
        "enable_top_p_sampling": False,
        "top_p": 0.8,
        "enable_top_k_sampling": False,
        "top_k": 10,
    }


def test_bundle_runs(bundle: Path, checkpoint: Checkpoint) -> None:
    ids = list(range(40, 60))
    logits = load_model(bundle).prefill(ids)
    assert np.corrcoef(logits, checkpoint.logits(ids)[-1])[0, 1] > 0.99


def test_completing_again_or_in_another_folder_gives_equal_bytes(bundle: Path, built: Built, tmp_path: Path) -> None:
    first = {name: (bundle / name).read_bytes() for name in FILES}
    complete_bundle(built.plan)
    assert {name: (bundle / name).read_bytes() for name in FILES} == first
    other = built.moved(tmp_path / "elsewhere" / "tiny-w8a16")
    complete_bundle(other.plan)
    assert {name: (other.folder / name).read_bytes() for name in FILES} == first


def test_files_of_an_earlier_build_are_removed(bundle: Path, built: Built) -> None:
    old = ["llama_p8_l2_together.axmodel", "llama_p128_l0_together.axmodel", "tokenizer/special_tokens_map.json"]
    for name in old:
        (bundle / name).write_text("{}")
    (bundle / "notes.txt").write_text("a file of the user")
    complete_bundle(built.plan)
    assert _files(bundle) == sorted([*FILES, "notes.txt"])


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".axmodel", ".bin"))])
def test_part_that_changed_after_the_build_is_rejected(built: Built, name: str) -> None:
    with (built.folder / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(AxzooError, match=f"{name} changed after it was built: remove it and run again"):
        complete_bundle(built.plan)
    assert not (built.folder / "manifest.json").exists()


@pytest.fixture
def receipts(built: Built, tmp_path: Path) -> dict[str, Path]:
    """Copies of the parts' receipts by file name."""
    copies = [Path(shutil.copy(path, tmp_path)) for path in built.plan.receipts]
    return {_json(path)["file"]: path for path in copies}


@pytest.mark.parametrize(
    ("part", "other", "message"),
    [
        ("llama_post", "llama_p8_l0_together", "as post: llama_post.axmodel is a 'decoder_layer', not a 'post'"),
        ("llama_p8_l1_together", "llama_post", "as layer_1: llama_p8_l1_together.axmodel is a 'post', not a"),
    ],
)
def test_file_of_another_kind_is_rejected(
    built: Built, receipts: dict[str, Path], part: str, other: str, message: str
) -> None:
    """The part's receipt says that this is its file."""
    name, theirs = f"{part}.axmodel", _json(receipts[f"{other}.axmodel"])
    (built.folder / name).unlink()
    shutil.copy(built.folder / f"{other}.axmodel", built.folder / name)
    known = {key: theirs[key] for key in ("key", "sha256", "size", "about")}
    receipts[name].write_text(json.dumps(_json(receipts[name]) | known))
    with pytest.raises(AxzooError, match=f"{name} cannot be used {message}"):
        complete_bundle(replace(built.plan, receipts=tuple(receipts.values())))
    assert not (built.folder / "manifest.json").exists()


def test_file_with_other_shape_groups_is_rejected(built: Built) -> None:
    longer = replace(built.plan, recipe=replace(built.plan.recipe, kv_cache_len=63))
    with pytest.raises(AxzooError, match=r"cannot be used as layer_0: .* has shape groups that do not match"):
        complete_bundle(longer)


def test_receipts_with_exchanged_files_are_rejected(built: Built, receipts: dict[str, Path]) -> None:
    """As after `axzoo compile` with the outputs of two layers exchanged."""
    first, second = (receipts[f"llama_p8_l{index}_together.axmodel"] for index in range(2))
    for path, index in ((first, 1), (second, 0)):
        path.write_text(json.dumps(_json(path) | {"index": index}))
    with pytest.raises(AxzooError, match=r"l1_together\.axmodel was compiled as layer_0, whose file is .*l0_together"):
        complete_bundle(replace(built.plan, receipts=tuple(receipts.values())))


def test_receipts_of_an_earlier_build_are_removed(built: Built, receipts: dict[str, Path], tmp_path: Path) -> None:
    """`axzoo store gc` would keep the entries of layers that the bundle no longer has."""
    shutil.copy(receipts["llama_post.axmodel"], tmp_path / "llama_p128_l0_together.json")
    complete_bundle(replace(built.plan, receipts=tuple(receipts.values())))
    assert set(tmp_path.glob("*.json")) == set(receipts.values())


def test_tokenizer_that_changed_after_locking_is_rejected(built: Built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built.source.parent, tmp_path / "checkpoint"))
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(AxzooError, match=r"tokenizer\.json changed after it was locked: run the build again"):
        complete_bundle(replace(built.plan, source=folder / "source.json"))
    assert "tokenizer/tokenizer.json" not in _files(built.folder)
    assert "manifest.json" not in _files(built.folder)


def _with_other_lock(built: Built, tmp_path: Path, *dropped: str, **tokens: Any) -> Any:
    """The plan with a lock that lists other tokenizer files."""
    locks = Path(shutil.copytree(built.locks, tmp_path / "locks"))
    index = _json(locks / "index.json")
    index["tokenizer_files"] = {k: v for k, v in index["tokenizer_files"].items() if k not in dropped} | tokens
    (locks / "index.json").write_text(json.dumps(index))
    return replace(built.plan, lock=locks)


def test_a_model_without_a_chat_template_or_end_token_is_completed(
    built: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = ("chat_template.jinja", "config.json", "generation_config.json", "tokenizer_config.json")
    complete_bundle(_with_other_lock(built, tmp_path, *missing))
    config = _json(built.folder / "config.json")
    assert (config["chat"], config["eos_token_ids"]) == (False, [])
    assert "tiny has no chat template: prompts are continued as text" in caplog.messages
    assert any(line.startswith("tiny has no end token: answers end at their token limit") for line in caplog.messages)


def test_a_model_without_a_tokenizer_is_completed(
    built: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    complete_bundle(_with_other_lock(built, tmp_path, "tokenizer.json"))
    config = _json(built.folder / "config.json")
    assert (config["chat"], config["eos_token_ids"]) == (False, [2])  # the latter from generation_config.json
    assert any(
        line.startswith("tiny has no tokenizer: its files take and return token ids") for line in caplog.messages
    )
    assert not list(deviations(built.folder))


def test_the_tokenizer_of_another_model_is_rejected(built: Built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built.source.parent, tmp_path / "checkpoint"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<d>", "<e>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    plan = _with_other_lock(built, tmp_path, **{"tokenizer.json": sha256_of(folder / "tokenizer.json")})
    with pytest.raises(AxzooError, match="does not belong to this model, whose embedding has 262 rows: '<e>'"):
        complete_bundle(replace(plan, source=folder / "source.json"))
    assert not (built.folder / "manifest.json").exists()


def test_end_tokens_beyond_the_embedding_are_dropped(built: Built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built.source.parent, tmp_path / "checkpoint"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 900]}')
    changed = sha256_of(folder / "generation_config.json")
    plan = _with_other_lock(built, tmp_path, **{"generation_config.json": changed})
    complete_bundle(replace(plan, source=folder / "source.json"))
    assert _json(built.folder / "config.json")["eos_token_ids"] == [2, 257]


def test_lock_cannot_name_files_outside_the_checkpoint(built: Built, tmp_path: Path) -> None:
    for name in ("../../x", "/etc/passwd", "model.safetensors"):
        with pytest.raises(AxzooError, match="is not a tokenizer file: lock again"):
            complete_bundle(_with_other_lock(built, tmp_path / name.strip("./"), **{name: "00"}))


def test_run_sh_passes_the_documented_flags_to_the_host_program(bundle: Path, tmp_path: Path) -> None:
    script = bundle / "run.sh"
    subprocess.run(["sh", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    program = tmp_path / "main_prefill"
    program.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    prompt = 'What\'s "1 + 1"? $HOME `id` \\ *'
    environment = {**os.environ, "MAIN_PREFILL": f"{program} run"}
    done = subprocess.run([script, prompt], cwd="/", env=environment, capture_output=True, text=True, check=True)
    where, verb, *words = done.stdout.splitlines()
    assert verb == "run"  # MAIN_PREFILL may contain arguments, as in `axzoo run`
    assert Path(where) == bundle
    assert words.pop() == f"--prompt={prompt}"  # joined by =, because a prompt may start with a dash
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--template_filename_axmodel": "llama_p8_l%d_together.axmodel",
        "--axmodel_num": "2",
        "--tokenizer_type": "2",
        "--filename_tokenizer_model": "http://127.0.0.1:12345",
        "--bos": "0",
        "--eos": "0",
        "--filename_post_axmodel": "llama_post.axmodel",
        "--filename_tokens_embed": "model.embed_tokens.weight.bfloat16.bin",
        "--tokens_embed_num": "262",
        "--tokens_embed_size": "32",
        "--use_mmap_load_embed": "1",
        "--post_config_path": "post_config.json",
        "--live_print": "1",
        "--continue": "1",
    }
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("--prompt=\n")  # without a prompt, the program starts interactively


def test_a_tokenizer_file_that_became_a_link_is_not_copied(s8: Built, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The link is checked when the file is copied, too, although the content is what was locked."""
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "checkpoint"))
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to("../elsewhere.json")
    built = s8.moved(tmp_path / "results/tiny-w8a16")
    with pytest.raises(AxzooError, match=r"tokenizer\.json is a link to .*elsewhere\.json, which is outside"):
        complete_bundle(replace(built.plan, source=folder / "source.json"))
    assert not (built.folder / "manifest.json").exists()
    assert not (built.folder / "tokenizer/tokenizer.json").exists()
