"""Templates are programs of strangers: what they cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from axzoo.errors import AxzooError
from axzoo.tokenizer.chat_template import render_chat

MESSAGES = [{"role": "user", "content": "hi"}]

HOSTILE = {
    "endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not finish"),
    "doubling": (
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "MemoryError",
    ),
    "repetition": ("{{ 'x' * 10**11 }}", "MemoryError"),
    "padding": ("{{ '%99999999999d' % 1 }}", "."),
    "flood": ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "more than 4194304 characters"),
    "big number": ("{{ 9**99999999 % 7 }}", "does not finish"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "globals": ("{{ raise_exception.__globals__.json }}", "unsafe"),
    "internals": ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
    "mutation": ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "syntax": ("{% for %}", "Expected|expected|unexpected"),
    "exception": ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate$"),
    "long": (" " * (2 << 20), "2097152 characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_one_clear_line(name: str) -> None:
    template, message = HOSTILE[name]
    with pytest.raises(AxzooError, match=message) as caught:
        render_chat(template, MESSAGES, {}, True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_modules_in_the_working_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert render_chat("{{ messages[0].content }}", MESSAGES, {}, True) == "hi"


def test_unpaired_surrogates_pass_through() -> None:
    assert render_chat("{{ messages[0].content }}", [{"role": "user", "content": "\udcff"}], {}, True) == "\udcff"
