"""Builds with a storage provider, whose jobs receive only the files they declare."""

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
from pod_server import pod_server
from workflow_project import ENTRY, TINY, Project, without_marks

pytestmark = pytest.mark.workflow

RULES = ("fetch", "lock", "layers_0_2", "post", "embed", "bundle", "check_layers", "check_generation")


LAYERS_TOGETHER = ("--config", "layers_per_job=8")


def need_rsync() -> None:
    if shutil.which("rsync") is None:
        pytest.skip("NOT RUN: the storage plugin fs needs rsync")


def as_storage(folder: Path) -> tuple[str, ...]:
    return *LAYERS_TOGETHER, "--default-storage-provider", "fs", "--default-storage-prefix", str(folder)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an in-memory S3 server."""
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
    """The environment variables for an S3 server and its credentials."""
    return {f"SNAKEMAKE_STORAGE_S3_{key}": value for key, value in
            {"ENDPOINT_URL": url, "ACCESS_KEY": "somebody", "SECRET_KEY": "secret"}.items()}  # fmt: skip


def objects(url: str, prefix: str) -> dict[str, str]:
    """The sha256 of all objects in the bucket `zoo` under a prefix."""
    import boto3

    resource = boto3.resource("s3", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x")
    found = resource.Bucket("zoo").objects.filter(Prefix=f"{prefix}/")
    return {
        item.key.removeprefix(f"{prefix}/"): hashlib.sha256(item.get()["Body"].read()).hexdigest() for item in found
    }


def test_a_folder_as_storage(in_place: Project, built_in_place: dict[str, str], tmp_path: Path) -> None:
    need_rsync()
    storage = as_storage(tmp_path / "storage")
    run = in_place.snakemake(*storage)
    assert run.status == 0, run.shown
    assert run.jobs == dict.fromkeys(RULES, 1)
    assert without_marks(Project(tmp_path / "storage").digests(TINY)) == built_in_place
    assert not (in_place / TINY).exists()
    assert in_place.snakemake(*storage).did_nothing


@pytest.mark.soak
def test_calibration_with_a_storage(in_place: Project, small_llama: Path, tmp_path: Path) -> None:
    need_rsync()
    gptq = {"weight_type": "s4", "rounding": "gptq", "calibration_tokens": 512}
    in_place.write_matrix({"tiny": ENTRY | gptq | {"path": str(small_llama)}})
    bundle = "results/AX650/tiny-w4a16-gptq"
    assert in_place.snakemake(f"{bundle}/manifest.json").status == 0
    plain = in_place.digests(bundle)
    shutil.rmtree(in_place / "results")
    run = in_place.snakemake(*as_storage(tmp_path / "storage"))
    assert run.status == 0, run.shown
    assert run.jobs == dict.fromkeys((*RULES, "calibrate"), 1)
    assert without_marks(Project(tmp_path / "storage").digests(bundle)) == plain


def test_s3(in_place: Project, built_in_place: dict[str, str], s3_server: str) -> None:
    storage = (*LAYERS_TOGETHER, "--default-storage-provider", "s3", "--default-storage-prefix", "s3://zoo")
    run = in_place.snakemake(*storage, **s3_settings(s3_server))
    assert run.status == 0, run.shown
    assert run.jobs == dict.fromkeys(RULES, 1)
    assert without_marks(objects(s3_server, TINY)) == built_in_place
    assert in_place.snakemake(*storage, **s3_settings(s3_server)).did_nothing


@pytest.mark.soak
def test_commands_of_pods(in_place: Project, built_in_place: dict[str, str], tmp_path: Path) -> None:
    """The Kubernetes profile without Kubernetes: each pod's command runs in an empty folder; inputs and outputs only
    on the volume. Needs a package index, because pods install the storage plugins."""
    need_rsync()
    (in_place / ".gitignore").write_text("checkpoint\n.snakemake\n")
    for command in (["git", "init", "--quiet"], ["git", "add", "--all"]):  # pods receive the files that git tracks
        subprocess.run(command, cwd=in_place.folder, check=True)
    volume = tmp_path / "volume"
    with pod_server(tmp_path / "pods") as (pods, configuration):
        run = in_place.snakemake(
            *("--workflow-profile", "workflow/profiles/kubernetes"),
            *("--kubernetes-persistent-volumes", f"axzoo:{volume}"),
            *("--default-storage-prefix", str(volume / "zoo")),
            *("--config", "layers_per_job=8", f"store={volume / 'store'}"),
            KUBECONFIG=str(configuration),
        )
        assert run.status == 0, run.shown + pods.logs()
    assert run.jobs == dict.fromkeys(RULES, 1)
    assert without_marks(Project(volume / "zoo").digests(TINY)) == built_in_place
    assert len(list((volume / "store").iterdir())) > 0
    assert len(pods.sent) == len(RULES)
    for container in pods.sent.values():
        assert container["image"] == "REGISTRY/axzoo:0.1.0"
        assert {"name": "axzoo", "mountPath": str(volume)} in container["volumeMounts"]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
