"""Every way a bundle can be other than its manifest says is named."""

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
from axzoo.bundle.verification import deviations, refuse_deviations
from axzoo.core.errors import AxzooError
from axzoo.core.files import sha256_of
from tiny_model import Built

LAYER = "llama_p8_l1_together.axmodel"
POST = "llama_post.axmodel"
EMBED = "model.embed_tokens.weight.bfloat16.bin"


@pytest.fixture(scope="module")
def whole(s8: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = s8.moved(tmp_path_factory.mktemp("verified") / "tiny-w8a16")
    complete_bundle(built.plan)
    return built.folder


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny-w8a16"))


def _rewritten(bundle: Path, change: Callable[[Any], None]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def _recorded(bundle: Path, name: str) -> None:
    """Makes the manifest agree with the file's bytes."""
    path = bundle / name
    record = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    _rewritten(bundle, lambda manifest: manifest["files"].update({name: record}))


def test_a_whole_bundle(bundle: Path) -> None:
    assert list(deviations(bundle)) == []
    (bundle / "checks").mkdir()
    (bundle / "checks/layers.json").write_text("{}")  # llm_build leaves it there
    (bundle / "empty").mkdir()
    refuse_deviations(bundle)


def test_everything_wrong_is_named(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    with (bundle / LAYER).open("r+b") as file:
        file.write(b"\xff")
    with (bundle / EMBED).open("ab") as file:
        file.write(b"\0")
    (bundle / "notes.txt").write_text("the user's own")
    (bundle / "llama_p8_l2_together.axmodel").write_text("of an earlier build")
    (bundle / ".config.json.x.part").write_text("of a killed process")
    (bundle / "run.sh").rename(bundle / "run.bat")
    size = (bundle / EMBED).stat().st_size
    assert list(deviations(bundle)) == [
        "config.json is missing",
        "run.sh is missing",
        ".config.json.x.part is superfluous: the manifest does not list it",
        "llama_p8_l2_together.axmodel is superfluous: the manifest does not list it",
        "notes.txt is superfluous: the manifest does not list it",
        "run.bat is superfluous: the manifest does not list it",
        f"{LAYER} has other bytes than the manifest says",
        f"{EMBED} has {size} bytes, the manifest says {size - 1}",
    ]
    with pytest.raises(
        AxzooError, match=r"is not what its manifest says: config\.json is missing; .* and 5 more: build"
    ):
        refuse_deviations(bundle)


@pytest.mark.parametrize("name", ["config.json", "tokenizer/tokenizer.json", POST, EMBED, "run.sh"])
def test_every_flipped_bit_is_seen(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    assert list(deviations(bundle)) == [f"{name} has other bytes than the manifest says"]


def test_links_are_no_files(bundle: Path, whole: Path) -> None:
    (bundle / "run.sh").unlink()
    (bundle / "run.sh").symlink_to(whole / "run.sh")
    shutil.rmtree(bundle / "tokenizer")
    (bundle / "tokenizer").symlink_to(whole / "tokenizer")
    (bundle / POST).unlink()
    os.mkfifo(bundle / POST)
    found = list(deviations(bundle))
    assert "run.sh is no ordinary file" in found
    assert f"{POST} is no ordinary file" in found
    assert "tokenizer/tokenizer.json is missing" in found
    assert "tokenizer is superfluous: the manifest does not list it" in found


def _other_layer(bundle: Path) -> None:
    shutil.copy(bundle / POST, bundle / LAYER)
    _recorded(bundle, LAYER)


def _strange_layer(bundle: Path) -> None:
    data = (bundle / LAYER).read_bytes()
    (bundle / LAYER).write_bytes(data[: len(data) // 2])
    _recorded(bundle, LAYER)


def _other_config(bundle: Path, **values: Any) -> None:
    path = bundle / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    _recorded(bundle, "config.json")


def _other_embedding(bundle: Path) -> None:
    with (bundle / EMBED).open("ab") as file:
        file.write(b"\0\0")
    _recorded(bundle, EMBED)


def _cast_layer(bundle: Path) -> None:
    """A graph whose inputs are not those its shape groups promise."""
    import onnx

    model = onnx.load(bundle / LAYER)
    model.graph.input[2].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, bundle / LAYER)
    _recorded(bundle, LAYER)


def _foreign_layer(bundle: Path) -> None:
    import onnx

    model = onnx.load(bundle / LAYER)
    del model.metadata_props[:]
    onnx.save(model, bundle / LAYER)
    _recorded(bundle, LAYER)


CONTRADICTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (_other_layer, f"{LAYER} is a 'post', not a 'decoder_layer'"),
    "half a layer": (_strange_layer, "is no ONNX model, or a damaged one"),
    "another graph": (_cast_layer, f"{LAYER} declares other inputs or outputs than its shape groups have"),
    "another tool": (_foreign_layer, f"{LAYER} was not built by axzoo"),
    "fewer layers": (lambda b: _other_config(b, axmodel_num=1), "config.json says 1 layers, the manifest 2"),
    "more tokens": (lambda b: _other_config(b, tokens_embed_num=9), "config.json says 9 tokens, the manifest 262"),
    "wider": (lambda b: _other_config(b, tokens_embed_size=9), "config.json says 9 hidden_size, the manifest 32"),
    "outside": (lambda b: _other_config(b, filename_post_axmodel="../x"), "must name a file inside the bundle"),
    "longer embedding": (_other_embedding, f"{EMBED} has 16770 bytes, the manifest's spec asks for 16768"),
    "another cache": (
        lambda b: _rewritten(b, lambda m: m["recipe"].update(kv_cache_len=63)),
        f"{LAYER} has other shape groups than the manifest's spec and recipe ask for",
    ),
    "another weight type": (
        lambda b: _rewritten(b, lambda m: m["parts"][LAYER].update(weight_type="bf16")),
        f"{LAYER} records other choices than its manifest entry",
    ),
    "too few windows": (lambda b: _rewritten(b, lambda m: m["spec"].update(sliding_windows=[8])), "sliding_windows"),
    "too few layers": (lambda b: _rewritten(b, lambda m: m["spec"].update(rotary_layers=[True])), "rotary_layers"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_files_that_are_not_what_the_manifest_describes(bundle: Path, case: str) -> None:
    change, said = CONTRADICTIONS[case]
    change(bundle)
    assert said in "\n".join(deviations(bundle))


def test_verifying_imports_no_runtime(bundle: Path) -> None:
    script = (
        "import sys; from axzoo.cli import main; status = main(['verify', sys.argv[1]]); "
        "heavy = {'torch', 'onnxruntime', 'onnx', 'transformers', 'tokenizers'} & set(sys.modules); "
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" MB, all as its manifest says\n")
