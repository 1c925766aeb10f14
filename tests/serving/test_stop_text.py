"""Stop texts, for any way to split an answer into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from axzoo.serving.stop_text import StopText

LETTERS = st.text("ab", max_size=12)


@given(st.lists(LETTERS, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_text_before_the_first_stop_is_passed_on(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    stop_text, out = StopText(stops), ""
    for piece in pieces:
        out += stop_text.push(piece)
        if stop_text.found:
            break
    out += stop_text.flush()
    assert stop_text.found == any(stop in text for stop in stops)
    if stop_text.found:
        assert text.startswith(out)
        assert not any(stop in out for stop in stops)
        assert any(text.startswith(stop, len(out)) for stop in stops)
    else:
        assert out == text


def test_only_a_possible_start_of_a_stop_is_held_back() -> None:
    stops = StopText(["###"])
    assert (stops.push("a#"), stops.push("b##"), stops.push("#c"), stops.found) == ("a", "#b", "", True)
