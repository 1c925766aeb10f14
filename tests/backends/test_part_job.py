"""Building parts: only once, only from locked tensors, and all or nothing."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from axzoo.backends import Backend, Needs, Order, compiler_identity, part_job
from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.matrix.resources import TOKENS, part_needs, rounding_mb
from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import kind_of
from axzoo.parts.lock import make_lock, write_lock
from axzoo.weights.recipe import Recipe
from tiny_model import LAYERS, Built, Checkpoint, build

RECIPE = Recipe(prefill_len=4, kv_cache_len=15)


class PartBuilder:
    """A checkpoint with its lock and a store, and jobs that build its parts."""

    def __init__(self, checkpoint: Checkpoint, root: Path) -> None:
        self.root = root
        self.folder = Path(shutil.copytree(checkpoint.folder, root / "checkpoint"))
        self.lock()

    def lock(self) -> None:
        write_lock(make_lock(self.folder, "llama", LAYERS), self.root / "locks", self.folder, {})

    def build(self, part: str, name: str, recipe: Recipe = RECIPE, backend: str = "host") -> None:
        """Builds the part whose lock is `part` into the file `name`."""
        file = PartFile(
            lock=self.root / "locks" / f"{part}.json",
            output=self.root / "out" / name,
            receipt=self.root / "receipts" / f"{name}.json",
        )
        build_parts(PartJob([file], self.folder / "source.json", self.root / "store", recipe, backend, "AX650"))

    def key(self, part: str, recipe: Recipe = RECIPE) -> str:
        """Builds the part and returns its key."""
        self.build(part, part, recipe)
        key: str = read_json(self.root / "receipts" / f"{part}.json")["key"]
        return key

    def change(self, name: str) -> None:
        tensors = load_file(self.folder / "model.safetensors")
        tensors[name].view(-1)[-1] += 1
        save_file(tensors, self.folder / "model.safetensors")

    def files(self) -> list[str]:
        made = [path for name in ("store", "out", "receipts") for path in (self.root / name).rglob("*")]
        return sorted(path.name for path in made if path.is_file())


@pytest.fixture
def builder(checkpoint: Checkpoint, tmp_path: Path) -> PartBuilder:
    return PartBuilder(checkpoint, tmp_path)


class LazyBackend(Backend):
    """Yields once per order, or not at all, and writes what `write` writes."""

    name, runs_here = "lazy", True

    def __init__(self, yields: bool, write: Callable[[Path], object] = lambda path: None) -> None:
        self.yields, self.write = yields, write

    def identity(self, kind: PartKind, chip: str) -> dict[str, Any]:
        if chip != "AX650":
            raise KeyError(chip)
        return {}

    def refusal(self, model_type: str, chip: str, recipe: Recipe) -> str | None:
        return None

    def needs(self, kind: PartKind, recipe: Recipe, parameters: int | None, parts: int = 1) -> Needs:
        return Needs(1, 1)

    def compile(self, orders: Iterable[Order], folder: Path) -> Iterator[Mapping[str, Any]]:
        for order in orders:
            self.write(order.output)
            if self.yields:
                yield {}

    def contradictions(self, *arguments: Any) -> Iterator[str]:
        yield from ()


@pytest.mark.parametrize(
    "backend",
    [LazyBackend(False, Path.touch), LazyBackend(True), LazyBackend(True, lambda path: path.symlink_to("/etc/hosts"))],
    ids=["yields nothing", "writes nothing", "writes a link"],
)
def test_backend_without_a_file(builder: PartBuilder, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_job, "load_backend", lambda name: backend)
    with pytest.raises(AxzooError, match="backend lazy wrote no file for layer_0"):
        builder.build("layer_0", "layer_0", backend="lazy")
    assert builder.files() == []


def test_backend_that_does_not_know_a_chip() -> None:
    with pytest.raises(AxzooError, match="backend lazy has no identity for chip AX620E: KeyError"):
        compiler_identity(kind_of("post"), RECIPE, LazyBackend(True), "AX620E")


def test_rounding_needs_memory_with_any_backend() -> None:
    gptq, sizes = replace(RECIPE, rounding="gptq"), {"layer": 10**6, "post": 10**6, "kv_width": 8}
    assert part_needs(kind_of("layer"), gptq, LazyBackend(True), sizes).mem_mb == rounding_mb(sizes, TOKENS) > 500
    assert part_needs(kind_of("post"), gptq, LazyBackend(True), sizes) == Needs(1, 1)


@pytest.mark.parametrize("part", ["layer_0", "post", "embed"])
def test_receipt_describes_the_file(builder: PartBuilder, part: str) -> None:
    key = builder.key(part)
    receipt, output = read_json(builder.root / "receipts" / f"{part}.json"), builder.root / "out" / part
    data = output.read_bytes()
    assert {name: receipt[name] for name in ("file", "key", "size", "sha256")} == {
        "file": part,
        "key": key,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    matrices = {"layer_0": 7, "post": 1, "embed": 0}[part]
    assert len(receipt["about"].get("weight_errors", {})) == matrices
    assert (builder.root / "store" / key[:2] / key).samefile(output)
    assert "path" not in receipt


def test_second_build_uses_the_store(builder: PartBuilder) -> None:
    """Even if the checkpoint was deleted in the meantime."""
    builder.build("layer_0", "first")
    (builder.folder / "model.safetensors").unlink()
    builder.build("layer_0", "second")
    assert (builder.root / "out" / "first").samefile(builder.root / "out" / "second")
    with pytest.raises(AxzooError, match="contains no weights"):
        builder.build("layer_1", "third")


def test_damaged_store_entry_is_rebuilt(builder: PartBuilder) -> None:
    key = builder.key("layer_0")
    stored = builder.root / "store" / key[:2] / key
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1])
    assert builder.key("layer_0") == key
    assert stored.read_bytes() == (builder.root / "out" / "layer_0").read_bytes() == whole


def test_keys_depend_on_what_determines_the_bytes(builder: PartBuilder) -> None:
    keys = {part: builder.key(part) for part in ("layer_0", "layer_1", "post", "embed")}
    assert len(set(keys.values())) == 4
    longer, posts = replace(RECIPE, kv_cache_len=31), replace(RECIPE, post_weight_type="bf16")
    assert builder.key("layer_0", longer) != keys["layer_0"]
    assert builder.key("post", longer) == keys["post"]
    assert builder.key("layer_0", posts) == keys["layer_0"]
    assert builder.key("post", posts) != keys["post"]
    builder.change("model.layers.1.mlp.up_proj.weight")
    builder.lock()
    after = {part: builder.key(part) for part in keys}
    assert [part for part in keys if after[part] != keys[part]] == ["layer_1"]
    config = builder.folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    builder.lock()
    other = {part: builder.key(part) for part in keys}
    assert [part for part in keys if other[part] == after[part]] == ["embed"]


def test_equal_layers_are_stored_once(builder: PartBuilder) -> None:
    tensors = load_file(builder.folder / "model.safetensors")
    twins = {n: tensors[n.replace("layers.1.", "layers.0.")].clone() for n in tensors}
    save_file(twins, builder.folder / "model.safetensors")
    builder.lock()
    assert builder.key("layer_0") == builder.key("layer_1")


@pytest.mark.parametrize(
    "part, name",
    [
        ("layer_0", "model.layers.0.mlp.down_proj.weight"),
        ("layer_0", "model.layers.0.input_layernorm.weight"),
        ("post", "model.norm.weight"),
        ("post", "lm_head.weight"),
        ("embed", "model.embed_tokens.weight"),
    ],
)
def test_checkpoint_changed_after_locking_writes_no_file(builder: PartBuilder, part: str, name: str) -> None:
    builder.change(name)
    with pytest.raises(AxzooError, match=f"tensor {name} changed since locking"):
        builder.key(part)
    assert builder.files() == []


def test_impossible_recipe_writes_no_file(builder: PartBuilder) -> None:
    with pytest.raises(AxzooError, match="kv_cache_len 1023 is too large"):
        builder.key("layer_0", Recipe())
    with pytest.raises(AxzooError, match="unknown backend 'npu9'; known backends: host"):
        builder.build("layer_0", "x", backend="npu9")
    assert builder.files() == []


def test_embedding_equals_the_checkpoint_rows(checkpoint: Checkpoint, exact: Built) -> None:
    table = checkpoint.model.model.embed_tokens.weight.detach()
    found = np.fromfile(exact.embedding, np.uint16).view(ml_dtypes.bfloat16).reshape(table.shape)
    assert torch.equal(torch.from_numpy(found.astype(np.float32)), table)


def test_two_builds_share_one_store(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Like builds of a model for two chips."""
    first = build(checkpoint, RECIPE, tmp_path)
    moved = first.moved(tmp_path / "first")
    shutil.rmtree(first.folder)
    second = build(checkpoint, RECIPE, tmp_path)
    assert [path.read_bytes() for path in moved.layers] == [path.read_bytes() for path in second.layers]
    assert len(list((tmp_path / "store").rglob("*.json"))) == LAYERS + 2
