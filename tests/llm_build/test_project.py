"""The work folder: its matrix, its lock, and the messages about invalid options."""

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


def test_packaged_workflow_is_that_of_the_repository() -> None:
    for name in (
        "Snakefile",
        "config/chips.yaml",
        *(f"workflow/rules/{p.name}" for p in (ROOT / "workflow/rules").iterdir()),
    ):
        assert (WORKFLOW / name).samefile(ROOT / name)


def test_matrix_with_one_build(tmp_path: Path) -> None:
    awkward = "<|im_start|>user\n1+1=? 'é' \x7f {x}\n"
    with open_project(tmp_path / "work") as project:
        build = project.write_matrix("Q", {**ENTRY, "prompt": awkward}, {"model_type": "qwen2"})
    assert project.folder == tmp_path / "work"
    assert (build.name, build.chip, build.prompt) == ("Q-w8a16", "AX650", awkward)
    assert build.model_config == "config/model_config.json"
    assert (project.folder / build.model_config).read_text() == '{\n  "model_type": "qwen2"\n}\n'
    assert list(yaml.safe_load((project.folder / "config/zoo.yaml").read_text())["models"]) == ["Q"]
    with open_project(tmp_path / "work") as project:
        assert project.write_matrix("Q", ENTRY, {}).model_config is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chips": ["AX1"]}, "--chip: unknown chip 'AX1': use one of AX650, AX620E, "),
        ({"kv_cache_len": 1 << 30}, "--kv_cache_len: 1073741824 must be less than or equal to 1048576"),
        ({"path": "/a\nb"}, "--input_path: '/a\\nb' is not a folder's path"),
        ({"ignore_config_keys": ["a", "b c"]}, "--ignore_config_keys: 'b c' is not a key of config.json"),
    ],
)
def test_errors_name_the_options(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with open_project(tmp_path) as project, pytest.raises(AxzooError) as error:
        project.write_matrix("Q.5-Instruct", ENTRY | values, {})
    assert str(error.value).startswith(message)


def test_work_folder_is_locked(tmp_path: Path) -> None:
    with (
        open_project(tmp_path),
        pytest.raises(AxzooError, match="another llm_build is running in"),
        open_project(tmp_path),
    ):
        pass
    with open_project(tmp_path):
        pass


def test_killed_process_releases_the_lock(tmp_path: Path) -> None:
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


def test_user_file_is_copied_only_if_it_changed(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one")
    with open_project(tmp_path / "work") as project:
        copied = project.folder / project.copy_in(tmp_path / "text.txt", "config/calibration.txt")
        os.utime(copied, (0, 0))
        project.copy_in(tmp_path / "text.txt", "config/calibration.txt")
        assert (copied.read_text(), copied.stat().st_mtime) == ("one", 0)
        (tmp_path / "text.txt").write_text("two")
        project.copy_in(tmp_path / "text.txt", "config/calibration.txt")
        assert copied.read_text() == "two"
        with pytest.raises(AxzooError, match=r"nothing\.txt is missing"):
            project.copy_in(tmp_path / "nothing.txt", "config/calibration.txt")
