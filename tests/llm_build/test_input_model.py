"""What `llm_build` reads from a checkpoint before the build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.llm_build.input_model import InputModel, read_model, read_override
from axzoo.parts.lock import make_lock
from tiny_model import Checkpoint, make_checkpoint

OPTION = Path("--model_type")
MINICPMV = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 8, "query_num": 64}


def read(folder: Path, **override: object) -> InputModel:
    return read_model(folder, override, Path("mine.json"), ())


def change_config(checkpoint: Checkpoint, folder: Path, **values: object) -> Path:
    shutil.copytree(checkpoint.folder, folder)
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("qwen") / "Qwen2-tiny", model_type="qwen2")


def test_checkpoint_folder(qwen: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(qwen.folder)
    model = read(Path())
    assert (model.path, model.name) == (qwen.folder, "Qwen2-tiny")
    assert (model.spec.model_type, model.spec.num_hidden_layers) == ("qwen2", 2)
    assert (model.has_chat_template, model.spec.vision) == (True, None)


def test_model_without_chat_template(qwen: Checkpoint, tmp_path: Path) -> None:
    folder = change_config(qwen, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    assert not read(folder).has_chat_template


@pytest.mark.parametrize(
    ("name", "entry"),
    [("Qwen 2 (0.5B)", "Qwen-2--0.5B-"), (".hidden", "hidden"), ("模型", "model"), ("a" * 200, "a" * 128)],
)
def test_folder_name_becomes_a_valid_entry_name(qwen: Checkpoint, tmp_path: Path, name: str, entry: str) -> None:
    assert read(change_config(qwen, tmp_path / name)).name == entry


def test_gguf_file_or_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "fetch")
    from tiny_gguf import make_tiny

    tiny = make_tiny(tied=True)
    path = tiny.write(tmp_path / "Llama.Q8.gguf")
    for root in (path, tmp_path):
        model = read(root)
        assert model.path == root
        assert (model.spec.model_type, model.spec.num_hidden_layers) == ("llama", tiny.model.config.num_hidden_layers)
    assert read(path).name == "Llama.Q8"


def test_overrides(qwen: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"model_name": "Qwen2", "model_type": "phi", "rope_theta_base": 20000.0}')
    override = read_override(file, "qwen")
    assert override == {"model_name": "Qwen2", "model_type": "qwen", "rope_theta_base": 20000.0}
    model = read_model(qwen.folder, override, file, ())
    assert (model.spec.model_type, model.spec.layer.rope.theta) == ("qwen2", 20000.0)
    assert (model.name, model.shown_name, read(qwen.folder).shown_name) == ("Qwen2-tiny", "Qwen2", "Qwen2-tiny")
    assert read_override(None, None) == {}
    file.write_text("[]")
    with pytest.raises(AxzooError, match=r"mine\.json is not a mapping"):
        read_override(file, None)


def test_errors_in_overrides_name_the_users_file(qwen: Checkpoint) -> None:
    with pytest.raises(AxzooError, match=r"^mine\.json: unknown key 'hiden_size': did you mean 'hidden_size'\?"):
        read(qwen.folder, hiden_size=3)


def test_vision_tower_is_detected(tmp_path: Path) -> None:
    llama = make_checkpoint(tmp_path / "llama")
    folder = change_config(llama, tmp_path / "vision", model_type="minicpmv", **MINICPMV)
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    for key in ("head_dim", "mlp_bias", "layer_types"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": rope["rope_theta"]}))
    assert read(folder).spec.vision is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"), ({"strange": 1}, "does not know: strange")],
)
def test_unsupported_checkpoint(qwen: Checkpoint, tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        read(change_config(qwen, tmp_path / "changed", **values))


def test_unknown_key_can_be_ignored(qwen: Checkpoint, tmp_path: Path) -> None:
    folder = change_config(qwen, tmp_path / "changed", strange=1)
    assert read_model(folder, {}, OPTION, ["strange"]).spec == read(qwen.folder).spec


def test_missing_key_cannot_be_ignored(qwen: Checkpoint) -> None:
    with pytest.raises(AxzooError, match=r"^--ignore_config_keys strange: .*config\.json has no such key"):
        read_model(qwen.folder, {}, OPTION, ["strange"])


def test_key_that_the_build_needs_cannot_be_ignored(qwen: Checkpoint) -> None:
    with pytest.raises(
        AxzooError, match=r"config\.json: hidden_size, num_hidden_layers cannot be ignored, because the build"
    ):
        read_model(qwen.folder, {}, OPTION, ["num_hidden_layers", "hidden_size"])


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "phi3"])
def test_sizes_match_the_lock(family: str, tmp_path: Path) -> None:
    """Fused tensors are counted once; a tied head is counted as part of the post layer."""
    checkpoint = make_checkpoint(tmp_path / family, model_type=family)
    lock = make_lock(checkpoint.folder, family, checkpoint.layers)
    sizes = read(checkpoint.folder).sizes
    assert sizes["layer"] == lock.of_kind("layer")[0].parameters
    assert (sizes["post"], sizes["kv_width"]) == (lock.of_kind("post")[0].parameters, lock.spec.layer.kv_size)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="give the folder of a Hugging Face checkpoint, or a GGUF file"):
        read(tmp_path / "nothing")
    with pytest.raises(AxzooError, match=r"contains no weights that axzoo can read"):
        read(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(AxzooError, match=r"contains no config\.json"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(AxzooError, match=r"is not the config\.json of a Hugging Face checkpoint"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hub/models--org--Tiny-Chat/snapshots/" + "0123" * 10, "Tiny-Chat"),
        ("hub/models--gpt2/snapshots/" + "0123" * 10, "gpt2"),
        ("snapshots/" + "0123" * 10 + "x", "0123" * 10 + "x"),
        ("models--org--Tiny/snapshots/main", "main"),
        ("0123" * 10, "0123" * 10),
    ],
)
def test_snapshot_of_the_hubs_cache_is_named_after_its_repository(
    qwen: Checkpoint, tmp_path: Path, path: str, name: str
) -> None:
    shutil.copytree(qwen.folder, tmp_path / path)
    assert (read(tmp_path / path).name, read(tmp_path / path).shown_name) == (name, name)


def test_gguf_in_the_hubs_cache_has_the_name_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "fetch")
    from tiny_gguf import make_tiny

    make_tiny(tied=True).write(tmp_path / "5f1d")
    (tmp_path / "tiny.Q8_0.GGUF").symlink_to("5f1d")
    model = read(tmp_path / "tiny.Q8_0.GGUF")
    assert (model.name, model.path) == ("tiny.Q8_0", tmp_path / "tiny.Q8_0.GGUF")


def test_leftover_index_is_reported(qwen: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = change_config(qwen, tmp_path / "both")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    read(folder)
    assert f"using model.safetensors of {folder}, as transformers does" in caplog.text
