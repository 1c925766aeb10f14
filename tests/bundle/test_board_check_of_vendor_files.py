"""`axzoo board-check` of folders that axzoo did not write: published packages, and what the vendor's tool wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from axzoo.bundle.boards.board_check import HostVerdict, board_check
from axzoo.parts.groups import ShapeGroup, layer_group


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
