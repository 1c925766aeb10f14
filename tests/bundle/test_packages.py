"""Packages for boards: their files, the Debian package installed and removed, and its tokenizer script answering."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tiny_vision
from axzoo.bundle.boards.packages import NPY, package
from axzoo.bundle.completion import complete_bundle
from axzoo.core.errors import AxzooError
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.tokenizer.conversation import end_id
from axzoo.tokenizer.local import load_tokenizer
from axzoo.weights.recipe import Recipe
from tiny_model import Built
from vision_bundle import EXACT, make_bundle

AXZOO_TOKENIZER = [sys.executable, "-m", "axzoo.cli", "tokenizer", "--port", "0", "--model"]
NAME = "tiny w8a16"
INSTALLED = "tiny-w8a16-ax650"
"""The bundle's name, and what package names and units make of it."""


@pytest.fixture(scope="module")
def bundle(s8: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = s8.moved(tmp_path_factory.mktemp("packaged") / NAME)
    complete_bundle(replace(built.plan, name=NAME))
    return built.folder


@pytest.fixture(scope="module")
def deb(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("NO dpkg-deb: nothing of Debian packages is tested here")
    return package(bundle, "stackflow", tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def tree(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
    return folder


def _digests(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_bundles_give_equal_debs(
    bundle: Path, deb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(bundle, copy, copy_function=shutil.copyfile)
    before = os.umask(0o077)
    try:
        again = package(copy, "stackflow", tmp_path)
    finally:
        os.umask(before)
    assert again.read_bytes() == deb.read_bytes()
    assert again.name == deb.name
    with pytest.raises(AxzooError, match="exists: choose another output"):
        package(copy, "stackflow", again)
    assert [path.name for path in tmp_path.iterdir() if path != copy] == [deb.name]


def test_another_build_is_another_version(build_tiny: Callable[[Recipe], Built], deb: Path, tmp_path: Path) -> None:
    """Its post layer is the same file."""
    built = build_tiny(Recipe(prefill_len=8, kv_cache_len=63, last_kv_cache_len=(8, 16))).moved(tmp_path / NAME)
    complete_bundle(replace(built.plan, name=NAME))
    other = package(built.folder, "stackflow", tmp_path)
    assert other.name != deb.name
    assert other.name.split("_")[0] == deb.name.split("_")[0] == f"llm-model-{INSTALLED}"


def test_the_deb_belongs_to_root_and_anyone_can_read_it(deb: Path) -> None:
    lines = subprocess.run(["dpkg-deb", "-c", deb], check=True, capture_output=True, text=True).stdout.splitlines()
    assert {line.split()[1] for line in lines} == {"root/root"}
    assert {line.split()[0] for line in lines} == {"drwxr-xr-x", "-rw-r--r--"}


def test_the_deb_has_what_the_unit_looks_for(bundle: Path, tree: Path) -> None:
    top = tree / "opt/m5stack"
    mode = json.loads((top / f"data/models/mode_{INSTALLED}.json").read_text())
    data, parameters = top / "data" / INSTALLED, mode["mode_param"]
    files = open_bundle(bundle)
    assert (mode["mode"], mode["type"]) == (INSTALLED, "llm")
    template = parameters["template_filename_axmodel"]
    named = [template % i for i in range(parameters["axmodel_num"])]
    named += [parameters["filename_post_axmodel"], parameters["filename_tokens_embed"]]
    for name in named:
        assert (data / name).read_bytes() == (bundle / name).read_bytes()
    assert (parameters["tokens_embed_num"], parameters["tokens_embed_size"]) == (files.vocab_size, files.hidden_size)
    assert _digests(data / "tokenizer") == _digests(bundle / "tokenizer")
    assert {type(value) for key, value in parameters.items() if key.startswith(("b_", "enable_"))} == {bool}
    assert parameters["precompute_len"] == 16  # several prefill groups: the host that keeps conversations
    assert [(top / "scripts" / name).is_file() for name in parameters["ext_scripts"]] == [True]
    assert set(parameters) >= set(json.loads((bundle / "post_config.json").read_text()))


def test_the_deb_is_installed_and_removed(deb: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    dpkg = [] if os.geteuid() == 0 else ["fakeroot"]
    dpkg += ["dpkg", f"--root={root}", "--force-depends", "--force-architecture", "--force-script-chrootless"]
    dpkg += ["--force-not-root", "--log=/dev/null"]
    if shutil.which(dpkg[0]) is None:
        pytest.skip("NOT RUN: installing as a normal user needs fakeroot")
    path = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run([*dpkg, "-i", deb], check=True, capture_output=True, env=path)
    data = root / "opt/m5stack/data" / INSTALLED
    assert (data / "llama_post.axmodel").is_file()
    subprocess.run([*dpkg, "-r", f"llm-model-{INSTALLED}"], check=True, capture_output=True, env=path)
    assert list(root.glob("opt/**/*")) == []


def _ask(port: int, path: str, body: object = None, **headers: str) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


@contextmanager
def _running(command: list[str | Path]) -> Iterator[int]:
    """Start a tokenizer server and yield its port."""
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rsplit(":", 1)[1])
        finally:
            process.terminate()
        assert process.wait(10) in (0, -15)


@pytest.fixture(scope="module")
def ports(bundle: Path, tree: Path) -> Iterator[tuple[int, int]]:
    """The package's script, as the unit starts it and without axzoo, and axzoo's own server."""
    top = tree / "opt/m5stack"
    script = top / "scripts" / f"tokenizer_{INSTALLED}.py"
    tokenizer = top / "data" / INSTALLED / "tokenizer"
    options = ["--host", "localhost", "--port", "0", "--model_id", tokenizer, "--content", "Be brief."]
    own = [*AXZOO_TOKENIZER, bundle, "--system", "Be brief."]
    assert "import axzoo" not in script.read_text() and "from axzoo" not in script.read_text()
    with _running([sys.executable, "-I", script, *options]) as theirs, _running(own) as ours:
        yield theirs, ours


def _conversation(port: int) -> list[dict[str, Any]]:
    """Both protocols, with a question that is stopped and an answer cut within a character."""
    uid = _ask(port, "/get_uid")["uid"]
    letters = list("Grüße ".encode())
    questions = [
        ("/encode", {"text": "Hello", "img_prompt": False}),
        ("/decode", {"token_ids": letters}),
        (f"/bos_id?uid={uid}", None),
        (f"/eos_id?uid={uid}", None),
        ("/encode", {"uid": uid, "text": "1+1="}),
        ("/decode", {"uid": uid, "token_ids": letters[:3]}),
        ("/decode", {"uid": uid, "token_ids": letters[3:]}),
        ("/encode", {"uid": uid, "text": "and 2+2?", "last_reply": "2"}),
        ("/encode", {"uid": uid, "text": "stop that"}),
        ("/reset", {"uid": uid, "system_prompt": "Be long."}),
        ("/encode", {"uid": uid, "text": "Again"}),
        ("/encode", {"uid": "nobody", "text": "1+1="}),
        ("/encode", {"text": 7}),
        ("/decode", {"token_ids": [-1]}),
    ]
    answers = [_ask(port, path, body, **{"Content-Type": "application/json"}) for path, body in questions]
    return [answer if "status" not in answer else {"status": answer["status"]} for answer in answers]


def test_the_tokenizer_script_answers_as_axzoo_does(ports: tuple[int, int]) -> None:
    theirs, ours = map(_conversation, ports)
    assert theirs == ours
    assert [answer["status"] for answer in theirs[-3:]] == [400, 400, 400]
    assert _ask(ports[0], "/encode", {"uid": "nobody", "text": ""})["error"] == "Invalid uid"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Host": "evil.example:8080"},
        {"Referer": "http://evil.example/"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_the_tokenizer_script_answers_no_web_page(ports: tuple[int, int], headers: dict[str, str]) -> None:
    assert _ask(ports[0], "/get_uid", None, **headers)["status"] == 403
    assert _ask(ports[0], "/encode", {"text": "x" * (1 << 20)})["status"] == 413
    assert "uid" in _ask(ports[0], "/get_uid")


def test_the_script_tells_the_end_of_answers(bundle: Path, ports: tuple[int, int]) -> None:
    expected = end_id(load_tokenizer(bundle / "tokenizer"), open_bundle(bundle).chat)
    assert _ask(ports[0], "/eos_id") == {"eos_id": expected}


def _same_answers(bundle: Path, folder: Path, questions: list[dict[str, object]]) -> list[dict[str, Any]]:
    """The answers of a package's tokenizer server, which must be those of `axzoo tokenizer`."""
    package(bundle, "prefill", folder)
    server = [sys.executable, "-I", folder / "tokenizer_server.py", "--port", "0", "--model_id", folder / "tokenizer"]
    with _running(server) as theirs, _running([*AXZOO_TOKENIZER, bundle]) as ours:
        answers = [
            [_ask(port, "/encode", question, **{"Content-Type": "application/json"}) for question in questions]
            for port in (theirs, ours)
        ]
        assert _ask(theirs, "/eos_id") == _ask(ours, "/eos_id")
    assert answers[0] == answers[1]
    return answers[0]


def test_the_tokenizer_script_leaves_a_template_out_if_the_bundle_does(s8: Built, tmp_path: Path) -> None:
    built = s8.moved(tmp_path / "plain")
    complete_bundle(replace(built.plan, chat=False))
    (answer,) = _same_answers(built.folder, tmp_path / "package", [{"text": "Hello"}])
    assert len(answer["token_ids"]) == len("Hello")


def test_the_tokenizer_script_writes_prompts_with_pictures(tmp_path: Path) -> None:
    """MiniCPM-V's tokenizer has no chat template, and the picture stands for a row of tokens."""
    tiny_vision.make_checkpoint(tmp_path / "checkpoint")
    recipe = replace(EXACT, weight_type="s8", post_weight_type="s8", hidden_state_type="bf16")
    bundle = make_bundle(tmp_path / "checkpoint", tmp_path, recipe)
    questions: list[dict[str, object]] = [{"text": "a", "img_prompt": seen} for seen in (False, True)]
    text, picture = _same_answers(bundle, tmp_path / "package", questions)
    assert len(picture["token_ids"]) > len(text["token_ids"]) + 2


def test_the_python_package_has_the_embedding_in_fp32(bundle: Path, tmp_path: Path) -> None:
    folder = package(bundle, "python", tmp_path / "package")
    files = open_bundle(bundle)
    rows = np.load(folder / NPY)
    assert (rows.dtype, rows.shape) == (np.float32, (files.vocab_size, files.hidden_size))
    stored = np.fromfile(files.embedding, ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(rows.ravel(), stored)
    assert {path.name for path in folder.glob("*.axmodel")} == {path.name for path in bundle.glob("*.axmodel")}
    assert _digests(folder / "tokenizer") == _digests(bundle / "tokenizer")


def test_the_prefill_package_runs(bundle: Path, tmp_path: Path) -> None:
    """Its scripts pass the flags that main_prefill has; here `axzoo run` stands for it."""
    folder = package(bundle, "prefill", tmp_path / "package")
    server = [sys.executable, folder / "tokenizer_server.py", "--port", "0", "--model_id", folder / "tokenizer"]
    with _running(server) as port:
        script = folder / "run.sh"
        script.write_text(script.read_text().replace(":12345", f":{port}"))
        program = f"{sys.executable} -m axzoo.cli run"
        done = subprocess.run(
            ["./run.sh", "1+1="],
            cwd=folder,
            env={**os.environ, "MAIN_PREFILL": program},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "ttft" in done.stdout + done.stderr
    shown = subprocess.run(
        ["./run_ctx.sh", "--tokenizer_type", "2"], cwd=folder, env={**os.environ, "MAIN": "echo"}, capture_output=True,
        text=True, check=True,
    ).stdout  # fmt: skip
    flags = dict(zip(words := shown.split(), words[1:], strict=False))
    assert (folder / (flags["--template_filename_axmodel"] % 0)).is_file()
    assert (folder / flags["--filename_tokens_embed"]).is_file()
    assert "--devices" in (folder / "run_axcl.sh").read_text()


def test_packages_appear_when_they_are_complete(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("axzoo.bundle.boards.packages.write_fp32_embedding", full)
    with pytest.raises(OSError, match="No space left"):
        package(bundle, "python", tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    for output in (tmp_path, tmp_path / "kept"):
        with pytest.raises(AxzooError, match="exists: choose another output"):
            package(bundle, "python", output)
    assert (tmp_path / "kept").read_text() == "kept"


@pytest.fixture
def without_dpkg(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setenv("PATH", "")


def test_a_computer_without_dpkg_is_told(bundle: Path, tmp_path: Path, without_dpkg: Callable[[], None]) -> None:
    without_dpkg()
    with pytest.raises(AxzooError, match="dpkg-deb is missing"):
        package(bundle, "stackflow", tmp_path)
    assert list(tmp_path.iterdir()) == []
