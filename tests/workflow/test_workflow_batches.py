"""Layers that share a job: the same files as with one job each, and only changed layers are compiled."""

from __future__ import annotations

import pytest
from workflow_project import LAYERS, Project

pytestmark = pytest.mark.workflow

BUNDLE = "results/AX650/tiny-w8a16"
MANIFEST = f"{BUNDLE}/manifest.json"
TWO = ("--config", "layers_per_job=2")
LOG = "results/logs/layer/AX650/tiny-w8a16/llama_p16_l1-2_together.log"


def test_batched_layers_build_the_same_files(project: Project) -> None:
    run = project.snakemake(MANIFEST, *TWO)
    assert run.status == 0, run.shown
    assert run.jobs == {"fetch": 1, "lock": 1, "layers_0_0": 1, "layers_1_2": 1, "post": 1, "embed": 1, "bundle": 1}
    assert f"building llm decode layers done! {LAYERS}/{LAYERS}" in run.shown
    assert project.snakemake(MANIFEST, *TWO).did_nothing
    together = project.digests(BUNDLE), project.digests("results/store"), project.digests("results/receipts")

    run = project.snakemake(MANIFEST)
    assert run.status == 0, run.shown
    assert (project / "results/logs/layer/AX650/tiny-w8a16/llama_p16_l2_together.log").read_text().count("reused") == 1
    assert (project.digests(BUNDLE), project.digests("results/store"), project.digests("results/receipts")) == together


def test_only_the_changed_layer_of_a_batch_is_compiled(project: Project) -> None:
    assert project.snakemake(MANIFEST, *TWO).status == 0
    project.edit_tensors(lambda tensors: tensors["model.layers.2.mlp.up_proj.weight"].mul_(1.5))
    run = project.snakemake(MANIFEST, *TWO)
    assert run.jobs == {"fetch": 1, "lock": 1, "layers_1_2": 1, "bundle": 1}
    words = [line.split(" - ")[1].split()[:2] for line in (project / LOG).read_text().splitlines()]
    assert words == [
        ["reused", f"{BUNDLE}/llama_p16_l1_together.axmodel"],
        ["built", f"{BUNDLE}/llama_p16_l2_together.axmodel"],
    ]


def test_deleted_layer_is_linked_again(project: Project) -> None:
    assert project.snakemake(MANIFEST, *TWO).status == 0
    before = project.digests(BUNDLE)
    (project / f"{BUNDLE}/llama_p16_l1_together.axmodel").unlink()
    run = project.snakemake(f"{BUNDLE}/llama_p16_l1_together.axmodel", MANIFEST, *TWO)
    assert run.status == 0, run.shown
    assert run.jobs == {"layers_1_2": 1, "bundle": 1}
    assert (project / LOG).read_text().count("reused") == 2
    assert project.digests(BUNDLE) == before


def test_layer_index_beyond_the_last_is_refused(project: Project) -> None:
    run = project.snakemake("-n", f"{BUNDLE}/llama_p16_l{LAYERS}_together.axmodel", *TWO)
    assert run.status == 1
    assert f"llama_p16_l{LAYERS}_together.axmodel" in run.shown
