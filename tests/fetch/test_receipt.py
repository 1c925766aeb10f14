import json
from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.fetch.sources import HubSource, PypiSource, checkpoint_folder, digested, is_complete, write_receipt

SOURCE = HubSource("org/model", "main")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    write_receipt(tmp_path, SOURCE, {"config.json": digested(tmp_path / "config.json")}, commit="c" * 40)
    return tmp_path


def test_complete_for_what_was_asked_and_nothing_else(folder: Path) -> None:
    assert is_complete(folder, SOURCE)
    assert not is_complete(folder, HubSource("org/model", "other"))
    assert not is_complete(folder, PypiSource("a==1", "b", "c"))
    assert not is_complete(folder / "elsewhere", SOURCE)


def test_a_lost_or_shortened_file_is_not_complete(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert not is_complete(folder, SOURCE)
    (folder / "config.json").unlink()
    assert not is_complete(folder, SOURCE)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"source": 1}', '{"source": {}, "root": 1, "files": {}}'])
def test_a_damaged_receipt_is_not_complete(folder: Path, content: str) -> None:
    (folder / "source.json").write_text(content)
    assert not is_complete(folder, SOURCE)


@pytest.mark.parametrize(("root", "expected"), [(".", "."), ("/elsewhere/model", "/elsewhere/model")])
def test_the_receipt_says_where_the_files_lie(folder: Path, root: str, expected: str) -> None:
    write_receipt(folder, SOURCE, {}, root=root)
    assert checkpoint_folder(folder / "source.json") == folder / expected


@pytest.mark.parametrize("content", [[], {}, {"root": 1}])
def test_a_receipt_without_a_root_is_damaged(folder: Path, content: Any) -> None:
    (folder / "source.json").write_text(json.dumps(content))
    with pytest.raises(AxzooError, match=r"source\.json is damaged"):
        checkpoint_folder(folder / "source.json")
