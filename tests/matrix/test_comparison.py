"""What differs from a receipt is noticed, whatever its age; equal content is not a difference, whatever its stamp."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from axzoo.cli import main
from axzoo.core import stamps
from axzoo.matrix.build import Build
from axzoo.matrix.comparison import CHANGED, EDITED, MEMORY, MISSING, OUTDATED, Comparison, Difference
from axzoo.matrix.entries import load_zoo
from axzoo.parts.kinds import kind_of
from tiny_model import Checkpoint

CHIPS = Path(__file__).parents[2] / "config/chips.yaml"
BUNDLE = "results/AX650/tiny-w8a16"
RECEIPTS = "results/receipts/AX650/tiny-w8a16"
SOURCE, MADE_FROM = "results/checkpoints/tiny/source.json", "results/locks/tiny/made_from.json"
LAYER = f"{BUNDLE}/llama_p8_l1_together.axmodel"
DAY_NS = 86_400 * 10**9


def load(**changes: object) -> Build:
    entry = {"path": "checkpoint", "model_type": "llama", "num_hidden_layers": 2, "chips": ["AX650"], "chat": False}
    lengths = {"prefill_len": 8, "kv_cache_len": 31, "last_kv_cache_len": [8, 16]}
    Path("zoo.yaml").write_text(json.dumps({"models": {"tiny": entry | lengths | changes}}))
    (build,) = load_zoo(Path("zoo.yaml"), CHIPS).builds()
    return build


def run_jobs(build: Build) -> None:
    """What the rules do, in this process."""
    source, lock = f"{build.checkpoint}/source.json", str(build.locks)
    fixed = ["--num_hidden_layers", "2", "--output", lock]
    jobs = [
        ["fetch", "--path", "checkpoint", "--output", str(build.checkpoint)],
        ["lock", "--source", source, "--model_type", "llama", *fixed],
    ]
    for (name, part), receipt in zip(build.parts.items(), build.receipt_files, strict=True):
        files = ["--lock", f"{lock}/{part.lock_file}", "--output", f"{build.bundle}/{name}", "--receipt", receipt]
        recipe = build.choices(kind_of(part.kind))
        jobs.append(["compile", *files, "--source", source, "--store", "results/store", "--chip", "AX650"])
        jobs[-1] += ["--recipe", recipe]
    receipts = ["--receipts", *build.receipt_files, "--receipt", str(build.bundle_receipt)]
    jobs.append(["bundle", str(build.bundle), "--chip", "AX650", "--lock", lock, "--source", source, *receipts])
    jobs[-1] += build.bundle_arguments
    for job in jobs:
        assert main(job) == 0


@pytest.fixture(scope="module")
def made(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project; read-only."""
    folder = tmp_path_factory.mktemp("made") / "project"
    shutil.copytree(checkpoint.folder, folder / "checkpoint")
    (folder / "checkpoint/source.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_jobs(load())
    return folder


@pytest.fixture
def build(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A copy of the project with other inodes, times and links, which was fetched and locked again."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    build = load()
    run_jobs(build)
    return build


def differences(build: Build) -> set[tuple[str, str]]:
    """Of all jobs of the build."""
    comparison = Comparison([build])
    found = [*comparison.of_checkpoint(build), *comparison.of_lock(build)]
    found += [*comparison.of_parts(build, build.parts), *comparison.of_bundle(build)]
    return {(difference.kind, difference.file) for difference in found}


def flip(path: Path | str) -> None:
    """Changes a byte in the middle of the file in place; keeps inode and mtime."""
    path = Path(path)
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def shift(path: Path | str, ns: int) -> None:
    stat = Path(path).stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + ns))


def exchange(path: str, ns: int) -> None:
    """Replaces a file by one of the same size with another content and another age."""
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    age = Path(path).stat().st_mtime_ns
    Path("other").write_bytes(content)
    Path("other").replace(path)
    os.utime(path, ns=(age, age + ns))


def test_nothing_differs_after_a_build(build: Build) -> None:
    assert differences(build) == set()


def test_a_plan_reads_no_unchanged_file_and_writes_nothing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: stamps.Stamp.of(path) for path in Path().rglob("*") if path.is_file()}

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(stamps, "sha256_of", refuse)
    assert differences(build) == set()
    assert {path: stamps.Stamp.of(path) for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("age", [-DAY_NS, 0, DAY_NS], ids=["older", "as old", "newer"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json", "chat_template.jinja"])
def test_replaced_file_of_a_local_checkpoint(build: Build, name: str, age: int) -> None:
    exchange(f"checkpoint/{name}", age)
    assert differences(build) == {(CHANGED, f"checkpoint/{name}")}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json"])
def test_file_edited_in_place_with_its_time_kept(build: Build, name: str) -> None:
    flip(f"checkpoint/{name}")
    assert differences(build) == {(CHANGED, f"checkpoint/{name}")}


def test_added_and_removed_files_of_a_local_checkpoint(build: Build) -> None:
    Path("checkpoint/added_tokens.json").write_text("{}")
    Path("checkpoint/chat_template.jinja").unlink()
    files = {"checkpoint/added_tokens.json", "checkpoint/chat_template.jinja"}
    assert differences(build) == {(CHANGED, file) for file in files}


def test_link_to_another_folder(made: Path, build: Build) -> None:
    """Size and mtime of all files agree: the folder alone decides."""
    Path("checkpoint").rename("epoch2")
    shutil.copytree("epoch2", "epoch1")
    Path("checkpoint").symlink_to("epoch1")
    assert (CHANGED, "checkpoint") in differences(build)


def test_small_files_that_were_only_touched_are_no_difference(build: Build) -> None:
    for path in Path("checkpoint").glob("*token*"):
        shift(path, DAY_NS)
    assert differences(build) == set()


def test_removed_checkpoint(build: Build) -> None:
    Path("checkpoint").rename("elsewhere")
    assert (CHANGED, "checkpoint") in differences(build)


ALL = [
    LAYER,
    f"{BUNDLE}/llama_post.axmodel",
    f"{BUNDLE}/model.embed_tokens.weight.bfloat16.bin",
    *(f"{BUNDLE}/{name}" for name in ("manifest.json", "config.json", "post_config.json", "run.sh", "tokenizer.txt")),
    *(f"{BUNDLE}/tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")),
    "results/locks/tiny/index.json",
    "results/locks/tiny/layer_1.json",
    "results/locks/tiny/embed.json",
]


@pytest.mark.parametrize("file", ALL)
def test_lost_and_edited_outputs(build: Build, file: str) -> None:
    for change in (flip, lambda path: Path(path).write_text("{}")):
        content = Path(file).read_bytes()
        change(file)
        assert differences(build) == {(EDITED, file)}
        Path(file).write_bytes(content)
        assert differences(build) == set(), "the same content again"
    Path(file).unlink()
    assert differences(build) == {(MISSING, file)}


def test_damaged_store_entry_is_noticed_in_the_bundle(build: Build) -> None:
    (entry,) = (path for path in Path("results/store").glob("*/*") if path.samefile(LAYER))
    flip(entry)
    assert differences(build) == {(EDITED, LAYER)}


@pytest.mark.parametrize("name", ["llama_p8_l7_together.axmodel", "tokenizer/added_tokens.json"])
def test_file_that_a_host_program_would_pick_up(build: Build, name: str) -> None:
    Path(BUNDLE, name).write_text("{}")
    Path(BUNDLE, "notes.txt").write_text("anything else is the user's own")
    assert differences(build) == {(EDITED, f"{BUNDLE}/{name}")}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda: Path(RECEIPTS, "llama_post.json").unlink(), (MISSING, f"{RECEIPTS}/llama_post.json")),
        (lambda: Path(RECEIPTS, "llama_post.json").write_text("{"), (EDITED, f"{RECEIPTS}/llama_post.json")),
        (lambda: Path(f"{RECEIPTS}.json").unlink(), (MISSING, f"{RECEIPTS}.json")),
        (lambda: Path(SOURCE).write_text("{"), (EDITED, SOURCE)),
        (lambda: Path(MADE_FROM).write_text("{"), (OUTDATED, MADE_FROM)),
    ],
    ids=["lost part receipt", "damaged part receipt", "lost bundle receipt", "damaged source.json", "made_from.json"],
)
def test_lost_and_damaged_receipts(build: Build, change: Callable[[], object], expected: tuple[str, str]) -> None:
    change()
    assert expected in differences(build)


def test_part_of_another_layer_with_its_receipt(build: Build) -> None:
    for folder, suffix in ((BUNDLE, "axmodel"), (RECEIPTS, "json")):
        shutil.copy(f"{folder}/llama_p8_l0_together.{suffix}", f"{folder}/llama_p8_l1_together.{suffix}")
    assert (OUTDATED, LAYER) in differences(build)


def test_settings_of_the_matrix_without_snakemakes_records(build: Build) -> None:
    longer = load(kv_cache_len=63)
    layers = {(OUTDATED, f"{BUNDLE}/llama_p8_l{index}_together.axmodel") for index in range(2)}
    assert differences(longer) == layers | {(OUTDATED, f"{BUNDLE}/manifest.json")}
    assert differences(replace(build, ignore_config_keys=("novel",))) == {(OUTDATED, MADE_FROM)}


def test_lock_made_by_a_killed_build(build: Build) -> None:
    """The layer's job did not run, and its old output is dated ahead."""
    exchange("checkpoint/model.safetensors", 0)
    source = f"{build.checkpoint}/source.json"
    assert main(["fetch", "--path", "checkpoint", "--output", str(build.checkpoint)]) == 0
    assert differences(build) == {(CHANGED, source)}
    fixed = ["--model_type", "llama", "--num_hidden_layers", "2", "--output", str(build.locks)]
    assert main(["lock", "--source", source, *fixed]) == 0
    found = differences(build)
    assert found and {kind for kind, _ in found} == {OUTDATED}


def test_copy_of_a_project_is_read_once(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checkpoint's folder, whose path differs. `cp -r` gives each file another inode and other times."""
    shutil.copytree("results", tmp_path / "copy/results", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "copy")
    comparison = Comparison([build])
    found = [*comparison.of_lock(build), *comparison.of_parts(build, build.parts), *comparison.of_bundle(build)]
    assert found == []
    assert not MEMORY.exists(), "a plan writes nothing"
    comparison.remember()
    monkeypatch.setattr(stamps, "sha256_of", None)
    again = Comparison([build])
    assert [*again.of_parts(build, build.parts), *again.of_bundle(build), *again.of_lock(build)] == []


def test_results_dated_ahead_are_dated_now_and_not_read_again(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [LAYER, f"{RECEIPTS}/llama_post.json", "results/locks/tiny/layer_0.json"]
    for path in ahead:
        shift(path, DAY_NS)
    comparison = Comparison([build])
    assert not [*comparison.of_parts(build, build.parts), *comparison.of_lock(build)]
    assert all(Path(path).stat().st_mtime > time.time() for path in ahead), "a plan changes nothing"
    assert comparison.start() == 3
    assert all(Path(path).stat().st_mtime <= time.time() for path in ahead)
    comparison.remember()
    monkeypatch.setattr(stamps, "sha256_of", None)
    assert not [*Comparison([build]).of_parts(build, build.parts)]


def test_only_the_first_jobs_are_told(build: Build) -> None:
    comparison = Comparison([build])
    difference = Difference(MISSING, "file")
    told = [comparison.note([f"output{i}"], [difference]) for i in range(5)]
    assert told == [["file is missing"]] * 3 + [[], []]
    assert comparison.note(["output"], []) is None
