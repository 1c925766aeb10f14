"""Runs many clients of a tokenizer server and checks every response.

    python load_client.py PORT CLIENTS SECONDS EXPECTED

EXPECTED is a JSON file, {question: {"prompt", "text", "answered", "diff"}}: the prompt ids of the question, their text,
and the prompt ids and the new part of them when the question is asked again after it was answered with its own text.
Prints {"milliseconds": [per request], "wrong": [descriptions], "failed": [descriptions]}.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any


class Client:
    def __init__(self, port: int, report: dict[str, list[Any]]) -> None:
        self._port = port
        self._report = report

    def ask(self, question: str, expected: dict[str, Any]) -> None:
        self._check(self._post("/encode", text=question), {"token_ids": expected["prompt"]})
        self._check(self._post("/decode", token_ids=expected["prompt"]), {"text": expected["text"]})
        uid = self._send("GET", "/get_uid")["uid"]
        self._check(self._post("/reset", uid=uid), {"token_ids": []})
        new = {"token_ids": expected["prompt"], "diff": expected["prompt"]}
        self._check(self._post("/encode", uid=uid, text=question), new)
        ids = iter(expected["prompt"])
        text = ""
        while chunk := list(islice(ids, 3)):
            text += self._post("/decode", uid=uid, token_ids=chunk)["text"]
        self._check(text, expected["text"])
        again = {"token_ids": expected["answered"], "diff": expected["diff"]}
        self._check(self._post("/encode", uid=uid, text=question, last_reply=question), again)

    def _post(self, path: str, **body: Any) -> Any:
        return self._send("POST", path, json.dumps(body).encode())

    def _send(self, method: str, path: str, body: bytes | None = None) -> Any:
        begin = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse().read()
        finally:
            connection.close()
        self._report["milliseconds"].append(round((time.perf_counter() - begin) * 1000, 2))
        return json.loads(answer)

    def _check(self, answer: object, expected: object) -> None:
        if answer != expected:
            self._report["wrong"].append(f"{answer!r:.200} instead of {expected!r:.200}")


def main(port: int, clients: int, seconds: float, expected: dict[str, dict[str, Any]]) -> None:
    report: dict[str, list[Any]] = {"milliseconds": [], "wrong": [], "failed": []}
    end = time.monotonic() + seconds
    questions = list(expected)

    def run(number: int) -> None:
        client = Client(port, report)
        while time.monotonic() < end:
            question = questions[number % len(questions)]
            number += 1
            try:
                client.ask(question, expected[question])
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                report["failed"].append(repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), json.loads(Path(sys.argv[4]).read_text()))
