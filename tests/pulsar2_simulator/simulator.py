"""The simulator's program: `simulator.py llm_build ...`, `llm_build2`, `version`. Environment variables:

SIMULATOR_VERSION   the version that it states (7.0)
SIMULATOR_SECONDS   the time that it takes to compile a layer (0)
SIMULATOR_CALLS     a file to which it appends its arguments
SIMULATOR_QUIRKS    what goes wrong, separated by commas: see QUIRKS
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

if TYPE_CHECKING:  # questions are answered without numpy
    from pulsar2_simulator.container import Tensor
    from pulsar2_simulator.table import Floats

QUIRKS = {
    "status": "ends with status 1 after it wrote all files",
    "hang": "does not end after it wrote all files, nor does its child",
    "stuck": "never writes a file, and has a child",
    "killed": "is killed as if memory ran out, before the last layer",
    "memory": "takes 600 MB of memory and keeps them",
    "licence": "finds no licence",
    "quota": "finds its temporary folder full",
    "shape": "finds that a shape does not fit",
    "foreign": "gives its files to another user, if it may",
    "truncated": "writes half of the last layer's file, but says that it is done",
    "missing": "does not write the last layer's file",
    "silent": "does not say that it is done",
    "swapped": "writes the table of each layer into the next layer's file",
    "groups": "leaves out the last shape group",
    "config": "reads another rope_theta",
    "no_config": "does not print its Config",
}


def has(quirk: str) -> bool:
    assert quirk in QUIRKS
    return quirk in os.environ.get("SIMULATOR_QUIRKS", "").split(",")


def read_tensors(folder: Path) -> dict[str, Floats]:
    import ml_dtypes
    import numpy as np

    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    if size > 100_000_000:
        raise SystemExit("SafetensorError: Error while deserializing header: HeaderTooLarge")
    found = {}
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            dtype = np.dtype(dtypes[entry["dtype"]])
            values = np.frombuffer(content, dtype, (stop - start) // dtype.itemsize, 8 + size + start)
            found[name] = values.reshape(entry["shape"]).astype(np.float32)
    return found


def parse(tool: str, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"pulsar2 {tool}")
    parser.add_argument("--input_path", type=Path, required=True)
    parser.add_argument("--output_path", type=Path, default=Path())
    parser.add_argument("--prefill_len", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--model_config", type=Path)
    parser.add_argument("--model_type")
    parser.add_argument("--post_topk", type=int, default=0)
    parser.add_argument("--post_weight_type", choices=("bf16", "s8", "fp8_e5m2", "fp8_e4m3"), default="s8")
    parser.add_argument("-t", "--hidden_state_type", choices=("fp16", "bf16", "fp32"), default="bf16")
    types = ("fp16", "bf16", "fp32", "s8", "s4", "fp8_e5m2", "fp8_e4m3")
    parser.add_argument("-w", "--weight_type", choices=types, default="s8")
    parser.add_argument("-c", "--check_level", type=int, choices=(0, 1, 2), default=0)
    parser.add_argument("--chip", choices=("AX620E", "AX650", "LAMBERT"), default="AX650")
    parser.add_argument("--prompt", default="1+1=")
    parser.add_argument("--ret_postnorm", action="store_true")
    parser.add_argument("--npu_mode", choices=("NPU1", "NPU2", "NPU3"))
    if tool == "llm_build":
        parser.add_argument("--kv_cache_len", type=int, default=127)
        parser.add_argument("--last_kv_cache_len", type=int, action="append", default=[])
    else:
        parser.add_argument("--max_context", type=int, default=128)
        parser.add_argument("--prefill_step_size", type=int, default=0)
        parser.add_argument("--decode_step_size", type=int, default=0)
    return parser.parse_args(words)


def lengths(tool: str, args: argparse.Namespace) -> tuple[int, int, list[int]]:
    """kv_cache_len, the length of a chunk, and the cached tokens before each prefill group."""
    if tool == "llm_build":
        chunk = args.prefill_len
        return args.kv_cache_len, chunk, [0, *args.last_kv_cache_len] if chunk else []
    total = args.prefill_len
    default = 64 if total <= 512 else 128 if total <= 2048 else 256
    chunk = (args.prefill_step_size or default) if total else 0
    return args.max_context - 1, chunk, list(range(0, total, chunk)) if total else []


def layer_groups(config: Mapping[str, Any], state: str, cache_len: int, chunk: int, pasts: list[int]) -> list[Any]:
    hidden, kv_heads = config["hidden_size"], config.get("num_key_value_heads") or config["num_attention_heads"]
    width = kv_heads * (config.get("head_dim") or hidden // config["num_attention_heads"])
    groups = []
    for tokens, past in [(1, cache_len), *((chunk, past) for past in pasts)]:
        cache = (1, past, width) if past else (1, 1, hidden)
        inputs: list[Tensor] = [
            ("K_cache", state, cache),
            ("V_cache", state, cache),
            ("indices", "uint32", (1, tokens)),
        ]
        inputs += [("input", state, (1, tokens, hidden)), ("mask", state, (1, tokens, past + tokens))]
        outputs: list[Tensor] = [(name, state, (1, tokens, width)) for name in ("K_cache_out", "V_cache_out")]
        groups.append((inputs, [*outputs, ("output", state, (1, tokens, hidden))]))
    return groups[: -1 if has("groups") else None]


def post_groups(config: Mapping[str, Any], args: argparse.Namespace) -> list[Any]:
    state, hidden = args.hidden_state_type, config["hidden_size"]
    outputs: list[Tensor] = [("output", state, (1, 1, config["vocab_size"]))]
    if args.post_topk:
        outputs = [("indices", "int32", (1, 1, args.post_topk)), ("prob", "fp32", (1, 1, args.post_topk))]
    if args.ret_postnorm:
        outputs.append(("postnorm", state, (1, 1, hidden)))
    return [([("input", state, (1, 1, hidden))], outputs)]


def show_config(config: Mapping[str, Any]) -> None:
    """The line with the configuration. scale_depth is printed for every family."""
    rope = config.get("rope_parameters") or config
    shown = {
        "model_name": "",
        "model_type": config["model_type"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "rope_theta": 123456.0 if has("config") else rope.get("rope_theta") or 10000.0,
        "max_position_embeddings": config["max_position_embeddings"],
        "rope_partial_factor": 1.0,
        "rms_norm_eps": config["rms_norm_eps"],
        "norm_type": "rms_norm",
        "hidden_act": "silu",
        "scale_depth": config.get("scale_depth", 1.4),
        "scale_emb": config.get("scale_emb", 1),
    }
    if not has("no_config"):
        print("Config(" + ", ".join(f"{name}={value!r}" for name, value in shown.items()) + ")", flush=True)


def build(tool: str, args: argparse.Namespace) -> None:
    from pulsar2_simulator.container import container
    from pulsar2_simulator.table import layer_table, post_table

    config = json.loads((args.input_path / "config.json").read_text())
    if config["model_type"] not in ("llama", "qwen2", "qwen3", "minicpm"):
        raise AssertionError(f"model_type error {config['model_type']}")
    cache_len, chunk, pasts = lengths(tool, args)
    if not cache_len:
        raise SystemExit("RuntimeError: RoPE: shape (0,) is not valid")
    show_config(config)
    tensors = read_tensors(args.input_path)
    print("... prepare llm model done!", flush=True)
    prepare()
    args.output_path.mkdir(parents=True, exist_ok=True)
    version = os.environ.get("SIMULATOR_VERSION", "7.0")
    count = config["num_hidden_layers"]
    groups = layer_groups(config, args.hidden_state_type, cache_len, chunk, pasts)
    tables = []
    for layer in range(count):
        prefix = f"model.layers.{layer}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        tables.append(layer_table(config, own, args.weight_type, cache_len, chunk, len(pasts)))
        print(f"building llm decode layers ... {layer + 1}/{count} 0:00:0{layer % 10}", flush=True)
        if has("killed") and layer == count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("SIMULATOR_SECONDS", "0")))
        if has("missing") and layer == count - 1:
            break
        stem = f"{config['model_type']}_p{chunk}_l{layer}_together" if chunk else f"{config['model_type']}_l{layer}"
        table = tables[layer - 1] if has("swapped") else tables[layer]
        content = container(stem, version, groups, table)
        path = args.output_path / f"{stem}.axmodel"
        path.write_bytes(content[: len(content) // 2] if has("truncated") and layer == count - 1 else content)
    print("building llm post layer 1/1", flush=True)
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    if config.get("tie_word_embeddings"):
        head = tensors["model.embed_tokens.weight"]
    stem = f"{config['model_type']}_post"
    table = post_table(tensors["model.norm.weight"], head, args.post_weight_type)
    (args.output_path / f"{stem}.axmodel").write_bytes(container(stem, version, post_groups(config, args), table))
    give_away(args.output_path)
    if not has("silent"):
        print("build llm model done!", flush=True)


def prepare() -> None:
    """What goes wrong before the first layer."""
    if has("licence"):
        raise SystemExit("Sentinel key not found (H0007)")
    if has("quota"):
        raise SystemExit("OSError: [Errno 122] Disk quota exceeded")
    if has("shape"):
        raise SystemExit("CodeException: (<ErrorCode.NPUBackendError: 8>, 'TileFailException')")
    if has("memory"):
        memory = bytearray(b"x") * (600 << 20)
        time.sleep(60)
        del memory
    if has("stuck"):
        subprocess.run(["sleep", "1000"], check=False)


def give_away(folder: Path) -> None:
    if has("foreign") and not os.getuid():
        for path in (folder, *folder.iterdir()):
            os.chown(path, 12345, 12345)


def main(words: list[str]) -> int:
    tool, rest = words[0], words[1:]
    if tool == "version":
        print(f"version: {os.environ.get('SIMULATOR_VERSION', '7.0')}\ncommit: 0123abcd")
        return 0
    if tool not in ("llm_build", "llm_build2"):
        print(f"pulsar2: error: invalid choice: {tool!r}", file=sys.stderr)
        return 2
    args = parse(tool, rest)
    if calls := os.environ.get("SIMULATOR_CALLS"):
        with Path(calls).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps({"tool": tool, "arguments": rest, "pid": os.getpid(), "home": os.environ.get("HOME"),
                                   "tmp": os.environ.get("TMPDIR"), "folder": str(Path.cwd())}) + "\n")  # fmt: skip
    build(tool, args)
    if has("hang"):
        subprocess.run(["sleep", "1000"], check=False)
    if has("status"):
        print("ImportError: Loading a GPTQ quantized model requires gptqmodel", file=sys.stderr)
        return 1
    print("check llm model done!")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
