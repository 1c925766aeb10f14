"""Builds whose files lie in a storage: a job is handed what it declares, and nothing beside it."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from workflow_project import ENTRY, Project, new_project

pytestmark = pytest.mark.workflow

BUNDLE = "results/AX650/tiny-w8a16"
RULES = {"fetch", "lock", "layers_0_2", "post", "embed", "bundle", "check_layers", "check_generation"}


@pytest.fixture
def in_place(small_llama: Path, tmp_path: Path) -> Project:
    """A project whose checkpoint lies where every job sees it."""
    return absolute(tmp_path / "project", small_llama)


@pytest.fixture(scope="module")
def plain(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bundle of a build without a storage."""
    project = absolute(tmp_path_factory.mktemp("plain") / "project", small_llama)
    run = project.snakemake(f"{BUNDLE}/manifest.json")
    assert run.status == 0, run.shown
    return project.digests(BUNDLE)


def absolute(folder: Path, checkpoint: Path) -> Project:
    project = new_project(folder, checkpoint)
    project.write_matrix({"tiny": ENTRY | {"path": str(checkpoint)}})
    return project


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that speaks S3, and keeps all in memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def s3_settings(url: str) -> dict[str, str]:
    """The environment by which a user names a server and who he is."""
    return {f"SNAKEMAKE_STORAGE_S3_{key}": value for key, value in
            {"ENDPOINT_URL": url, "ACCESS_KEY": "somebody", "SECRET_KEY": "secret"}.items()}  # fmt: skip


def objects(url: str, prefix: str) -> dict[str, str]:
    """The sha256 of every object of the bucket `zoo` under a prefix."""
    import boto3

    resource = boto3.resource("s3", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x")
    found = resource.Bucket("zoo").objects.filter(Prefix=f"{prefix}/")
    return {
        item.key.removeprefix(f"{prefix}/"): hashlib.sha256(item.get()["Body"].read()).hexdigest() for item in found
    }


def without_marks(digests: dict[str, str]) -> dict[str, str]:
    """Without the empty files by which Snakemake dates folders."""
    return {name: digest for name, digest in digests.items() if not name.endswith(".snakemake_timestamp")}


def test_a_folder_as_storage(in_place: Project, plain: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("NOT RUN: the storage plugin fs needs rsync")
    storage = ("--default-storage-provider", "fs", "--default-storage-prefix", str(tmp_path / "storage"))
    run = in_place.snakemake(*storage, "--config", "layers_per_job=8")
    assert run.status == 0, run.shown
    assert run.jobs == dict.fromkeys(RULES, 1)
    assert without_marks(Project(tmp_path / "storage").digests(BUNDLE)) == plain
    assert not (in_place / BUNDLE).exists()
    assert in_place.snakemake(*storage, "--config", "layers_per_job=8").did_nothing


def test_s3(in_place: Project, plain: dict[str, str], s3_server: str) -> None:
    storage = ("--default-storage-provider", "s3", "--default-storage-prefix", "s3://zoo")
    run = in_place.snakemake(*storage, "--config", "layers_per_job=8", **s3_settings(s3_server))
    assert run.status == 0, run.shown
    assert run.jobs == dict.fromkeys(RULES, 1)
    assert without_marks(objects(s3_server, BUNDLE)) == plain
    assert in_place.snakemake(*storage, "--config", "layers_per_job=8", **s3_settings(s3_server)).did_nothing
