"""`axzoo report`: the summary of one build."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from axzoo.check.verdict import write_report
from axzoo.matrix.build import Build
from axzoo.matrix.entries import load_zoo
from axzoo.report.summary import summarize_build

ROOT = Path(__file__).parents[2]
LAYERS: dict[str, Any] = {
    "passed": True,
    "layers": [
        {"layer": 0, "decode": {"cosine": 0.99999}, "prefill": None},
        {"layer": 1, "decode": {"cosine": 0.99995}, "prefill": {"cosine": 0.99991}},
    ],
    "thresholds": {"min_layer_cosine": 0.999},
}
GENERATION: dict[str, Any] = {
    "passed": False,
    "hit_eos": True,
    "steps": [{}, {}],
    "top1_agreement": 0.5,
    "mean_kl": None,
    "answer": "Paris\n",
}


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    return load_zoo(Path("config/demo.yaml")).builds()[0]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


EQUAL = {"kind": 3, "family": 2, "equal_ids": {"code": 1.0}, "equal_chats": [12, 12], "differs": [], "notes": []}
DIFFERENT = {**EQUAL, "equal_ids": {"code": 0.9812, "chat": 0.99}, "differs": ["code", "chat"], "equal_chats": [11, 12]}
TOKENIZER_TXT: list[tuple[dict[str, Any], str]] = [
    ({"not_available": "the model has no tokenizer"}, "not available: the model has no tokenizer"),
    (EQUAL, "kind 3, family 2: boards yield the model's token ids"),
    (
        {**DIFFERENT, "notes": ["a note"]},
        "kind 3, family 2: on boards, code 98.12 %, chat 99.00 % of the token ids are the model's; "
        "11 of 12 conversations are equal; a note",
    ),
]


def test_summary_says_which_hosts_load_the_bundle(build: Build) -> None:
    hosts = {"axllm": {"loads": "no"}, "main_prefill": {"loads": "package"}, "python": {"loads": "yes"}}
    write(build.bundle / "manifest.json", {"files": {}, "boards": {"hosts": hosts}})
    assert ("boards", "loaded by python; after `axzoo package` by main_prefill; not by axllm") in summarize_build(build)


@pytest.mark.parametrize(("entry", "text"), TOKENIZER_TXT)
def test_summary_says_what_boards_make_of_texts(build: Build, entry: dict[str, Any], text: str) -> None:
    template = {"tokenizer_type": "Qwen3", "agreement": "equal", "differs": []}
    boards = {"warnings": [], "axllm": {"template": template}, "tokenizer_txt": entry}
    write(build.bundle / "manifest.json", {"files": {}, "boards": boards})
    assert ("tokenizer.txt", text) in summarize_build(build)


WARNING = "kv_cache_len 1023 is shorter than the prefill groups"
QWEN3 = {"agreement": "equal", "tokenizer_type": "Qwen3", "differs": ["thoughts in earlier answers"]}
NO_TEMPLATE = {"agreement": "not available", "tokenizer_type": None, "reason": "axllm has no built-in chat template"}


@pytest.mark.parametrize(
    ("template", "lines"),
    [
        (QWEN3, [("axllm", "chat template Qwen3, equal; other prompts for thoughts in earlier answers")]),
        (QWEN3 | {"differs": []}, [("axllm", "chat template Qwen3, equal")]),
        (NO_TEMPLATE, [("boards", "no chat template of axllm suits: axllm has no built-in chat template")]),
    ],
)
def test_summary_says_what_hosts_cannot_use(
    build: Build, template: dict[str, Any], lines: list[tuple[str, str]]
) -> None:
    for warnings in ([], [WARNING]):
        boards = {"warnings": warnings, "axllm": {"template": template}}
        write(build.bundle / "manifest.json", {"files": {}, "boards": boards})
        found = [line for line in summarize_build(build) if line[0] in ("axllm", "boards")]
        assert sorted(found) == sorted([*lines, *(("boards", warning) for warning in warnings)])


def test_summary_after_each_step(build: Build) -> None:
    assert summarize_build(build) == [("bundle", f"not built: snakemake --cores all {build.bundle}/manifest.json")]
    write(build.bundle / "manifest.json", {"files": {"a": {"size": 1_500_000}, "b": {"size": 500_000}}})
    bundle = ("bundle", f"{build.bundle} (2 files, 2.0 MB)")
    assert summarize_build(build) == [bundle, ("level 1", "not checked"), ("level 2", "not checked")]
    for name, report in (("layers.json", LAYERS), ("generation.json", GENERATION)):
        build.checks.mkdir(parents=True, exist_ok=True)
        write_report(build.checks / name, report)
    level_1 = "passed: 2 layers against fp32, worst token's cosine 0.99991 in layer 1"
    assert summarize_build(build) == [
        bundle,
        ("level 1", level_1),
        ("level 2", "FAILED: 2 tokens, hit eos, top-1 agreement with fp32 0.500, mean KL none"),
        ("prompt", build.prompt),
        ("answer", "Paris"),
        ("talk", f'axzoo run {build.bundle} --prompt "{build.prompt}"'),
    ]


def test_build_that_does_not_fit_its_chip(build: Build) -> None:
    small = replace(build, npu_memory_mb=1)
    assert summarize_build(small) == [("left out", small.misfit)]
