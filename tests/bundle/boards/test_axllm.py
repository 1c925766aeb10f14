"""config.json and post_config.json of bundles, as axllm reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from axzoo.bundle.boards.axllm import REQUIRED, axllm_config, config_faults
from axzoo.bundle.boards.host_files import host_notes
from axzoo.bundle.boards.templates import TemplateChoice, no_template
from axzoo.bundle.completion import complete_bundle
from axzoo.core.files import sha256_of
from axzoo.runtime.bundle_folder import open_bundle
from tiny_model import Built

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
PARTS = {
    "template_filename_axmodel": "qwen3_p128_l%d_together.axmodel",
    "axmodel_num": 28,
    "filename_post_axmodel": "qwen3_post.axmodel",
    "filename_tokens_embed": "model.embed_tokens.weight.bfloat16.bin",
    "tokens_embed_num": 151936,
    "tokens_embed_size": 1024,
}
SOUND = axllm_config("Qwen3-0.6B-w8a16", PARTS, TemplateChoice("equal", "Qwen3"), 151643)

NO_TYPE = (
    "config.json has no tokenizer_type: if one of axllm's chat templates suits the model, write its name, otherwise "
    "use another host"
)


def complete(built: Built, folder: Path, chat: bool = True, **files: str) -> Path:
    """A bundle of a checkpoint with other tokenizer files; a text of "" removes a file."""
    moved = built.moved(folder / "results" / "tiny-w8a16")
    source, locks = folder / "checkpoint", folder / "locks"
    source.mkdir()
    locks.mkdir()
    for path in built.source.parent.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    for path in built.locks.iterdir():
        (locks / path.name).write_bytes(path.read_bytes())
    index = json.loads((locks / "index.json").read_text())
    for key, text in files.items():
        name = key.replace("__", ".")
        (source / name).unlink(missing_ok=True)
        index["tokenizer_files"].pop(name, None)
        if text:
            (source / name).write_text(text)
            index["tokenizer_files"][name] = sha256_of(source / name)
    (locks / "index.json").write_text(json.dumps(index))
    complete_bundle(replace(moved.plan, lock=locks, source=source / "source.json", chat=chat))
    return moved.folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_bundle_has_the_keys_and_types_of_axllm(s8: Built, tmp_path: Path) -> None:
    bundle = complete(s8, tmp_path, chat_template__jinja=CHATML)
    config = read(bundle / "config.json")
    assert config_faults(config) == []
    expected = {
        "model_name": "tiny-w8a16",
        "tokenizer_type": "SmolLM2",
        "url_tokenizer_model": "tokenizer.txt",
        "system_prompt": "Be brief.",
        "post_config_path": "post_config.json",
        "use_mmap_load_embed": True,
        "use_mmap_load_layer": True,
        "bos": False,
        "eos": False,
    }
    assert {key: config[key] for key in expected} == expected
    assert [key for key in expected if type(config[key]) is not type(expected[key])] == []
    template = read(bundle / "manifest.json")["boards"]["axllm"]["template"]
    assert template == {"agreement": "equal with a system prompt", "tokenizer_type": "SmolLM2", "differs": []}
    assert open_bundle(bundle).system_prompt == "Be brief."  # axzoo's own host gives the same prompts as before


def test_a_model_that_no_template_suits_names_the_hosts_that_serve_it(
    s8: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a tokenizer_type axllm does not start; a wrong one would make it answer nonsense."""
    bundle = complete(s8, tmp_path)
    assert config_faults(read(bundle / "config.json")) == [NO_TYPE]
    facts = read(bundle / "manifest.json")["boards"]
    assert facts["axllm"]["template"]["tokenizer_type"] is None
    (note,) = host_notes(facts)
    assert "<user>What is the capital of France?" in note
    assert note.endswith("main_prefill and the context hosts serve it with `axzoo tokenizer`")
    assert f"tiny: {note}" in caplog.text
    assert host_notes(None) == []  # of an older manifest


@pytest.mark.parametrize(
    ("files", "chat", "reason"),
    [
        ({"chat_template__jinja": ""}, True, "the checkpoint has no chat template"),
        ({"chat_template__jinja": CHATML}, False, "the model continues text (chat: false)"),
        ({"tokenizer__json": "", "chat_template__jinja": CHATML}, True, "the checkpoint has no tokenizer"),
    ],
)
def test_reasons_without_a_template(s8: Built, tmp_path: Path, files: dict[str, str], chat: bool, reason: str) -> None:
    bundle = complete(s8, tmp_path, chat, **files)
    template = read(bundle / "manifest.json")["boards"]["axllm"]["template"]
    assert template["tokenizer_type"] is None
    assert template["reason"].startswith(reason)
    assert read(bundle / "config.json")["chat"] is False


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"tokenizer_type": 2}, "tokenizer_type must be a string, not 2"),
        ({"tokenizer_type": "qwen3"}, "tokenizer_type 'qwen3' is not one of axllm's: use Qwen2_5, Qwen3, "),
        ({"tokenizer_type": "LLaMA"}, "tokenizer_type 'LLaMA' is not one of axllm's"),
        ({"use_mmap_load_embed": 1}, "use_mmap_load_embed must be true or false, not 1"),
        ({"axmodel_num": True}, "axmodel_num must be a whole number, not True"),
        ({"axmodel_num": "28"}, "axmodel_num must be a whole number, not '28'"),
        ({"axmodel_num": 28.0}, "axmodel_num must be a whole number, not 28.0"),
        ({"system_prompt": None}, "system_prompt must be a string, not None"),
        ({"url_tokenizer_model": "http://127.0.0.1:12345"}, "url_tokenizer_model 'http://127.0.0.1:12345' is a URL"),
        ({"filename_post_axmodel": "./post.axmodel"}, "filename_post_axmodel './post.axmodel' is not relative"),
        ({"post_config_path": "/etc/post_config.json"}, "post_config_path '/etc/post_config.json' is not relative"),
        *(({key: None}, f"config.json has no {key}") for key in REQUIRED),
    ],
)
def test_faults_of_a_config(changes: dict[str, Any], fault: str) -> None:
    assert config_faults(SOUND) == []
    missing = {key for key in changes if f"has no {key}" in fault}
    config = {key: value for key, value in (SOUND | changes).items() if key not in missing}
    (found,) = config_faults(config)
    assert found.startswith(fault)


def test_keys_of_other_hosts_are_no_faults() -> None:
    assert config_faults(SOUND | {"chat": 1, "eos_token_ids": [1], "bos": 0, "eos": True, "devices": [0]}) == []
    assert config_faults(axllm_config("x", PARTS, no_template("none"), None)) == [NO_TYPE]


@pytest.mark.parametrize(("pad", "written"), [("<bos>", 256), ("<eos>", None), ("<nothing>", None)])
def test_the_pad_token_is_masked_unless_it_ends_answers(
    s8: Built, tmp_path: Path, pad: str, written: int | None
) -> None:
    """axllm never samples pad_token_id, so an end token must not be it: answers would not end."""
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": pad}
    if pad == "<nothing>":
        del tokens["pad_token"]
    bundle = complete(s8, tmp_path, tokenizer_config__json=json.dumps(tokens))
    assert read(bundle / "config.json").get("pad_token_id") == written
