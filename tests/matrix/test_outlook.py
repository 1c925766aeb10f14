"""Problems and sizes that are known before a build starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.fetch.sources import FolderSource, HubSource
from axzoo.matrix import outlook
from axzoo.matrix.build import Build
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.outlook import build_problems, host_lines, refuse_full_disk, refuse_problems, to_fetch
from axzoo.parts.lock import make_lock, write_lock
from axzoo.weights.recipe import Recipe
from tiny_model import LAYERS, Checkpoint

sys.path.append(str(Path(__file__).parents[1] / "fetch"))
from tiny_gguf import make_tiny

CHIPS = Path(__file__).parents[2] / "config/chips.yaml"
Edit = Callable[..., Build]


@pytest.fixture
def build(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A build of a copy of the small llama, which has 128 positions and 262 tokens."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint.folder, "there")
    return _builds(path="there")[0]


def _builds(**entry: Any) -> tuple[Build, ...]:
    usual = {"model_type": "llama", "num_hidden_layers": LAYERS, "chips": ["AX650"], "prefill_len": 0}
    Path("zoo.yaml").write_text(json.dumps({"models": {"tiny": {**usual, "kv_cache_len": 63, **entry}}}))
    return load_zoo(Path("zoo.yaml"), CHIPS).builds()


def _configure(**values: Any) -> None:
    config = json.loads(Path("there/config.json").read_text()) | values
    Path("there/config.json").write_text(json.dumps(config))


def test_a_sound_build_has_no_problems(build: Build) -> None:
    assert list(build_problems(build)) == []
    refuse_problems([build, build])


@pytest.mark.parametrize(
    "entry, problem",
    [
        (
            {"path": "no/such"},
            "models.tiny.path: no/such does not exist: give the path of an existing checkpoint folder",
        ),
        (
            {"path": "there", "model_config": "config/no.json"},
            "models.tiny.model_config: config/no.json does not exist",
        ),
        ({"path": "there", "calibration_text": "no.txt"}, "models.tiny.calibration_text: no.txt does not exist"),
        ({"hub": "o/m", "revision": "main", "model_config": "no.json"}, "models.tiny.model_config: no.json does not"),
        (
            {"path": "there", "kv_cache_len": 129},
            "models.tiny: kv_cache_len 129 needs 129 positions, and the model sup",
        ),
        (
            {"path": "there", "post_topk": 263},
            "models.tiny: post_topk 263 exceeds the vocabulary of 262 tokens: lower it",
        ),
        (
            {"path": "there", "weight_group_size": 64},
            "models.tiny: weight_group_size 64 does not divide the input features of every matrix, 32 and 48: use 0",
        ),
        ({"path": "there", "num_hidden_layers": 3}, "models.tiny: there/config.json has 2 layers, but the matrix says"),
        (
            {"path": "there", "model_type": "qwen2"},
            "models.tiny: there/config.json has model_type 'llama', but the mat",
        ),
    ],
)
def test_problems_of_an_entry(build: Build, entry: dict[str, Any], problem: str) -> None:
    (found,) = {line for build in _builds(**entry) for line in build_problems(build)}
    assert found.startswith(problem)
    with pytest.raises(AxzooError) as error:
        refuse_problems(_builds(**entry))
    assert str(error.value) == found


@pytest.mark.parametrize(
    "values, problem",
    [
        ({"model_type": "mamba"}, "models.tiny: there/config.json: model_type 'mamba' is not supported"),
        ({"logit_scale": 2.0}, "models.tiny: there/config.json has keys axzoo does not know: logit_scale"),
        ({"max_position_embeddings": 62}, "models.tiny: kv_cache_len 63 needs 63 positions, and the model supports 62"),
        ({"hidden_size": None}, "models.tiny: there/config.json has no hidden_size"),
    ],
)
def test_problems_of_a_config(build: Build, values: dict[str, Any], problem: str) -> None:
    _configure(**values)
    (found,) = build_problems(build)
    assert found.startswith(problem)


def test_rope_scaling_extends_what_the_model_supports(build: Build) -> None:
    _configure(max_position_embeddings=32, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert list(build_problems(build)) == []
    _configure(rope_parameters={"rope_type": "dynamic", "factor": 1.5, "rope_theta": 1e4})
    assert "the model supports 48" in next(build_problems(build))


def test_a_model_config_is_applied(build: Build) -> None:
    _configure(max_position_embeddings=32)
    Path("override.json").write_text('{"max_position_embeddings": 64}')
    assert list(build_problems(_builds(path="there", model_config="override.json")[0])) == []


def test_the_lock_of_a_fetched_checkpoint_is_known(build: Build, checkpoint: Checkpoint) -> None:
    (hub,) = _builds(hub="org/tiny", revision="main", kv_cache_len=129)
    assert list(build_problems(hub)) == []  # not fetched: nothing is known
    source = {"hub": "org/tiny", "revision": "main", "commit": "0" * 40}
    write_json(hub.checkpoint / "source.json", {"source": source, "root": ".", "files": {}})
    assert list(build_problems(hub)) == []  # not locked
    write_lock(make_lock(checkpoint.folder, "llama", LAYERS), hub.locks, checkpoint.folder, source)
    assert next(build_problems(hub)).startswith("models.tiny: kv_cache_len 129 needs 129 positions")
    other = replace(hub, source=HubSource("org/tiny", "other"))
    assert list(build_problems(other)) == []  # another revision will be fetched
    (hub.locks / "index.json").write_text("{")
    assert list(build_problems(hub)) == []  # it will be locked again


@pytest.mark.parametrize(
    "revision, offline, known", [("1" * 40, False, True), ("main", False, False), ("main", True, True)]
)
def test_config_json_in_the_hubs_cache_is_known_before_a_fetch(
    build: Build, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, revision: str, offline: bool, known: bool
) -> None:
    """Only config.json is there. Without HF_HUB_OFFLINE, a branch may be at another commit by now."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("cache").absolute()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    snapshot = Path("cache/models--org--tiny/snapshots", "1" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(checkpoint.folder / "config.json", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("1" * 40)
    (hub,) = _builds(hub="org/tiny", revision=revision, kv_cache_len=129)
    problem = "models.tiny: kv_cache_len 129 needs 129 positions, and the model supports 128"
    assert [found.startswith(problem) for found in build_problems(hub)] == [True] * known
    assert list(build_problems(replace(hub, source=HubSource("org/other", revision)))) == []
    assert list(build_problems(_builds(hub="org/tiny", revision=revision)[0])) == []


SIZES = {"layer": 200_000_000, "post": 100_000_000, "kv_width": 1024}


def test_gigabytes_to_fetch(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub,) = _builds(hub="org/tiny", revision="main", num_hidden_layers=32, sizes=SIZES)
    other = replace(hub, model="other")
    unknown = replace(hub, model="unknown", sizes=())
    assert to_fetch([build]) is None  # used in place
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**12}))
    assert to_fetch([hub, hub]) == "to fetch: tiny, about 13.0 GB, estimated from sizes"
    assert to_fetch([hub, other]) == "to fetch: 2 models, about 26.0 GB, estimated from sizes"
    assert to_fetch([unknown]) == "to fetch: unknown; the size is not known, because the matrix has no sizes"
    assert to_fetch([hub, unknown]) == (
        "to fetch: 2 models, about 13.0 GB, estimated from sizes, and 1 of unknown size"
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2 * 10**9}))
    assert to_fetch([hub]) == ("to fetch: tiny, about 13.0 GB, estimated from sizes; the disk has only 2.0 GB left")
    write_json(hub.checkpoint / "source.json", {})
    assert to_fetch([hub, other]) == (
        "to fetch: other, about 13.0 GB, estimated from sizes; the disk has only 2.0 GB left"
    )


def test_a_disk_that_cannot_hold_the_checkpoints(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """6.5 billion weights take 3.25 GB if all of them have 4 bits."""
    (hub,) = _builds(hub="org/tiny", revision="main", num_hidden_layers=32, sizes=SIZES)
    unknown = replace(hub, model="unknown", sizes=())
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 325 * 10**7}))
    refuse_full_disk([build, hub, unknown])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 324 * 10**7}))
    with pytest.raises(AxzooError, match=r"^tiny, unknown: .* take 3\.2 GB more at least, and .* 3\.2 GB left"):
        refuse_full_disk([build, hub, unknown])
    received = hub.checkpoint / ".parts/abc"
    received.parent.mkdir(parents=True, exist_ok=True)
    with received.open("wb") as file:
        file.truncate(10**8)  # sparse
    refuse_full_disk([build, hub])
    write_json(hub.checkpoint / "source.json", {})
    refuse_full_disk([build, hub])


def test_models_in_the_hubs_cache_are_not_fetched(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With HF_HUB_OFFLINE, they are used in place."""
    (hub,) = _builds(hub="org/tiny", revision="main", num_hidden_layers=32, sizes=SIZES)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AxzooError, match="the checkpoints to fetch"):
        refuse_full_disk([hub])
    repository = tmp_path / "cache/models--org--tiny"
    commit = "a" * 40
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    refuse_full_disk([hub])
    assert to_fetch([hub]) is None


def test_what_is_already_here(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub,) = _builds(hub="org/tiny", revision="main", num_hidden_layers=32, sizes=SIZES)
    other, third = replace(hub, model="other"), replace(hub, model="third")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**12}))
    write_json(other.checkpoint / "source.json", {"files": {"a": {"size": 2 * 10**9}, "b": {"size": 5 * 10**8}}})
    assert to_fetch([hub, other]) == (
        "to fetch: tiny, about 13.0 GB, estimated from sizes; fetched before: 1 model, 2.5 GB"
    )
    for name, size in ((".parts/abc", 10**9), ("model.safetensors", 3 * 10**8)):
        path = hub.checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)  # sparse
    write_json(third.checkpoint / "source.json", {"files": {"a": {"size": 10**9}}})
    assert to_fetch([hub, other, third]) == (
        "to fetch: tiny, about 13.0 GB, estimated from sizes, 1.3 GB of it already here; "
        "fetched before: 2 models, 3.5 GB"
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 12 * 10**9}))
    assert "the disk has only" not in str(to_fetch([hub]))  # 11.7 GB are missing
    assert to_fetch([other]) is None


def test_the_estimate_is_near_published_sizes() -> None:
    """The sizes in bytes that the hub lists for the safetensors of these repositories."""
    zoo = load_zoo(Path(__file__).parents[2] / "config/zoo.yaml", CHIPS)
    published = {"Qwen2-0.5B-Instruct": 988e6, "Llama-3.2-1B-Instruct": 2.47e9, "SmolLM2-135M-Instruct": 269e6}
    for model, size in published.items():
        build = zoo.builds_of(model)[0]
        estimate = outlook.BYTES_PER_WEIGHT * outlook.parameters(build, build.recipe, dict(build.sizes))
        assert estimate == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("model_type", ["qwen_2", "mamba", "Llama"])
def test_an_unknown_model_type_is_reported_with_its_line(build: Build, model_type: str) -> None:
    message = rf"^zoo\.yaml:\d+: models\.tiny\.model_type: '{model_type}' is not supported: use one of chatglm, llama, "
    with pytest.raises(AxzooError, match=message):
        _builds(path="there", model_type=model_type)


def test_planning_does_not_import_numpy(build: Build) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from axzoo.matrix.entries import load_zoo\nfrom axzoo.matrix.outlook import refuse_problems, to_fetch\n"
        f"builds = load_zoo(Path('hub.yaml'), Path({str(CHIPS)!r})).builds()\n"
        "refuse_problems(builds); to_fetch(builds); sys.exit('numpy' in sys.modules)"
    )
    entry = {"hub": "org/tiny", "revision": "main", "model_type": "llama", "num_hidden_layers": 2}
    Path("hub.yaml").write_text(json.dumps({"models": {"tiny": entry}}))
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda: Path("there/model.safetensors").unlink(), "weights"),
        (lambda: Path("there/config.json").unlink(), "config.json"),
        (lambda: Path("there/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (lambda: (shutil.rmtree("there"), Path("there").write_text("x")), "is not a folder"),
    ],
)
def test_a_folder_that_is_not_a_checkpoint(build: Build, change: Callable[[], object], problem: str) -> None:
    change()
    (found,) = build_problems(build)
    assert found.startswith("models.tiny: ")
    assert problem in found


def test_the_header_of_a_gguf_file_is_known_until_it_is_locked(build: Build) -> None:
    tiny = make_tiny(tied=False)
    tiny.write(Path("model.gguf"))
    supported = tiny.model.config.max_position_embeddings
    recipe = replace(build.recipe, kv_cache_len=supported + 1)
    of_gguf = replace(build, source=FolderSource("model.gguf"), recipe=recipe)
    assert next(build_problems(of_gguf)).startswith(f"models.tiny: kv_cache_len {supported + 1} needs {supported + 1}")
    assert list(build_problems(replace(of_gguf, recipe=replace(recipe, kv_cache_len=supported)))) == []
    write_json(build.locks / "index.json", {})
    assert list(build_problems(of_gguf)) == []


def test_lines_about_hosts_name_the_models_that_cannot_be_loaded(build: Build) -> None:
    """Once for all models with the same lengths, and the build is not refused: main_prefill loads it."""
    long = Recipe(last_kv_cache_len=tuple(range(128, 1024, 128)))
    builds = [replace(build, model=f"m{index}", recipe=long) for index in (1, 2, 3, 4, 5, 1)]
    fitting = replace(build, recipe=Recipe(last_kv_cache_len=(128, 256)))
    line, of_topk = host_lines([*builds, fitting, replace(build, recipe=replace(fitting.recipe, post_topk=3))])
    assert line.startswith("m1, m2, m3 and 2 more models: kv_cache_len 1023 is shorter than the prefill groups, which")
    assert of_topk.startswith("tiny: post_topk 3 replaces the logits, which axllm needs")
    assert host_lines([fitting]) == []
    assert [*build_problems(replace(build, recipe=replace(long, kv_cache_len=127, last_kv_cache_len=())))] == []
