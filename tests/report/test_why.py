"""`axzoo why`: descriptions of reasons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from axzoo.checkpoint.local_files import RECEIPT
from axzoo.core.files import write_json
from axzoo.fetch.sources import FetchedFiles, HubSource, hashed_file, write_receipt
from axzoo.matrix.entries import load_zoo
from axzoo.parts.lock import make_lock, write_lock
from axzoo.report.events import PlannedJob, Reason
from axzoo.report.why import changed_params, describe_reason, describe_reasons, tensor_changes
from tiny_model import LAYERS, Checkpoint

CODE = "the axzoo code that it depends on changed"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason("missing_output", ("a",)), "missing: a"),
        (Reason("incomplete_output", ("a",)), "incomplete, its last job was interrupted: a"),
        (Reason("updated_input", ("a", "b", "c", "d")), "changed: a, b, c and 1 more"),
        (Reason("updated_input_run", ("a",)), "will be rebuilt: a"),
        (Reason("input_changed", before=("a",)), "the set of its input files changed: removed a"),
        (Reason("input_changed"), "the set of its input files changed"),
        (Reason("code_changed"), "its command changed"),
        (Reason("unfinished_queue_input"), "unfinished queue input"),
    ],
)
def test_describe_reason(reason: Reason, words: str) -> None:
    assert describe_reason(reason) == [words]


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ([["--kv_cache_len", "63"]], [["--kv_cache_len", "31"]], ["kv_cache_len 63 -> 31"]),
        ([["--last", "16", "32", "--n=1"]], [["--last", "16", "--n=1"]], ["last 16 32 -> 16"]),
        ([[]], [["--model_config", "a.json"]], ["model_config unset -> a.json"]),
        ([["--chat"]], [["--no", "x"]], ["chat true -> unset, no unset -> x"]),
        (["llama"], ["qwen2"], ["llama -> qwen2"]),
        ([["a"]], [["a", "b"]], ['["a"] -> ["a", "b"]']),
        ([], [3], ["unset -> 3"]),
        (["{a"], ["{b"], ["{a -> {b"]),
        (
            [{"level": 1, "deep": {"x": [1], "y": 2}}],
            [{"level": 1, "deep": {"x": [2]}}],
            ["deep.x [1] -> [2], deep.y 2 -> unset"],
        ),
    ],
)
def test_changed_arguments_are_named(before: list[object], now: list[object], words: list[str]) -> None:
    assert changed_params(before, now) == [f"its arguments changed: {change}" for change in words]


def test_json_values_are_compared_name_by_name() -> None:
    before = {"kv_cache_len": 63, "weight_type": "s8", "last_kv_cache_len": [16, 32]}
    now = before | {"kv_cache_len": 31, "post_topk": True}
    words = ["its arguments changed: kv_cache_len 63 -> 31, post_topk unset -> true"]
    assert changed_params([json.dumps(before)], [json.dumps(now)]) == words
    options = [["--recipe", json.dumps(recipe)] for recipe in (before, now)]
    assert changed_params(options[:1], options[1:]) == words


def test_changed_fingerprint_means_changed_code() -> None:
    assert changed_params(["8e2c2dc0e74a8cd0"], ["7bfead4f6cb68323"]) == [CODE]
    compilers = [json.dumps({"backend": "host", "code": code, "onnx": "1.17"}) for code in ("0" * 16, "f" * 16)]
    assert changed_params(compilers[:1], compilers[1:]) == [CODE]
    assert changed_params(["0" * 16, ["--n", "1"]], ["1" * 16, ["--n", "2"]]) == [
        "its arguments changed: n 1 -> 2",
        CODE,
    ]


def test_another_backends_options_and_code() -> None:
    """Options that look like a hash are options. The code is named, whatever its hash looks like."""
    before = {"backend": "stamp", "code": "a" * 64, "license": "0123456789abcdef"}
    now = before | {"license": "f123456789abcdef"}
    assert changed_params([json.dumps(before)], [json.dumps(now)]) == [
        "its arguments changed: license 0123456789abcdef -> f123456789abcdef"
    ]
    assert changed_params([json.dumps(before)], [json.dumps(before | {"code": "b" * 64})]) == [
        "the code of backend stamp or axzoo that it depends on changed"
    ]


def test_job_that_the_lock_may_make_unnecessary() -> None:
    waiting = Reason("updated_input_run", ("results/locks/tiny/made_from.json",))
    job = PlannedJob("layer", {"model": "tiny"}, "l0.axmodel", (waiting,), ("lock",))
    assert describe_reasons(job) == ["only if the lock, which runs first, finds that its tensors changed"]
    missing = Reason("missing_output", ("l0.axmodel",))
    job = PlannedJob("layer", {"model": "tiny"}, "l0.axmodel", (missing, waiting), ("lock",))
    assert describe_reasons(job) == ["missing: l0.axmodel", f"will be rebuilt: {waiting.files[0]}"]


def test_a_hub_checkpoint_that_is_used_in_place_is_hashed(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HF_HUB_OFFLINE, source.json names the snapshot in the cache; results/checkpoints has no config.json."""
    monkeypatch.chdir(tmp_path)
    snapshot, source = tmp_path / "cache/snapshot", HubSource("org/tiny", "main")
    shutil.copytree(checkpoint.folder, snapshot)
    (snapshot / RECEIPT).unlink(missing_ok=True)
    entry = {"hub": "org/tiny", "revision": "main", "model_type": "llama", "num_hidden_layers": LAYERS}
    write_json(tmp_path / "zoo.yaml", {"models": {"tiny": {**entry, "chips": ["AX650"]}}})
    (build,) = load_zoo(Path("zoo.yaml"), Path(__file__).parents[2] / "config/chips.yaml").builds()
    assert tensor_changes(build) == ["not fetched yet, so there is nothing to hash"]
    names = [path.name for path in snapshot.iterdir()]
    build.checkpoint.mkdir(parents=True)
    records = {name: hashed_file(snapshot / name) for name in names}
    write_receipt(build.checkpoint, source, FetchedFiles(records, str(snapshot)), commit="1" * 40)
    write_lock(make_lock(snapshot, "llama", LAYERS), build.locks, snapshot, {"hub": "org/tiny", "revision": "main"})
    assert tensor_changes(build) == ["no tensor changed"]
    (build.locks / "layer_1.json").unlink()
    assert tensor_changes(build) == [f"{build.locks}/layer_1.json is new"]
    (snapshot / "config.json").write_text("{}")
    assert tensor_changes(build) == ["fetched again first, so there is nothing to hash yet"]
