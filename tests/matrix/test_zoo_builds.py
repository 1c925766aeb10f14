from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axzoo.core.errors import AxzooError
from axzoo.fetch.sources import FolderSource, HubSource, PypiSource
from axzoo.matrix.chips import load_chips
from axzoo.matrix.entries import Defaults, ModelEntry, Zoo
from axzoo.parts.kind import PartId
from axzoo.weights.recipe import WEIGHT_TYPES, Recipe

Load = Callable[[str], Zoo]

CHIPS = load_chips(Path(__file__).parents[2] / "config/chips.yaml")


def test_paths_and_files_of_a_build(load: Load) -> None:
    (build,) = load(
        "models:\n"
        "  Qwen2-0.5B-Instruct:\n"
        "    {hub: Qwen/Qwen2-0.5B-Instruct, revision: main, model_type: qwen2, num_hidden_layers: 24, chips: AX650}\n"
    ).builds()
    assert (build.chip, build.model, build.tag) == ("AX650", "Qwen2-0.5B-Instruct", "w8a16")
    assert build.name == "Qwen2-0.5B-Instruct-w8a16"
    assert build.bundle == Path("results/AX650/Qwen2-0.5B-Instruct-w8a16")
    assert build.checkpoint == Path("results/checkpoints/Qwen2-0.5B-Instruct")
    assert build.locks == Path("results/locks/Qwen2-0.5B-Instruct")
    assert build.receipts == Path("results/receipts/AX650/Qwen2-0.5B-Instruct-w8a16")
    assert build.checks == Path("results/checks/AX650/Qwen2-0.5B-Instruct-w8a16")
    layers = [f"qwen2_p128_l{i}_together.axmodel" for i in range(24)]
    assert list(build.parts) == [*layers, "qwen2_post.axmodel", "model.embed_tokens.weight.bfloat16.bin"]
    assert [build.parts[name] for name in layers] == [PartId("layer", i) for i in range(24)]
    assert build.part_files == [f"{build.bundle}/{name}" for name in build.parts]
    assert build.recipe == Recipe()


def test_layer_names_of_decode_only_builds(load: Load) -> None:
    (build,) = load(
        "models: {A: {path: x, model_type: llama, num_hidden_layers: 2, chips: AX650, prefill_len: 0}}"
    ).builds()
    assert list(build.parts)[:2] == ["llama_l0.axmodel", "llama_l1.axmodel"]


def test_sources_and_their_fetch_arguments(load: Load) -> None:
    shared = "model_type: llama, num_hidden_layers: 1, chips: AX650"
    digest = "0a" * 32
    a, b, c = load(
        "models:\n"
        f"  A: {{hub: Org/A, revision: refs/pr/1, {shared}}}\n"
        f"  B: {{path: my/folder, {shared}}}\n"
        f"  C: {{pypi: llm-x==0.1.2, file: llm_x/X.Q4_1.gguf, sha256: {digest}, {shared}}}\n"
    ).builds()
    assert a.source == HubSource("Org/A", "refs/pr/1")
    assert a.source.arguments == ("--hub", "Org/A", "--revision", "refs/pr/1")
    assert b.source == FolderSource("my/folder")
    assert b.source.arguments == ("--path", "my/folder")
    assert c.source == PypiSource("llm-x==0.1.2", "llm_x/X.Q4_1.gguf", digest)
    assert c.source.arguments == ("--pypi", "llm-x==0.1.2", "--file", "llm_x/X.Q4_1.gguf", "--sha256", digest)


def test_model_config_is_passed_to_the_lock(load: Load) -> None:
    shared = "path: x, model_type: llama, num_hidden_layers: 1, chips: AX650"
    a, b = load(f"models: {{A: {{{shared}, model_config: my/model.json}}, B: {{{shared}}}}}").builds()
    assert (a.model_config_arguments, b.model_config_arguments) == (["--model_config", "my/model.json"], [])
    assert a.model_facts != b.model_facts


def test_sizes_are_passed_to_the_lock(load: Load) -> None:
    shared = "path: x, model_type: llama, num_hidden_layers: 1, chips: AX650"
    sizes = "sizes: {kv_width: 3, layer: 1, post: 2}"
    a, b = load(f"models: {{A: {{{shared}, {sizes}}}, B: {{{shared}}}}}").builds()
    assert (a.size_arguments, b.size_arguments) == (["--sizes", '{"kv_width":3,"layer":1,"post":2}'], [])
    assert a.model_facts != b.model_facts


def test_matrix_expands_in_file_order(load: Load) -> None:
    zoo = load(
        "defaults: {weight_type: [s8, bf16]}\n"
        "models:\n"
        "  B: {path: x, model_type: llama, num_hidden_layers: 1, chips: [AX630C, AX650N]}\n"
        "  A: {path: x, model_type: llama, num_hidden_layers: 1, weight_type: fp32, hidden_state_type: fp32}\n"
    )
    assert [str(build.bundle) for build in zoo.builds()] == [
        "results/AX620E/B-w8a16",
        "results/AX620E/B-w16a16",
        "results/AX650/B-w8a16",
        "results/AX650/B-w16a16",
        "results/AX650/A-w32a32",
        "results/AX620E/A-w32a32",
    ]


def test_entry_overrides_defaults_also_with_null(load: Load) -> None:
    zoo = load(
        "defaults: {expect: Paris, kv_cache_len: 511, chat: false, ignore_config_keys: [x]}\n"
        "models:\n"
        "  A: {path: x, model_type: llama, num_hidden_layers: 1, chips: AX650}\n"
        "  B: {path: x, model_type: llama, num_hidden_layers: 1, chips: AX650, expect: null, kv_cache_len: 1023}\n"
    )
    a, b = zoo.builds()
    assert (a.expect, a.recipe.kv_cache_len, a.chat, a.ignore_config_keys) == ("Paris", 511, False, ("x",))
    assert (b.expect, b.recipe.kv_cache_len, b.chat, b.ignore_config_keys) == (None, 1023, False, ("x",))


def test_recipe_and_matrix_have_the_same_defaults(load: Load) -> None:
    zoo = load("models: {A: {path: x, model_type: llama, num_hidden_layers: 1}}")
    assert {build.recipe for build in zoo.builds()} == {Recipe()}


SETTINGS = {
    "chips": st.lists(st.sampled_from(["AX650", "AX620E"]), min_size=1, unique=True),
    "weight_type": st.lists(st.sampled_from(["s8", "bf16", "fp32"]), min_size=1, unique=True),
    "kv_cache_len": st.integers(127, 4096),
    "prompt": st.text(min_size=1).filter(lambda text: "\0" not in text),
    "chat": st.booleans(),
}


@settings(deadline=None)
@given(defaults=st.fixed_dictionaries({}, optional=SETTINGS), entry=st.fixed_dictionaries({}, optional=SETTINGS))
def test_settings_come_from_entry_then_defaults_section_then_builtin_defaults(
    defaults: dict[str, object], entry: dict[str, object]
) -> None:
    body = {"path": "x", "model_type": "llama", "num_hidden_layers": 1}
    zoo = Zoo.model_validate({"defaults": defaults, "models": {"A": body | entry}}, context=CHIPS)
    fallback = {key: field.default for key, field in Defaults.model_fields.items()}
    want = fallback | defaults | entry
    builds = zoo.builds()
    assert [(build.chip, build.recipe.weight_type) for build in builds] == [
        (chip, weight_type) for chip in want["chips"] for weight_type in want["weight_type"]
    ]
    for build in builds:
        assert (build.recipe.kv_cache_len, build.prompt, build.chat) == (
            want["kv_cache_len"],
            want["prompt"],
            want["chat"],
        )
    assert len({build.bundle for build in builds}) == len(builds)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_every_weight_type_is_accepted(load: Load, weight_type: str) -> None:
    (build,) = load(
        f"models: {{A: {{path: x, model_type: llama, num_hidden_layers: 1, chips: AX650, weight_type: {weight_type}}}}}"
    ).builds()
    assert build.recipe.weight_type == weight_type


def test_entry_accepts_all_keys_of_defaults() -> None:
    assert set(Defaults.model_fields) < set(ModelEntry.model_fields)


def test_calibration_arguments(load: Load) -> None:
    entry = "path: x, model_type: llama, num_hidden_layers: 1, chips: AX650"
    plain, own, text = load(
        f"models: {{A: {{{entry}}}, B: {{{entry}, rounding: gptq}}, "
        f"C: {{{entry}, rounding: gptq, calibration_text: my/text.txt, calibration_tokens: 512}}}}"
    ).builds()
    assert (own.calibration_texts, own.calibration_arguments) == ([], ["--tokens", "8192"])
    assert text.calibration_texts == ["my/text.txt"]
    assert text.calibration_arguments == ["--text", "my/text.txt", "--tokens", "512"]
    assert own.lock_files == [f"results/locks/B/{name}.json" for name in ("index", "layer_0", "post", "embed")]
    assert plain.model_facts != text.model_facts


@pytest.mark.parametrize("text", ["../secret", "/etc/passwd", "a/../../b", "-x"])
def test_calibration_text_must_be_inside_the_project(load: Load, text: str) -> None:
    entry = f"{{path: x, model_type: llama, num_hidden_layers: 1, rounding: gptq, calibration_text: {text}}}"
    with pytest.raises(AxzooError, match="is not a text file's relative path"):
        load(f"models: {{A: {entry}}}")


def test_thresholds_are_passed_to_the_checks(load: Load) -> None:
    shared = "path: x, model_type: llama, num_hidden_layers: 1, chips: AX650"
    limits = "thresholds: {max_mean_kl: 0.02, min_layer_cosine: 1}"
    a, b = load(f"models: {{A: {{{shared}, {limits}}}, B: {{{shared}}}}}").builds()
    assert a.threshold_arguments == ['--thresholds={"max_mean_kl":0.02,"min_layer_cosine":1.0}']
    assert b.threshold_arguments == []


@pytest.mark.parametrize(
    "given", ["{cosine: 1}", "{max_mean_kl: -1}", "{min_layer_cosine: 2}", "{max_delta_l2: '1'}", "3"]
)
def test_thresholds_must_be_known_numbers_in_range(load: Load, given: str) -> None:
    shared = "path: x, model_type: llama, num_hidden_layers: 1, chips: AX650"
    with pytest.raises(AxzooError, match=r"models\.A\.thresholds"):
        load(f"models: {{A: {{{shared}, thresholds: {given}}}}}")
