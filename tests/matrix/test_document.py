from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from axzoo.core.errors import AxzooError
from axzoo.matrix.document import MAX_BYTES, read_document


class LOADER(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml accepts '::\t', PyYAML's parser does not. Neither constructs a value for '=', which we read as text."""


LOADER.add_constructor("tag:yaml.org,2002:value", yaml.SafeLoader.construct_yaml_str)


SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text() | st.floats(allow_nan=False)
KEYS = st.text()
DATA = st.dictionaries(
    KEYS, st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(KEYS, x, max_size=4), max_leaves=20)
)


def read(text: str | bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.yaml")
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_document(path).data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml is empty"),
        ("# only a comment\n", "x.yaml is empty"),
        ("- a\n- b\n", "x.yaml:1: the file must contain a mapping of keys to values, not ['a', 'b']"),
        ("\n\ntext\n", "x.yaml:3: the file must contain a mapping"),
        ("a: 1\nb: [1\nc: 2\n", "x.yaml:3: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: duplicate key 'a', first used in line 1"),
        ("a:\n  b: 1\n  b: 2\n", "x.yaml:3: duplicate key 'b', first used in line 2"),
        ("a: &x [1]\nb: *x\n", "x.yaml:2: YAML aliases"),
        ("a: &x [*x]\n", "x.yaml:1: YAML aliases"),
        ("a: &x k\n*x : 1\n", "x.yaml:2: YAML aliases"),
        ("a: 1\n<<: {b: 2}\n", "x.yaml:2: YAML merges"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "x.yaml:2: YAML tags"),
        ("a: !!str 1\n", "x.yaml:1: YAML tags"),
        ("a: 1\n7: 2\n", "x.yaml:2: the key '7' is not text: put it in quotes"),
        ("a: 1\nno: 2\n", "x.yaml:2: the key 'no' is not text: put it in quotes"),
        ("a: 1\n? [b]\n: 2\n", "x.yaml:2: a key must be text"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: a second YAML document"),
        ("a: 0b_\n", "x.yaml:1: '0b_' is not a valid number"),
        ("[" * 100_000, "x.yaml:1: nested deeper than 16 levels"),
        ("{a: " * 100_000, "x.yaml:1: nested deeper than 16 levels"),
        (b"a: 1\nb: \xff\n", "x.yaml:2: not UTF-8"),
        ("a: \x00\n", "x.yaml: not valid YAML"),
        (b"a: " + b"x" * MAX_BYTES, "x.yaml is larger than 4 MiB"),
    ],
)
def test_refuses(text: str | bytes, message: str) -> None:
    with pytest.raises(AxzooError) as error:
        read(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_refuses_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"cannot read .*missing\.yaml: No such file"):
        read_document(tmp_path / "missing.yaml")
    with pytest.raises(AxzooError, match="is a folder, but a file is needed"):
        read_document(tmp_path)


def test_alias_expansion_attack_is_refused() -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(AxzooError, match=r"x\.yaml:2: YAML aliases"):
        read("l0: &l0 [lol]\n" + levels)


def test_dates_digests_and_quoted_numbers_are_text() -> None:
    digest, huge = "1" * 64, f"0x{'f' * 100_000}"
    assert read(f"a: {digest}\nb: {huge}\n") == {"a": digest, "b": huge}
    assert read("a: 2024-10-07\nb: '1'\nc: 1e5\nd: =\n") == {"a": "2024-10-07", "b": "1", "c": "1e5", "d": "="}


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# comment\na:\n  b:\n    - 1\n    - c: 2\n  d: {e: 3}\nf:\n")
    line = read_document(path).line
    assert [line(loc) for loc in (("a",), ("a", "b"), ("a", "b", 0))] == [2, 3, 4]
    assert [line(loc) for loc in (("a", "b", 1), ("a", "b", 1, "c"))] == [5, 5]
    assert [line(loc) for loc in (("a", "d", "e"), ("f",), ("a", "missing", "x"), ("missing",))] == [6, 7, 2, 2]


@settings(deadline=None)
@given(DATA, st.booleans())
def test_reads_pyyaml_output(data: dict[str, Any], flow: bool) -> None:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    assert read(yaml.dump(data, Dumper=Dumper, default_flow_style=flow)) == data


@settings(deadline=None)
@example(":: =")
@given(st.text(alphabet=st.sampled_from("ab1:-?*&!|>'\"[]{},#%@`<= \n\t.~"), max_size=32))
def test_arbitrary_text_is_read_like_pyyaml_or_refused(text: str) -> None:
    try:
        data = read(text)
    except AxzooError:
        return
    assert data == yaml.load(text, LOADER)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_only_axzoo_errors(raw: bytes) -> None:
    try:
        read(raw)
    except AxzooError as error:
        assert "x.yaml" in str(error)
