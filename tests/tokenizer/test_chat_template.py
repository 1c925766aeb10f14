"""Templates are untrusted programs: tests of what they cannot do."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path

import pytest
from hostile_tokenizers import write_hostile
from tokenizer_server import tokenizer_server

from axzoo.bundle.completion import complete_bundle
from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import ChatRenderer, render_chat
from axzoo.tokenizer.local import load_tokenizer
from tiny_model import Built

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from chat_server import chat_server

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
    "endless macro": (
        "{% macro m(x) %}{% for i in range(99999) %}{{ x ~ i }}{% endfor %}{% endmacro %}"
        "{% for i in range(99999) %}{% set y = m(i) %}{% endfor %}",
        "does not finish",
    ),
    "range": ("{% for i in range(10**12) %}{% endfor %}", "[Rr]ange"),
    "range in a list": ("{{ range(10**12) | list }}", "[Rr]ange"),
    "doubling a list": (
        "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "MemoryError",
    ),
    "repeated list": ("{{ [1] * 10**11 }}", "MemoryError"),
    "center": ("{{ 'x' | center(10**11) }}", "MemoryError"),
    "indent": ("{{ 'x\n' * 99999 | indent(10**7) }}", "."),
    "format": ("{{ '%s' | format('x' * 10**10) }}", "MemoryError"),
    "format method": ("{{ '{0:>99999999999}'.format(1) }}", "."),
    "replace": ("{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}", "MemoryError"),
    "join": ("{{ (['x' * 10**6] * 10**6) | join }}", "MemoryError"),
    "batch": ("{{ range(99999) | batch(1, 'x' * 10**9) | list }}", "MemoryError"),
    "power tower": ("{{ 2**(2**(2**(2**(2**2)))) }}", "does not finish|MemoryError"),
    "digits": ("{{ (9**9999999) | string }}", "does not finish|[Ee]xceeds"),
    "factorial": (
        "{% set ns = namespace(x=1) %}{% for i in range(1, 99999) %}{% set ns.x = ns.x * i %}{% endfor %}{{ ns.x }}",
        "does not finish|[Ee]xceeds",
    ),
    "sorting": ("{% for i in range(99999) %}{{ range(99999) | sort | length }}{% endfor %}", "does not finish"),
    "json of much": ("{{ (['x' * 10**6] * 10**4) | tojson }}", "MemoryError|does not finish"),
    "recursive loop": ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
    "string class": ("{{ messages['__class__']['__mro__'] }}", "unsafe|undefined|no attribute"),
    "self": ("{{ self.__init__.__globals__ }}", "unsafe|undefined"),
    "lipsum": ("{{ lipsum.__globals__['os'].popen('id').read() }}", "unsafe"),
    "namespace": ("{{ namespace.__init__.__globals__ }}", "unsafe"),
    "dict clear": ("{{ messages[0].clear() }}", "unsafe|not safely callable"),
    "import": ("{% import '/etc/passwd' as x %}", "no loader"),
    "from import": ("{% from 'x' import y %}", "no loader"),
    "extends": ("{% extends 'x' %}", "no loader"),
    "undefined function": ("{{ open('/etc/passwd').read() }}", "undefined"),
    "unknown filter": ("{{ 1 | nope }}", "nope"),
    "unknown tag": ("{% nope %}", "nope"),
    "division": ("{{ 1 // 0 }}", "division"),
    "unclosed": ("{{ ", "[Uu]nexpected"),
    "a dash": ("{{ '\\ud800' }}{{ raise_exception('\\ud800') }}", r"\\ud800$"),
    "strftime": ("{{ strftime_now('%Y' * 10**8) }}", "MemoryError|."),
    "deep brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion|nested|too many|crashes|MemoryError"),
    "deep ifs": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "recursion|nested|too many|crashes|MemoryError|indent"),
}


SILENT = [
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__init__}'.format_map({'x': 1}) }}",
    "{{ '' | attr('__class__') }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ strftime_now.__code__ }}",
    "{{ messages[0].__class__ }}",
    "{{ namespace.__globals__ }}",
]
"""Attributes that the sandbox hides: they are undefined, which is written as nothing."""


@pytest.mark.parametrize("template", SILENT)
def test_internals_are_hidden(template: str) -> None:
    assert render_chat(f"a{template}b", MESSAGES, {}, True) in ("ab", "a[Undefined]b")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_give_a_one_line_error(name: str) -> None:
    template, message = HOSTILE[name]
    with pytest.raises(AxzooError, match=message) as caught:
        render_chat(template, MESSAGES, {}, True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_half_a_character_in_the_output_is_refused(tmp_path: Path) -> None:
    write_hostile(tmp_path, lambda _: None)
    for template in ("{{ '\\ud800' }}", "a{{ messages[0].content }}{{ '\\udfff\\ud800' }}"):
        (tmp_path / "chat_template.jinja").write_text(template)
        tokenizer = load_tokenizer(tmp_path)
        for variables in ({}, {"enable_thinking": True}):
            with pytest.raises(AxzooError, match="the output of the chat template is not valid UTF-8") as caught:
                tokenizer.encode_chat(MESSAGES, variables=variables)
            str(caught.value).encode()  # it can be printed, and sent as JSON


def test_half_a_character_in_the_error_of_a_template_can_be_printed() -> None:
    with pytest.raises(AxzooError) as caught:
        render_chat("{{ raise_exception('\\ud800') }}", MESSAGES, {}, True)
    str(caught.value).encode()


@pytest.mark.parametrize("template", ["{{ '\\ud800' }}", "{{ raise_exception('\\ud800') }}"])
def test_servers_answer_json_to_half_characters(s8: Built, tmp_path: Path, template: str) -> None:
    built = s8.moved(tmp_path / "tiny-w8a16")
    complete_bundle(built.plan)
    path = built.folder / "tokenizer/chat_template.jinja"
    path.write_text("{% if messages[0].content == 'half' %}" + template + "{% endif %}x{{ messages[0].content }}")
    with chat_server(built.folder, "--mode", "exact") as server:
        for content, expected in (("half", 400), ("hi", 200)):
            question = [{"role": "user", "content": content}]
            status, body = server.chat(model="tiny-w8a16", messages=question, max_tokens=1)
            assert (status, "error" in body) == (expected, expected == 400)
    with tokenizer_server(built.folder) as encoder:
        for content, expected in (("half", 400), ("hi", 200)):
            answer = encoder.post("/encode", {"text": content})
            assert (answer.status, "error" in answer.body) == (expected, expected == 400)
    assert main(["run", str(built.folder), "--prompt", "half"]) == 1


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
