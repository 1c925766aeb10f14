"""What a build will take, said before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.matrix.preflight import BASE_MEMORY, bundle_bytes, check_room, check_sizes, elements, job_memory
from axzoo.parts.lock import Lock, make_lock
from axzoo.parts.part import LockedTensor, Part
from tiny_model import LAYERS, Built, Checkpoint


def _part(*shape: int) -> Part:
    return Part({}, {"w": LockedTensor("w", 0, shape, "")})


@pytest.fixture(scope="module")
def lock(checkpoint: Checkpoint) -> Lock:
    return make_lock(checkpoint.folder, "llama", LAYERS)


def test_elements_are_counted(lock: Lock) -> None:
    assert elements(_part(3, 4)) == 12
    assert elements(lock.post) == 262 * 32 + 32


def test_a_bundle_is_not_smaller_than_estimated(lock: Lock, s8: Built) -> None:
    files = [*s8.layers, s8.post, s8.embedding]
    assert bundle_bytes(lock) <= sum(path.stat().st_size for path in files)
    assert bundle_bytes(lock) == sum(map(elements, (*lock.layers, lock.post))) + s8.embedding.stat().st_size


def test_a_jobs_memory_is_its_own_parts() -> None:
    small, large = job_memory(_part(64, 64)), job_memory(_part(4096, 11008))
    assert BASE_MEMORY < small < BASE_MEMORY + (1 << 20)
    assert 4096 * 11008 < large - BASE_MEMORY < 4096 * 11008 + (256 << 20)


def test_the_matrixs_sizes_are_compared(lock: Lock) -> None:
    layer, post, kv_width = elements(lock.layers[0]), elements(lock.post), lock.spec.layer.kv_size
    check_sizes(lock, layer, post, kv_width)
    check_sizes(lock, round(layer * 1.009), round(post * 0.991), kv_width)
    wrong = {"layer": (layer * 2, post, kv_width), "post": (layer, post // 2, kv_width), "kv_width": (layer, post, 1)}
    true = {"layer": layer, "post": post, "kv_width": kv_width}
    for key, sizes in wrong.items():
        with pytest.raises(AxzooError, match=rf"sizes\.{key}: \d+, but the checkpoint has {true[key]}:"):
            check_sizes(lock, *sizes)
    with pytest.raises(AxzooError, match=r"sizes\.kv_width"):
        check_sizes(lock, layer, post, kv_width + 1)


def test_a_small_model_has_room(lock: Lock, tmp_path: Path) -> None:
    check_room(lock, tmp_path / "not" / "there" / "yet")
    assert not list(tmp_path.iterdir())


def test_a_layer_larger_than_the_machine(lock: Lock, tmp_path: Path) -> None:
    huge = replace(lock, layers=(_part(1 << 22, 1 << 22),))
    with pytest.raises(AxzooError, match=r"compiling zoo needs about \d+ MB in one job, and this machine has \d+ MB"):
        check_room(huge, tmp_path / "zoo")


def test_a_bundle_larger_than_the_disk(lock: Lock, tmp_path: Path) -> None:
    deep = replace(lock, embed=_part(1 << 25, 1 << 25))
    with pytest.raises(AxzooError, match=r"a bundle of zoo takes at least \d+ MB, and the disk of .* has \d+ MB left"):
        check_room(deep, tmp_path / "zoo")
