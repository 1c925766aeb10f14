"""Every problem of a matrix is reported with its line, its value and a way to fix it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from axzoo.matrix.validation import MAX_SHOWN

Problems = Callable[[str], list[str]]

ENTRY = """\
models:
  Tiny:
    hub: Org/Tiny
    revision: main
    model_type: llama
    num_hidden_layers: 2
"""  # six lines, so appended text is line 7


def test_typo_suggests_the_nearest_key(problems: Problems) -> None:
    assert problems(ENTRY + "    wieght_type: [s8]\n") == [
        "7: unknown key 'wieght_type' in models.Tiny: did you mean 'weight_type'?"
    ]
    assert problems("defaults:\n  prefil_len: 128\n" + ENTRY) == [
        "2: unknown key 'prefil_len' in defaults: did you mean 'prefill_len'?"
    ]
    assert problems(ENTRY + "    model_confg: x.json\n") == [
        "7: unknown key 'model_confg' in models.Tiny: did you mean 'model_config'?"
    ]
    assert problems(ENTRY + "    config_file: x.json\n")[0].startswith("7: unknown key 'config_file' in models.Tiny")
    assert problems(ENTRY + "modles: {}\n") == ["7: unknown key 'modles' in the file: did you mean 'models'?"]
    assert problems(ENTRY + "qqq: {}\n") == ["7: unknown key 'qqq' in the file: use one of defaults, models"]


@pytest.mark.parametrize("value", ["true", "false", "[modeling_tiny.py]"])
def test_trust_remote_code_is_refused(problems: Problems, value: str) -> None:
    message = "trust_remote_code: axzoo never runs code from a checkpoint, and no key enables it: remove this key"
    assert problems(f"{ENTRY}    trust_remote_code: {value}\n") == [f"7: models.Tiny.{message}"]
    assert problems(f"defaults:\n  trust_remote_code: {value}\n{ENTRY}") == [f"2: defaults.{message}"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "chips: AX999",
            "chips[0]: unknown chip 'AX999': use one of AX650, AX620E, AX650N (= AX650), AX630C (= AX620E)",
        ),
        ("chips: [AX650, ax650]", "chips[1]: unknown chip 'ax650': use one of AX650,"),
        ("chips: []", "chips: the list is empty: give at least one value"),
        ("chips: [1]", "chips[0]: 1 is not text: put it in quotes"),
        ("weight_type: s9", "weight_type[0]: 's9' is not allowed: use 'fp32', 'fp16', 'bf16', 's8' or 's4'"),
        ("weight_type: [s8, ~]", "weight_type[1]: null is not allowed: use 'fp32', 'fp16', 'bf16', 's8' or 's4'"),
        ("weight_type: []", "weight_type: the list is empty: give at least one value"),
        (
            "post_weight_type: [s8]",
            "post_weight_type: ['s8'] is not allowed: use 'bf16', 's8', 'fp32', 'fp8_e5m2' or 'fp8_e4m3'",
        ),
        ("hidden_state_type: s8", "hidden_state_type: 's8' is not allowed: use 'fp32', 'fp16' or 'bf16'"),
        ("kv_cache_len: '1023'", "kv_cache_len: '1023' must be a valid integer"),
        ("kv_cache_len: 1023.0", "kv_cache_len: 1023.0 must be a valid integer"),
        ("kv_cache_len: true", "kv_cache_len: true must be a valid integer"),
        ("kv_cache_len: 99999999", "kv_cache_len: 99999999 must be less than or equal to 1048576"),
        ("prefill_len: -1", "prefill_len: -1 must be greater than or equal to 0"),
        ("last_kv_cache_len: 128", "last_kv_cache_len: 128 must be a valid tuple"),
        ("chat: 'yes'", "chat: 'yes' must be a valid boolean"),
        ("prompt: ''", "prompt: '' is not text of one or more characters without zero bytes, like 'Paris'"),
        ("expect: 4", "expect: 4 is not text: put it in quotes"),
        ("model_config: ../x.json", "model_config: '../x.json' is not a JSON file's relative path, like 'config/"),
        ("model_config: /x.json", "model_config: '/x.json' is not a JSON file's relative path"),
        ("model_config: a/../x.json", "model_config: 'a/../x.json' is not a JSON file's relative path"),
        ("model_config: x.yaml", "model_config: 'x.yaml' is not a JSON file's relative path"),
        ("sizes: 7", "sizes: 7 is not a mapping of keys to values"),
        ("sizes: {layer: 0, post: 1, kv_width: 1}", "sizes.layer: 0 must be greater than or equal to 1"),
        ("sizes: {layer: 1.5, post: 1, kv_width: 1}", "sizes.layer: 1.5 must be a valid integer"),
        ("ignore_config_keys: [a b]", "ignore_config_keys[0]: 'a b' is not a key of config.json"),
    ],
)
def test_invalid_value_names_line_value_and_alternatives(problems: Problems, line: str, message: str) -> None:
    (problem,) = problems(f"{ENTRY}    {line}\n")
    assert problem.startswith(f"7: models.Tiny.{message}")


def test_sizes_must_be_complete(problems: Problems) -> None:
    assert problems(ENTRY + "    sizes: {layers: 1, post: 1, kv_width: 1}\n") == [
        "7: missing key 'layer' in models.Tiny.sizes",
        "7: unknown key 'layers' in models.Tiny.sizes: did you mean 'layer'?",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hub", "../x"),
        ("hub", "Tiny"),
        ("hub", "a/b/c"),
        ("hub", "org/.."),
        ("hub", "org/a--b"),
        ("hub", "-x/y"),
        ("revision", "../main"),
        ("revision", "-main"),
        ("revision", "a//b"),
        ("model_type", "../llama"),
        ("model_type", "%d"),
    ],
)
def test_unsafe_names_are_refused(problems: Problems, key: str, value: str) -> None:
    lines = [f"    {key}: '{value}'" if line.strip().startswith(key) else line for line in ENTRY.splitlines()]
    at = next(i for i, line in enumerate(lines, 1) if value in line and key in line)
    (problem,) = problems("\n".join(lines))
    assert problem.startswith(f"{at}: models.Tiny.{key}: '{value}' is not a")
    assert ", like '" in problem


@pytest.mark.parametrize("name", [".hidden", "..", "a/b", "a b", "", "-rf", "ü", "x" * 129])
def test_model_names_are_safe_path_components(problems: Problems, name: str) -> None:
    (problem,) = problems(ENTRY.replace("Tiny:", f"'{name}':"))
    assert problem.startswith("2: models.")
    assert "is not a model's name" in problem


PYPI = "pypi: a==1, file: a/b.gguf, sha256: " + "0" * 64


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("", "none of these keys"),
        ("hub: a/b", "hub"),
        ("revision: main", "revision"),
        ("hub: a/b, revision: main, path: x", "hub and revision and path"),
        ("path: x, sha256: " + "0" * 64, "path and sha256"),
        ("pypi: a==1", "pypi"),
        ("pypi: a==1, file: a/b.gguf", "pypi and file"),
        (f"{PYPI}, revision: main", "revision and pypi and file and sha256"),
    ],
)
def test_exactly_one_complete_source_is_required(problems: Problems, source: str, given: str) -> None:
    entry = ", ".join(filter(None, ["model_type: llama, num_hidden_layers: 2", source]))
    (problem,) = problems(f"models:\n  Tiny: {{{entry}}}\n")
    assert problem.startswith("2: models.Tiny: the source must be either hub and revision, or path, or pypi,")
    assert problem.endswith(f"the entry has {given}")


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (PYPI.replace("a==1", "a"), "pypi"),
        (PYPI.replace("a==1", "a>=1"), "pypi"),
        (PYPI.replace("a==1", "a==*"), "pypi"),
        (PYPI.replace("a==1", "'a==1 --index-url x'"), "pypi"),
        (PYPI.replace("a==1", "--pre"), "pypi"),
        (PYPI.replace("a/b.gguf", "../b.gguf"), "file"),
        (PYPI.replace("a/b.gguf", "/b.gguf"), "file"),
        (PYPI.replace("a/b.gguf", "a/../b.gguf"), "file"),
        (PYPI.replace("0" * 64, "abc"), "sha256"),
        (PYPI.replace("0" * 64, "G" * 64), "sha256"),
        ("path: ''", "path"),
        ('path: "a\\0b"', "path"),
        ("path: -x", "path"),
    ],
)
def test_sources_must_be_pinned_and_safe(problems: Problems, source: str, key: str) -> None:
    found = problems(f"models:\n  Tiny: {{model_type: llama, num_hidden_layers: 2, {source}}}\n")
    assert len(found) == 1
    assert found[0].startswith(f"2: models.Tiny.{key}: ")


def test_missing_keys_and_empty_entries(problems: Problems) -> None:
    assert problems("models:\n  A: {path: x, model_type: llama}\n  B:\n  C: [1]\n") == [
        "2: missing key 'num_hidden_layers' in models.A",
        "3: models.B: null is not a mapping of keys to values",
        "4: models.C: [1] is not a mapping of keys to values",
    ]
    assert problems("defaults: {}\n") == ["1: missing key 'models' in the file"]
    assert problems("models:\n") == ["1: models: null is not a mapping of keys to values"]
    assert problems("models: {}\n") == ["1: models: {} must have at least 1 item after validation, not 0"]


def test_num_hidden_layers_is_bounded(problems: Problems) -> None:
    for layers in (0, -1, 10**9):
        (problem,) = problems(ENTRY.replace("num_hidden_layers: 2", f"num_hidden_layers: {layers}"))
        assert problem.startswith(f"6: models.Tiny.num_hidden_layers: {layers} must be ")


def test_all_problems_are_reported_in_file_order(problems: Problems) -> None:
    found = problems("defaults:\n  chips: AX1\n" + ENTRY + "    chta: true\n    chips: [AX2, AX3]\n  B: {}\n")
    assert [int(line.split(":")[0]) for line in found] == [2, 9, 10, 10, 11, 11]


def test_many_problems_are_counted(problems: Problems) -> None:
    found = problems("models:\n" + "".join(f"  m{i}:\n" for i in range(1000)))
    assert len(found) == MAX_SHOWN + 1
    assert found[0].startswith("2: models.m0: null is not")
    assert found[-1].endswith("and 980 more problems")


def test_contradictory_lengths(problems: Problems) -> None:
    (problem,) = problems(ENTRY + "    kv_cache_len: 100\n")
    assert problem.startswith("2: models.Tiny: kv_cache_len 100 is too small for a prefill of 128 tokens")
    (problem,) = problems("defaults: {kv_cache_len: 300, last_kv_cache_len: [128, 256]}\n" + ENTRY)
    assert problem.startswith("3: models.Tiny: kv_cache_len 300 is too small for the prefill groups")
    (problem,) = problems("defaults: {last_kv_cache_len: [128]}\n" + ENTRY + "    prefill_len: 64\n")
    assert problem.startswith("3: models.Tiny: last_kv_cache_len [128] must be [64]")


@pytest.mark.parametrize(
    ("axis", "bundle"),
    [
        ("chips: [AX620E, AX630C]", "results/AX620E/Tiny-w8a16"),
        ("chips: [AX650, AX650]", "results/AX650/Tiny-w8a16"),
        ("weight_type: [fp16, fp16]", "results/AX650/Tiny-w16fa16"),
    ],
)
def test_two_builds_with_the_same_path(problems: Problems, axis: str, bundle: str) -> None:
    (problem,) = problems(f"{ENTRY}    {axis}\n")
    assert problem.startswith(f"2: models.Tiny: two builds would both write {bundle}")


def test_duplicate_key_is_reported(problems: Problems) -> None:
    assert problems(ENTRY + "    chat: true\n    chat: false\n") == [
        "8: duplicate key 'chat', first used in line 7: remove one"
    ]
