"""Verification reports every deviation of a bundle from its manifest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from axzoo.bundle.completion import complete_bundle
from axzoo.bundle.manifest import MANIFEST
from axzoo.bundle.verification import deviations, require_intact
from axzoo.core.errors import AxzooError
from axzoo.core.files import sha256_of
from tiny_model import Built

LAYER = "llama_p8_l1_together.axmodel"
POST = "llama_post.axmodel"
EMBED = "model.embed_tokens.weight.bfloat16.bin"


@pytest.fixture(scope="module")
def intact(s8: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = s8.moved(tmp_path_factory.mktemp("verified") / "tiny-w8a16")
    complete_bundle(built.plan)
    return built.folder


@pytest.fixture
def bundle(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "tiny-w8a16"))


def test_a_bundle_of_format_1_is_valid(bundle: Path) -> None:
    """Manifests of that format state no model, backend, kinds and indices; newer spec fields are missing."""

    def older(manifest: Any) -> None:
        for key in ("format", "model", "backend"):
            del manifest[key]
        for part in manifest["parts"].values():
            del part["kind"], part["index"]
        del manifest["spec"]["layer"]["qk_norm"], manifest["recipe"]["weight_group_size"]

    _change_manifest(bundle, older)
    assert list(deviations(bundle)) == []


def test_an_unknown_backend_is_not_a_damaged_bundle(bundle: Path) -> None:
    _change_manifest(bundle, lambda manifest: manifest.update(backend="nowhere"))
    with pytest.raises(AxzooError, match="unknown backend 'nowhere'"):
        list(deviations(bundle))


def test_compiled_files_must_be_listed_as_parts(bundle: Path) -> None:
    _change_manifest(bundle, lambda manifest: manifest["parts"].pop(LAYER))
    (found,) = deviations(bundle)
    assert found.startswith(f"config.json uses {LAYER} as layer_")
    assert found.endswith("but the manifest does not list it as a part")


def _change_manifest(bundle: Path, change: Callable[[Any], None]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def _update_record(bundle: Path, name: str) -> None:
    """Make the manifest match the changed file."""
    path = bundle / name
    record = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    _change_manifest(bundle, lambda manifest: manifest["files"].update({name: record}))


def test_intact_bundle(bundle: Path) -> None:
    assert list(deviations(bundle)) == []
    (bundle / "checks").mkdir()
    (bundle / "checks/layers.json").write_text("{}")  # written by llm_build
    (bundle / "empty").mkdir()
    require_intact(bundle)


def test_all_deviations_are_reported(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    with (bundle / LAYER).open("r+b") as file:
        file.write(b"\xff")
    with (bundle / EMBED).open("ab") as file:
        file.write(b"\0")
    (bundle / "notes.txt").write_text("a file of the user")
    (bundle / "llama_p8_l2_together.axmodel").write_text("a file of an earlier build")
    (bundle / ".config.json.x.part").write_text("a file of a killed process")
    (bundle / "run.sh").rename(bundle / "run.bat")
    size = (bundle / EMBED).stat().st_size
    assert list(deviations(bundle)) == [
        "config.json is missing",
        "run.sh is missing",
        ".config.json.x.part is not listed in the manifest: remove it",
        "llama_p8_l2_together.axmodel is not listed in the manifest: remove it",
        "notes.txt is not listed in the manifest: remove it",
        "run.bat is not listed in the manifest: remove it",
        f"{LAYER} has a different sha256 from the manifest",
        f"{EMBED} has {size} bytes, but the manifest says {size - 1}",
    ]
    with pytest.raises(
        AxzooError, match=r"does not match its manifest: config\.json is missing; .* and 5 more: build it again"
    ):
        require_intact(bundle)


@pytest.mark.parametrize("name", ["config.json", "tokenizer/tokenizer.json", POST, EMBED, "run.sh"])
def test_flipped_bit_is_reported(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    assert list(deviations(bundle)) == [f"{name} has a different sha256 from the manifest"]


def test_links_and_pipes_are_reported(bundle: Path, intact: Path) -> None:
    (bundle / "run.sh").unlink()
    (bundle / "run.sh").symlink_to(intact / "run.sh")
    shutil.rmtree(bundle / "tokenizer")
    (bundle / "tokenizer").symlink_to(intact / "tokenizer")
    (bundle / POST).unlink()
    os.mkfifo(bundle / POST)
    found = list(deviations(bundle))
    assert "run.sh is not a regular file" in found
    assert f"{POST} is not a regular file" in found
    assert "tokenizer/tokenizer.json is missing" in found
    assert "tokenizer is not listed in the manifest: remove it" in found


def _replace_layer_by_post(bundle: Path) -> None:
    shutil.copy(bundle / POST, bundle / LAYER)
    _update_record(bundle, LAYER)


def _truncate_layer(bundle: Path) -> None:
    data = (bundle / LAYER).read_bytes()
    (bundle / LAYER).write_bytes(data[: len(data) // 2])
    _update_record(bundle, LAYER)


def _change_config(bundle: Path, **values: Any) -> None:
    path = bundle / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    _update_record(bundle, "config.json")


def _extend_embedding(bundle: Path) -> None:
    with (bundle / EMBED).open("ab") as file:
        file.write(b"\0\0")
    _update_record(bundle, EMBED)


def _change_input_type(bundle: Path) -> None:
    """Make the inputs of the graph contradict its shape groups."""
    import onnx

    model = onnx.load(bundle / LAYER)
    model.graph.input[2].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, bundle / LAYER)
    _update_record(bundle, LAYER)


def _remove_metadata(bundle: Path) -> None:
    import onnx

    model = onnx.load(bundle / LAYER)
    del model.metadata_props[:]
    onnx.save(model, bundle / LAYER)
    _update_record(bundle, LAYER)


CONTRADICTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (_replace_layer_by_post, f"{LAYER} is a 'post', not a 'decoder_layer'"),
    "half a layer": (_truncate_layer, "is damaged or not an ONNX model"),
    "another graph": (_change_input_type, f"{LAYER} has inputs or outputs that do not match its shape groups"),
    "another tool": (_remove_metadata, f"{LAYER} was not built by axzoo"),
    "other number of layers": (
        lambda b: _change_config(b, axmodel_num=1),
        "num_hidden_layers is 1 in config.json, but 2 in the manifest",
    ),
    "other vocab_size": (
        lambda b: _change_config(b, tokens_embed_num=9),
        "vocab_size is 9 in config.json, but 262 in the manifest",
    ),
    "other hidden_size": (
        lambda b: _change_config(b, tokens_embed_size=9),
        "hidden_size is 9 in config.json, but 32 in the manifest",
    ),
    "outside the bundle": (
        lambda b: _change_config(b, filename_post_axmodel="../x"),
        "must name a file inside the bundle",
    ),
    "longer embedding": (_extend_embedding, f"{EMBED} has 16770 bytes, but the manifest's spec implies 16768"),
    "other kv_cache_len": (
        lambda b: _change_manifest(b, lambda m: m["recipe"].update(kv_cache_len=63)),
        f"{LAYER} has shape groups that do not match the manifest's spec and recipe",
    ),
    "other weight_type": (
        lambda b: _change_manifest(b, lambda m: m["parts"][LAYER].update(weight_type="bf16")),
        f"{LAYER} has metadata that does not match its manifest entry",
    ),
    "too few sliding windows": (
        lambda b: _change_manifest(b, lambda m: m["spec"].update(sliding_windows=[8])),
        "sliding_windows",
    ),
    "too few rotary layers": (
        lambda b: _change_manifest(b, lambda m: m["spec"].update(rotary_layers=[True])),
        "rotary_layers",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradiction_with_the_manifest_is_reported(bundle: Path, case: str) -> None:
    change, message = CONTRADICTIONS[case]
    change(bundle)
    assert message in "\n".join(deviations(bundle))


def test_verify_does_not_import_a_runtime(bundle: Path) -> None:
    script = (
        "import sys; from axzoo.cli import main; status = main(['verify', sys.argv[1]]); "
        "heavy = {'torch', 'onnxruntime', 'onnx', 'transformers', 'tokenizers'} & set(sys.modules); "
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" MB, all match the manifest\n")
