"""The layers' inputs on the disk: those of transformers, the same on any number of cores, and nobody else's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from axzoo.calibrate.states import INDEX, find_states, layer_inputs, states_file, write_states
from axzoo.core.errors import AxzooError
from axzoo.model.oracle import Oracle
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.parts.kind import PartId
from tiny_model import LAYERS, Built, Checkpoint

TOKENS = torch.arange(1, 201).view(10, 20)
ORIGIN = {"tokens": 200}


@pytest.fixture(scope="module")
def oracle(exact: Built) -> Oracle:
    return checkpoint_oracle(exact.locks, exact.source, 20)


@pytest.fixture(scope="module")
def written(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    write_states(folder, oracle, TOKENS, ORIGIN)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "states"))


def test_they_are_what_transformers_gives_its_layers(checkpoint: Checkpoint, oracle: Oracle) -> None:
    with torch.inference_mode():
        wanted = checkpoint.model(TOKENS, output_hidden_states=True).hidden_states
    found = list(layer_inputs(oracle, TOKENS))
    assert len(found) == LAYERS
    for got, want in zip(found, wanted[:LAYERS], strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_what_is_written_is_read(oracle: Oracle, written: Path) -> None:
    for index, want in enumerate(layer_inputs(oracle, TOKENS)):
        states = find_states(written / states_file(PartId("layer", index)))
        assert torch.equal(states.read(want.shape[2]), want.bfloat16().float())
        assert states.origin == ORIGIN


def test_the_files_are_the_same_on_any_number_of_cores(oracle: Oracle, written: Path, tmp_path: Path) -> None:
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if cores > 1 else 2)
        write_states(tmp_path, oracle, TOKENS, ORIGIN)
    finally:
        torch.set_num_threads(cores)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written.iterdir())
    for path in written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_damage_is_named(folder: Path) -> None:
    path = folder / states_file(PartId("layer", 1))
    states = find_states(path)
    with pytest.raises(AxzooError, match=r"layer_1.*\[10, 20, 32\].*64 wide.*index.json and calibrate again"):
        states.read(64)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AxzooError, match=r"layer_1.safetensors changed after it was written: remove .*index.json"):
        states.read(32)
    path.unlink()
    with pytest.raises(AxzooError, match=r"layer_1.safetensors is missing: remove .*index.json"):
        states.read(32)


def test_a_file_of_other_content_is_refused(folder: Path) -> None:
    import hashlib

    path, index = folder / states_file(PartId("layer", 0)), folder / INDEX
    content = json.loads(index.read_text())
    save_file({"other": torch.zeros(2)}, path)
    content["layers"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    index.write_text(json.dumps(content))
    with pytest.raises(AxzooError, match="holds no hidden states"):
        find_states(path).read(32)


@pytest.mark.parametrize("text", ["{}", "[]", '{"layers": {}, "origin": {}}', '{"layers": 1}', "nonsense"])
def test_a_damaged_index_is_named(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(AxzooError, match=r"index\.json"):
        find_states(folder / states_file(PartId("layer", 0)))


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"index\.json is missing"):
        find_states(tmp_path / states_file(PartId("layer", 0)))
