from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.runtime.bundle_folder import open_bundle


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def _change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    data = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def test_the_settings_of_a_bundle(copy: Path) -> None:
    _change(copy, eos_token_ids=[2, 5], chat=False, system_prompt="Be brief.", unknown_key=1)
    bundle = open_bundle(copy)
    assert [path.name for path in bundle.layers] == [f"llama_p4_l{i}_together.axmodel" for i in range(3)]
    assert bundle.post == copy / "llama_post.axmodel"
    assert bundle.eos_token_ids == {2, 5}
    assert (bundle.chat, bundle.system_prompt) == (False, "Be brief.")


def test_flags_in_the_config(copy: Path) -> None:
    default = open_bundle(copy)
    assert (default.bos, default.eos, default.mmap_embedding) == (False, False, True)
    _change(copy, bos=1, eos=True, use_mmap_load_embed=0)
    changed = open_bundle(copy)
    assert (changed.bos, changed.eos, changed.mmap_embedding) == (True, True, False)


def test_a_bundle_needs_no_tokenizer(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").unlink()
    bundle = open_bundle(copy)
    assert bundle.tokenizer == copy / "tokenizer"
    _change(copy, chat=False)
    assert [open_bundle(copy).uses_chat(other) for other in (False, True)] == [False, True]


def test_missing_files_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="is not a bundle: it has no config"):
        open_bundle(tmp_path / "nowhere")
    (copy / "llama_p4_l1_together.axmodel").unlink()
    with pytest.raises(AxzooError, match=r"lacks llama_p4_l1_together\.axmodel: build the bundle again"):
        open_bundle(copy)
    _change(copy, axmodel_num=6)
    with pytest.raises(AxzooError, match=r"lacks \S+_l1_\S+, \S+_l3_\S+, \S+_l4_\S+ and 1 more: build"):
        open_bundle(copy)


def test_a_missing_post_config_is_allowed(copy: Path) -> None:
    (copy / "post_config.json").unlink()
    assert not open_bundle(copy).post_config.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axmodel_num": ...}, "has no axmodel_num"),
        ({"axmodel_num": "3"}, "axmodel_num must be of type int, not '3'"),
        ({"axmodel_num": True}, "axmodel_num must be of type int"),
        ({"axmodel_num": 0}, "axmodel_num must be from 1 to 1000, not 0"),
        ({"axmodel_num": 10**12}, "axmodel_num must be from 1 to 1000, not 1000000000000"),
        ({"eos_token_ids": ["2"]}, "must be a list of token ids"),
        ({"bos": 2}, "bos must be 0 or 1, not 2"),
        ({"eos": "1"}, "eos must be 0 or 1, not '1'"),
        ({"use_mmap_load_embed": 1.0}, "use_mmap_load_embed must be 0 or 1, not 1.0"),
        ({"filename_post_axmodel": "../post.axmodel"}, "must name a file inside the bundle"),
        ({"filename_tokens_embed": "/etc/passwd"}, "must name a file inside the bundle"),
        ({"filename_tokens_embed": ""}, "must name a file inside the bundle"),
        ({"post_config_path": "a/../../b"}, "must name a file inside the bundle"),
        ({"template_filename_axmodel": "../l%d"}, "must name a file inside the bundle"),
        ({"template_filename_axmodel": "l%s%n"}, "must contain one %d"),
        ({"chat": 1}, "chat must be true or false, not 1"),
    ],
)
def test_invalid_values_are_refused(copy: Path, values: dict[str, Any], message: str) -> None:
    _change(copy, **values)
    with pytest.raises(AxzooError, match=message):
        open_bundle(copy)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "must hold a JSON object")])
def test_an_invalid_config_is_refused(copy: Path, text: str, message: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(AxzooError, match=message):
        open_bundle(copy)
