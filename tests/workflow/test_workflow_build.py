"""A matrix built by Snakemake: its files, their content, and that builds are reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workflow_project import ENTRY, LAYERS, Project, new_project, sha256

pytestmark = pytest.mark.workflow

LAYER_FILES = {f"llama_p16_l{layer}_together.axmodel" for layer in range(LAYERS)}
COMPILED = LAYER_FILES | {"llama_post.axmodel", "model.embed_tokens.weight.bfloat16.bin"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json"}
DESCRIBED = COMPILED | {"config.json", "post_config.json", "run.sh", "tokenizer.txt"}
DESCRIBED |= {f"tokenizer/{name}" for name in TOKENIZER}
BUNDLE = DESCRIBED | {"manifest.json"}
LOCKS = {"made_from.json", "index.json", "post.json", "embed.json", *(f"layer_{layer}.json" for layer in range(LAYERS))}
CHECKS = {"layers.json", "layers.log", "generation.json", "generation.log"}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_build_writes_exactly_the_documented_files(built: Project) -> None:
    found = built.files()
    expected = {"checkpoints/tiny/source.json", "digests.json"} | {f"locks/tiny/{name}" for name in LOCKS}
    for chip in ("AX650", "AX620E"):
        expected |= {f"{chip}/tiny-w8a16/{name}" for name in BUNDLE}
        expected |= {f"receipts/{chip}/tiny-w8a16/{Path(name).stem}.json" for name in COMPILED}
        expected.add(f"receipts/{chip}/tiny-w8a16.json")
        expected |= {f"checks/{chip}/tiny-w8a16/{name}" for name in CHECKS}
    store = {name for name in found if name.startswith("store/")}
    notes = {name for name in found if name.startswith(("logs/", "benchmarks/"))}
    assert found - store - notes == expected
    assert len(store - {"store/.lock"}) == 2 * len(COMPILED)  # a file and its metadata; both chips share them
    assert all(name.endswith((".log", ".tsv")) for name in notes)


@pytest.mark.parametrize("name", sorted(COMPILED))
def test_second_chip_uses_the_store(built: Project, name: str) -> None:
    ax650, ax620e = (built / f"results/{chip}/tiny-w8a16/{name}" for chip in ("AX650", "AX620E"))
    assert ax650.samefile(ax620e)
    logs = (built / "results/logs").glob("*/AX620E/**/*.log")
    assert any(f"reused results/AX620E/tiny-w8a16/{name}" in log.read_text() for log in logs)


def test_the_manifest_describes_every_file(built: Project) -> None:
    bundle = built / "results/AX650/tiny-w8a16"
    manifest = read(bundle / "manifest.json")
    assert manifest["files"] == {
        name: {"sha256": sha256(bundle / name), "size": (bundle / name).stat().st_size} for name in DESCRIBED
    }
    assert (manifest["name"], manifest["chip"]) == ("tiny-w8a16", "AX650")
    assert manifest["source"] == {"path": "checkpoint"}
    assert manifest["recipe"]["weight_type"] == "s8"
    assert manifest["parts"].keys() == COMPILED
    assert read(bundle / "config.json")["template_filename_axmodel"] == "llama_p16_l%d_together.axmodel"


@pytest.mark.parametrize("chip", ["AX650", "AX620E"])
def test_both_checks_passed(built: Project, chip: str) -> None:
    layers = read(built / f"results/checks/{chip}/tiny-w8a16/layers.json")
    generation = read(built / f"results/checks/{chip}/tiny-w8a16/generation.json")
    assert layers["passed"] is True
    assert [layer["layer"] for layer in layers["layers"]] == list(range(LAYERS))
    assert generation["passed"] is True
    assert len(generation["steps"]) > 1


def test_second_run_does_nothing(rebuilt: Project) -> None:
    def state() -> dict[str, tuple[int, int, int]]:
        return {name: stat for name, stat in rebuilt.state().items() if name != "digests.json"}  # the plan's own notes

    before = state()
    assert rebuilt.snakemake().did_nothing
    assert state() == before


def test_building_file_by_file_gives_the_same_bundle(built: Project, small_llama: Path, tmp_path: Path) -> None:
    """Any file can be a target and runs only the jobs it needs; the order does not matter."""
    project = new_project(tmp_path / "a" / "longer path" / "project", small_llama)
    bundle = "results/AX650/tiny-w8a16"
    steps = [
        ("model.embed_tokens.weight.bfloat16.bin", {"fetch": 1, "lock": 1, "embed": 1}),
        ("llama_post.axmodel", {"post": 1}),
        ("llama_p16_l1_together.axmodel", {"layer": 1}),
        ("manifest.json", {"layer": LAYERS - 1, "bundle": 1}),
    ]
    for name, jobs in steps:
        run = project.snakemake(f"{bundle}/{name}")
        assert run.status == 0, run.shown
        assert run.jobs == jobs
        assert (project / bundle / name).exists()
    assert project.digests(bundle) == built.digests(bundle)


def test_two_builds_from_scratch_have_the_same_bytes(built: Project, project: Project) -> None:
    """The second build makes both chips' bundles at once, sharing the store."""
    project.write_matrix({"tiny": ENTRY}, chips=["AX620E", "AX650N"])
    run = project.snakemake(*(f"results/{chip}/tiny-w8a16/manifest.json" for chip in ("AX620E", "AX650")))
    assert run.status == 0, run.shown
    for chip in ("AX620E", "AX650"):
        assert project.digests(f"results/{chip}") == built.digests(f"results/{chip}")


def test_every_weight_type_and_decode_only_builds_pass(project: Project) -> None:
    decode_only = ENTRY | {"prefill_len": 0, "last_kv_cache_len": []}
    project.write_matrix({"tiny": ENTRY | {"weight_type": ["fp32", "bf16", "fp16"]}, "decoder": decode_only})
    run = project.snakemake()
    assert run.status == 0, run.shown
    checks = sorted((project / "results/checks/AX650").glob("*/*.json"))
    assert len(checks) == 2 * 4
    assert all(read(check)["passed"] is True for check in checks)
    recipes = [read(path)["recipe"] for path in (project / "results/AX650").glob("tiny-*/manifest.json")]
    assert sorted(recipe["weight_type"] for recipe in recipes) == ["bf16", "fp16", "fp32"]
    assert {path.name for path in (project / "results/AX650/decoder-w8a16").glob("*.axmodel")} == {
        *(f"llama_l{layer}.axmodel" for layer in range(LAYERS)),
        "llama_post.axmodel",
    }
    assert read(project / "results/AX650/decoder-w8a16/config.json")["template_filename_axmodel"] == "llama_l%d.axmodel"
