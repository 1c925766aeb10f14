"""Snakemake runs the jobs whose files differ from their receipts: replaced, edited, lost, or dated by a wrong clock."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from test_workflow_incremental import damage
from test_workflow_why import why
from workflow_project import ENTRY, LAYERS, TINY, Project, untraced

pytestmark = pytest.mark.workflow

MANIFEST = f"{TINY}/manifest.json"
LAYER = f"{TINY}/llama_p16_l1_together.axmodel"
DAY_S = 86_400


def verify(project: Project) -> subprocess.CompletedProcess[str]:
    command = ["axzoo", "verify", TINY]
    return subprocess.run(command, cwd=project.folder, env=untraced(), capture_output=True, text=True)


def test_lost_and_edited_files_are_restored_for_a_single_target(rebuilt: Project) -> None:
    sound = rebuilt.digests(TINY)
    lost = [LAYER, f"{TINY}/tokenizer/tokenizer.json", f"{TINY}/tokenizer/chat_template.jinja"]
    edited = [f"{TINY}/config.json", f"{TINY}/tokenizer/tokenizer_config.json", f"{TINY}/llama_post.axmodel"]
    for name in lost:
        (rebuilt / name).unlink()
    for name in edited:
        damage(rebuilt / name)
    (rebuilt / f"{TINY}/llama_p16_l9_together.axmodel").write_text("a host program would load it")
    said = why(rebuilt, MANIFEST)
    for name in lost:
        assert re.search(rf"missing: .*{re.escape(name)}", said), said
    for name in edited:
        assert re.search(rf"not what was built: .*{re.escape(name)}", said), said
    run = rebuilt.snakemake(MANIFEST)
    assert run.jobs == {"layer": 1, "post": 1, "bundle": 1}, run.shown
    assert rebuilt.digests(TINY) == sound
    assert rebuilt.snakemake(MANIFEST).did_nothing


def test_the_advice_of_verify_works_as_printed(rebuilt: Project) -> None:
    sound = rebuilt.digests(TINY)
    damage(rebuilt / LAYER)
    (rebuilt / f"{TINY}/notes.txt").write_text("mine")
    done = verify(rebuilt)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "notes.txt is not listed in the manifest: remove it",
        f"{Path(LAYER).name} has a different sha256 from the manifest",
    ]
    advice = re.search(r"run `(.+)` in (.+), with the --configfile it was built with, if any$", done.stderr)
    assert advice, done.stderr
    subprocess.run(advice[1], shell=True, cwd=advice[2], env=untraced(), check=True)
    (rebuilt / f"{TINY}/notes.txt").unlink()
    assert verify(rebuilt).returncode == 0
    assert rebuilt.digests(TINY) == sound


def test_a_link_to_an_older_checkpoint(rebuilt: Project) -> None:
    """All files of the older checkpoint are older than those of the newer one and have the same sizes."""
    newer, older = rebuilt / "epoch2", rebuilt / "epoch1"
    (rebuilt / "checkpoint").rename(newer)
    shutil.copytree(newer, older)
    rebuilt.edit_tensors(lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][0, 0].add_(1), "epoch1")
    template = older / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "ASSISTANT"))
    for path in older.iterdir():
        os.utime(path, (1.6e9, 1.6e9))
    (rebuilt / "checkpoint").symlink_to("epoch2")
    assert rebuilt.snakemake(MANIFEST).jobs == {"fetch": 1, "lock": 1}
    before = rebuilt.digests(TINY)

    (rebuilt / "checkpoint").unlink()
    (rebuilt / "checkpoint").symlink_to("epoch1")
    assert "fetch: results/checkpoints/tiny/source.json\n    changed: checkpoint" in why(rebuilt, MANIFEST)
    assert rebuilt.snakemake(MANIFEST).jobs == {"fetch": 1, "lock": 1, "layer": 1, "bundle": 1}
    assert (rebuilt / f"{TINY}/tokenizer/chat_template.jinja").read_bytes() == template.read_bytes()
    changed = {name for name, digest in rebuilt.digests(TINY).items() if before[name] != digest}
    template_files = {"tokenizer/chat_template.jinja", "config.json"}  # which names axllm's template
    assert changed - template_files == {Path(LAYER).name, "manifest.json"}
    assert rebuilt.snakemake(MANIFEST).did_nothing


def test_wrong_clocks(rebuilt: Project) -> None:
    """The results are dated ahead, and then the checkpoint, too. Snakemake would neither see changes nor accept results
    that are older than their inputs."""
    ahead = time.time() + DAY_S
    for path in (*(rebuilt / "results").rglob("*"), *(rebuilt / ".snakemake").rglob("*")):
        if path.is_file():
            os.utime(path, (ahead, ahead))
    template = rebuilt / "checkpoint/chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    run = rebuilt.snakemake(MANIFEST)
    assert run.jobs == {"fetch": 1, "lock": 1, "bundle": 1}, run.shown
    assert "files of results/ were dated ahead of this machine's clock: they are dated now" in run.shown
    assert (rebuilt / f"{TINY}/tokenizer/chat_template.jinja").read_bytes() == template.read_bytes()

    rebuilt.edit_tensors(lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][0, 0].add_(1))
    for path in (rebuilt / "checkpoint").iterdir():
        os.utime(path, (ahead, ahead))
    run = rebuilt.snakemake(MANIFEST)
    assert run.jobs == {"fetch": 1, "lock": 1, "layer": 1, "bundle": 1}, run.shown
    assert rebuilt.snakemake(MANIFEST).did_nothing


def test_changes_after_snakemakes_records_were_removed(rebuilt: Project) -> None:
    shutil.rmtree(rebuilt / ".snakemake")
    assert rebuilt.snakemake(MANIFEST).did_nothing
    rebuilt.write_matrix({"tiny": ENTRY}, kv_cache_len=79)
    assert rebuilt.snakemake(MANIFEST).jobs == {"layer": LAYERS, "bundle": 1}


def test_gc_frees_layers_that_a_bundle_no_longer_has(rebuilt: Project) -> None:
    def keys() -> set[str]:
        return {path.name for path in (rebuilt / "results/store").glob("??/*") if not path.suffix}

    before = keys()
    shutil.rmtree(rebuilt / "results/store/users")  # the project that this one was copied from
    rebuilt.write_matrix({"tiny": ENTRY | {"prefill_len": 8, "last_kv_cache_len": []}})
    shutil.rmtree(rebuilt / "results/AX620E")
    assert rebuilt.snakemake(MANIFEST).jobs == {"layer": LAYERS, "bundle": 1}
    assert len(keys() - before) == LAYERS
    new = keys() - before
    done = subprocess.run(
        ["axzoo", "store", "gc", "--days", "0"], cwd=rebuilt.folder, env=untraced(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert new <= keys()
    assert len(before - keys()) == LAYERS
