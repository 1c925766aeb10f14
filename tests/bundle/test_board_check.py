"""`axzoo board-check`: what the boards' hosts derive from a folder, with planted faults that each host must be found to
stumble on, and folders that axzoo did not write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from axzoo.bundle.boards.board_check import HOSTS, HostVerdict, board_check
from axzoo.bundle.boards.packages import package
from axzoo.bundle.completion import complete_bundle
from axzoo.cli import main
from axzoo.commands import board_check as command
from axzoo.core.errors import AxzooError
from axzoo.parts.groups import ShapeGroup, layer_group
from axzoo.weights.recipe import Recipe
from tiny_model import Built, build, make_checkpoint

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose chat template is one of axllm's."""
    root = tmp_path_factory.mktemp("chatml")
    checkpoint = make_checkpoint(root / "checkpoint", template=CHATML)
    built = build(checkpoint, Recipe(prefill_len=8, kv_cache_len=31, last_kv_cache_len=(8, 16)), root)
    complete_bundle(built.plan)
    return built.folder


@pytest.fixture
def bundle(complete: Path, tmp_path: Path) -> Path:
    shutil.copytree(complete, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, **changes: Any) -> None:
    """Change config.json; None removes a key."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


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


def integer_type(folder: Path) -> None:
    edit(folder, tokenizer_type=2)


def number_as_flag(folder: Path) -> None:
    edit(folder, use_mmap_load_embed=1)


def unknown_type(folder: Path) -> None:
    edit(folder, tokenizer_type="qwen3")


def no_type(folder: Path) -> None:
    edit(folder, tokenizer_type=None)


def relative_path(folder: Path) -> None:
    edit(folder, filename_post_axmodel="./llama_post.axmodel")


def url(folder: Path) -> None:
    edit(folder, url_tokenizer_model="http://127.0.0.1:12345")


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


def other_stop(folder: Path) -> None:
    edit(folder, eos_token_ids=[3])


def other_template(folder: Path) -> None:
    edit(folder, tokenizer_type="Gemma3")


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


def wrong_items(folder: Path) -> None:
    edit(folder, layer_types=[1, 2])


def text_devices(folder: Path) -> None:
    edit(folder, devices=["0"])


AXLLM_FAULTS: dict[Callable[[Path], None], str] = {
    integer_type: "tokenizer_type must be a string, not 2",
    number_as_flag: "use_mmap_load_embed must be true or false, not 1",
    unknown_type: "tokenizer_type 'qwen3' is not one of axllm's",
    no_type: "config.json has no tokenizer_type",
    relative_path: "is not relative to the bundle",
    url: "is a URL, which axllm does not load",
    broken_config: "config.json is not valid JSON",
    no_config: "config.json is missing",
    crlf: "tokenizer.txt:1: the line ends in CR LF",
    no_stop: "it lists no stop id",
    other_stop: "it does not list id 3 as a stop id",
    other_template: "tokenizer_type Gemma3 writes other prompts than the chat template in tokenizer/: write Qwen2_5",
    no_tokenizer_txt: "tokenizer.txt is missing",
    wrong_items: "layer_types must be a list of strings, not [1, 2]",
    text_devices: "devices must be a list of whole numbers, not ['0']",
    lacking_key: "post_config.json has no penalty_window",
    text_as_number: "top_k must be of type int, not '10'",
}


@pytest.mark.parametrize(("plant", "fault"), AXLLM_FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_axllm_stumbles_on_a_planted_fault(bundle: Path, plant: Callable[[Path], None], fault: str) -> None:
    plant(bundle)
    found = board_check(bundle)
    assert fault in " ".join(found["axllm"].faults)
    assert len(found["axllm"].faults) == 1
    assert found["main_prefill"].loads  # it takes flags and asks a tokenizer server


def cut_embedding(folder: Path) -> None:
    path = next(folder.glob("*.bfloat16.bin"))
    path.write_bytes(path.read_bytes()[:-2])


def wrong_size(folder: Path) -> None:
    edit(folder, tokens_embed_size=64)


def wrong_rows(folder: Path) -> None:
    edit(folder, tokens_embed_num=7)


def lost_layer(folder: Path) -> None:
    (folder / "llama_p8_l1_together.axmodel").unlink()


def half_the_model(folder: Path) -> None:
    edit(folder, axmodel_num=1)


def no_number(folder: Path) -> None:
    edit(folder, template_filename_axmodel="llama.axmodel")


def two_numbers(folder: Path) -> None:
    edit(folder, template_filename_axmodel="llama_p%d_l%d_together.axmodel")


def damaged_layer(folder: Path) -> None:
    path = folder / "llama_p8_l1_together.axmodel"
    path.write_bytes(path.read_bytes()[:1000])


def post_as_layer(folder: Path) -> None:
    shutil.copyfile(folder / "llama_post.axmodel", folder / "llama_p8_l0_together.axmodel")


COMMON_FAULTS: dict[Callable[[Path], None], str] = {
    cut_embedding: "it belongs to another model or is cut off",
    wrong_size: "tokens_embed_size is 64, but the layers take rows of 32: write 32",
    wrong_rows: "tokens_embed_num is 7, but llama_post.axmodel gives",
    lost_layer: "llama_p8_l1_together.axmodel is missing: copy it into the folder",
    half_the_model: "axmodel_num is 1, but llama_p8_l1_together.axmodel is there, too",
    no_number: "must have exactly one %d",
    two_numbers: "must have exactly one %d",
    damaged_layer: "is damaged",
    post_as_layer: "so it is not a decoder layer",
}


@pytest.mark.parametrize(("plant", "fault"), COMMON_FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_all_hosts_stumble_on_a_planted_fault(bundle: Path, plant: Callable[[Path], None], fault: str) -> None:
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


def _vendor_file(path: Path, groups: tuple[ShapeGroup, ...]) -> None:
    """A file with the vendor's declarations: the tensors of group g > 0 have the suffix _g, and there is no weight."""
    kinds = {"bf16": onnx.TensorProto.BFLOAT16, "uint32": onnx.TensorProto.UINT32}
    sides = [
        [
            onnx.helper.make_tensor_value_info(f"{tensor.name}{suffix}", kinds[tensor.dtype], tensor.shape)
            for suffix, group in zip(("", "_1", "_2", "_3"), groups, strict=False)
            for tensor in side(group)
        ]
        for side in (lambda group: group.inputs, lambda group: group.outputs)
    ]
    graph = onnx.helper.make_graph([], "ax-model", *sides)
    onnx.save(onnx.helper.make_model(graph, producer_name="Pulsar2", ir_version=10), path)


@pytest.fixture
def published(complete: Path, tmp_path: Path) -> Path:
    """A flat folder as the vendor publishes them, with files that axzoo did not write and without a manifest."""
    folder = tmp_path / "published"
    folder.mkdir()
    groups = tuple(layer_group("bf16", 64, 32, *lengths) for lengths in ((1, 2047), (128, 0), (128, 128), (128, 1024)))
    for i in range(3):
        _vendor_file(folder / f"qwen3_p128_l{i}_together.axmodel", groups)
    entering, leaving = layer_group("bf16", 64, 32, 1, 1).inputs[3], layer_group("bf16", 300, 32, 1, 1).outputs[2]
    _vendor_file(folder / "qwen3_post.axmodel", (ShapeGroup((entering,), (leaving,)),))
    (folder / "model.embed_tokens.weight.bfloat16.bin").write_bytes(bytes(2 * 300 * 64))
    shutil.copyfile(complete / "tokenizer.txt", folder / "qwen3_tokenizer.txt")
    shutil.copyfile(complete / "post_config.json", folder / "post_config.json")
    config = {
        "system_prompt": "you are a helpful assistant.",
        "model_name": "AXERA-TECH/Qwen3-0.6B",
        "url_tokenizer_model": "qwen3_tokenizer.txt",
        "tokenizer_type": "Qwen3",
        "post_config_path": "post_config.json",
        "template_filename_axmodel": "qwen3_p128_l%d_together.axmodel",
        "axmodel_num": 3,
        "filename_post_axmodel": "qwen3_post.axmodel",
        "filename_tokens_embed": "model.embed_tokens.weight.bfloat16.bin",
        "tokens_embed_num": 300,
        "tokens_embed_size": 64,
        "use_mmap_load_embed": True,
        "use_mmap_load_layer": True,
        "devices": [0],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_published_package(published: Path) -> None:
    found = board_check(published)
    assert found["axllm"] == HostVerdict("axllm", ())
    assert "no folder `tokenizer`" in " ".join(found["main_prefill"].faults)


def test_a_folder_that_the_vendors_tool_wrote(published: Path) -> None:
    """It has the compiled files only."""
    (published / "config.json").unlink()
    (published / "model.embed_tokens.weight.bfloat16.bin").unlink()
    found = board_check(published)
    assert "config.json is missing" in found["axllm"].faults[0]
    assert "the embedding is missing" in " ".join(found["main_prefill"].faults)


def test_a_vendor_file_with_a_group_too_long(published: Path) -> None:
    groups = tuple(layer_group("bf16", 64, 32, *lengths) for lengths in ((1, 1023), (128, 0), (128, 896)))
    for i in range(3):
        _vendor_file(published / f"qwen3_p128_l{i}_together.axmodel", groups)
    faults = " ".join(board_check(published)["axllm"].faults)
    assert "reach token 1024, beyond the KV cache of 1023" in faults
    assert "place cache rows 31 values apart instead of 32" in faults


@pytest.mark.parametrize("lost", ["indices_1", "mask_1", "input", "K_cache_out"])
def test_a_vendor_file_without_a_tensor(published: Path, lost: str) -> None:
    for path in published.glob("*_together.axmodel"):
        model = onnx.load(path)
        for side in (model.graph.input, model.graph.output):
            for value in [value for value in side if value.name == lost]:
                side.remove(value)
        onnx.save(model, path)
    for verdict in board_check(published).values():
        name = lost.removesuffix("_1")
        assert f"has no tensor {name} in group {1 if lost.endswith('_1') else 0}" in " ".join(verdict.faults)


def test_a_vendor_file_that_declares_nothing(published: Path) -> None:
    _vendor_file(published / "qwen3_post.axmodel", ())
    assert "qwen3_post.axmodel declares no tensors" in " ".join(board_check(published)["axllm"].faults)


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
    integer_type(bundle)
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
