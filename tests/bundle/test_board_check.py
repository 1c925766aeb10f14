"""`axzoo board-check`: what the boards' hosts derive from a folder, with planted faults that each host must be found to
stumble on, and folders that axzoo did not write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from axzoo.bundle.boards.board_check import HOSTS, HostVerdict, board_check
from axzoo.bundle.boards.packages import package
from axzoo.bundle.completion import complete_bundle
from axzoo.cli import main
from axzoo.commands import board_check as command
from axzoo.core.errors import AxzooError
from axzoo.weights.recipe import Recipe
from tiny_model import CHATML, Built, build, make_checkpoint

Plant = Callable[[Path], None]


@pytest.fixture
def bundle(complete: Path, tmp_path: Path) -> Path:
    shutil.copytree(complete, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, **changes: Any) -> None:
    """Change config.json; None removes a key."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def changed(**changes: Any) -> Plant:
    return lambda folder: edit(folder, **changes)


def test_every_host_loads_a_bundle(complete: Path) -> None:
    verdicts = board_check(complete, free_mib=1000)
    assert tuple(verdicts) == tuple(HOSTS) == command.HOSTS
    assert {host: verdict.faults for host, verdict in verdicts.items()} == dict.fromkeys(HOSTS, ())
    assert {host: verdict.package for host, verdict in verdicts.items()} == {
        "axllm": None, "main_prefill": "prefill", "context": "prefill", "python": "python", "stackflow": "stackflow",
    }  # fmt: skip


def test_the_manifest_tells_the_verdicts(complete: Path) -> None:
    hosts = json.loads((complete / "manifest.json").read_text())["boards"]["hosts"]
    assert {host: entry["loads"] for host, entry in hosts.items()} == {
        "axllm": "yes", "main_prefill": "package", "context": "package", "python": "package", "stackflow": "package",
    }  # fmt: skip


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{// comment\n}")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def crlf(folder: Path) -> None:
    path = folder / "tokenizer.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def no_stop(folder: Path) -> None:
    path = folder / "tokenizer.txt"
    lines = path.read_bytes().split(b"\n")
    special, stop, prefix = map(int, lines[1].split())
    ids = lines[2].split()
    lines[1] = b"%d 0 %d" % (special, prefix)
    lines[2] = b" ".join(ids[:special] + ids[special + stop :])
    path.write_bytes(b"\n".join(lines))


def no_tokenizer_txt(folder: Path) -> None:
    (folder / "tokenizer.txt").unlink()


def lacking_key(folder: Path) -> None:
    path = folder / "post_config.json"
    values = json.loads(path.read_text())
    del values["penalty_window"]
    path.write_text(json.dumps(values))


def text_as_number(folder: Path) -> None:
    path = folder / "post_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "top_k": "10"}))


AXLLM_FAULTS: dict[str, tuple[Plant, str]] = {
    "integer type": (changed(tokenizer_type=2), "tokenizer_type must be a string, not 2"),
    "number as flag": (changed(use_mmap_load_embed=1), "use_mmap_load_embed must be true or false, not 1"),
    "unknown type": (changed(tokenizer_type="qwen3"), "tokenizer_type 'qwen3' is not one of axllm's"),
    "no type": (changed(tokenizer_type=None), "config.json has no tokenizer_type"),
    "relative path": (changed(filename_post_axmodel="./llama_post.axmodel"), "is not relative to the bundle"),
    "url": (changed(url_tokenizer_model="http://127.0.0.1:12345"), "is a URL, which axllm does not load"),
    "broken config": (broken_config, "config.json is not valid JSON"),
    "no config": (no_config, "config.json is missing"),
    "crlf": (crlf, "tokenizer.txt:1: the line ends in CR LF"),
    "no stop": (no_stop, "it lists no stop id"),
    "other stop": (changed(eos_token_ids=[3]), "it does not list id 3 as a stop id"),
    "other template": (
        changed(tokenizer_type="Gemma3"),
        "other prompts than the chat template in tokenizer/: write Qwen2_5",
    ),
    "no tokenizer txt": (no_tokenizer_txt, "tokenizer.txt is missing"),
    "wrong items": (changed(layer_types=[1, 2]), "layer_types must be a list of strings, not [1, 2]"),
    "text devices": (changed(devices=["0"]), "devices must be a list of whole numbers, not ['0']"),
    "lacking key": (lacking_key, "post_config.json has no penalty_window"),
    "text as number": (text_as_number, "top_k must be of type int, not '10'"),
}


@pytest.mark.parametrize(("plant", "fault"), AXLLM_FAULTS.values(), ids=AXLLM_FAULTS.keys())
def test_axllm_stumbles_on_a_planted_fault(bundle: Path, plant: Plant, fault: str) -> None:
    plant(bundle)
    found = board_check(bundle)
    assert fault in " ".join(found["axllm"].faults)
    assert len(found["axllm"].faults) == 1
    assert found["main_prefill"].loads  # it takes flags and asks a tokenizer server


def cut_embedding(folder: Path) -> None:
    path = next(folder.glob("*.bfloat16.bin"))
    path.write_bytes(path.read_bytes()[:-2])


def lost_layer(folder: Path) -> None:
    (folder / "llama_p8_l1_together.axmodel").unlink()


def damaged_layer(folder: Path) -> None:
    path = folder / "llama_p8_l1_together.axmodel"
    path.write_bytes(path.read_bytes()[:1000])


def post_as_layer(folder: Path) -> None:
    shutil.copyfile(folder / "llama_post.axmodel", folder / "llama_p8_l0_together.axmodel")


COMMON_FAULTS: dict[str, tuple[Plant, str]] = {
    "cut embedding": (cut_embedding, "it belongs to another model or is cut off"),
    "wrong size": (changed(tokens_embed_size=64), "tokens_embed_size is 64, but the layers take rows of 32: write 32"),
    "wrong rows": (changed(tokens_embed_num=7), "tokens_embed_num is 7, but llama_post.axmodel gives"),
    "lost layer": (lost_layer, "llama_p8_l1_together.axmodel is missing: copy it into the folder"),
    "half the model": (changed(axmodel_num=1), "axmodel_num is 1, but llama_p8_l1_together.axmodel is there, too"),
    "no number": (changed(template_filename_axmodel="llama.axmodel"), "must have exactly one %d"),
    "two numbers": (changed(template_filename_axmodel="llama_p%d_l%d_together.axmodel"), "must have exactly one %d"),
    "damaged layer": (damaged_layer, "is damaged"),
    "post as layer": (post_as_layer, "so it is not a decoder layer"),
}


@pytest.mark.parametrize(("plant", "fault"), COMMON_FAULTS.values(), ids=COMMON_FAULTS.keys())
def test_all_hosts_stumble_on_a_planted_fault(bundle: Path, plant: Plant, fault: str) -> None:
    plant(bundle)
    for verdict in board_check(bundle).values():
        assert fault in " ".join(verdict.faults), verdict


def test_a_prefill_group_beyond_the_cache(build_tiny: Callable[[Recipe], Built], tmp_path: Path) -> None:
    """The board's host would compute a wrong distance of the cache rows."""
    built = build_tiny(Recipe(prefill_len=8, kv_cache_len=31, last_kv_cache_len=(8, 16, 24))).moved(tmp_path / "long")
    complete_bundle(built.plan)
    found = board_check(built.folder)
    refused = [host for host, verdict in found.items() if any("beyond the KV cache" in why for why in verdict.faults)]
    assert refused == ["axllm", "context", "stackflow"]
    assert "kv_cache_len 32 or more" in " ".join(found["axllm"].faults)


def test_a_full_npu(complete: Path) -> None:
    """axllm's guard floors each file to MiB: the tiny model needs none, and 128 must stay free."""
    assert board_check(complete, free_mib=128)["axllm"].loads
    found = board_check(complete, free_mib=127)
    assert "128 must stay free, but the NPU has 127 MiB" in " ".join(found["axllm"].faults)
    assert [host for host, verdict in found.items() if not verdict.loads] == ["axllm"]
    for verdict in board_check(complete, free_mib=-1).values():
        assert "the NPU has -1 MiB" in " ".join(verdict.faults)


def test_a_guard_that_is_switched_off(bundle: Path) -> None:
    edit(bundle, mem_guard_enable=False)
    assert board_check(bundle, free_mib=1)["axllm"].loads


def test_numbers_with_zeros_in_file_names(bundle: Path) -> None:
    for index in range(2):
        (bundle / f"llama_p8_l{index}_together.axmodel").rename(bundle / f"100%_l{index:02d}.axmodel")
    edit(bundle, template_filename_axmodel="100%%_l%02d.axmodel")
    assert board_check(bundle)["axllm"].loads


def test_a_system_prompt_that_the_template_needs(tmp_path: Path) -> None:
    """The checkpoint's template has a default system prompt, and axllm's has none."""
    first = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    checkpoint = make_checkpoint(tmp_path / "checkpoint", template=first + CHATML)
    built = build(checkpoint, Recipe(prefill_len=8, kv_cache_len=31), tmp_path)
    complete_bundle(built.plan)
    assert board_check(built.folder)["axllm"].loads
    edit(built.folder, system_prompt="")
    assert "only with its default system_prompt: write 'Be kind.'" in " ".join(
        board_check(built.folder)["axllm"].faults
    )


def test_a_post_layer_without_logits(build_tiny: Callable[[Recipe], Built], tmp_path: Path) -> None:
    built = build_tiny(Recipe(prefill_len=8, kv_cache_len=31, post_topk=2)).moved(tmp_path / "topk")
    complete_bundle(built.plan)
    found = board_check(built.folder)
    assert found["main_prefill"].loads
    assert '--use_topk "1"' in (built.folder / "run.sh").read_text()
    assert "build it with post_topk 0" in " ".join(found["axllm"].faults)


def test_a_package_for_a_host_that_would_not_load_it(build_tiny: Callable[[Recipe], Built], tmp_path: Path) -> None:
    built = build_tiny(Recipe(prefill_len=8, kv_cache_len=31, post_topk=2)).moved(tmp_path / "topk")
    complete_bundle(built.plan)
    with pytest.raises(AxzooError, match=r"axllm would not load .*build it with post_topk 0"):
        package(built.folder, "axllm", tmp_path / "package")
    assert package(built.folder, "prefill", tmp_path / "package").is_dir()


def test_the_axllm_package_loads(complete: Path, tmp_path: Path) -> None:
    folder = package(complete, "axllm", tmp_path / "flat")
    assert board_check(folder)["axllm"].loads
    assert not any(path.is_dir() for path in folder.iterdir())


def test_the_python_package_loads_as_it_is(complete: Path, tmp_path: Path) -> None:
    folder = package(complete, "python", tmp_path / "package")
    shutil.copyfile(complete / "config.json", folder / "config.json")
    shutil.copyfile(next(complete.glob("*.bfloat16.bin")), folder / next(complete.glob("*.bfloat16.bin")).name)
    assert board_check(folder)["python"] == HostVerdict("python", ())


def test_command(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["board-check", str(bundle), "--free-mb", "1000"]) == 0
    assert f"stackflow: loads it after `axzoo package {bundle} --for stackflow`" in capsys.readouterr().out
    edit(bundle, tokenizer_type=2)
    assert main(["board-check", str(bundle), "--json"]) == 0  # other hosts load it
    found = json.loads(capsys.readouterr().out)
    assert {host: entry["loads"] for host, entry in found.items()}["axllm"] == "no"
    assert main(["board-check", str(bundle), "--host", "axllm"]) == 1
    shown = capsys.readouterr()
    assert "  tokenizer_type must be a string, not 2" in shown.out
    assert shown.err == f"axzoo: axllm does not load {bundle}\n"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"has no \.axmodel files"):
        board_check(tmp_path)
