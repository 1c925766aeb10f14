"""The stored layer inputs agree with transformers, do not depend on the number of cores, and are verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from axzoo.calibrate.states import INDEX, find_states, layer_inputs, write_states
from axzoo.core.errors import AxzooError
from axzoo.model.oracle import Oracle
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.parts.kind import PartId
from axzoo.parts.receipt import states_file
from tiny_model import LAYERS, Built, Checkpoint

TOKENS = torch.arange(1, 201).view(10, 20)
ORIGIN = {"tokens": 200}


@pytest.fixture(scope="module")
def oracle(exact: Built) -> Oracle:
    return checkpoint_oracle(exact.locks, exact.source, 20)


@pytest.fixture(scope="module")
def written(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    write_states(folder, oracle, TOKENS, ORIGIN, "digest")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(written, tmp_path / "states"))


def test_layer_inputs_agree_with_transformers(checkpoint: Checkpoint, oracle: Oracle) -> None:
    with torch.inference_mode():
        wanted = checkpoint.model(TOKENS, output_hidden_states=True).hidden_states
    found = list(layer_inputs(oracle, TOKENS))
    assert len(found) == LAYERS
    for got, want in zip(found, wanted[:LAYERS], strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_round_trip(oracle: Oracle, written: Path) -> None:
    for index, want in enumerate(layer_inputs(oracle, TOKENS)):
        states = find_states(written / states_file(PartId("layer", index)))
        assert torch.equal(states.read(want.shape[2]), want.bfloat16().float())
        assert states.origin == ORIGIN


def test_the_files_are_the_same_on_any_number_of_cores(oracle: Oracle, written: Path, tmp_path: Path) -> None:
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if cores > 1 else 2)
        write_states(tmp_path, oracle, TOKENS, ORIGIN, "digest")
    finally:
        torch.set_num_threads(cores)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written.iterdir())
    for path in written.glob("*.safetensors"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_damage_is_reported(folder: Path) -> None:
    path = folder / states_file(PartId("layer", 1))
    states = find_states(path)
    with pytest.raises(AxzooError, match=r"layer_1.*\[10, 20, 32\].*hidden_size is 64.*index.json and calibrate again"):
        states.read(64)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AxzooError, match=r"layer_1.safetensors was changed after it was written: remove .*index.json"):
        states.read(32)
    path.unlink()
    with pytest.raises(AxzooError, match=r"layer_1.safetensors is missing: remove .*index.json"):
        states.read(32)


def test_a_file_without_hidden_states_is_refused(folder: Path) -> None:
    import hashlib

    path, index = folder / states_file(PartId("layer", 0)), folder / INDEX
    content = json.loads(index.read_text())
    save_file({"other": torch.zeros(2)}, path)
    content["layers"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    index.write_text(json.dumps(content))
    with pytest.raises(AxzooError, match="contains no hidden states"):
        find_states(path).read(32)


@pytest.mark.parametrize("text", ["{}", "[]", '{"layers": {}, "origin": {}}', '{"layers": 1}', "nonsense"])
def test_a_damaged_index_is_reported(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(AxzooError, match=r"index\.json"):
        find_states(folder / states_file(PartId("layer", 0)))


def test_a_missing_index_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"index\.json is missing"):
        find_states(tmp_path / states_file(PartId("layer", 0)))
