"""Stop texts, whatever the pieces an answer comes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from axzoo.serving.answers import StopText

LETTERS = st.text("ab", max_size=12)


@given(st.lists(LETTERS, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_comes_out_is_all_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    filter_, out = StopText(stops), ""
    for piece in pieces:
        out += filter_.push(piece)
        if filter_.found:
            break
    out += filter_.flush()
    assert filter_.found == any(stop in text for stop in stops)
    if filter_.found:
        assert text.startswith(out)
        assert not any(stop in out for stop in stops)
        assert any(text.startswith(stop, len(out)) for stop in stops)
    else:
        assert out == text


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    stops = StopText(["###"])
    assert (stops.push("a#"), stops.push("b##"), stops.push("#c"), stops.found) == ("a", "#b", "", True)
