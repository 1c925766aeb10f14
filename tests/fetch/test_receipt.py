import json
from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.fetch.sources import (
    FetchedFiles,
    HubSource,
    PypiSource,
    checkpoint_folder,
    hashed_file,
    is_complete,
    write_receipt,
)

SOURCE = HubSource("org/model", "main")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    files = FetchedFiles({"config.json": hashed_file(tmp_path / "config.json")})
    write_receipt(tmp_path, SOURCE, files, commit="c" * 40)
    return tmp_path


def test_a_receipt_is_complete_for_its_own_source_only(folder: Path) -> None:
    assert is_complete(folder, SOURCE)
    assert not is_complete(folder, HubSource("org/model", "other"))
    assert not is_complete(folder, PypiSource("a==1", "b", "c"))
    assert not is_complete(folder / "elsewhere", SOURCE)


def test_a_missing_or_truncated_file_is_not_complete(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert not is_complete(folder, SOURCE)
    (folder / "config.json").unlink()
    assert not is_complete(folder, SOURCE)


def test_an_edited_file_of_the_same_size_is_not_complete(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    assert not is_complete(folder, SOURCE)


def test_a_copied_file_is_complete(folder: Path) -> None:
    (folder / "copy").write_text("{}")
    (folder / "copy").replace(folder / "config.json")
    assert is_complete(folder, SOURCE)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"source": 1}', '{"source": {}, "root": 1, "files": {}}'])
def test_a_damaged_receipt_is_not_complete(folder: Path, content: str) -> None:
    (folder / "source.json").write_text(content)
    assert not is_complete(folder, SOURCE)


@pytest.mark.parametrize(("root", "expected"), [(".", "."), ("/elsewhere/model", "/elsewhere/model")])
def test_the_receipt_records_the_folder_of_the_files(folder: Path, root: str, expected: str) -> None:
    write_receipt(folder, SOURCE, FetchedFiles({}, root))
    assert checkpoint_folder(folder / "source.json") == folder / expected


@pytest.mark.parametrize("content", [[], {}, {"root": 1}])
def test_a_receipt_without_a_root_is_damaged(folder: Path, content: Any) -> None:
    (folder / "source.json").write_text(json.dumps(content))
    with pytest.raises(AxzooError, match=r"source\.json is damaged"):
        checkpoint_folder(folder / "source.json")
