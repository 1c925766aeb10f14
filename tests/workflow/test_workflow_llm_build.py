"""The documented command lines, with `axzoo` instead of `pulsar2`, on a small Qwen2."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM
from workflow_project import LAYERS, REPOSITORY, train_tokenizer

from axzoo.backends.host.inspection import inspect_file
from axzoo.bundle.verification import deviations

pytestmark = pytest.mark.workflow

MODEL = "Qwen/Qwen2-0.5B-Instruct"
OUTPUT = "Qwen/Qwen2-0.5B-w8a16"
PATHS = f"--input_path {MODEL}/ --output_path {OUTPUT}/ --kv_cache_len 1023"
COMPILE = f"{PATHS} --hidden_state_type bf16 --prefill_len 128 --chip AX650"
WITH_CONFIG = f"{PATHS} --model_config config/qwen2-0.5B.json --hidden_state_type bf16 --weight_type s8 --parallel 8"
LEVEL_1 = f"--check_level 1 {COMPILE} --parallel 8"
PROMPT = r"<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
LEVEL_2 = f'--check_level 2 --prompt "{PROMPT}" {COMPILE}'

TREE = {
    "model.embed_tokens.weight.bfloat16.bin",
    *(f"qwen2_p128_l{layer}_together.axmodel" for layer in range(LAYERS)),
    "qwen2_post.axmodel",
}
"""The documented output folder for this model, without temporary files."""
BESIDES = {"config.json", "post_config.json", "run.sh", "tokenizer.txt", "manifest.json"}
CONFIG_FILE = {
    "model_name": "Qwen2-0.5B-Instruct",
    "model_type": "qwen2",
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 128,
    "intermediate_size": 320,
    "vocab_size": 300,
    "rope_theta_base": 1000000.0,
    "max_position_embedings": 32768,
    "rope_partial_factor": 1.0,
    "norm_eps": 1e-6,
    "norm_type": "rms_norm",
    "hidden_act": "silu",
}
CONFIG_BLOCK = f"""\
Config(
    model_name='Qwen2-0.5B-Instruct',
    model_type='qwen2',
    num_hidden_layers={LAYERS},
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size=128,
    intermediate_size=320,
    vocab_size=300,
    rope_theta=1000000.0,
    max_position_embeddings=32768,
    rope_partial_factor=1.0,
    rms_norm_eps=1e-06,
    norm_type='rms_norm',
    hidden_act='silu'
)
"""
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \| (SUCCESS |INFO    ) \| [\w.]+:\w+:\d+ - "


class Desk:
    """A folder like `/data/ax-llm-build` in the documentation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "config").mkdir()
        (folder / "config/qwen2-0.5B.json").write_text(json.dumps(CONFIG_FILE))
        write_qwen2(folder / MODEL)

    def start(self, line: str) -> subprocess.Popen[str]:
        command = [Path(sys.executable).with_name("axzoo"), "llm_build", *shlex.split(line)]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, **output)  # type: ignore[call-overload, no-any-return]

    def build(self, line: str) -> str:
        """The output of a successful build."""
        with self.start(line) as build:
            shown, _ = build.communicate(timeout=300)
        assert build.returncode == 0, shown
        return str(shown)

    def files(self, folder: str = OUTPUT) -> set[str]:
        return {path.name for path in (self.folder / folder).iterdir() if path.is_file()}

    def layer_logs(self, name: str) -> set[str]:
        """The layer ranges in the logs of compile jobs whose file names match `name`."""
        logs = (self.folder / ".axzoo/results/logs/layer/AX650").glob(f"*/{name}.log")
        return {found[1] for log in logs if (found := re.search(r"_l([\d-]+)", log.name))}

    def receipts(self, tag: str) -> dict[str, int]:
        """The receipts of compiled layers with their mtimes, in order of mtime."""
        found = (self.folder / ".axzoo/results/receipts/AX650").glob(f"*-{tag}/*_l*.json")
        times = {path.name: path.stat().st_mtime_ns for path in found}
        return dict(sorted(times.items(), key=lambda item: item[1]))


def write_qwen2(folder: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.01)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The Snakemake that a build started. A tokenizer's process is a child too."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids if b"\0snakemake\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def stages(shown: str) -> list[str]:
    """The lines with a timestamp, without time, place and duration."""
    lines = [line for line in shown.splitlines() if re.match(STAMP, line)]
    return [re.sub(rf"^{STAMP}", "", re.sub(r" \d:\d\d:\d\d$", "", line)) for line in lines]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def compiled(desk: Desk) -> str:
    """The output of the documented build."""
    return desk.build(COMPILE)


def test_the_documented_build_shows_the_documented_lines(compiled: str) -> None:
    assert compiled.startswith(CONFIG_BLOCK)
    expected = [
        "prepare llm model done!",
        f"building llm decode layers done! {LAYERS}/{LAYERS}",
        "building llm post layer done! 1/1",
        "build llm model done!",
        "check llm model done! (level 0: nothing to check)",
    ]
    assert [line for line in stages(compiled) if line in expected] == expected


def test_the_documented_build_makes_the_documented_files(desk: Desk, compiled: str) -> None:
    assert desk.files() == TREE | BESIDES
    assert not (desk.folder / OUTPUT / "checks").exists()
    manifest = json.loads((desk.folder / OUTPUT / "manifest.json").read_text())
    assert (manifest["chip"], manifest["recipe"]["prefill_len"], manifest["recipe"]["kv_cache_len"]) == (
        "AX650",
        128,
        1023,
    )
    assert json.loads((desk.folder / OUTPUT / "config.json").read_text())["chat"] is True
    assert desk.layer_logs("qwen2_p128_*") == {f"0-{LAYERS - 1}"}


def test_the_documented_second_step_completes_the_documented_tree(desk: Desk, compiled: str) -> None:
    bf16, *temporary = (f"model.embed_tokens.weight.{end}" for end in ("bfloat16.bin", "float32.bin", "npy"))
    built = (desk.folder / OUTPUT / bf16).read_bytes()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = REPOSITORY / "scripts/embed_process.sh"
    environment = {**os.environ, "PATH": path}
    subprocess.run([script, f"{MODEL}/", f"{OUTPUT}/"], cwd=desk.folder, env=environment, check=True)
    assert desk.files() - BESIDES == TREE | set(temporary)
    sizes = [(desk.folder / OUTPUT / name).stat().st_size for name in temporary]
    assert sizes == [2 * len(built), 2 * len(built) + 128]
    assert (desk.folder / OUTPUT / bf16).read_bytes() == built
    for name in temporary:  # the document: "temp file, it can be deleted"
        (desk.folder / OUTPUT / name).unlink()


def test_level_1_reports_each_layer_without_building(desk: Desk, compiled: str) -> None:
    """Also with more workers, which would otherwise change the batches."""
    before = {path: path.stat().st_mtime_ns for path in (desk.folder / OUTPUT).rglob("*") if path.is_file()}
    shown = desk.build(LEVEL_1)
    assert "Nothing to be done" in shown
    assert "building llm" not in shown
    for kind in ("decode", "prefill"):
        (cosine,) = re.findall(rf"^{STAMP}{kind} layer0_gt layer0_got cos_sim is: ([\d.]+)$", shown, re.MULTILINE)
        assert 0.999 < float(cosine[1]) <= 1
    assert stages(shown)[-1] == "check llm model done!"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((desk.folder / OUTPUT / "checks/layers.json").read_text())["passed"] is True
    log = (desk.folder / OUTPUT / "checks/layers.log").read_text()
    assert f"\n{log}" in shown
    assert log.count("cos_sim is: ") == 2 * LAYERS


def test_level_2_simulates_as_documented(desk: Desk, compiled: str) -> None:
    shown = desk.build(LEVEL_2)
    for layer in range(LAYERS):
        assert f"\nload {OUTPUT}/qwen2_p128_l{layer}_together\n" in shown
        simulation = rf"^{STAMP}simulate layer {layer}\n{STAMP}end simulate\n\[\[\[-?\d.* \.\.\. .*\]\n"
        assert re.search(simulation, shown, re.MULTILINE)
    number = r"-?[\d.]+(e-\d+)?"
    assert re.search(rf"^start_indice = \d+\n{STAMP}simulate layer 0\n{STAMP}end simulate\n", shown, re.MULTILINE)
    assert re.search(rf"^\[{number}( {number}){{4}}\]$", shown, re.MULTILINE)
    assert re.search(r"^posibile \('.*', [\d.]+\)(,\((?:'.*'|\".*\"), [\d.e-]+\)){9}$", shown, re.MULTILINE)
    rule = "=" * 100
    (output,) = re.findall(rf"^{rule}\n(.*)\n{rule}\n(?:hit eos!|no eos)$", shown, re.MULTILINE)
    assert output.startswith(PROMPT)
    assert stages(shown)[-1] == "check llm model done!"
    checks = desk.folder / OUTPUT / "checks"
    report = json.loads((checks / "generation.json").read_text())
    assert report["prompt"] == PROMPT.replace("\\n", "\n")  # raw: without chat template
    assert [step["start_indice"] for step in report["steps"][1:]] == [
        int(number) for number in re.findall(r"^start_indice = (\d+)\n(?!\d{4}-)", shown, re.MULTILINE)
    ]
    assert {state["layer"] for state in report["steps"][0]["hidden_states"]} == set(range(LAYERS))
    log = (checks / "generation.log").read_text()
    assert f"\n{log}" in shown
    assert "results/" not in log


def test_a_model_config_and_no_prefill(desk: Desk, compiled: str) -> None:
    """With --prefill_len 0, files and check are decode-only. With --parallel 8, each layer has its own worker."""
    shown = desk.build(WITH_CONFIG + " --prefill_len 0 --check_level 1")
    warnings = [line for line in shown.splitlines() if "--prefill_len 0 builds no prefill groups, so axllm" in line]
    assert warnings and "use prefill_len 128, unless the host is" in warnings[0]
    ended = shown.partition("build llm model done!")[2]  # again, where it cannot scroll away
    assert "prefill_len 0 builds no prefill groups, so axllm" in ended
    assert shown.startswith(CONFIG_BLOCK)
    assert desk.files() == {
        *BESIDES,
        *(f"qwen2_l{layer}.axmodel" for layer in range(LAYERS)),
        "qwen2_post.axmodel",
        "model.embed_tokens.weight.bfloat16.bin",
    }
    assert "decode layer0_gt layer0_got cos_sim is: " in shown
    assert "prefill layer0_gt" not in shown
    assert desk.layer_logs("qwen2_l*") == {str(layer) for layer in range(LAYERS)}


def test_killed_build_resumes(desk: Desk, compiled: str) -> None:
    """With s4, which shares the embedding with s8, and a post layer with topk."""
    line = f"--input_path {MODEL} --output_path out -w s4 --post_topk 4 -c 2"
    build = desk.start(line)
    wait_for(lambda: len(desk.receipts("w4a16")) >= 2)
    (snakemake,) = children(build)
    build.kill()
    os.killpg(snakemake, signal.SIGKILL)
    build.communicate()
    assert not (desk.folder / "out").exists()

    shown = desk.build(line)
    (log,) = (desk.folder / ".axzoo/results/logs/layer/AX650").glob("*-w4a16/*.log")
    assert log.read_text().count("reused") >= 2
    (log,) = (desk.folder / ".axzoo/results/logs/embed/AX650").glob("*-w4a16/*.log")
    assert "reused" in log.read_text()
    assert re.search(r"^posibile (\(.*?, [\d.e-]+\),?){4}$", shown, re.MULTILINE)
    assert "(over 4 tokens of the vocabulary)" in shown


def test_an_interrupt_ends_the_whole_build(desk: Desk, compiled: str) -> None:
    build = desk.start(f"--input_path {MODEL} --output_path interrupted -w bf16")
    wait_for(lambda: len(desk.receipts("w16a16")) >= 1)
    (snakemake,) = children(build)
    build.send_signal(signal.SIGINT)
    shown, _ = build.communicate(timeout=60)
    assert build.returncode == 130
    assert "interrupted; finished parts are kept, and the same command continues the build" in shown
    with pytest.raises(ProcessLookupError):
        os.killpg(snakemake, 0)
    assert not (desk.folder / "interrupted").exists()


def test_failed_build_ends_with_an_error_line(desk: Desk, tmp_path: Path) -> None:
    override = tmp_path / "wrong.json"
    override.write_text('{"intermediate_size": 64}')
    with desk.start(f"--input_path {MODEL} --output_path failed --model_config {override}") as build:
        shown, _ = build.communicate(timeout=60)
    assert build.returncode == 1
    assert "gate_proj.weight has shape [320, 128]" in shown
    assert re.search(r"^    \.axzoo/results/logs/lock/\S+\.log:$", shown, re.MULTILINE)
    assert shown.splitlines()[-1].startswith("axzoo: the build failed, see above; the logs are in ")
    assert "continues the build" not in shown
    assert not (desk.folder / "failed").exists()


def test_the_newer_tools_options(desk: Desk, compiled: str) -> None:
    line = f"--input_path {MODEL} --output_path newer --prefill_len 16 --kv_cache_len 63 -t fp32 --parallel 2"
    line += " --last_kv_cache_len 16 --last_kv_cache_len 32 --post_weight_type fp8_e4m3 --ret_postnorm"
    shown = desk.build(f"{line} -c 1 --prompt '{'1+1=?' * 8}'")
    assert f"all {LAYERS} layers: cos_sim is at least 0.99" in shown
    output = desk.folder / "newer"
    layers = [output / f"qwen2_p16_l{layer}_together.axmodel" for layer in range(LAYERS)]
    past = [group.inputs[4].shape[2] - group.inputs[4].shape[1] for group in inspect_file(layers[0]).header.groups]
    assert past == [63, 0, 16, 32]
    post = inspect_file(output / "qwen2_post.axmodel")
    assert [tensor.name for tensor in post.header.groups[0].outputs] == ["output", "postnorm"]
    assert {tensor.name: tensor.dtype for tensor in post.outline.tensors}["lm_head.weight"] == "fp8_e4m3"


def test_a_check_that_fails(desk: Desk, compiled: str) -> None:
    """The outputs of layer 1 exceed the range of fp16."""
    shutil.copytree(desk.folder / MODEL, desk.folder / "huge")
    weights = load_file(desk.folder / "huge/model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(weights | {name: weights[name].float() * 1e7}, desk.folder / "huge/model.safetensors")
    line = "--input_path huge --output_path failing --prefill_len 16 --kv_cache_len 63 -t fp16 -c 1"
    with desk.start(line) as build:
        shown, _ = build.communicate(timeout=60)
    assert build.returncode == 1
    assert re.search(r"^    \.axzoo/results/checks/\S+/layers\.log:$", shown, re.MULTILINE)
    assert shown.splitlines()[-1].startswith("axzoo: check level 1 failed for layer 1: output of shape group ")
    assert shown.endswith("The results are in failing/checks; the files in failing are the ones that failed\n")
    output = desk.folder / "failing"
    report = json.loads((output / "checks/layers.json").read_text())
    assert (report["passed"], report["failed_layers"], len(report["layers"])) == (False, [1], LAYERS)
    assert "level 1 failed" in (output / "checks/layers.log").read_text()
    (checks,) = (desk.folder / ".axzoo/results/checks/AX650").glob("huge-*")
    assert {path.name for path in checks.iterdir()} == {"layers.failed.json", "layers.log"}


def test_replaced_lost_and_damaged_files_are_noticed(desk: Desk, compiled: str) -> None:
    """The new weights are older and have the same size. The damaged file and that in the work folder are one file."""
    desk.build(COMPILE)
    output, weights = desk.folder / OUTPUT, desk.folder / MODEL / "model.safetensors"
    before = {path.name: path.read_bytes() for path in output.glob("*.axmodel")}
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    os.utime(weights, (1.6e9, 1.6e9))
    (output / "tokenizer/tokenizer.json").unlink()
    with (output / "qwen2_post.axmodel").open("r+b") as file:
        file.write(b"\0" * 8)
    (output / "config.json").write_text("{}")
    desk.build(COMPILE)
    after = {path.name: path.read_bytes() for path in output.glob("*.axmodel")}
    assert {name for name in after if after[name] != before[name]} == {"qwen2_p128_l1_together.axmodel"}
    assert list(deviations(output)) == []
