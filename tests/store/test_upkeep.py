"""Listing, verifying and collecting the entries of a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.store import Store, content_key, link
from axzoo.store.upkeep import (
    collect,
    contents,
    find_damage,
    forget_removed_bundles,
    leftovers,
    read_entry,
    used_by,
)

DAY_S = 86_400
LAYER = {"weight_type": "s4", "hidden_state_type": "bf16", "weight_group_size": 32, "weight_errors": {"q_proj": 0.1}}
POST = {"weight_type": "s8", "hidden_state_type": "bf16", "weight_errors": {"lm_head": 0.1}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "results/store").mkdir(parents=True)
    return Store(tmp_path / "results/store")


def _add(store: Store, name: str, about: Mapping[str, Any] | None = None, kind: str | None = None) -> str:
    def write(file: Any) -> Mapping[str, Any]:
        file.write(name.encode())
        return about or {}

    key = content_key({"name": name})
    store.add(key, write, None if kind is None else {"kind": kind, "index": None})
    return key


def _aged(store: Store, key: str, days: float = 2) -> str:
    for path in store.paths(key):
        if path.exists():
            then = path.stat().st_mtime - days * DAY_S
            os.utime(path, (then, then))
    return key


def _use(store: Store, key: str, bundle: str, file: str = "x.axmodel") -> Path:
    """Links the entry into a bundle, as a build job does."""
    results = store.root.parent
    entry = store.find(key)
    assert entry is not None
    link(entry, results / bundle / file)
    receipt = results / "receipts" / bundle / Path(file).with_suffix(".json").name
    write_json(receipt, {"file": file, "key": key})
    return results / bundle


def _keys(store: Store) -> set[str]:
    return {stored.key for stored in contents(store)}


def test_list_entries(store: Store) -> None:
    layer, post = _add(store, "layer", LAYER, "layer"), _add(store, "post", POST, "post")
    embed, old = _add(store, "embedding", kind="embed"), _add(store, "old entry", LAYER)
    _use(store, layer, "AX650/a-w4a16")
    _use(store, layer, "AX620E/a-w4a16")
    _aged(store, post, days=3)
    (store.root / "notes.txt").write_text("no entry")
    (store.root / layer[:2] / "notes.txt").write_text("no entry")
    (store.root / "zz").mkdir()
    found = {stored.key: stored for stored in contents(store)}
    assert [stored.key for stored in contents(store)] == sorted([layer, post, embed, old])
    assert {key: (s.kind, s.recipe_summary, s.size, s.links) for key, s in found.items()} == {
        layer: ("layer", "s4 bf16 g32", 5, 2),
        post: ("post", "s8 bf16", 4, 0),
        embed: ("embed", "", 9, 0),
        old: ("unknown", "s4 bf16 g32", 9, 0),
    }
    assert found[post].age_s == pytest.approx(3 * DAY_S, abs=60)
    assert found[layer].age_s == pytest.approx(0, abs=60)


def test_an_incomplete_entry(store: Store) -> None:
    lone, headless, torn = (_add(store, name, LAYER, "layer") for name in "abc")
    store.paths(lone)[1].unlink()
    store.paths(headless)[0].unlink()
    store.paths(torn)[1].write_text("{")
    found = {stored.key: (stored.kind, stored.size) for stored in contents(store)}
    assert found == {lone: ("unknown", 1), headless: ("layer", 0), torn: ("unknown", 1)}
    assert read_entry(store, "0" * 64) is None


def test_a_missing_store(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="nowhere is not a folder: pass a project's store with --store"):
        list(contents(Store(tmp_path / "nowhere")))


def test_bundles_that_use_an_entry(store: Store) -> None:
    one, two = _add(store, "one"), _add(store, "two")
    _use(store, one, "AX650/a-w8a16", "l0.axmodel")
    _use(store, one, "AX650/a-w8a16", "l1.axmodel")  # two layers of equal weights
    _use(store, one, "AX620E/a-w8a16")
    gone = _use(store, two, "AX650/b-w8a16")
    receipts = store.root.parent / "receipts"
    assert used_by(receipts) == {one: ["AX620E/a-w8a16", "AX650/a-w8a16"], two: ["AX650/b-w8a16"]}
    (gone / "x.axmodel").unlink()
    assert two in used_by(receipts)  # a lost file is linked again from the store
    gone.rmdir()
    assert two not in used_by(receipts)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}'])
def test_a_damaged_receipt_is_an_error(store: Store, text: str) -> None:
    _use(store, _add(store, "one"), "AX650/a-w8a16")
    receipts = store.root.parent / "receipts"
    (receipts / "AX650/a-w8a16/x.json").write_text(text)
    with pytest.raises(AxzooError, match=r"x\.json is"):
        used_by(receipts)
    with pytest.raises(AxzooError, match="is not a folder: pass the receipts of the store's project with --receipts"):
        used_by(receipts / "AX9")


DAMAGES = {
    "its data does not match its receipt": lambda data, receipt: data.write_bytes(b"onf"),
    "its data is missing": lambda data, receipt: data.unlink(),
    "its receipt cannot be read": lambda data, receipt: receipt.write_text("{"),
    "it has no receipt: a process was killed while adding it": lambda data, receipt: receipt.unlink(),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damage_is_reported_and_removed_on_request(store: Store, reason: str) -> None:
    key, other = _add(store, "one"), _add(store, "two")
    DAMAGES[reason](*store.paths(key))
    for repair in (False, True):
        assert [(found.entry.key, found.reason) for found in find_damage(store, repair)] == [(key, reason)]
    assert not list(find_damage(store, repair=False))
    assert _keys(store) == {other}
    assert _add(store, "one") == key
    assert store.find(key) is not None


def test_only_old_unused_entries_are_collected(store: Store) -> None:
    used, old, young, torn = (_add(store, name) for name in ("used", "old", "young", "torn"))
    _use(store, used, "AX650/a-w8a16")
    store.paths(torn)[1].unlink()
    for key in (used, old, torn):
        _aged(store, key)
    for dry_run in (True, False):
        removed, temporary = collect(store, used_by(store.root.parent / "receipts"), DAY_S, dry_run)
        assert {stored.key for stored in removed} == {old, torn}
        assert not temporary
        assert _keys(store) == ({used, old, young, torn} if dry_run else {used, young})
    assert store.find(used) is not None


def test_collecting_does_not_affect_bundles(store: Store) -> None:
    key = _aged(store, _add(store, "one"))
    bundle = _use(store, key, "AX650/a-w8a16")
    collect(store, [], 0, dry_run=False)
    assert not _keys(store)
    assert (bundle / "x.axmodel").read_bytes() == b"one"


def test_a_running_jobs_folder_is_kept(store: Store) -> None:
    """However long the job takes. A folder of a killed job is removed."""
    _add(store, "one")
    killed = store.root / ".job.killed.part"
    killed.mkdir()
    (killed / "half").write_bytes(b"half")
    with store.workspace() as folder:
        (folder / "half").write_bytes(b"half")
        os.utime(folder, (0, 0))
        os.utime(killed, (0, 0))
        assert collect(store, [], DAY_S, dry_run=False)[1] == [killed]
        assert (folder / "half").exists()
    assert not list(store.root.glob(".job*"))


def test_temporary_files_of_killed_processes(store: Store) -> None:
    key = _add(store, "one")
    old, young = (store.root / key[:2] / f".{key}.{name}.part" for name in ("old", "young"))
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert leftovers(store, DAY_S) == [old]
    assert collect(store, [key], DAY_S, dry_run=True) == ([], [old])
    assert collect(store, [key], DAY_S, dry_run=False) == ([], [old])
    assert young.exists()
    assert not old.exists()
    assert store.find(key) is not None


def test_bundles_of_other_projects_that_share_the_store(store: Store, tmp_path: Path) -> None:
    """Each project knows only its own receipts, but the store knows the projects."""
    ours, theirs, gone = (_aged(store, _add(store, name)) for name in ("ours", "theirs", "gone"))
    bundles = {}
    for key, project in ((ours, "results"), (theirs, "other/results"), (gone, "third/results")):
        folder, bundle = tmp_path / project / "receipts/AX650/a-w8a16", tmp_path / project / "AX650/a-w8a16"
        bundle.mkdir(parents=True)
        write_json(folder / "x.json", {"file": "x.axmodel", "key": key, "sha256": "0"})
        write_json(folder.parent / "a-w8a16.json", {"format": 1})  # the receipt of the bundle
        for _ in range(2):
            store.register(folder, bundle)
        bundles[project] = bundle
    assert len(list((store.root / "users").iterdir())) == 3
    bundles["third/results"].rmdir()
    receipts = store.root.parent / "receipts"
    used = used_by(receipts, store)
    assert used == {ours: ["AX650/a-w8a16"], theirs: [str(bundles["other/results"])]}
    assert used_by(tmp_path / "other/results/receipts", store).keys() == used.keys()
    removed, _ = collect(store, used, DAY_S, dry_run=False)
    assert [entry.key for entry in removed] == [gone]
    forget_removed_bundles(store)
    assert len(list((store.root / "users").iterdir())) == 2
    for path in (tmp_path / "other/results/receipts").rglob("x.json"):
        path.write_text("{")
    with pytest.raises(AxzooError, match=r"x\.json is"):
        used_by(receipts, store)


def test_a_project_that_cannot_be_reached_is_not_forgotten(store: Store, tmp_path: Path) -> None:
    store.register(tmp_path / "mount/results/receipts/AX650/a", tmp_path / "mount/results/AX650/a")
    forget_removed_bundles(store)
    assert len(list((store.root / "users").iterdir())) == 1
