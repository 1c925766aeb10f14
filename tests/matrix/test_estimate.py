"""Checks of sizes, memory and disk space before a build starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.matrix.preflight import bundle_bytes, check_room, check_sizes, sizes_of_json
from axzoo.parts.kind import PartId
from axzoo.parts.lock import Lock, make_lock
from axzoo.parts.part import LockedTensor, Part
from tiny_model import LAYERS, Built, Checkpoint


def _part(*shape: int, kind: str = "post") -> Part:
    return Part(PartId(kind), {}, {"w": LockedTensor("w", 0, shape, "")})


@pytest.fixture(scope="module")
def lock(checkpoint: Checkpoint) -> Lock:
    return make_lock(checkpoint.folder, "llama", LAYERS)


def test_parameter_counts(lock: Lock) -> None:
    assert _part(3, 4).parameters == 12
    assert lock.of_kind("post")[0].parameters == 262 * 32 + 32


def test_bundle_estimate_is_a_lower_bound(lock: Lock, s8: Built) -> None:
    files = [*s8.layers, s8.post, s8.embedding]
    assert bundle_bytes(lock) <= sum(path.stat().st_size for path in files)
    assert bundle_bytes(lock) == sum(part.parameters for part in lock.parts[:-1]) + s8.embedding.stat().st_size


def test_sizes_must_match_the_checkpoint(lock: Lock) -> None:
    layer, post = (lock.of_kind(kind)[0].parameters for kind in ("layer", "post"))
    actual = {"layer": layer, "post": post, "kv_width": lock.spec.layer.kv_size}
    check_sizes(lock, {})
    check_sizes(lock, actual)
    check_sizes(lock, actual | {"layer": round(layer * 1.009), "post": round(post * 0.991)})
    actual |= {"hidden_size": lock.spec.layer.hidden_size, "intermediate_size": lock.spec.layer.intermediate_size}
    check_sizes(lock, actual)
    widths = {key: actual[key] + 1 for key in ("kv_width", "hidden_size", "intermediate_size")}
    for key, wrong in {"layer": layer * 2, "post": post // 2, **widths}.items():
        with pytest.raises(AxzooError, match=rf"sizes\.{key}: \d+, but the checkpoint has {actual[key]}:"):
            check_sizes(lock, actual | {key: wrong})


@pytest.mark.parametrize("message", ["", "[]", "{", '{"layer": 0}', '{"layer": "x"}', '{"layer": true}', "1"])
def test_sizes_on_the_command_line(message: str) -> None:
    assert sizes_of_json('{"layer": 3}') == {"layer": 3}
    assert sizes_of_json(None) == {}
    with pytest.raises(AxzooError, match="is not a JSON object of positive integers"):
        sizes_of_json(message)


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(
        AxzooError, match="--sizes: unknown key 'layers': use one of hidden_size, intermediate_size, kv_width, "
    ):
        sizes_of_json('{"layers": 3}')


def test_small_model_fits_the_machine(lock: Lock, tmp_path: Path) -> None:
    check_room(lock, tmp_path / "not" / "there" / "yet")
    assert not list(tmp_path.iterdir())


def test_layer_larger_than_the_memory(lock: Lock, tmp_path: Path) -> None:
    huge = replace(lock, parts=(_part(1 << 22, 1 << 22),))
    with pytest.raises(AxzooError, match=r"compiling zoo needs about \d+ MB in one job, and this machine has \d+ MB"):
        check_room(huge, tmp_path / "zoo")


def test_a_bundle_larger_than_the_disk(lock: Lock, tmp_path: Path) -> None:
    deep = replace(lock, parts=(*lock.parts[:-1], _part(1 << 25, 1 << 25, kind="embed")))
    with pytest.raises(AxzooError, match=r"a bundle of zoo takes at least \d+ MB, and the disk of .* has \d+ MB left"):
        check_room(deep, tmp_path / "zoo")
