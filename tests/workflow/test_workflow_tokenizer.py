"""Checkpoints whose tokenizer is not a tokenizer.json, or that have none, built and checked by Snakemake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from workflow_project import ENTRY, Project

pytestmark = pytest.mark.workflow


def test_models_without_a_tokenizer_json_are_built_and_checked(project: Project) -> None:
    for name in ("none", "files"):
        shutil.copytree(project / "checkpoint", project / name)
        (project / name / "tokenizer.json").unlink()
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (project / "none" / name).unlink()
    config = json.loads((project / "none/config.json").read_text())
    (project / "none/config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    original = Tokenizer.from_file(str(project / "checkpoint/tokenizer.json"))
    original.model.save(str(project / "files"))  # vocab.json and merges.txt
    project.write_matrix({name: ENTRY | {"path": name} for name in ("none", "files")})

    run = project.snakemake()
    assert run.status == 0, run.shown
    assert run.jobs["check_layers"] == run.jobs["check_generation"] == 2
    found = {name: _settings(project / f"results/AX650/{name}-w8a16") for name in ("none", "files")}
    assert found["none"] == (False, [], {"config.json"})
    chat, ends, files = found["files"]
    assert (chat, ends) == (True, [original.token_to_id("<|im_end|>")])
    assert {"vocab.json", "merges.txt"} <= files and "tokenizer.json" not in files
    assert "none has no tokenizer" in (project / "results/logs/bundle/AX650/none-w8a16.log").read_text()
    assert project.snakemake().did_nothing


def _settings(bundle: Path) -> tuple[bool, list[int], set[str]]:
    config = json.loads((bundle / "config.json").read_text())
    return config["chat"], config["eos_token_ids"], {path.name for path in (bundle / "tokenizer").iterdir()}
