"""The plan that the Snakefile uses, including builds that do not fit their chip."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from axzoo.core.errors import AxzooError
from axzoo.matrix.plan import Plan, make_plan

ROOT = Path(__file__).parents[2]
ENTRY = "path: x, model_type: llama, num_hidden_layers: 32, sizes: {layer: 202383360, post: 131076096, kv_width: 4096}"
REASON = "AX620E has 3072 MB, L-w8a16 needs 8227 MB: 7691 of weights, 536 of KV cache"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with the repository's chip table, as working folder."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/chips.yaml").write_text((ROOT / "config/chips.yaml").read_text())
    (tmp_path / "demo.yaml").write_text("models: {D: {path: d, model_type: llama, num_hidden_layers: 1, chips: AX650}}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(folder: Path, *matrices: str) -> Plan:
    for number, text in enumerate(matrices):
        (folder / f"{number}.yaml").write_text(text)
    return make_plan([f"{number}.yaml" for number in range(len(matrices))], "demo.yaml")


def wildcards(chip: str, model: str, tag: str = "w8a16") -> SimpleNamespace:
    return SimpleNamespace(chip=chip, model=model, tag=tag)


def test_left_out_build_gives_the_reason_when_requested(folder: Path) -> None:
    result = plan(folder, f"models: {{L: {{{ENTRY}}}}}")
    assert [str(build.bundle) for build in result.wanted] == ["results/AX650/L-w8a16"]
    assert result.build(wildcards("AX650", "L")) == result.wanted[0]
    with pytest.raises(AxzooError) as error:
        result.build(wildcards("AX620E", "L"))
    assert str(error.value) == f"results/AX620E/L-w8a16 is left out: {REASON}"


def test_left_out_builds_are_listed_or_counted(folder: Path) -> None:
    assert plan(folder, f"models: {{L: {{{ENTRY}}}}}").left_out_lines == [
        f"left out: {REASON}. It would fit with chips: AX650"
    ]
    many = ", ".join(f"L{number}: {{{ENTRY}}}" for number in range(4))
    assert plan(folder, f"models: {{{many}}}").left_out_lines == [
        "left out: 4 of 8 builds, which do not fit their chip's memory: `axzoo report MATRIX` lists the reasons"
    ]


def test_wildcards_include_left_out_builds(folder: Path) -> None:
    result = plan(
        folder,
        f"models: {{S: {{path: s, model_type: qwen2, num_hidden_layers: 1, chips: AX650}}, "
        f"L: {{{ENTRY}, chips: AX620E, prefill_len: 64}}}}",
    )
    assert result.chips == ["AX620E", "AX650"]
    assert set(result.models) == {"S", "L", "D"}
    assert "llama_p64" in result.stems


def test_matrix_without_fitting_builds_is_refused(folder: Path) -> None:
    with pytest.raises(AxzooError) as error:
        plan(folder, f"models: {{L: {{{ENTRY}, chips: AX630C}}}}")
    assert str(error.value).splitlines() == ["nothing to build: no build of the matrix fits its chip", REASON]


def test_two_matrices_must_agree_on_a_build(folder: Path) -> None:
    text = f"models: {{L: {{{ENTRY}}}}}"
    assert len(plan(folder, text, text).wanted) == 1
    with pytest.raises(AxzooError, match="two matrices describe results/AX650/L-w8a16 differently"):
        plan(folder, text, text.replace("kv_width: 4096", "kv_width: 1024"))
    with pytest.raises(AxzooError, match="two matrices describe model L differently"):
        plan(folder, text, f"models: {{L: {{{ENTRY}, weight_type: fp32, model_config: x.json}}}}")


def test_chip_missing_from_the_chip_table_is_refused(folder: Path) -> None:
    chips = folder / "config/chips.yaml"
    chips.write_text(chips.read_text().partition("  AX620E:")[0])
    with pytest.raises(AxzooError, match=r"0\.yaml:1: models\.L: chip AX620E is not in the chip table: it has AX650"):
        plan(folder, f"models: {{L: {{{ENTRY}}}}}")


def test_config_accepts_only_machine_settings(folder: Path) -> None:
    (folder / "zoo.yaml").write_text(f"models: {{L: {{{ENTRY}, chips: AX650}}}}")
    by_size = make_plan(["zoo.yaml"], "demo.yaml")
    assert [rule.name for rule in by_size.part_rules] == ["layer", "post", "embed"]
    message = make_plan(["zoo.yaml"], "demo.yaml", {"layers_per_job": 16})
    assert [rule.name for rule in message.part_rules] == ["layers_0_15", "layers_16_31", "post", "embed", "layers_0_0"]
    assert by_size.store == message.store == "results/store"
    assert make_plan(["zoo.yaml"], "demo.yaml", {"store": "/shared/store"}).store == "/shared/store"
    numbers = ({"layers_per_job": 0}, {"layers_per_job": "8"}, {"layers_per_job": True})
    for config in (*numbers, {"store": ""}, {"store": 1}, {"n": 1}):
        with pytest.raises(AxzooError, match=r"--config .* accepts only layers_per_job=N .* and store=DIR:"):
            make_plan(["zoo.yaml"], "demo.yaml", config)
