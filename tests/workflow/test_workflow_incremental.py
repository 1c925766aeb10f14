"""After a change, a second run rebuilds exactly what the change affects."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow_project import ENTRY, LAYERS, Project, new_project

pytestmark = pytest.mark.workflow

BUNDLE = "results/AX650/tiny-w8a16"
LAYER = f"{BUNDLE}/llama_p16_l1_together.axmodel"
LAYER_LOG = "results/logs/layer/AX650/tiny-w8a16/llama_p16_l1_together.log"
CHECKED = [f"results/checks/AX650/tiny-w8a16/{level}.json" for level in ("layers", "generation")]
TENSOR = "model.layers.1.mlp.up_proj.weight"


def compiled(project: Project) -> dict[str, str]:
    """The digests of the compiled files."""
    found = project.digests(BUNDLE)
    return {name: digest for name, digest in found.items() if name.endswith((".axmodel", ".bin"))}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def damage(path: Path) -> None:
    """Changes a byte in the middle of the file, keeping inode and mtime."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(stat.st_size // 2)
        byte = file.read(1)
        file.seek(stat.st_size // 2)
        file.write(bytes([byte[0] ^ 0x10]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def stored(project: Project, file: str) -> Path:
    """The store entry to which a bundle's file is hard-linked."""
    (entry,) = (path for path in (project / "results/store").glob("*/*") if path.samefile(project / file))
    return entry


def test_a_changed_layer_is_the_only_one_compiled(rebuilt: Project) -> None:
    before = compiled(rebuilt)
    rebuilt.edit_tensors(lambda tensors: tensors[TENSOR][0, 0].add_(1))
    run = rebuilt.snakemake(*CHECKED)
    assert run.jobs == {"fetch": 1, "lock": 1, "layer": 1, "bundle": 1, "check_layers": 1, "check_generation": 1}
    assert changed(before, compiled(rebuilt)) == {Path(LAYER).name}
    assert rebuilt.snakemake(*CHECKED).did_nothing


def test_change_fetched_by_a_killed_build_is_locked_by_the_next(rebuilt: Project) -> None:
    """The receipt's content differs, although file names and sizes are the same."""
    rebuilt.edit_tensors(lambda tensors: tensors[TENSOR][0, 0].add_(1))
    assert rebuilt.snakemake(f"{BUNDLE}/manifest.json").status == 0
    rebuilt.edit_tensors(lambda tensors: tensors[TENSOR][0, 0].add_(1))
    assert rebuilt.snakemake("results/checkpoints/tiny/source.json").jobs == {"fetch": 1}
    assert rebuilt.snakemake(f"{BUNDLE}/manifest.json").jobs == {"lock": 1, "layer": 1, "bundle": 1}


def test_fine_tuned_model_in_another_project_shares_unchanged_layers(built: Project, tmp_path: Path) -> None:
    """The other project uses a link to the first project's store."""
    tuned = new_project(tmp_path / "tuned", built / "checkpoint")
    tuned.edit_tensors(lambda tensors: tensors[TENSOR][0, 0].add_(1))
    shutil.copytree(built / "results/store", tmp_path / "store")
    (tuned / "results").mkdir()
    (tuned / "results/store").symlink_to(tmp_path / "store")
    run = tuned.snakemake(f"{BUNDLE}/manifest.json")
    assert run.status == 0, run.shown
    logs = "".join(path.read_text() for path in (tuned / "results/logs").rglob("*.log"))
    assert len(re.findall(r"reused results/AX650/\S+", logs)) == LAYERS - 1 + 2  # other layers, post, embedding
    assert changed(compiled(built), compiled(tuned)) == {Path(LAYER).name}


def test_a_touched_checkpoint_compiles_nothing(rebuilt: Project) -> None:
    before = {name: state for name, state in rebuilt.state(BUNDLE).items() if name.endswith((".axmodel", ".bin"))}
    for path in (rebuilt / "checkpoint").iterdir():
        path.touch()
    run = rebuilt.snakemake("results/AX650/tiny-w8a16/manifest.json")
    assert run.jobs == {"fetch": 1, "lock": 1}
    assert before.items() <= rebuilt.state(BUNDLE).items()


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json"])
def test_changed_tokenizer_file_reaches_the_bundle(rebuilt: Project, name: str) -> None:
    path = rebuilt / "checkpoint" / name
    path.write_text(path.read_text() + "\n")
    run = rebuilt.snakemake(f"{BUNDLE}/manifest.json")
    assert run.jobs == {"fetch": 1, "lock": 1, "bundle": 1}
    assert (rebuilt / BUNDLE / "tokenizer" / name).read_bytes() == path.read_bytes()


def test_changed_kv_cache_len_rebuilds_only_the_layers(rebuilt: Project) -> None:
    before = compiled(rebuilt)
    rebuilt.write_matrix({"tiny": ENTRY}, kv_cache_len=79)
    run = rebuilt.snakemake(f"{BUNDLE}/manifest.json")
    assert run.jobs == {"layer": LAYERS, "bundle": 1}
    assert changed(before, compiled(rebuilt)) == {f"llama_p16_l{layer}_together.axmodel" for layer in range(LAYERS)}


def test_changed_checks_compile_nothing(rebuilt: Project) -> None:
    rebuilt.write_matrix({"tiny": ENTRY | {"prompt": "Which capital?"}})
    assert rebuilt.snakemake(*CHECKED).jobs == {"check_layers": 1, "check_generation": 1}


def test_changed_prefill_len_removes_old_files(rebuilt: Project) -> None:
    rebuilt.write_matrix({"tiny": ENTRY | {"prefill_len": 8, "last_kv_cache_len": []}})
    run = rebuilt.snakemake(f"{BUNDLE}/manifest.json")
    assert run.jobs == {"layer": LAYERS, "bundle": 1}
    assert {path.name for path in (rebuilt / BUNDLE).glob("*.axmodel")} == {
        *(f"llama_p8_l{layer}_together.axmodel" for layer in range(LAYERS)),
        "llama_post.axmodel",
    }


def test_deleted_file_is_linked_again(rebuilt: Project) -> None:
    before = rebuilt.state("results/store")
    (rebuilt / LAYER).unlink()
    run = rebuilt.snakemake()
    assert run.jobs["layer"] == 1
    assert run.jobs.keys() <= {"layer", "bundle", "check_layers", "check_generation"}
    assert rebuilt.state("results/store").keys() == before.keys()
    assert stored(rebuilt, LAYER).exists()


def test_deleted_bundle_is_linked_again(rebuilt: Project) -> None:
    before, stock = rebuilt.digests(BUNDLE), rebuilt.digests("results/store")
    for path in sorted((rebuilt / BUNDLE).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run = rebuilt.snakemake(f"{BUNDLE}/manifest.json")
    assert run.jobs == {"layer": LAYERS, "post": 1, "embed": 1, "bundle": 1}
    assert rebuilt.digests(BUNDLE) == before
    assert rebuilt.digests("results/store") == stock


def test_damaged_file_is_rebuilt(rebuilt: Project) -> None:
    """The bundle's file and the store entry are the same inode, so both are damaged."""
    sound = compiled(rebuilt)
    entry = stored(rebuilt, LAYER)
    damage(rebuilt / LAYER)
    run = rebuilt.snakemake(f"{BUNDLE}/manifest.json")
    assert run.jobs == {"layer": 1, "bundle": 1}
    assert compiled(rebuilt) == sound
    assert stored(rebuilt, LAYER) == entry
    assert "is damaged: building it again" in (rebuilt / LAYER_LOG).read_text()


def _truncate(entry: Path) -> None:
    os.truncate(entry, 1000)


def _lose(entry: Path) -> None:
    entry.unlink()


def _forget(entry: Path) -> None:
    entry.with_name(f"{entry.name}.json").unlink()


def _garble(entry: Path) -> None:
    entry.with_name(f"{entry.name}.json").write_text('{"sha256": ')


@pytest.mark.parametrize("harm", [damage, _truncate, _lose, _forget, _garble])
def test_damaged_store_entry_is_rebuilt_instead_of_linked(rebuilt: Project, harm: Callable[[Path], None]) -> None:
    sound = rebuilt.made()
    entry = stored(rebuilt, LAYER)
    both = [LAYER, LAYER.replace("AX650", "AX620E")]  # hard links to the entry, so they change with it
    for file in both:
        (rebuilt / file).unlink()
    harm(entry)
    run = rebuilt.snakemake("--jobs", "1", *both)  # each file keeps its link
    assert run.status == 0, run.shown
    assert run.jobs == {"layer": 2}
    assert rebuilt.made() == sound
    assert stored(rebuilt, LAYER) == entry
