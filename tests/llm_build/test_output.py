"""Placing a bundle in a folder: which files are replaced, removed and kept."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.llm_build.output import check_output_path, place_bundle

FILES = {"q_l0.axmodel": "layer 0", "q_post.axmodel": "post", "config.json": "{}", "tokenizer/tokenizer.json": "tok"}


def make_bundle(folder: Path, files: dict[str, str]) -> Path:
    for name, text in {**files, "run.sh": "#!/bin/sh\n"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "run.sh").chmod(0o755)
    records = {name: {"sha256": "-", "size": (folder / name).stat().st_size} for name in [*files, "run.sh"]}
    parts = {name: {} for name in files if name.endswith(".axmodel")}
    (folder / "manifest.json").write_text(json.dumps({"files": records, "parts": parts}))
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", FILES)


@pytest.fixture
def output(bundle: Path, tmp_path: Path) -> Path:
    place_bundle(bundle, tmp_path / "out" / "model")
    return tmp_path / "out" / "model"


def test_compiled_files_are_links_and_small_files_are_copies(bundle: Path, output: Path) -> None:
    assert contents(output) == contents(bundle)
    for name in contents(bundle):
        assert (output / name).samefile(bundle / name) == name.endswith(".axmodel")
    assert stat.S_IMODE((output / "run.sh").stat().st_mode) == 0o755


def test_placing_again_touches_nothing(bundle: Path, output: Path) -> None:
    (output / "checks").mkdir()
    (output / "checks/layers.json").write_text("passed")

    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in output.rglob("*") if p.is_file()}

    before = state()
    place_bundle(bundle, output)
    assert state() == before


def test_different_files_are_replaced_and_other_files_kept(bundle: Path, output: Path) -> None:
    (output / "config.json").write_text("edited")
    (output / "q_l0.axmodel").unlink()
    (output / "q_l0.axmodel").write_text("another")
    (output / "notes.txt").write_text("user file")
    (output / "other_l0.axmodel").write_text("user file 2")
    place_bundle(bundle, output)
    assert contents(output) == contents(bundle) | {"notes.txt": "user file", "other_l0.axmodel": "user file 2"}
    assert contents(bundle)["q_l0.axmodel"] == "layer 0"


def test_files_and_checks_of_an_earlier_build_are_removed(output: Path, tmp_path: Path) -> None:
    (output / "checks").mkdir()
    for name in ("layers.json", "notes.txt"):
        (output / "checks" / name).write_text("")
    (output / "other_l0.axmodel").write_text("user file")
    later = make_bundle(tmp_path / "later", {"q_p128_l0_together.axmodel": "layer", "config.json": "{1}"})
    place_bundle(later, output)
    assert contents(output) == contents(later) | {"checks/notes.txt": "", "other_l0.axmodel": "user file"}


@pytest.mark.parametrize("manifest", ["[]", "{", '{"files": 1}', '{"files": {"config.json": 1}}', "{}"])
def test_invalid_manifest_removes_nothing(bundle: Path, tmp_path: Path, manifest: str) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "manifest.json").write_text(manifest)
    (output / "kept").write_text("")
    place_bundle(bundle, output)
    assert contents(output) == contents(bundle) | {"kept": ""}


def test_hostile_manifest_removes_nothing_outside_the_output(bundle: Path, output: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("")
    (output / "link").symlink_to(outside)
    names = ["../../outside/secret", str(outside / "secret"), "link/secret", "tokenizer", ".", "", "a\0b"]
    (output / "manifest.json").write_text(json.dumps({"files": {name: {} for name in names}}))
    place_bundle(bundle, output)
    assert (outside / "secret").exists()
    assert contents(bundle).items() <= contents(output).items()


@pytest.mark.parametrize("weights", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_checkpoint_folder_is_rejected_as_output(tmp_path: Path, weights: str) -> None:
    (tmp_path / weights).write_text("")
    with pytest.raises(AxzooError, match=f"contains a checkpoint \\({weights}\\): give --output_path a separate"):
        check_output_path(tmp_path)
    with pytest.raises(AxzooError, match="is a file: --output_path must be a folder"):
        check_output_path(tmp_path / weights)


def test_output_of_an_earlier_build_is_accepted(output: Path, tmp_path: Path) -> None:
    (output / "model.embed_tokens.weight.bfloat16.bin").write_text("")
    check_output_path(output)
    check_output_path(tmp_path / "missing")


def test_output_that_is_not_writable_is_rejected_and_left_unchanged(output: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AxzooError, match="--output_path /proc/axzoo/out cannot be written: /proc: "):
        check_output_path(Path("/proc/axzoo/out"))
    with pytest.raises(AxzooError, match=r"run\.sh/out cannot be written: .*run\.sh: Not a directory"):
        check_output_path(output / "run.sh/out")
    check_output_path(output)
    assert sorted(tmp_path.rglob("*")) == before
