"""Reading config.json so that nothing in it is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from axzoo.errors import AxzooError
from axzoo.families import load_family, supported_model_types
from axzoo.families.config_view import ConfigView

PATH = Path("there/config.json")


def _view(**values: Any) -> ConfigView:
    return ConfigView(values, PATH)


def test_null_is_absent() -> None:
    view = _view(head_dim=None)
    assert view.size("head_dim", 7) == 7
    assert view.flag("bias", False) is False
    with pytest.raises(AxzooError, match=r"there/config\.json has no head_dim, which this model_type needs"):
        view.size("head_dim")


def test_every_key_must_be_read_harmless_or_vouched_for() -> None:
    view = _view(hidden_size=8, dtype="float32", architectures=["X"], scale=2, other=None)
    assert view.size("hidden_size") == 8
    with pytest.raises(AxzooError, match=r"keys axzoo does not know: other, scale\. They may change"):
        view.finish()
    with pytest.raises(AxzooError, match="does not know: scale"):
        view.finish(["other"])
    view.finish(["other", "scale"])


@pytest.mark.parametrize(
    "values, wanted",
    [
        ({}, (10000.0, {"rope_type": "default"})),
        ({"rope_theta": 500000}, (500000.0, {"rope_type": "default"})),
        ({"rope_theta": 5.0, "rope_scaling": None}, (5.0, {"rope_type": "default"})),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, (10000.0, {"rope_type": "linear", "factor": 2})),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2}},
            (10000.0, {"rope_type": "linear", "factor": 2}),
        ),
        ({"rope_parameters": {"rope_theta": 7.0}}, (7.0, {"rope_type": "default"})),
        (
            {"rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2}},
            (7.0, {"rope_type": "linear", "factor": 2}),
        ),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 9.0}, (9.0, {"rope_type": "default"})),
    ],
)
def test_both_generations_of_rope_keys(values: dict[str, Any], wanted: Any) -> None:
    view = _view(**values)
    assert view.rope() == wanted
    view.finish()


def test_reading_rope_leaves_the_config_as_it_was() -> None:
    values = {"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}
    for _ in range(2):
        assert ConfigView(values, PATH).rope() == (7.0, {"rope_type": "default"})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rope_scaling": []}, r"rope_scaling is \[\], but must be a mapping or null"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_parameters": 3}, "rope_parameters is 3, but must be a mapping or null"),
        ({"rope_parameters": {}}, "has no rope_theta"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta is None, but must be a positive number"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4', but must be a positive number"),
    ],
)
def test_rope_keys_of_the_wrong_kind(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        _view(**values).rope()


def test_two_rope_thetas_contradict() -> None:
    view = _view(rope_parameters={"rope_theta": 7.0, "rope_type": "default"}, rope_theta=8.0)
    view.rope()
    with pytest.raises(AxzooError, match="does not know: rope_theta"):
        view.finish()


@pytest.mark.parametrize("heads, kv_heads, wanted", [(8, 2, (8, 2)), (8, None, (8, 8)), (7, 1, (7, 1)), (6, 6, (6, 6))])
def test_heads(heads: int, kv_heads: int | None, wanted: tuple[int, int]) -> None:
    assert _view(num_attention_heads=heads, num_key_value_heads=kv_heads).heads() == wanted


def test_a_family_is_a_file() -> None:
    types = supported_model_types()
    assert "llama" in types
    assert "config_view" not in types
    for model_type in types:
        family = load_family(model_type)
        for name in ("decoder_spec", "layer_tensors", "post_tensors", "embed_tensor", "IGNORED_TENSORS"):
            assert hasattr(family, name)
    for other in ("Llama", "config_view", "__init__", "../llama", ""):
        with pytest.raises(AxzooError, match=f"model_type '{other}' is not supported; supported are: .*llama"):
            load_family(other)
