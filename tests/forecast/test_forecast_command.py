"""`axzoo forecast`: models from files, the matrix and the hub, and what it says about them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.fetch.hub import open_repository, read_hub_config
from axzoo.fetch.sources import HubSource
from axzoo.forecast.estimate import make_forecast
from axzoo.forecast.published import nearest_rows, published_models
from axzoo.matrix.forecasts import subject_of_path, usual_recipe
from axzoo.weights.recipe import Recipe

sys.path.append(str(Path(__file__).parents[1] / "fetch"))
from hub_server import COMMIT, Hub, serving

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `axzoo forecast` in an empty project; returns exit status, stdout and stderr."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "model").mkdir()
    write(tmp_path / "model/config.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def forecast(*words: str) -> tuple[int, str, str]:
        status = main(["forecast", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return forecast


def write(path: Path, **changes: Any) -> Path:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    path.write_text(json.dumps(config))
    return path


def as_json(run: Run, *words: str) -> list[dict[str, Any]]:
    status, out, err = run(*words, "--json")
    assert (status, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_a_folder_a_file_and_the_matrix_give_the_same_speed(run: Run) -> None:
    speeds = []
    for target in ("model", "model/config.json", "Qwen2-1.5B-Instruct"):
        found = as_json(run, target, "--chip", "AX650", "-w", "s8")
        speeds.append((found[0]["tok_s"]["value"], found[0]["ttft_ms"]["value"], found[0]["download_mb"]))
    assert speeds[0] == speeds[1]
    assert speeds[2] == pytest.approx(speeds[0], rel=0.01)
    assert speeds[0][0] == pytest.approx(11.2, rel=0.1)  # published
    assert speeds[0][1] == pytest.approx(230, rel=0.1)
    assert speeds[0][2] == round(2 * 1_543_714_304 / 1e6)


def test_chips_and_weights_are_a_matrix(run: Run) -> None:
    found = as_json(run, "model")
    assert [(one["chip"], one["weight_type"]) for one in found] == [
        ("AX650", "s8"),
        ("AX650", "s4"),
        ("AX620E", "s8"),
        ("AX620E", "s4"),
    ]
    assert all(one["tok_s"]["low"] < one["tok_s"]["value"] < one["tok_s"]["high"] for one in found)
    memory = found[0]["npu_memory_mb"]
    assert memory["total_mb"] == sum(memory[key] for key in ("weights_mb", "kv_cache_mb", "io_mb", "guard_mb"))
    assert memory["chip_mb"] == 11317
    assert found[0]["nearest"][0]["model"] == "Qwen2-1.5B"
    assert found[0]["jobs"]["memory_mb"] > 500
    assert found[0]["jobs"]["vendor_minutes"]["low"] < found[0]["jobs"]["vendor_minutes"]["high"]
    assert found[0]["host_memory_mb"] == round(2 * 151936 * 1536 / 1e6)


def test_the_table_says_everything(run: Run) -> None:
    status, out, err = run("model", "--chip", "AX630C", "-w", "s8", "--context", "2047", "--prompt", "300")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "model: qwen2, 28 layers, 1544 million weights on the chip; cache of 2047 tokens, prompt of 300"
    )
    assert lines[1].split("  ")[0] == "chip"
    assert lines[2].startswith("AX620E  s8 ")
    for words in ("KV + ", " I/O + ", " guard", "3072"):
        assert words in lines[2]
    assert any(line.startswith("download about 3.1 GB; host memory 467 MB") for line in lines)
    assert any("the vendor's compiler: " in line and "32 GB" in line for line in lines)
    assert any(line.startswith("published: Qwen2-1.5B s8 on AX620E: 3.7 tok/s, 1080 ms") for line in lines)


def test_a_longer_context_costs_speed_and_a_longer_prompt_time(run: Run) -> None:
    speeds = [as_json(run, "model", "--context", n, "-w", "s8")[0]["tok_s"]["value"] for n in ("255", "4095")]
    assert speeds[0] > speeds[1]
    times = [as_json(run, "model", "--prompt", n, "-w", "s8")[0]["ttft_ms"]["value"] for n in ("128", "129", "896")]
    assert times[0] < times[1] < times[2]


def test_over_pcie_is_slower_and_only_for_chips_on_cards(run: Run) -> None:
    own = as_json(run, "model", "-w", "s8")[0]
    (card,) = as_json(run, "model", "-w", "s8", "--host", "axcl")
    assert (card["chip"], card["host"]) == ("AX650", "axcl")
    assert card["tok_s"]["value"] < own["tok_s"]["value"]
    status, _, err = run("model", "--host", "axcl", "--chip", "AX620E")
    assert status == 1
    assert err == "axzoo: AX620E is not sold on PCIe cards: use --chip AX650, or --host onchip\n"
    assert run("model", "--host", "onchip", "--chip", "AX620E")[0] == 0


def test_a_matrix_lists_its_builds(run: Run, tmp_path: Path) -> None:
    entry = "model_type: qwen2, num_hidden_layers: 28, sizes: {layer: 46797824, post: 233375232, kv_width: 256}"
    (tmp_path / "my.yaml").write_text(
        f"models: {{A: {{path: model, {entry}}}, B: {{hub: o/b, revision: main, {entry}, kv_cache_len: 511}}}}"
    )
    found = as_json(run, "my.yaml")
    assert [(one["model"], one["chip"], one["kv_cache_len"]) for one in found] == [
        ("A", "AX650", 1023),
        ("A", "AX620E", 1023),
        ("B", "AX650", 511),
        ("B", "AX620E", 511),
    ]
    assert [one["widths_assumed"] for one in found] == [False, False, True, True]
    _, out, _ = run("my.yaml", "--chip", "AX650")
    assert out.splitlines()[0].startswith("model  chip")
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["A", "B"]


def test_a_whole_zoo(run: Run) -> None:
    found = as_json(run, "config/zoo.yaml")
    assert len(found) == 112
    assert not any(one["widths_assumed"] for one in found)
    fits = {(one["model"], one["chip"]): one["fits"] for one in found}
    assert fits["Llama-2-7b-hf", "AX620E"] == "no"
    assert fits["SmolLM-135M", "AX620E"] == "yes"


def test_a_repository_is_read_without_its_weights(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"x" * 100}
    with serving(Hub("org/model", files)) as hub:
        assert read_hub_config(HubSource("org/model", "main"), hub.endpoint) == CONFIG
        assert hub.asked("GET", "config.json")
        assert not hub.asked("GET", "safetensors")
        monkeypatch.setattr("axzoo.fetch.hub.open_repository", _at(hub))
        status, out, _ = run("org/model", "--json")  # stderr shows the transfer
        assert (status, json.loads(out)[0]["download_mb"]) == (0, 3087)


def _at(hub: Hub) -> Callable[..., Any]:
    return lambda source, endpoint: open_repository(source, hub.endpoint)


def test_a_repository_without_config(run: Run) -> None:
    with serving(Hub("org/model", {"README.md": b"x"})) as hub, pytest.raises(AxzooError, match=r"has no config\.json"):
        read_hub_config(HubSource("org/model", "main"), hub.endpoint)


def test_a_repository_in_the_cache_needs_no_network(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    write(repository / "snapshots" / COMMIT / "config.json")
    monkeypatch.setattr("axzoo.fetch.hub.open_repository", lambda *_: pytest.fail("the network was asked"))
    assert as_json(run, "org/model")[0]["model"] == "org/model"


def test_offline_without_cache(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, _, err = run("org/model")
    assert status == 1
    assert "is not in the hub's cache, and HF_HUB_OFFLINE is set" in err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"num_hidden_layers": 2**30}, "num_hidden_layers 1073741824 is not plausible: at most 1000 are"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"vocab_size": 2**31 - 1}, "vocab_size 2147483647 is not plausible"),
        ({"hidden_size": 2**16 * 12}, "hidden_size 786432 is not plausible: at most 131072 are"),
        (
            {
                "hidden_size": 2**16 * 2,
                "intermediate_size": 2**19,
                "num_hidden_layers": 100,
                "num_attention_heads": 1024,
            },
            "parameters, which is not plausible: check hidden_size",
        ),
        ({"num_attention_heads": 7, "num_key_value_heads": 2}, "num_attention_heads"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"a_new_key": 1}, "a_new_key"),
    ],
)
def test_absurd_configs_are_refused_with_a_reason(run: Run, changes: dict[str, Any], problem: str) -> None:
    write(Path("model/config.json"), **changes)
    status, out, err = run("model")
    assert (status, out) == (1, "")
    assert problem in err
    assert err.count("\n") == 1


ODD: tuple[Any, ...] = (
    -1,
    0,
    1,
    2**31,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    0.5,
    "x",
    "",
    [],
    [1],
    {},
    None,
    True,
)


@pytest.mark.parametrize("key", CONFIG)
def test_odd_values_are_refused_or_give_finite_numbers(key: str, tmp_path: Path) -> None:
    """Any value of any key: one line that says why, or a forecast; never a traceback."""
    for value in ODD:
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, key: value}))
        try:
            subject = subject_of_path(tmp_path)
            found = subject.forecast(usual_recipe(subject, "s8", None, 128), "AX650", 11317)
        except AxzooError as error:
            assert str(error).count("\n") == 0
            continue
        json.dumps(found.to_dict(), allow_nan=False)
        assert found.tok_s is not None and 0.01 < found.tok_s.value < 5000


def test_lengths_beyond_the_model_are_refused(run: Run) -> None:
    status, _, err = run("model", "--context", "40000")
    assert status == 1
    assert "kv_cache_len 40000 needs 40000 positions, and the model supports 32768" in err
    status, _, err = run("model", "--context", "255", "--prompt", "300")
    assert status == 1
    assert "a prompt of 300 tokens exceeds the prefill groups, which end at token 128: shorten it, or raise" in err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("model", "--chip", "AX999"), "--chip 'AX999' is not known: use AX650, AX620E"),
        (("Qwen3-0.6",), "neither a file nor a model of the matrix: did you mean Qwen3-0.6B?"),
        (("nothing at all",), "give a path, a model of the matrix, or ORG/NAME"),
        (("config",), "config has no config.json: give the path of a checkpoint folder or of a config.json"),
    ],
)
def test_wrong_arguments(run: Run, words: tuple[str, ...], problem: str) -> None:
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert problem in err
    assert err.count("\n") == 1


def test_one_bad_config_does_not_hide_the_others(run: Run) -> None:
    write(Path("bad.json"), model_type="mamba")
    status, out, err = run("bad.json", "model")
    assert status == 1
    assert out.startswith("model: qwen2")
    assert "bad.json: model_type 'mamba'" in err


def test_it_works_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "config.json")
    monkeypatch.chdir(tmp_path)
    assert main(["forecast", "config.json"]) == 0


def test_four_hundred_configs_take_less_than_a_second_of_cpu(tmp_path: Path) -> None:
    """CPU time without the start of Python, because tests run on shared machines."""
    for number in range(400):
        write(tmp_path / f"{number}.json", num_hidden_layers=1 + number % 80)
    script = (
        "import sys, time, glob, io, contextlib\n"
        "from axzoo.cli import main\n"
        "started = time.process_time()\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    assert main(['forecast', *glob.glob({str(tmp_path / '*.json')!r})]) == 0\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
        "print(time.process_time() - started)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert float(shown) < 1.5  # 0.7 s on an idle machine


def test_floats_have_a_wider_interval() -> None:
    model = published_models()["Qwen2-1.5B"]
    ratios = []
    for weight_type in ("s8", "bf16"):
        speed = make_forecast(model, Recipe(weight_type=weight_type), "AX650", 11317).tok_s  # type: ignore[arg-type]
        assert speed is not None
        ratios.append(speed.high / speed.low)
    assert ratios[0] < ratios[1]


def test_a_chip_without_published_rows_has_no_speed() -> None:
    found = make_forecast(published_models()["Qwen2-1.5B"], Recipe(), "NEW", 8000)
    assert (found.tok_s, found.ttft_ms, found.nearest, found.fits) == (None, None, (), "yes")


def test_tight_means_that_only_buffers_and_guard_exceed_the_chip() -> None:
    model = published_models()["Qwen2-1.5B"]
    found = make_forecast(model, Recipe(), "AX650", 11317)
    least, total = found.memory.least_mb, found.memory.total_mb
    sizes = {
        memory: make_forecast(model, Recipe(), "AX650", memory).fits for memory in (least - 1, least, total - 1, total)
    }
    assert list(sizes.values()) == ["no", "tight", "tight", "yes"]


@pytest.mark.parametrize("name", ["Qwen2-0.5B", "Llama2-7B", "TinyLlama-1.1B"])
def test_the_nearest_row_of_a_published_model_is_its_own(name: str) -> None:
    assert nearest_rows(published_models()[name], "AX650", "onchip", "s8")[0].model == name
