"""A local server with the API that Snakemake's Kubernetes executor uses. It runs each pod's command unchanged in an
empty folder, without images, limits, scheduling or permissions."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml


class Pods:
    """The submitted jobs by name: their processes and manifests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: dict[str, Any] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, job: Any) -> None:
        name = job["metadata"]["name"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        workdir = self.folder / name
        workdir.mkdir(parents=True)
        variables = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(workdir)}
        for variable in container["env"]:
            secret = variable["valueFrom"]["secretKeyRef"]
            variables[variable["name"]] = base64.b64decode(self.secrets[secret["name"]][secret["key"]]).decode()
        with (self.folder / f"{name}.log").open("w") as log:
            self._processes[name] = subprocess.Popen(
                [*container["command"], *container["args"]], cwd=workdir, env=variables, stdout=log, stderr=log
            )
        self.sent[name] = container

    def status(self, name: str) -> dict[str, int]:
        code = self._processes[name].poll()
        return {} if code is None else {"succeeded": 1} if code == 0 else {"failed": 1}

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))


@contextmanager
def pod_server(folder: Path) -> Iterator[tuple[Pods, Path]]:
    """The pods, which work in `folder`, and the kubeconfig with which clients connect."""
    pods = Pods(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/jobs"):
                pods.start(body)
            else:
                pods.secrets[body["metadata"]["name"]] = body["data"]
            self.answer(body, 201)

        def do_GET(self) -> None:
            if found := re.search(r"/jobs/(.+)/status$", self.path):
                self.answer({"metadata": {"name": found[1]}, "status": pods.status(found[1])})
            else:  # list the pods of a job
                self.answer({"items": []})

        def do_DELETE(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer({"status": "Success"})

        def answer(self, content: Any, status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    folder.mkdir(parents=True)
    configuration = folder / "kubeconfig"
    configuration.write_text(yaml.safe_dump(kubeconfig(f"http://127.0.0.1:{server.server_port}")))
    try:
        yield pods, configuration
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(server: str) -> dict[str, Any]:
    """A kubeconfig with one cluster, user and context, all named `here`."""
    parts = {"clusters": {"cluster": {"server": server}}, "users": {"user": {}}}
    parts["contexts"] = {"context": {"cluster": "here", "user": "here"}}
    named = {kind: [{"name": "here", **part}] for kind, part in parts.items()}
    return {"apiVersion": "v1", "kind": "Config", "current-context": "here", **named}
