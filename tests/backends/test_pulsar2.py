"""The backend pulsar2 with the simulator: what it runs, what it accepts as success, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from axzoo import backends
from axzoo.backends import load_backend
from axzoo.backends.pulsar2 import Pulsar2Backend, running
from axzoo.backends.pulsar2.options import Tool, options_for
from axzoo.backends.pulsar2.proof import config_differences, explain, printed_config
from axzoo.backends.pulsar2.settings import read_settings
from axzoo.backends.pulsar2.tool import Launch, find_tool
from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.model.spec import DecoderSpec
from axzoo.parts.kinds import kind_of
from axzoo.parts.lock import make_lock
from axzoo.weights.recipe import Recipe
from pulsar2_jobs import PROGRAM, RECIPE, Jobs, calls, processes_with, simulator, wait_until_none
from tiny_model import Checkpoint

LAYERS = ("layer_0", "layer_1")


@pytest.fixture
def jobs(checkpoint: Checkpoint, tmp_path: Path) -> Jobs:
    return Jobs(checkpoint, tmp_path)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the simulator records its calls."""
    monkeypatch.setenv("SIMULATOR_CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def quirk(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setenv("SIMULATOR_QUIRKS", ",".join(names))


# Settings


@pytest.mark.parametrize(
    "given, launcher, target",
    [
        ("docker:pulsar2:7.0-lite", "docker", ("pulsar2:7.0-lite",)),
        ("native:/opt/pulsar2", "native", ("/opt/pulsar2",)),
        ("command:axzoo llm_build", "command", ("axzoo", "llm_build")),
        ({"podman": "pulsar2:5.2"}, "podman", ("pulsar2:5.2",)),
        ({"apptainer": "/x/pulsar2.sif", "minutes": 9}, "apptainer", ("/x/pulsar2.sif",)),
        ({"command": ["ssh", "node", "pulsar2", "llm_build2"]}, "command", ("ssh", "node", "pulsar2", "llm_build2")),
    ],
)
def test_settings_name_a_compiler(given: object, launcher: str, target: tuple[str, ...]) -> None:
    settings = read_settings(given, {})  # type: ignore[arg-type]
    assert (settings.launcher, settings.target) == (launcher, target)
    assert read_settings(settings.to_json(), {"FLOAT_MATMUL_USE_CONV_EU": "1"}) == settings, "jobs get the same"
    assert read_settings(None, {"AXZOO_COMPILER": settings.to_json()}) == settings


@pytest.mark.parametrize(
    "given, target",
    [
        ("native:tools/pulsar2", ("{here}/tools/pulsar2",)),
        ({"native": "../pulsar2"}, ("{here}/../pulsar2",)),
        ("apptainer:pulsar2.sif", ("{here}/pulsar2.sif",)),
        ("apptainer:docker://pulsar2:7.0", ("docker://pulsar2:7.0",)),
        ({"command": ["./x", "llm_build"]}, ("{here}/x", "llm_build")),
        ({"command": ["pulsar2", "llm_build"]}, ("pulsar2", "llm_build")),
        ({"docker": "vendor/pulsar2:7.0"}, ("vendor/pulsar2:7.0",)),
    ],
)
def test_relative_paths_are_those_of_the_plan(
    given: object, target: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs run the compiler in other folders."""
    monkeypatch.chdir(tmp_path)
    settings = read_settings(given, {})  # type: ignore[arg-type]
    assert settings.target == tuple(word.format(here=tmp_path) for word in target)
    monkeypatch.chdir("/")
    assert read_settings(settings.to_json(), {}) == settings


def test_a_relative_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings({"docker": "x", "licence": "hasplm"}, {}).licence == str(tmp_path / "hasplm")


def test_the_variable_that_changes_programs_is_part_of_the_settings() -> None:
    assert read_settings("docker:x", {"FLOAT_MATMUL_USE_CONV_EU": "1"}).environment == (
        ("FLOAT_MATMUL_USE_CONV_EU", "1"),
    )
    assert read_settings({"docker": "x", "environment": {}}, {"FLOAT_MATMUL_USE_CONV_EU": "1"}).environment == ()


@pytest.mark.parametrize(
    "given, message",
    [
        ("pulsar2", "compiler: 'pulsar2' names no compiler: give docker:IMAGE"),
        ("docker:", "names no compiler"),
        ('{"docker": ', "is not valid JSON"),
        ({"docker": "x", "podman": "y"}, "exactly one of .*, not docker and podman"),
        ({}, "exactly one of .*, not none of them"),
        ({"docker": "--privileged"}, "must name a compiler"),
        ({"docker": ["x"]}, "must be text"),
        ({"docker": "x", "imgae": "y"}, "unknown key 'imgae'"),
        ({"command": ["axzoo", "verify"]}, "must end in llm_build or llm_build2"),
        ({"command": []}, "must name a compiler"),
        ({"docker": "x", "tool": "build"}, "tool is 'build'"),
        ({"docker": "x", "memory_mb": -1}, "memory_mb is -1, but must be a whole number"),
        ({"docker": "x", "minutes": True}, "minutes is True"),
        ({"docker": "x", "environment": {"A=B": "1"}}, "environment is .*, but must be a mapping"),
        ({"docker": "x", "environment": ["A"]}, "environment is .*, but must be a mapping"),
        ({"docker": "x", "options": "--npu_mode"}, "options is '--npu_mode', but must be text"),
        ({"docker": "x", "version": 7.0}, "version is 7.0, but must be text"),
        (None, r"needs a compiler: give `compiler` in the matrix, --compiler or \$AXZOO_COMPILER"),
    ],
)
def test_invalid_settings(given: object, message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        read_settings(given, {})  # type: ignore[arg-type]


def test_only_this_backend_takes_a_compiler() -> None:
    with pytest.raises(AxzooError, match="backend host takes no compiler"):
        load_backend("host").settings("docker:x")


# Options


def tool(name: str) -> Tool:
    done = subprocess.run([sys.executable, PROGRAM, name, "--help"], capture_output=True, text=True, check=True)
    return Tool(name, "7.0", "", tuple(word.strip("[],") for word in done.stdout.split() if "--" in word))


def test_the_tools_use_one_word_for_two_lengths() -> None:
    """--prefill_len is one chunk for llm_build, and all chunks for llm_build2."""
    common = "--chip AX650 --hidden_state_type bf16 --parallel 1 --check_level 0 --weight_type s8"
    assert " ".join(options_for(tool("llm_build"), RECIPE, "AX650", False)) == (
        f"{common} --prefill_len 8 --kv_cache_len 31 --last_kv_cache_len 8 --last_kv_cache_len 16"
    )
    assert " ".join(options_for(tool("llm_build2"), RECIPE, "AX650", False)) == (
        f"{common} --max_context 32 --decode_step_size 0 --prefill_len 24 --prefill_step_size 8"
    )
    decode_only = Recipe(weight_type="s4", prefill_len=0, kv_cache_len=127)
    assert "--prefill_len 0 --kv_cache_len 127" in " ".join(options_for(tool("llm_build"), decode_only, "AX650", False))
    assert " ".join(options_for(tool("llm_build2"), decode_only, "AX620E", False)).endswith(
        "--weight_type s4 --max_context 128 --decode_step_size 0 --prefill_len 0"
    )


def test_options_of_the_post_layer() -> None:
    recipe = Recipe(weight_type="s4", post_weight_type="bf16", post_topk=5, ret_postnorm=True)
    words = " ".join(options_for(tool("llm_build"), recipe, "AX650", True))
    assert words.endswith("--post_weight_type bf16 --post_topk 5 --ret_postnorm")
    assert "--weight_type s8 --prefill_len 0 --kv_cache_len 127" in words, "the thrown-away layer is small"


def test_an_option_or_chip_that_the_tool_lacks() -> None:
    old = replace(tool("llm_build"), options=("--input_path", "--chip"))
    with pytest.raises(AxzooError, match=r"llm_build 7\.0 has no option --hidden_state_type"):
        options_for(old, RECIPE, "AX650", False)
    with pytest.raises(AxzooError, match="does not know the chip AX620E, only AX650"):
        options_for(replace(tool("llm_build"), chips=("AX650",)), RECIPE, "AX620E", False)
    with pytest.raises(AxzooError, match="has no option --npu_core"):
        options_for(tool("llm_build"), RECIPE, "AX650", False, ["--npu_core=3"])


# Refusals and identity


@pytest.mark.parametrize(
    "model_type, recipe, message",
    [
        ("smollm3", Recipe(), "depends on its number"),
        ("minicpmv", Recipe(), "vision model"),
        ("phi", Recipe(), "not known to build"),
        ("llama", Recipe(weight_group_size=32), "weight_group_size 32: .* use weight_group_size 0"),
        ("llama", Recipe(scale_rule="mse"), "scale_rule mse"),
        ("llama", Recipe(rounding="gptq"), "rounding gptq"),
    ],
)
def test_refusals(model_type: str, recipe: Recipe, message: str) -> None:
    refusal = Pulsar2Backend().refusal(model_type, "AX650", recipe)
    assert refusal is not None
    assert re.search(message, refusal), refusal


def test_what_determines_the_files_is_their_identity(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version, tool, chip, option or variable gives another store key; another way to run the tool does not."""

    def key(chip: str = "AX650", tool: str = "llm_build", version: str = "7.0", **settings: object) -> str:
        monkeypatch.setenv("SIMULATOR_VERSION", version)
        find_tool.cache_clear()
        backends._identity.cache_clear()
        jobs.build("layer_0", compiler=simulator(tool, **settings), chip=chip)
        return str(jobs.receipt("layer_0")["key"])

    first = key()
    assert key(memory_mb=2000, minutes=7) == first
    others = [
        key(version="5.2"),
        key(tool="llm_build2"),
        key(chip="AX620E"),
        key(options=["--npu_mode", "NPU3"]),
        key(environment={"FLOAT_MATMUL_USE_CONV_EU": "1"}),
    ]
    assert len({first, *others}) == 6
    assert key() == first


def test_a_job_refuses_another_version_than_planned(jobs: Jobs) -> None:
    with pytest.raises(AxzooError, match=r"has version '7.0 \(0123abcd\)' on this machine, but .* planned with '5.2'"):
        jobs.build("layer_0", compiler=simulator(version="5.2"))


def test_a_plan_needs_no_compiler_if_the_version_is_stated() -> None:
    settings = {"docker": "no/such:image", "version": "7.0", "environment": {}}
    backend = Pulsar2Backend().configured(Pulsar2Backend().settings(settings))
    assert backend.identity(kind_of("layer"), "AX650")["version"] == "7.0"
    assert json.loads(backend.job_settings())["version"] == "7.0"


# Builds


def test_layers_share_a_run(jobs: Jobs, log: Path) -> None:
    layers = jobs.build(*LAYERS)
    (call,) = calls(log)
    assert "--parallel 1" in " ".join(call["arguments"])
    assert Path(call["home"]).parent == Path(call["folder"]) == Path(call["tmp"]).parent
    assert Path(call["folder"]).is_relative_to(jobs.root / "store"), "a private folder on the store's disk"
    assert not Path(call["folder"]).exists()
    jobs.build("post")
    assert len(calls(log)) == 2
    jobs.build(*LAYERS)
    assert len(calls(log)) == 2, "both are in the store"
    backend = Pulsar2Backend()
    lock = make_lock(jobs.checkpoint.folder, "llama", 2)
    for index, path in enumerate(layers):
        kind = kind_of("layer")
        groups = kind.groups(kind.spec(lock.spec, index), RECIPE)
        assert len(groups) == 4
        about = jobs.receipt(LAYERS[index])["about"]
        assert about["compiler"]["version"] == "7.0 (0123abcd)"
        assert list(backend.contradictions(path, kind, groups, "AX650", about | {"weight_type": "s8"})) == []
        messages = list(backend.contradictions(path, kind, groups[:-1], "AX650", {}))
        assert messages[0].endswith("has 4 x neu mode, and not 3 x neu mode, one for each shape group")


def test_llm_build2_gives_the_same_tables(jobs: Jobs) -> None:
    from axzoo.backends.host.outline import read_outline

    def sizes(names: list[Path]) -> list[int]:
        return [tensor.bytes for path in names for tensor in read_outline(path).tensors if tensor.name == "npu_params"]

    one = sizes(jobs.build(*LAYERS, "post"))
    assert sizes(jobs.build(*LAYERS, "post", compiler=simulator("llm_build2"))) == one


@pytest.mark.parametrize(
    "printed, warning",
    [
        (None, "the compiler printed no Config(...), so what it read is not compared with the model"),
        ({"model_name": "x"}, "the Config(...) that the compiler printed has no field of the model to compare it with"),
    ],
)
def test_a_config_that_says_nothing(
    printed: dict[str, object] | None,
    warning: str,
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("axzoo.backends.pulsar2.proof.printed_config", lambda log: printed)
    jobs.build("layer_0")
    assert warning in caplog.messages
    caplog.clear()
    monkeypatch.undo()
    jobs.build("post")
    assert not [message for message in caplog.messages if "Config(" in message]


@pytest.mark.parametrize("name", ["status", "hang", "foreign", "no_config"])
def test_success_despite(name: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_GRACE_SECONDS", 0.3)
    quirk(monkeypatch, name)
    assert all(path.stat().st_size > 10_000 for path in jobs.build("layer_1", "post"))
    assert processes_with(str(jobs.root / "store")) == []
    assert jobs.leftovers() == []


@pytest.mark.parametrize(
    "name, message",
    [
        ("killed", r"killed, probably because memory ran out \(exit status -9\): raise `memory_mb`"),
        ("licence", "found no licence .H0007.: give the folder with the licence files as `licence`"),
        ("quota", "exceed a disk quota .Errno 122.: put the store on a larger disk, with --config store=DIR"),
        ("shape", "does not fit the chip's memory: lower prefill_len or kv_cache_len"),
        ("truncated", r"it says that it finished, but .*llama_p8_l1_together.axmodel is damaged"),
        (
            "missing",
            r"it says that it finished, but there is no llama_p8_l1_together.axmodel; .* llama_p8_l0",
        ),
        ("silent", "ended with exit status 0, and never logged 'build llm model done!'"),
        ("groups", "it says that it finished, but .* has 3 x neu mode, and not 4 x neu mode"),
        ("config", "rope_theta is 10000.0 in the model's spec, but the compiler read 123456.0"),
        ("memory", "it used [0-9]+ MB of memory, and the limit is 300 MB, so it was ended: raise `memory_mb`"),
    ],
)
def test_failure(name: str, message: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    quirk(monkeypatch, name)
    with pytest.raises(AxzooError, match=message) as error:
        jobs.build(*LAYERS, compiler=simulator(memory_mb=300 if name == "memory" else 1000))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("layer_0, layer_1: command:")
    assert not (jobs.root / "out").exists()
    assert jobs.leftovers() == []
    assert processes_with(str(jobs.root / "store")) == []
    quirk(monkeypatch)
    jobs.build(*LAYERS)


def test_errors_that_the_simulator_does_not_have() -> None:
    script = (
        "import sys; print('usage: --input_path 1.0'); 'help' in sys.argv[1] or sys.exit('model_type error mixtral')"
    )
    del script

    settings = read_settings(simulator(), {})
    log = "Traceback\nAssertionError: model_type error mixtral\n"
    assert "does not know the model_type mixtral" in explain(running.RunResult(1, log), settings, ["no file"])
    pointer = "SafetensorError: Error while deserializing header: HeaderTooLarge"
    assert "run `git lfs pull`" in explain(running.RunResult(1, pointer), settings, ["no file"])
    assert "memory ran out" in explain(running.RunResult(137, "building"), settings, ["no file"])


def test_the_end_of_a_long_log(tmp_path: Path) -> None:
    """Only the start and the end of a long log are kept, but what it said is not forgotten."""
    start = Launch(("/bin/sh", "-c", f"echo first; echo {running.DONE!r}; yes x | head -c 9000000; echo last"), {})
    result = running.run(start, tmp_path, running.RunLimits(60, 1000), lambda: False)
    assert result.said_done and result.status == 0
    assert result.log.startswith("first\n") and result.log.endswith("last\n")
    assert len(result.log) <= running._KEPT_LOG + (1 << 20)


CLIENTS = {
    "ended with 125": "setsid sleep 1000 & echo $! > container; exit 125",
    "ended with 0, without the last words": "setsid sleep 1000 & echo $! > container; exit 0",
    "killed after the last words": f"setsid sleep 1000 & echo $! > container; echo {running.DONE}; exit 137",
    "ended with 143 while its container starts": (
        "trap 'setsid sleep 1000 & echo $! > container; exit 143' TERM; while :; do sleep 0.02; done"
    ),
}


@pytest.mark.parametrize("script", CLIENTS.values(), ids=CLIENTS)
def test_a_container_that_survives_its_client(script: str, tmp_path: Path) -> None:
    """Which is not known from the client's exit status."""
    kill = f"cd {tmp_path}; test -f container && kill -9 $(cat container) && rm container"
    start = Launch(("/bin/sh", "-c", script), os.environ, ("/bin/sh", "-c", kill))
    running.run(start, tmp_path, running.RunLimits(0.3, 1000), lambda: False)
    assert not (tmp_path / "container").exists()
    wait_until_none(str(tmp_path))


def test_a_run_that_finished_has_no_container_to_kill(tmp_path: Path) -> None:
    start = Launch(("/bin/sh", "-c", f"echo {running.DONE}"), os.environ, ("touch", str(tmp_path / "killed")))
    assert running.run(start, tmp_path, running.RunLimits(60, 1000), lambda: True).status == 0
    assert not (tmp_path / "killed").exists()


def test_timeout(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    quirk(monkeypatch, "stuck")
    limits = running.RunLimits
    monkeypatch.setattr(running, "RunLimits", lambda seconds, memory: limits(1.5, memory))
    with pytest.raises(AxzooError, match=r"had not finished after 0.025 minutes, so it was ended: raise `minutes`"):
        jobs.build(*LAYERS)
    assert processes_with(str(jobs.root / "store")) == []


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()


def terminate(process: subprocess.Popen[str]) -> None:
    process.terminate()


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("end", [kill, terminate, interrupt])
def test_no_process_survives(
    end: Callable[[subprocess.Popen[str]], None], jobs: Jobs, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is ended while the compiler and its child run."""
    quirk(monkeypatch, "stuck")
    words = ["--lock", "locks/layer_0.json", "--source", str(jobs.checkpoint.source), "--store", "store"]
    words += ["--output", "out", "--receipt", "receipt", "--chip", "AX650", "--backend", "pulsar2"]
    words += ["--recipe", json.dumps(RECIPE.to_dict()), "--compiler", json.dumps(simulator())]
    job = subprocess.Popen(
        [sys.executable, "-m", "axzoo.cli", "compile", *words],
        cwd=jobs.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not log.exists() or len(processes_with("sleep\x001000")) == 0:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)
    assert processes_with(str(jobs.root / "store"))
    end(job)
    job.wait()
    assert job.returncode == {kill: -9, terminate: 143, interrupt: 130}[end]
    wait_until_none(str(jobs.root / "store"))
    assert (jobs.leftovers() == []) == (end is not kill)


# The printed configuration


def test_the_printed_config_is_found_in_both_forms() -> None:
    line = "x\nConfig(model_name='a (b)', rope_scaling={'f': [1, 2]}, act=Silu, num_hidden_layers=3)\nbuilding"
    found = printed_config(line)
    assert found == {"model_name": "a (b)", "rope_scaling": {"f": [1, 2]}, "act": None, "num_hidden_layers": 3}
    assert printed_config("Config(\n    hidden_size=32,\n    norm_type='rms_norm'\n)") == {
        "hidden_size": 32,
        "norm_type": "rms_norm",
    }
    for other in ("QuantConfig(bits=8)", "transformers.PretrainedConfig(hidden_size=1)", "models.Config(x=1)"):
        assert printed_config(other) is None
        assert printed_config(f"Config(hidden_size=32)\n{other}") == {"hidden_size": 32}
        assert printed_config(f"{other}\nConfig(hidden_size=32, quant={other})") is not None
    for broken in ("", "Config(", "Config(a=1", "Config(a=)", "Config(" + "(" * 100_000):
        assert printed_config(broken) is None


def test_every_field_is_compared(checkpoint: Checkpoint) -> None:
    spec: DecoderSpec = make_lock(checkpoint.folder, "llama", 2).spec
    right = {
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
        "intermediate_size": 48, "vocab_size": 262, "head_dim": 8, "rope_theta": 10000, "rms_norm_eps": 1e-5,
        "norm_type": "rms_norm", "hidden_act": "silu", "rope_partial_factor": 1.0,
    }  # fmt: skip
    assert list(config_differences(right | {"scale_depth": 1.4, "model_name": "x"}, spec)) == []
    for name, value in right.items():
        wrong = "other" if isinstance(value, str) else value * 2
        (message,) = config_differences(right | {name: wrong}, spec)
        assert message.startswith(f"{name} is {value!r}" if isinstance(value, str) else f"{name} is ")
        assert repr(wrong) in message


# Doctor


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXZOO_COMPILER", json.dumps(simulator()))
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    for text in (
        "tool:        llm_build 7.0 (0123abcd), build ",
        "chips:       AX620E, AX650, LAMBERT",
        "slice:       compiled",
    ):
        assert text in output
    quirk(monkeypatch, "licence")
    assert main(["doctor"]) == 1
    assert "found no licence (H0007)" in capsys.readouterr().err
    assert main(["doctor", "--compiler", "native:/no/such/folder"]) == 1
    assert "native:/no/such/folder cannot be run (No such file or directory): install it, or" in capsys.readouterr().err
    assert main(["doctor", "--backend", "host"]) == 0
    assert "backend host needs no external compiler" in capsys.readouterr().out
