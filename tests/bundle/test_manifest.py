"""Reading manifest.json, our own and untrusted ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axzoo.bundle.completion import complete_bundle
from axzoo.bundle.manifest import MANIFEST, MANIFEST_LIMIT, Manifest, parse_manifest, read_manifest
from axzoo.core.errors import AxzooError
from axzoo.weights.recipe import Recipe
from tiny_model import Built


@pytest.fixture(scope="module")
def bundle(s8: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = s8.moved(tmp_path_factory.mktemp("manifest") / "tiny-w8a16")
    complete_bundle(built.plan)
    return built.folder


@pytest.fixture
def data(bundle: Path) -> Any:
    return json.loads((bundle / MANIFEST).read_text())


def test_read_manifest(bundle: Path, s8: Built) -> None:
    manifest = read_manifest(bundle)
    assert (manifest.name, manifest.recipe, manifest.spec.num_hidden_layers) == ("tiny-w8a16", s8.recipe, 2)
    assert manifest.size == sum((bundle / name).stat().st_size for name in manifest.files)
    assert set(manifest.parts) < set(manifest.files)
    assert manifest.source == {"path": "tiny"}


def test_missing_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"manifest\.json is missing"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(" " * (MANIFEST_LIMIT + 1))
    with pytest.raises(AxzooError, match="are plausible for this file"):
        read_manifest(tmp_path)


BAD_NAMES = [
    "../x", "/etc/passwd", "a/b", "tokenizer/../x", "tokenizer/a/b", "tokenizer", "tokenizer/", ".", "..", "",
    ".hidden", "a\nb", "a\0b", "-rf", "a\\b", "ü", "manifest.json", "tokenizer//x",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_file_names_outside_the_bundle_are_rejected(data: Any, name: str) -> None:
    data["files"][name] = {"size": 1, "sha256": "0" * 64}
    _assert_rejected(data)


def _set(*keys: str, to: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


POST = "llama_post.axmodel"
INVALID = {
    "size is negative": _set("files", "config.json", "size", to=-1),
    "size is a string": _set("files", "config.json", "size", to="1"),
    "size is true": _set("files", "config.json", "size", to=True),
    "sha256 is too short": _set("files", "config.json", "sha256", to="0" * 63),
    "sha256 is a number": _set("files", "config.json", "sha256", to=0),
    "files is a list": _set("files", to=[]),
    "name contains a slash": _set("name", to="../x"),
    "name is ..": _set("name", to=".."),
    "name is empty": _set("name", to=""),
    "name is a number": _set("name", to=3),
    "name is too long": _set("name", to="x" * 151),
    "recipe has an unknown key": _set("recipe", "taste", to="sweet"),
    "recipe is inconsistent": _set("recipe", "kv_cache_len", to=0),
    "spec has no layer": _set("spec", "layer", to=None),
    "head_dim is a string": _set("spec", "layer", "head_dim", to="x" * 10),
    "num_hidden_layers is a float": _set("spec", "num_hidden_layers", to=2.0),
    "source is a string": _set("source", to="x"),
    "parts is a list": _set("parts", to=[1]),
    "num_hidden_layers exceeds memory": _set("spec", "num_hidden_layers", to=10**10),
    "num_hidden_layers is 0": _set("spec", "num_hidden_layers", to=0),
    "a part is not among the files": _set("parts", "x.axmodel", to={"kind": "layer", "index": 9}),
    "two files are one part": lambda data: data["parts"].update(dict.fromkeys(data["parts"], data["parts"][POST])),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_manifest_is_rejected(data: Any, case: str) -> None:
    INVALID[case](data)
    _assert_rejected(data)


def test_manifest_of_a_newer_version_is_not_called_damaged(data: Any) -> None:
    data["spec"]["layer"]["attention_sinks"] = True
    with pytest.raises(AxzooError, match=r"^x/manifest\.json: LayerSpec has fields .*'attention_sinks'\. A newer ver"):
        parse_manifest(data, Path("x/manifest.json"))


def test_a_newer_versions_recipe_is_not_called_damaged(data: Any) -> None:
    data["recipe"]["kv_cache_type"] = "s8"
    with pytest.raises(AxzooError, match=r"^x/manifest\.json: recipe: unknown key 'kv_cache_type'.* or use the axzoo"):
        parse_manifest(data, Path("x/manifest.json"))


def test_manifest_of_an_older_version_gets_defaults(data: Any) -> None:
    spec = parse_manifest(data, Path("x/manifest.json")).spec
    del data["spec"]["layer"]["qk_norm"], data["spec"]["sliding_windows"]
    assert parse_manifest(data, Path("x/manifest.json")).spec == spec


def test_a_manifest_of_format_1_as_axzoo_wrote_it() -> None:
    """The demo's manifest, before manifests had a format number."""
    path = Path(__file__).with_name("manifest_format_1.json")
    manifest = parse_manifest(json.loads(path.read_text()), path)
    assert (manifest.name, manifest.chip) == ("SmolLM2-135M-Instruct-Q4_1-w8a16", "AX650")
    assert (manifest.backend, manifest.model, manifest.part_ids) == ("host", None, {})
    assert (len(manifest.files), len(manifest.parts)) == (40, 32)
    assert (manifest.spec.model_type, manifest.spec.num_hidden_layers) == ("llama", 30)
    assert manifest.recipe == Recipe(last_kv_cache_len=tuple(range(128, 1024, 128)))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (3, "has format 3, and this axzoo reads formats up to 2: it was written by a newer version"),
        (True, "is damaged"),
        ("2", "is damaged"),
        (0, "is damaged"),
    ],
)
def test_the_format_number(data: Any, number: Any, message: str) -> None:
    data["format"] = number
    with pytest.raises(AxzooError, match=message):
        parse_manifest(data, Path("x/manifest.json"))


def _assert_rejected(data: Any) -> None:
    with pytest.raises(AxzooError) as error:
        parse_manifest(data, Path("x/manifest.json"))
    assert "\n" not in str(error.value)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda v: st.lists(v, max_size=2))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_value_is_read_or_rejected(data: Any, choose: st.DataObject) -> None:
    changed = copy.deepcopy(data)
    place: Any = changed
    while isinstance(place, dict) and place:
        key = choose.draw(st.sampled_from(sorted(place)))
        parent, place = place, place[key]
        if choose.draw(st.booleans()):
            break
    parent[key] = choose.draw(JSON | st.dictionaries(st.text(max_size=3), JSON, max_size=2))
    try:
        assert isinstance(parse_manifest(changed, Path("manifest.json")), Manifest)
    except AxzooError as error:
        assert "manifest.json" in str(error) or "kv_cache_len" in str(error) or parent is changed["recipe"]
