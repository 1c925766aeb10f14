"""Templates are untrusted programs: tests of what they cannot do."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import ChatRenderer, render_chat

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
def test_hostile_templates_give_a_one_line_error(name: str) -> None:
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


LOOP_ON_REQUEST = (
    "{% if messages[0].content == 'loop' %}" + HOSTILE["endless"][0] + "{% endif %}{{ messages[0].content }}"
)


def test_a_process_serves_many_conversations_and_is_replaced_when_it_dies() -> None:
    renderer = ChatRenderer(LOOP_ON_REQUEST, {})
    assert renderer.render(MESSAGES, True) == "hi"
    first = renderer._child._process
    assert first is not None
    assert renderer.render([{"role": "user", "content": "ho"}], True) == "ho"
    assert renderer._child._process is first
    with pytest.raises(AxzooError, match="does not finish"):
        renderer.render([{"role": "user", "content": "loop"}], True)
    assert renderer.render(MESSAGES, True) == "hi"
    assert renderer._child._process is not None
    renderer._child._process.kill()
    renderer._child._process.wait()
    assert renderer.render(MESSAGES, True) == "hi"
    second = renderer._child._process
    del renderer
    gc.collect()
    assert first.returncode is not None
    assert second.returncode is not None


def test_threads_share_a_process() -> None:
    renderer = ChatRenderer("{{ messages[0].content }}", {})
    wrong: list[str] = []

    def render(name: str) -> None:
        for number in range(50):
            text = f"{name} {number} " + "x" * 5000
            if renderer.render([{"role": "user", "content": text}], True) != text:
                wrong.append(text)

    threads = [threading.Thread(target=render, args=(f"thread {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    renderer.close()
