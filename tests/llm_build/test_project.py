"""The work folder: the matrix it is given, whom it lets in, and what it makes of mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from axzoo.core.errors import AxzooError
from axzoo.llm_build.project import WORKFLOW, open_project

ROOT = Path(__file__).parents[2]
ENTRY: dict[str, Any] = {"path": "/models/Q", "model_type": "qwen2", "num_hidden_layers": 2, "chips": ["AX650"]}


def test_the_packaged_workflow_is_the_repositorys() -> None:
    for name in (
        "Snakefile",
        "config/chips.yaml",
        *(f"workflow/rules/{p.name}" for p in (ROOT / "workflow/rules").iterdir()),
    ):
        assert (WORKFLOW / name).samefile(ROOT / name)


def test_a_matrix_of_one_build(tmp_path: Path) -> None:
    awkward = "<|im_start|>user\n1+1=? 'é' \x7f {x}\n"
    with open_project(tmp_path / "work") as project:
        build = project.describe("Q", {**ENTRY, "prompt": awkward}, {"model_type": "qwen2"})
    assert project.folder == tmp_path / "work"
    assert (build.name, build.chip, build.prompt) == ("Q-w8a16", "AX650", awkward)
    assert build.model_config == "config/model_config.json"
    assert (project.folder / build.model_config).read_text() == '{\n  "model_type": "qwen2"\n}\n'
    assert list(yaml.safe_load((project.folder / "config/zoo.yaml").read_text())["models"]) == ["Q"]
    with open_project(tmp_path / "work") as project:
        assert project.describe("Q", ENTRY, {}).model_config is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"chips": ["AX1"]}, "--chip: unknown chip 'AX1': use one of AX650, AX620E, "),
        ({"kv_cache_len": 1 << 30}, "--kv_cache_len: 1073741824 must be less than or equal to 1048576"),
        ({"path": "/a\nb"}, "--input_path: '/a\\nb' is not a folder's path"),
        ({"ignore_config_keys": ["a", "b c"]}, "--ignore_config_keys: 'b c' is not a key of config.json"),
    ],
)
def test_mistakes_are_said_of_the_options(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with open_project(tmp_path) as project, pytest.raises(AxzooError) as error:
        project.describe("Q.5-Instruct", ENTRY | values, {})
    assert str(error.value).startswith(said)


def test_one_at_a_time(tmp_path: Path) -> None:
    with (
        open_project(tmp_path),
        pytest.raises(AxzooError, match="another llm_build is at work in"),
        open_project(tmp_path),
    ):
        pass
    with open_project(tmp_path):
        pass


def test_who_is_killed_lets_go_of_the_folder(tmp_path: Path) -> None:
    hold = "import sys, time, pathlib, axzoo.llm_build.project as p\n"
    hold += "with p.open_project(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"in\n"
    with pytest.raises(AxzooError, match="another llm_build"), open_project(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with open_project(tmp_path):
        pass


def test_a_users_file_is_taken_in_once(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one")
    with open_project(tmp_path / "work") as project:
        taken = project.folder / project.take_in(tmp_path / "text.txt", "config/calibration.txt")
        os.utime(taken, (0, 0))
        project.take_in(tmp_path / "text.txt", "config/calibration.txt")
        assert (taken.read_text(), taken.stat().st_mtime) == ("one", 0)
        (tmp_path / "text.txt").write_text("two")
        project.take_in(tmp_path / "text.txt", "config/calibration.txt")
        assert taken.read_text() == "two"
        with pytest.raises(AxzooError, match=r"nothing\.txt is missing"):
            project.take_in(tmp_path / "nothing.txt", "config/calibration.txt")
