"""`axzoo inspect`: tables and JSON for our files, files of other tools and hostile files."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from axzoo.backends.host.container import METADATA_KEY
from axzoo.bundle.completion import complete_bundle
from axzoo.cli import main
from tiny_model import Built, Checkpoint

Capture = pytest.CaptureFixture[str]


def _json(path: Path, capsys: Capture) -> Any:
    assert main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _lines(path: Path, capsys: Capture) -> list[list[str]]:
    """The lines of the tables, split into words."""
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    return [line.split() for line in out.splitlines()]


def test_layer_as_json(s8: Built, capsys: Capture) -> None:
    found = _json(s8.layers[0], capsys)
    assert (found["header"]["kind"], len(found["header"]["groups"])) == ("decoder_layer", 4)
    assert found["header"]["about"]["weight_type"] == "s8"
    assert (found["producer_name"], found["ir_version"], found["opsets"]) == ("axzoo", 11, {"": 23})
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    for name, error in found["header"]["about"]["weight_errors"].items():
        assert tensors[f"{name}.weight"]["error"] == error
        assert tensors[f"{name}.scale"]["error"] is None
    assert found["size"] == s8.layers[0].stat().st_size
    assert sum(entry["bytes"] for entry in found["by_dtype"].values()) <= found["size"]
    assert list(found["metadata"]) == [METADATA_KEY]


def test_number_of_parameters_matches_the_model(
    checkpoint: Checkpoint, s8: Built, exact: Built, capsys: Capture
) -> None:
    for built in (s8, exact):
        found = [_json(path, capsys)["parameters"] for path in (*built.layers, built.post)]
        model = checkpoint.model.model
        norm_and_head = [model.norm.weight, checkpoint.model.lm_head.weight]
        wanted = [*(list(layer.parameters()) for layer in model.layers), norm_and_head]
        assert found == [sum(part.numel() for part in parts) for parts in wanted]


def test_layer_as_tables(s8: Built, capsys: Capture) -> None:
    lines = _lines(s8.layers[0], capsys)
    assert ["built", "by", "axzoo", "0.1.0"] in lines
    assert ["weight_type", "s8"] in lines
    assert ["0", "decode", "in", "K_cache", "bf16", "[1,", "31,", "16]"] in lines
    assert ["1", "prefill", "in", "V_cache", "bf16", "[1,", "1,", "32]", "unused"] in lines
    assert ["3", "prefill", "out", "output", "bf16", "[1,", "8,", "32]"] in lines
    error = _json(s8.layers[0], capsys)["header"]["about"]["weight_errors"]["up_proj"]
    assert ["up_proj.weight", "int8", "[32,", "48]", "1536", f"{error:.5f}"] in lines
    assert ["up_proj.scale", "fp32", "[48]", "192"] in lines
    assert ["int8", "7", "7680", "7680"] in lines


def test_post_layer_as_tables(s8: Built, capsys: Capture) -> None:
    lines = _lines(s8.post, capsys)
    assert ["kind", "post"] in lines
    assert ["0", "out", "output", "bf16", "[1,", "1,", "262]"] in lines


def test_provenance(s8: Built, tmp_path: Path, capsys: Capture) -> None:
    """It comes from the manifest in the file's folder, if that manifest lists the file."""
    built = s8.moved(tmp_path / "tiny-w8a16")
    layer = built.layers[0]
    assert _json(layer, capsys)["provenance"] == {"missing": "no manifest in its folder"}
    assert ["provenance", "no", "manifest", "in", "its", "folder"] in _lines(layer, capsys)

    complete_bundle(built.plan)
    found = _json(layer, capsys)["provenance"]
    assert (found["bundle"], found["source"], found["recipe"]["kv_cache_len"]) == ("tiny-w8a16", {"path": "tiny"}, 31)
    assert found["part"]["key"] == json.loads(built.receipts[0].read_text())["key"]
    lines = _lines(layer, capsys)
    for line in (
        ["source:", "path", "tiny"],
        ["this", "file:", "scale_rule", "vendor"],
        ["recipe:", "rounding", "nearest"],
    ):
        assert line in lines
    assert ["this", "file:", "scale_rule", "max_abs"] in _lines(built.post, capsys)

    shutil.copy(layer, built.folder / "unlisted.axmodel")
    assert _json(built.folder / "unlisted.axmodel", capsys)["provenance"]["missing"].endswith("does not list it")
    _write_vendor_file(layer.with_name("other"))
    layer.with_name("other").replace(layer)
    assert "lists a different file with this name" in _json(layer, capsys)["provenance"]["missing"]
    (built.folder / "manifest.json").write_text("{}")
    missing = _json(layer, capsys)["provenance"]["missing"]
    assert missing.endswith("is damaged (KeyError('spec')): build the bundle again")


def _write_vendor_file(path: Path, **metadata: str) -> Path:
    """Write a file like those of the vendor's tool: opaque payloads, and metadata of its own."""
    tensors = [TensorProto(name=f"t{i}", data_type=TensorProto.UINT8, dims=[i], raw_data=bytes(i)) for i in range(30)]
    values = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, "n"]) for name in ("input", "output")]
    graph = helper.make_graph(
        [helper.make_node("neu mode", ["input"], ["output"])], "g", *([v] for v in values), tensors
    )
    model = helper.make_model(
        graph, ir_version=10, producer_name="Pulsar2", opset_imports=[helper.make_opsetid("", 18)]
    )
    model.doc_string = "Pulsar2 version\x1b[2J 3.2"
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def test_file_of_another_tool(tmp_path: Path, capsys: Capture) -> None:
    path = _write_vendor_file(tmp_path / "v.axmodel", extra_data="abc")
    lines = _lines(path, capsys)
    assert ["built", "by", "Pulsar2;", "not", "by", "axzoo"] in lines
    assert ["opsets", "ONNX", "18"] in lines
    assert ["metadata", "extra_data", "(3", "characters)"] in lines
    assert ["in", "input", "bf16", "[1,", "n]"] in lines
    assert ["description", "Pulsar2", "version\\x1b[2J", "3.2"] in lines
    assert ["24", "largest", "tensors"] in lines
    assert ["uint8", "30", "435", "435"] in lines
    found = _json(path, capsys)
    assert (found["header"], found["parameters"], len(found["tensors"])) == (None, None, 30)
    assert found["metadata"] == {"extra_data": 3}


def test_file_without_producer_name(tmp_path: Path, capsys: Capture) -> None:
    outside = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    onnx.save(onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(initializer=[outside])), tmp_path / "x.onnx")
    lines = _lines(tmp_path / "x.onnx", capsys)
    assert ["built", "by", "an", "unnamed", "tool;", "not", "by", "axzoo"] in lines
    assert ["external", "1", "tensors", "have", "their", "data", "in", "other", "files"] in lines


GROUP = {"inputs": [{"name": "input", "dtype": "bf16", "shape": [1]}], "outputs": [], "unused": []}
GOOD = {"format": 1, "kind": "post", "groups": [GROUP], "about": {"weight_errors": {}}}


@pytest.mark.parametrize(
    "header",
    [
        {"about": []},
        {"about": {"weight_errors": [1]}},
        {"about": {"weight_errors": {"t1": "large"}}},
        {"about": {"weight_errors": {"t1": math.nan}}},
        {"about": {"note": math.inf}},
        {"kind": {"post": 1}},
        {"kind": None},
        {"groups": [GROUP | {"unused": [[]]}]},
        {"groups": [GROUP | {"outputs": [{"name": [], "dtype": "fp32", "shape": []}]}]},
        {"groups": [GROUP | {"inputs": "abc"}]},
        {"groups": []},
        {"format": 2},
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_metadata_with_wrong_types(header: dict[str, Any], options: list[str], tmp_path: Path, capsys: Capture) -> None:
    path = _write_vendor_file(tmp_path / "x.axmodel", axzoo=json.dumps(GOOD | header))
    assert main(["inspect", str(path), *options]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"axzoo: {path} has ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_excessively_nested_metadata(options: list[str], tmp_path: Path, capsys: Capture) -> None:
    for depth in (900, 100_000):
        text = json.dumps(GOOD).replace('{"weight_errors": {}}', '{"a": ' + "[" * depth + "]" * depth + "}")
        path = _write_vendor_file(tmp_path / "x.axmodel", axzoo=text)
        code = main(["inspect", str(path), *options])
        assert code == 1 or depth == 900
        assert capsys.readouterr().err.count("\n") == code


def test_control_characters_and_markup_are_escaped(tmp_path: Path, capsys: Capture) -> None:
    about = {"note": "\x1b[31m[bold]\ud800\n", "list": [1, {"b": None}], "weight_errors": {}}
    path = _write_vendor_file(tmp_path / "x.axmodel", axzoo=json.dumps(GOOD | {"about": about, "kind": "[red]x[/red]"}))
    lines = _lines(path, capsys)
    assert ["note", r"\x1b[31m[bold]\ud800\n"] in lines
    assert ["kind", "[red]x[/red]"] in lines
    assert ["list", '[1,{"b":null}]'] in lines
    assert _json(path, capsys)["header"]["about"] == about


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is damaged or not an ONNX model"), (b"\x00", "is damaged or not an ONNX model"), (None, "No such")],
)
def test_file_that_is_not_onnx(content: bytes | None, message: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.axmodel"
    if content is not None:
        path.write_bytes(content)
    assert main(["inspect", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert (error.count(str(path)), error.count("\n")) == (1, 1)


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A sparse file with 1.5 GB of weights."""
    size = 1_500_000_000
    path = tmp_path / "large.onnx"
    tensor = TensorProto(name="w", data_type=TensorProto.INT8, dims=[size]).SerializeToString() + _tag(9, size)
    graph = _tag(5, len(tensor) + size) + tensor
    with path.open("wb") as file:
        file.write(onnx.ModelProto(ir_version=8).SerializeToString() + _tag(7, len(graph) + size) + graph)
        file.truncate(file.tell() + size)
    program = (
        "import sys; from axzoo.cli import main; code = main(sys.argv[1:]); "
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "inspect", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *shown, peak = done.stdout.splitlines()
    assert ["int8", "1", str(size), str(size)] in [line.split() for line in shown]
    assert int(peak) / 1000 < 100


def _tag(field: int, length: int) -> bytes:
    """The tag and length of a length-delimited protobuf field."""
    head = bytearray([field << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*head, length])
