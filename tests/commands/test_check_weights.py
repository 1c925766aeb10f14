"""`axzoo check-weights`: bundles of the simulated compiler against the lock that they were built from."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from axzoo.backends import load_backend
from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.bundle.completion import BundlePlan, complete_bundle
from axzoo.cli import main
from axzoo.core.files import read_json, write_json
from axzoo.parts.kind import PartId
from axzoo.parts.kinds import kind_of
from axzoo.parts.lock import make_lock, write_lock
from axzoo.weights.recipe import Recipe
from pulsar2_jobs import RECIPE, simulator
from tiny_model import Checkpoint, make_checkpoint

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 288}

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Build:
    """A bundle, the lock that it was built from, and its checkpoint."""

    bundle: Path
    lock: Path
    source: Path

    @property
    def layers(self) -> list[Path]:
        return sorted(self.bundle.glob("*_l*.axmodel"))

    def check(self) -> tuple[int, dict[str, Any]]:
        """The exit status of check-weights, and its report; {} without one."""
        output = self.bundle.parent / "weights.json"
        words = ["check-weights", str(self.bundle), "--lock", str(self.lock), "--source", str(self.source)]
        status = main([*words, "--output", str(output)])
        written = [path for path in (output, output.with_suffix(".failed.json")) if path.exists()]
        return status, read_json(written[0]) if written else {}


def build(checkpoint: Checkpoint, root: Path, recipe: Recipe = RECIPE, **lock: Any) -> Build:
    locked = make_lock(checkpoint.folder, checkpoint.model_type, checkpoint.layers, **lock)
    write_lock(locked, root / "locks", checkpoint.folder, {"path": "tiny"})
    settings, files, bundle = load_backend("pulsar2").settings(simulator()), [], root / "bundle"
    for kind, numbers in (("layer", range(checkpoint.layers)), ("post", [None]), ("embed", [None])):
        parts = [PartId(kind, number) for number in numbers]
        names = [kind_of(kind).file_name(checkpoint.model_type, recipe, number) for number in numbers]
        of_kind = [
            PartFile(root / "locks" / part.lock_file, bundle / name, root / "receipts" / name)
            for part, name in zip(parts, names, strict=True)
        ]
        build_parts(PartJob(of_kind, checkpoint.source, root / "store", recipe, "pulsar2", "AX650", None, settings))
        files += of_kind
    receipts = tuple(file.receipt for file in files)
    plan = BundlePlan(
        bundle, "tiny", "tiny", "AX650", "pulsar2", recipe, True, root / "locks", checkpoint.source, receipts
    )
    complete_bundle(plan)
    return Build(bundle, root / "locks", checkpoint.source)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model whose matrices have rows in multiples of 32, so that everything in its files can be proven."""
    return make_checkpoint(tmp_path_factory.mktemp("multiples") / "checkpoint", SHAPE)


@pytest.fixture(scope="module")
def original(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(checkpoint, tmp_path_factory.mktemp("original"))


@pytest.fixture
def built(original: Build, tmp_path: Path) -> Build:
    return replace(original, bundle=Path(shutil.copytree(original.bundle, tmp_path / "bundle")))


def test_all_files_are_proven(built: Build) -> None:
    status, report = built.check()
    assert (status, report["passed"], report["proven"], report["unproven"]) == (0, True, 3, {})


def test_a_language_model_inside_another(tmp_path: Path) -> None:
    """config.json is that of qwen2_5_vl, and the build is one of qwen2."""
    inner = make_checkpoint(tmp_path / "checkpoint", SHAPE | {"use_sliding_window": False}, "qwen2")
    path = inner.folder / "config.json"
    config = read_json(path) | {"model_type": "qwen2_5_vl", "vision_config": {"depth": 2}}
    write_json(path, config | {"architectures": ["Qwen2_5_VLForConditionalGeneration"]})
    status, report = build(inner, tmp_path / "build").check()
    assert (status, report["passed"], len(report["files"])) == (0, True, 3), report
    assert not [fault for file in report["files"].values() for fault in file["faults"]]


def test_a_model_config(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """config.json says nothing that can be used: all sizes are those of the model_config."""
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "checkpoint"))
    override = tmp_path / "model_config.json"
    config = read_json(folder / "config.json")
    override.write_text(json.dumps({"model_type": "llama", **SHAPE}))
    write_json(
        folder / "config.json", config | {"model_type": "some_other_llama", "intermediate_size": 64, "vocab_size": 9}
    )
    found = build(Checkpoint(folder, checkpoint.model), tmp_path / "build", model_config=override)
    status, report = found.check()
    assert (status, report["proven"]) == (0, 3), report


def test_the_weight_type_of_the_recipe(built: Build, checkpoint: Checkpoint, tmp_path: Path, capsys: Capture) -> None:
    """The manifest says s8, but the files of the layers are those of an s4 build."""
    other = build(checkpoint, tmp_path / "s4", replace(RECIPE, weight_type="s4"))
    assert other.check()[0] == 0
    for file, wrong in zip(built.layers, other.layers, strict=True):
        shutil.copy(wrong, file)
    status, report = built.check()
    assert (status, report["passed"]) == (1, False)
    names = [file.name for file in built.layers]
    assert report["failures"] == [f"{name}: its weights are stored as s4 instead of s8" for name in names]
    assert "compile these files again" in capsys.readouterr().err


def test_the_weight_type_of_the_post_layer(built: Build) -> None:
    manifest = read_json(built.bundle / "manifest.json")
    manifest["recipe"]["post_weight_type"] = "bf16"
    write_json(built.bundle / "manifest.json", manifest)
    assert built.check()[1]["failures"] == ["llama_post.axmodel: its weights are stored as s8 instead of bf16"]


@pytest.mark.parametrize(
    "weight_type, of_post", [("fp16", "bf16"), ("bf16", "fp8_e4m3"), ("fp32", "fp8_e5m2"), ("s4", "s8")]
)
def test_other_types(weight_type: str, of_post: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Files of a right build have the type of its recipe, although the compiler stores float types in four bytes."""
    recipe = replace(RECIPE, weight_type=weight_type, post_weight_type=of_post)
    status, report = build(checkpoint, tmp_path / "build", recipe).check()
    assert (status, report["failures"]) == (0, []), report


def test_swapped_layers(built: Build) -> None:
    first, second = built.layers
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert built.check()[1]["failures"] == [
        f"{first.name}: holds the weights of layer 1", f"{second.name}: holds the weights of layer 0",
    ]  # fmt: skip


def test_a_checkpoint_that_changed(built: Build, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(built.source.parent, tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 2
    save_file(tensors, folder / "model.safetensors")
    assert replace(built, source=folder / "source.json").check() == (1, {})
    assert "changed since locking: lock the checkpoint again" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["another lock", "no layer 1"])
def test_a_bundle_that_is_not_that_of_the_lock(change: str, built: Build, capsys: Capture) -> None:
    path = built.bundle / "manifest.json"
    manifest = read_json(path)
    if change == "another lock":
        manifest["spec"]["vocab_size"] += 1
        message = f"{built.bundle} describes another model than the lock {built.lock}: build the bundle again"
    else:
        manifest["parts"] = {name: part for name, part in manifest["parts"].items() if part.get("index") != 1}
        message = f"{built.bundle}: its manifest has no file for layer_1: build the bundle again"
    write_json(path, manifest)
    assert built.check() == (1, {})
    assert message in capsys.readouterr().err
