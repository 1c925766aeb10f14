"""Images, a native package: how the compiler is started and ended, with simulated container programs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from axzoo.backends import load_backend
from axzoo.backends.pulsar2 import tool
from axzoo.backends.pulsar2.settings import read_settings
from axzoo.backends.pulsar2.tool import find_tool
from axzoo.core.errors import AxzooError
from pulsar2_jobs import PROGRAM, RECIPE, Jobs, calls, processes_with, wait_until_none
from pulsar2_simulator.launchers import IMAGE, install
from tiny_model import Checkpoint


@pytest.fixture
def jobs(checkpoint: Checkpoint, tmp_path: Path) -> Jobs:
    return Jobs(checkpoint, tmp_path)


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs the container programs. Returns the file in which they record how they start containers."""
    programs = install(tmp_path / "programs")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    for name in ("CONTAINERS", "LAUNCHES", "CALLS"):
        monkeypatch.setenv(f"SIMULATOR_{name}", str(tmp_path / name.lower()))
    (tmp_path / "containers").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    find_tool.cache_clear()
    return tmp_path / "launches"


def last_launch(file: Path) -> list[str]:
    words: list[str] = json.loads(file.read_text().splitlines()[-1])["words"]
    return words


@pytest.mark.parametrize("launcher", ["docker", "podman"])
def test_an_image(launcher: str, jobs: Jobs, launches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATOR_QUIRKS", "foreign")
    licence = jobs.root / "licence"
    licence.mkdir()
    compiler = {
        launcher: IMAGE, "environment": {"FLOAT_MATMUL_USE_CONV_EU": "1"}, "licence": str(licence), "memory_mb": 900,
    }  # fmt: skip
    layer, post = jobs.build("layer_1", "post", compiler=compiler)
    assert layer.stat().st_uid == post.stat().st_uid == os.getuid()
    assert jobs.leftovers() == []
    starts = [json.loads(line)["words"] for line in launches.read_text().splitlines()]
    if not os.getuid():
        assert starts[-1][-3:] == ["-R", f"{os.getuid()}:{os.getgid()}", "/data"], "files go back to their owner"
    start = next(words for words in starts if "--input_path" in words)
    shown = " ".join(start)
    assert shown.startswith(f"{launcher} run --rm --name axzoo-")
    assert " --network none " in shown and " --memory 900m " in shown
    assert f" -v {licence}:/root/.hasplm " in shown and " -w /data " in shown
    assert " -e FLOAT_MATMUL_USE_CONV_EU=1 " in shown and " -e TMPDIR=/data/tmp " in shown
    assert f" --entrypoint sh {IMAGE} -c mkdir -p /root/.hasplm/installed/32434 && cp -n /root/*.v2c " in shown
    assert " pulsar2 llm_build --input_path /data/input --output_path /data/output " in shown
    assert jobs.receipt("post")["about"]["compiler"]["environment"] == {"FLOAT_MATMUL_USE_CONV_EU": "1"}


def test_an_image_is_asked_once(jobs: Jobs, launches: Path) -> None:
    """Starting a container takes seconds, and its answers cannot change."""
    for part in ("layer_0", "layer_1"):
        find_tool.cache_clear()
        jobs.build(part, compiler={"docker": IMAGE, "environment": {}})
    asked = [line for line in launches.read_text().splitlines() if '"version"' in line or '"--help"' in line]
    assert len(asked) == 2


def test_an_apptainer_file(jobs: Jobs, launches: Path) -> None:
    image = jobs.root / "pulsar2.sif"
    image.touch()
    jobs.build("layer_0", compiler={"apptainer": str(image), "environment": {}})
    words = last_launch(launches)
    assert words[:4] == ["apptainer", "exec", "--fakeroot", "--containall"]
    assert words[words.index("--pwd") + 2] == str(image)


def test_another_apptainer_file_is_another_compiler(
    launches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest is part of the identity, and is made once per file."""
    image, settings = tmp_path / "pulsar2.sif", read_settings({"apptainer": str(tmp_path / "pulsar2.sif")}, {})

    def build_of(content: bytes) -> str:
        image.write_bytes(content)
        find_tool.cache_clear()
        return find_tool(settings).build

    first = build_of(b"7.0")
    assert first == f"sha256:{hashlib.sha256(b'7.0').hexdigest()}"
    assert build_of(b"7.0, another build") != first
    find_tool.cache_clear()
    monkeypatch.setattr("axzoo.core.stamps.sha256_of", lambda path: pytest.fail("read again"))
    assert find_tool(settings).build != first


@pytest.mark.parametrize("launcher", ["docker", "podman"])
def test_files_that_cannot_be_given_back(
    launcher: str, launches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The container that does it hangs: it is ended, and the job goes on, with the error that it had before."""
    (tmp_path / "chown").write_text("#!/bin/sh\nsleep 1000 & wait\n")
    (tmp_path / "chown").chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/file").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tool, "_ASK_SECONDS", 1)
    monkeypatch.setattr(tool, "_is_foreign", lambda path: True)
    tool.return_files(read_settings({launcher: IMAGE}, {}), tmp_path / "run")
    assert "--name" in last_launch(launches)
    assert list((tmp_path / "containers").iterdir()) == []
    wait_until_none(str(tmp_path / "chown"))
    assert f"did not give the files in {tmp_path / 'run'} back to this user" in caplog.text


@pytest.mark.parametrize(
    "error, message",
    [
        (PermissionError(13, "Permission denied"), r"podman cannot be run \(Permission denied\): install it, or"),
        (subprocess.TimeoutExpired("podman", 300), r"podman did not answer within 300 s: start its service"),
    ],
)
def test_a_container_program_that_does_not_answer(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(AxzooError, match=message) as raised:
        find_tool(read_settings({"podman": "x"}, {}))
    assert "\n" not in str(raised.value)


def test_images_that_are_not_there(jobs: Jobs, launches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AxzooError, match=r"docker has no image pulsar2:9 .*No such image.*: load it with `docker load"):
        jobs.build("layer_0", compiler={"docker": "pulsar2:9"})
    with (
        monkeypatch.context() as patch,
        pytest.raises(AxzooError, match=r"docker does not answer .*: start its service"),
    ):
        patch.setenv("SIMULATOR_NO_SERVICE", "1")
        jobs.build("layer_0", compiler={"docker": IMAGE})
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(AxzooError, match=r"podman is not installed on this machine: .* state its `version`"):
        jobs.build("layer_0", compiler={"podman": IMAGE})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_no_container_survives(
    number: signal.Signals, jobs: Jobs, launches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container is not a child of the job, so killing processes does not end it."""
    monkeypatch.setenv("SIMULATOR_QUIRKS", "stuck")
    settings = load_backend("pulsar2").settings({"docker": IMAGE, "environment": {}, "memory_mb": 1000})
    words = ["--lock", "locks/layer_0.json", "--source", str(jobs.checkpoint.source), "--store", "store"]
    words += ["--output", "out", "--receipt", "receipt", "--chip", "AX650", "--backend", "pulsar2"]
    words += ["--recipe", json.dumps(RECIPE.to_dict()), "--compiler", settings]
    job = subprocess.Popen(
        [sys.executable, "-m", "axzoo.cli", "compile", *words], cwd=jobs.root, stderr=subprocess.PIPE
    )
    while not calls(jobs.root / "calls") or not list((jobs.root / "containers").glob("axzoo-*")):
        assert job.poll() is None, job.stderr and job.stderr.read()
        time.sleep(0.02)
    job.send_signal(number)
    job.communicate()
    wait_until_none(str(jobs.root / "store"))
    assert list((jobs.root / "containers").glob("axzoo-*")) == []


def test_a_native_package(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own Python gets none of our variables, and all jobs of a machine share the licence."""
    home, package = tmp_path / "home", tmp_path / "package"
    (home / ".hasplm/installed/32434").mkdir(parents=True)
    (home / ".hasplm/installed/32434/key.v2c").touch()
    (package / "bin").mkdir(parents=True)
    program = package / "bin/pulsar2"
    program.write_text(
        '#!/bin/sh\n[ -z "$PYTHONPATH" ] || exit 8\n'
        f'case "$*" in *--input_path*) [ -f "$HOME/.hasplm/installed/32434/key.v2c" ] || exit 9;; esac\n'
        f'exec "{sys.executable}" "{PROGRAM}" "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SIMULATOR_CALLS", str(tmp_path / "calls"))
    jobs.build("layer_0", compiler={"native": str(package), "memory_mb": 1000})
    (call,) = calls(tmp_path / "calls")
    assert call["home"] != str(home)
    assert sorted(path.name for path in home.rglob("*.v2c")) == ["key.v2c"], "the folder of the user is kept"
    assert processes_with(str(jobs.root / "store")) == []


def write_program(path: Path) -> Path:
    """A program that runs the simulator."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAM}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("compiler", [{"native": "tools"}, {"command": ["tools/bin/pulsar2", "llm_build"]}])
def test_a_relative_path(compiler: dict[str, Any], jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "tools/bin/pulsar2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (file,) = jobs.build("layer_0", compiler={**compiler, "memory_mb": 1000})
    assert file.stat().st_size > 10_000


def test_a_path_that_only_the_plan_would_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in a later word: whether it is one is not known, so it is refused where the question is asked."""
    write_program(tmp_path / "run.sh")
    monkeypatch.chdir(tmp_path)
    settings = read_settings({"command": ["sh", "run.sh", "llm_build"]}, {})
    with pytest.raises(AxzooError, match=r"states no version \(.*run\.sh.*; paths in `command` must be absolute"):
        find_tool(settings)
    assert find_tool(read_settings({"command": ["sh", str(tmp_path / "run.sh"), "llm_build"]}, {})).name == "llm_build"


def test_a_command_that_is_no_compiler(jobs: Jobs, tmp_path: Path) -> None:
    def compiler(script: str) -> dict[str, Any]:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        find_tool.cache_clear()
        return {"command": [str(program), "llm_build"]}

    with pytest.raises(AxzooError, match=r"states no version \(hello\): is it the Pulsar2 compiler"):
        jobs.build("layer_0", compiler=compiler("echo hello"))
    with pytest.raises(AxzooError, match=r"states no version \(exit status 3\)"):
        jobs.build("layer_0", compiler=compiler("exit 3"))
    with pytest.raises(AxzooError, match=r"\(version 5\.2\) has neither llm_build nor llm_build2: usage"):
        jobs.build("layer_0", compiler=compiler('[ "$1" = version ] && echo version: 5.2 || echo usage'))
    with pytest.raises(AxzooError, match=r"cannot be run \(No such file or directory\): install it, or choose another"):
        jobs.build("layer_0", compiler={"command": [str(tmp_path / "nothing"), "llm_build"]})
