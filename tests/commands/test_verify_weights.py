"""`axzoo verify --weights`: folders with files of the vendor's compiler, written by an independent writer."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

sys.path.append(str(Path(__file__).parents[1] / "backends"))

from table_writer import (
    Matrix,
    Shape,
    block_bytes,
    container,
    layer_table,
    post_table,
    random_layer,
    write_layer,
)

from axzoo.backends.pulsar2.vendor_folder import LockedWeights
from axzoo.backends.pulsar2.weight_proof import WeightProof, prove_tensors
from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.model.families import load_family
from axzoo.model.reading import read_spec
from axzoo.parts.lock import make_lock
from axzoo.parts.part import Part
from tiny_model import Built

Capture = pytest.CaptureFixture[str]

LAYERS, VOCABULARY = 4, 96
SHAPE = Shape(64, 4, 2, 32, 96, kind="s8", rule="B", qk_norm=True)


@dataclass(frozen=True)
class Model:
    """A checkpoint, and a folder of files that a user compiled from it, without a manifest."""

    checkpoint: Path
    folder: Path
    layers: list[dict[str, Matrix]]

    def file(self, layer: int | str) -> Path:
        return self.folder / f"qwen3_p8_l{layer}_together.axmodel"

    @property
    def post(self) -> Path:
        return self.folder / "qwen3_post.axmodel"


def write_checkpoint(folder: Path, layers: list[dict[str, Matrix]], norm: Matrix, embedding: Matrix) -> None:
    folder.mkdir()
    config = {
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 32,
        "num_key_value_heads": 2, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "tie_word_embeddings": True, "rope_theta": 10000.0, "hidden_act": "silu",
        "a_key_that_axzoo_does_not_know": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    family = load_family("qwen3")
    spec = read_spec(folder, "qwen3", LAYERS, ["a_key_that_axzoo_does_not_know"])
    tensors = {
        ref.name: layers[index][role]
        for index in range(LAYERS)
        for role, ref in family.layer_tensors(spec, index).items()
    }
    tensors |= {"model.norm.weight": norm, "model.embed_tokens.weight": embedding}
    save_file(tensors, folder / "model.safetensors")


def make_model(root: Path, seed: int = 0) -> Model:
    random = np.random.default_rng(seed)
    layers = [random_layer(SHAPE, random) for _ in range(LAYERS)]
    norm = random.standard_normal(64).astype(np.float32)
    embedding = random.standard_normal((VOCABULARY, 64)).astype(np.float32)
    embedding[64:] = np.tile(embedding[:1], (32, 1))
    root.mkdir(exist_ok=True)
    write_checkpoint(root / "checkpoint", layers, norm, embedding)
    model = Model(root / "checkpoint", root / "built", layers)
    model.folder.mkdir()
    for index, layer in enumerate(layers):
        write_layer(model.file(index), SHAPE, layer)
    model.post.write_bytes(container(bytes(post_table(norm, embedding).content)))
    return model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(original: Model, tmp_path: Path) -> Model:
    shutil.copytree(original.folder, tmp_path / "built")
    return Model(original.checkpoint, tmp_path / "built", original.layers)


def verify(
    model: Model, capsys: Capture, place: Path | None = None, checkpoint: Path | None = None
) -> tuple[int, str, str]:
    code = main(["verify", str(place or model.folder), "--weights", str(checkpoint or model.checkpoint)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


FORM = "s8, rule B, 32 rows per block"


def test_files_of_the_host_backend(s8: Built, model: Model, capsys: Capture) -> None:
    code, _, err = verify(model, capsys, s8.folder)
    assert code == 1
    assert f"was built by the host backend: `axzoo verify {s8.folder} --checks` compares it with its checkpoint" in err


def test_a_folder_built_by_hand(model: Model, capsys: Capture) -> None:
    code, out, err = verify(model, capsys)
    assert (code, err) == (0, "")
    lines = [f"{model.file(index).name}: holds the weights of layer {index} ({FORM})" for index in range(LAYERS)]
    lines.append(f"qwen3_post.axmodel: holds the weights of the post layer ({FORM})")
    lines.append(f"{model.folder}: all weights in 5 files are those of {model.checkpoint}")
    assert out.splitlines() == lines


def test_one_file(model: Model, capsys: Capture) -> None:
    code, out, _ = verify(model, capsys, model.file(2))
    assert code == 0
    assert f"{model.file(2)}: all weights in 1 files are those of {model.checkpoint}" in out


def test_decode_only_names(model: Model, capsys: Capture) -> None:
    for index in range(LAYERS):
        model.file(index).rename(model.folder / f"my-qwen_l{index}.axmodel")
    assert verify(model, capsys)[0] == 0


def test_swapped_layers(model: Model, capsys: Capture) -> None:
    model.file(1).rename(model.file("x"))
    model.file(3).rename(model.file(1))
    model.file("x").rename(model.file(3))
    code, out, err = verify(model, capsys)
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith(model.file(1).name)] == [
        f"{model.file(1).name}: holds the weights of layer 3"
    ]
    assert f"{model.file(3).name}: holds the weights of layer 1\n" in out
    assert f"{model.file(0).name}: holds the weights of layer 0 ({FORM})" in out
    assert f"{model.folder} does not hold the weights of {model.checkpoint} (files that differ" in err
    assert "cannot be proven: 2, missing: 0): compile these files again, or name the checkpoint that they" in err


def test_a_matrix_of_another_layer(model: Model, capsys: Capture) -> None:
    write_layer(model.file(1), SHAPE, model.layers[1] | {"o_proj.weight": model.layers[2]["o_proj.weight"]})
    code, out, _ = verify(model, capsys)
    assert code == 1
    assert f"{model.file(1).name}: o_proj.weight is that of layer 2\n" in out
    assert f"{model.file(1).name}: o_proj.weight is not in the file\n" in out


def test_the_matrices_of_another_layer(model: Model, capsys: Capture) -> None:
    """With the layer's own norms."""
    norms = {role: model.layers[1][role] for role in SHAPE.vectors}
    write_layer(model.file(1), SHAPE, model.layers[2] | norms)
    code, out, _ = verify(model, capsys)
    assert code == 1
    assert f"{model.file(1).name}: holds the matrices of layer 2\n" in out


def test_another_checkpoint(model: Model, capsys: Capture, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    code, out, err = verify(model, capsys, checkpoint=other.checkpoint)
    assert code == 1
    for index in range(LAYERS):
        message = f"holds the weights of no layer of {other.checkpoint}: it was compiled from another checkpoint"
        assert f"{model.file(index).name}: {message}\n" in out
    assert "qwen3_post.axmodel: lm_head.weight is not in the file\n" in out
    assert "cannot be proven: 5, missing: 0)" in err


def test_a_stale_layer(model: Model, capsys: Capture) -> None:
    """A file of an earlier version of the checkpoint, which had another gate_proj and another norm."""
    older = dict(model.layers[2])
    older["gate_proj.weight"] = older["gate_proj.weight"] * np.float32(1.01)
    older["mlp_norm.weight"] = older["mlp_norm.weight"] + np.float32(0.1)
    write_layer(model.file(2), SHAPE, older)
    code, out, _ = verify(model, capsys)
    assert code == 1
    faults = [line for line in out.splitlines() if line.startswith(model.file(2).name)]
    assert faults == [
        f"{model.file(2).name}: gate_proj.weight is not in the file",
        f"{model.file(2).name}: mlp_norm.weight is not in the file",
    ]


@pytest.mark.parametrize(
    ("place", "offset", "fault"),
    [
        ("down_proj.weight", 100, "down_proj.weight has 1 wrong codes, the first in row "),
        ("rope", 64, "has constants that differ from those of other layers, in bytes "),  # the rotary table
    ],
)
def test_one_flipped_bit(model: Model, capsys: Capture, place: str, offset: int, fault: str) -> None:
    table = write_layer(model.file(2), SHAPE, model.layers[2])
    content = bytearray(model.file(2).read_bytes())
    start = bytes(content).index(bytes(table.content))
    content[start + table.places[place] + offset] ^= 4
    model.file(2).write_bytes(content)
    code, out, _ = verify(model, capsys)
    assert code == 1
    assert f"{model.file(2).name}: {fault}" in out


def test_longer_constants(model: Model, capsys: Capture) -> None:
    table = write_layer(model.file(2), SHAPE, model.layers[2])
    model.file(2).write_bytes(container(bytes(table.content) + bytes(8), 64, 64))
    code, out, _ = verify(model, capsys)
    assert code == 1
    size = len(table.content)
    assert size
    assert f"{model.file(2).name}: has " in out
    assert "bytes of constants, at other places than the" in out


def test_swapped_matrices(model: Model, capsys: Capture) -> None:
    """gate_proj and up_proj have the same shape: only the order of the table tells them apart."""
    layer = dict(model.layers[0])
    layer["gate_proj.weight"], layer["up_proj.weight"] = layer["up_proj.weight"], layer["gate_proj.weight"]
    layer["input_norm.weight"], layer["mlp_norm.weight"] = layer["mlp_norm.weight"], layer["input_norm.weight"]
    write_layer(model.file(0), SHAPE, layer)
    code, out, _ = verify(model, capsys)
    assert code == 1
    assert "gate_proj.weight comes after up_proj.weight, and in all known files before it" in out
    assert "mlp_norm.weight" in out


def test_swapped_rows(model: Model, capsys: Capture) -> None:
    layer = dict(model.layers[0])
    layer["up_proj.weight"] = layer["up_proj.weight"][[*range(32, 64), *range(32), *range(64, 96)]]
    write_layer(model.file(0), SHAPE, layer)
    code, out, _ = verify(model, capsys)
    assert code == 1
    assert f"{model.file(0).name}: up_proj.weight has blocks of rows in another order\n" in out


def test_missing_and_additional_files(model: Model, capsys: Capture) -> None:
    model.file(2).unlink()
    model.post.unlink()
    shutil.copy(model.file(1), model.file(4))
    code, out, err = verify(model, capsys)
    assert code == 1
    assert out.splitlines()[-2:] == [f"{model.file(2).name} is missing", "the file of the post layer is missing"]
    assert f"{model.file(4).name}: is layer 4 by its name, and the checkpoint has 4 layers\n" in out
    assert "(files that differ or cannot be proven: 1, missing: 2)" in err


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda model: model.file(1).write_bytes(model.file(1).read_bytes()[:5000]), "is damaged or not a"),
        (lambda model: model.file(1).write_text("version https://git-lfs.github.com/spec/v1"), "is damaged or not a"),
        (lambda model: [path.unlink() for path in model.folder.iterdir()], "has no such files: MODELTYPE_p128_l0_tog"),
    ],
)
def test_files_that_cannot_be_read(
    model: Model, capsys: Capture, change: Callable[[Model], object], message: str
) -> None:
    change(model)
    code, _, err = verify(model, capsys)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


def test_checkpoints_that_cannot_be_read(model: Model, capsys: Capture, tmp_path: Path) -> None:
    code, _, err = verify(model, capsys, checkpoint=tmp_path / "nowhere")
    assert (code, err) == (1, f"axzoo: {tmp_path}/nowhere/config.json is missing\n")
    (tmp_path / "config.json").write_text("{}")
    code, _, err = verify(model, capsys, checkpoint=tmp_path)
    assert (code, "it has no model_type" in err) == (1, True)


def test_a_gptq_checkpoint(model: Model, capsys: Capture, tmp_path: Path) -> None:
    shutil.copytree(model.checkpoint, tmp_path / "gptq")
    (tmp_path / "gptq/quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128, "sym": True}))
    code, _, err = verify(model, capsys, checkpoint=tmp_path / "gptq")
    assert code == 1
    assert "has GPTQ codes with scales per group, and no published file shows how the compiler stores them" in err


def prove(path: Path, layer: dict[str, Matrix]) -> WeightProof:
    return prove_tensors(path, {role: tensor.shape for role, tensor in layer.items()}, lambda role: [layer[role]])


def test_biases_cannot_be_proven(tmp_path: Path) -> None:
    """Wherever a file has them: as vectors of their own, or where other files have zeros."""
    shape = Shape(64, 4, 2, 32, 96)
    layer = random_layer(shape, np.random.default_rng(0))
    biased = layer | {"q_proj.bias": np.random.default_rng(1).standard_normal(128).astype(np.float32)}
    table = write_layer(tmp_path / "x.axmodel", shape, layer)
    proof = prove(tmp_path / "x.axmodel", biased)
    assert (proof.faults, proof.proven) == ((), False)
    assert proof.unknown == ("q_proj.bias is not in the file: no published file shows where biases are",)
    content = bytearray(table.content)
    end = table.places["q_proj.weight"] + len(block_bytes(layer["q_proj.weight"][:32], "s8", "A"))
    content[end - 256 : end - 128] = biased["q_proj.bias"][:32].tobytes()
    (tmp_path / "x.axmodel").write_bytes(container(bytes(content)))
    proof = prove(tmp_path / "x.axmodel", biased)
    assert proof.faults == ()
    assert len(proof.unknown) == 2
    without = prove(tmp_path / "x.axmodel", layer)
    assert without.faults[0].startswith(
        "q_proj.weight has bytes that are not 0, but are in all known files, in 1 blocks"
    )


def test_rows_that_no_file_shows(tmp_path: Path) -> None:
    shape = Shape(64, 4, 2, 32, 96)
    layer = random_layer(shape, np.random.default_rng(0))
    write_layer(tmp_path / "x.axmodel", shape, layer)
    layer["v_proj.weight"] = layer["v_proj.weight"][:40]
    proof = prove(tmp_path / "x.axmodel", layer)
    text = "v_proj.weight has 40 rows, and no file shows how a number that is not a multiple of 32 is stored"
    assert proof.unknown == (text,)


def test_types_of_one_build(tmp_path: Path) -> None:
    """A layer whose v_proj was compiled as s4."""
    shape = Shape(64, 4, 2, 32, 96)
    layer = random_layer(shape, np.random.default_rng(0))
    table = layer_table(shape, layer)
    old = b"".join(block_bytes(layer["v_proj.weight"][start : start + 32], "s8", "A") for start in (0, 32))
    new = b"".join(block_bytes(layer["v_proj.weight"][start : start + 32], "s4", "A") for start in (0, 32))
    (tmp_path / "x.axmodel").write_bytes(container(bytes(table.content).replace(old, new)))
    proof = prove(tmp_path / "x.axmodel", layer)
    form = "s4, rule A, 32 rows per block; s8, rule A, 32 rows per block"
    assert proof.faults == (f"its matrices are stored in different types: {form}",)


@pytest.mark.parametrize("length", range(1, 5))
def test_tables_at_any_byte(tmp_path: Path, length: int) -> None:
    """The table starts at any byte of the file, aligned or not."""
    shape = Shape(64, 4, 2, 32, 96)
    layer = random_layer(shape, np.random.default_rng(0))
    write_layer(tmp_path / "x.axmodel", shape, layer)
    saved = onnx.load(tmp_path / "x.axmodel")
    saved.doc_string = "x" * length
    onnx.save(saved, tmp_path / "x.axmodel")
    proof = prove(tmp_path / "x.axmodel", layer)
    assert proof.proven


def test_a_checkpoint_of_another_shape(model: Model, capsys: Capture, tmp_path: Path) -> None:
    shutil.copytree(model.checkpoint, tmp_path / "other")
    path = tmp_path / "other/config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 96', '"intermediate_size": 128'))
    code, _, err = verify(model, capsys, checkpoint=tmp_path / "other")
    assert code == 1
    assert "has one of shape [96, 64]: its config.json requires model.layers.0.mlp.gate_proj.weight of shape " in err


def prove_locked(path: Path, part: Part, checkpoint: Path, weight_type: str | None = None) -> WeightProof:
    weights = LockedWeights([part], checkpoint)
    return prove_tensors(path, weights.shapes(part.id.index), weights.reader(part.id.index), weight_type)


def test_proof_against_a_lock(model: Model) -> None:
    """The verdict for one part of a locked checkpoint."""
    lock = make_lock(model.checkpoint, "qwen3", LAYERS, ["a_key_that_axzoo_does_not_know"])
    checkpoint = model.checkpoint
    for part, path in zip(lock.parts, [*map(model.file, range(LAYERS)), model.post], strict=False):
        proof = prove_locked(path, part, checkpoint, "s8")
        assert proof.proven
        assert proof.to_dict()["form"] == FORM
    wrong = prove_locked(model.file(0), lock.parts[0], checkpoint, "s4")
    assert wrong.faults == ("its weights are stored as s8 instead of s4",)
    other = prove_locked(model.file(0), lock.parts[1], checkpoint)
    assert "q_proj.weight is not in the file" in other.to_dict()["faults"]


def test_a_checkpoint_that_changed_since_it_was_locked(model: Model, tmp_path: Path) -> None:
    shutil.copytree(model.checkpoint, tmp_path / "checkpoint")
    lock = make_lock(tmp_path / "checkpoint", "qwen3", LAYERS, ["a_key_that_axzoo_does_not_know"])
    path = tmp_path / "checkpoint/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(AxzooError, match="changed since locking: lock the checkpoint again"):
        for part, file in zip(lock.parts, [*map(model.file, range(LAYERS)), model.post], strict=False):
            prove_locked(file, part, checkpoint)


def test_inspect(model: Model, capsys: Capture) -> None:
    """Without a checkpoint, a file still shows its groups, and its type by the sums of its first blocks."""
    assert main(["inspect", str(model.file(1))]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["built", "by", "the", "vendor's", "compiler,", "7.0-lite"] in lines
    assert ["provenance", "no", "manifest", "in", "its", "folder"] in lines
    assert "s8, 32 rows per block; the first 96 rows, from byte 580 of the table, agree with their sums" in " ".join(
        word for line in lines for word in line
    )
    assert ["1", "in", "mask", "bf16", "[1,", "8,", "8]", "subgraph_npu_1_b1_neu", "(64)"] in lines

    assert main(["inspect", str(model.file(1)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["weight_type"], found["rows_per_block"]) == ("s8", 32)
    assert found["first_matrix"] == {"offset": 580, "rows": 96}
    assert found["groups"][1]["inputs"][0] == {"name": "K_cache", "dtype": "bf16", "shape": [1, 1, 64]}
    assert "table" not in found


@pytest.mark.parametrize(
    "shape, found",
    [
        (
            Shape(64, 2, 2, 64, 96, kind="s4", qkv_rows=64),
            "s4, 64 rows per block; the first 192 rows, from byte 580 of",
        ),
        (Shape(608, 1, 1, 32, 32, kind="s4"), "s4, 32 rows per block; the first 64 rows, from byte 4932 of"),
        (Shape(64, 2, 2, 32, 96, kind="bf16"), "not recognized without their checkpoint: float weights, or another"),
    ],
)
def test_inspected_types(tmp_path: Path, capsys: Capture, shape: Shape, found: str) -> None:
    path = tmp_path / "llama_p8_l0_together.axmodel"
    write_layer(path, shape, random_layer(shape, np.random.default_rng(0)))
    assert main(["inspect", str(path)]) == 0
    assert found in " ".join(capsys.readouterr().out.split())


def test_inspected_unit_norms_and_post(model: Model, tmp_path: Path, capsys: Capture) -> None:
    layer = random_layer(SHAPE, np.random.default_rng(0))
    for role in SHAPE.vectors:
        layer[role][:] = 1
    write_layer(tmp_path / "x.axmodel", SHAPE, layer)
    assert main(["inspect", str(tmp_path / "x.axmodel")]) == 0
    assert "from byte 68 of the table" in " ".join(capsys.readouterr().out.split())


def test_inspected_hostile_file(model: Model, capsys: Capture) -> None:
    model.file(1).write_bytes(model.file(1).read_bytes()[:-40])
    assert main(["inspect", str(model.file(1))]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
