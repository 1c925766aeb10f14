"""Reading config.json without silently skipping keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.model.config_view import ConfigView
from axzoo.model.families import load_family, supported_model_types
from axzoo.model.spec import RopeSpec

PATH = Path("there/config.json")
TRAINED = {"original_max_position_embeddings": 32}
HALF = {"partial_rotary_factor": 0.5}


def _view(**values: Any) -> ConfigView:
    return ConfigView(values, PATH)


def test_null_counts_as_absent() -> None:
    view = _view(head_dim=None)
    assert view.size("head_dim", 7) == 7
    assert view.flag("bias", False) is False
    with pytest.raises(AxzooError, match=r"there/config\.json has no head_dim, which this model_type needs"):
        view.size("head_dim")


def test_every_key_must_be_read_harmless_or_ignored() -> None:
    values = {"hidden_size": 8, "dtype": "float32", "architectures": ["X"], "scale": 2, "other": 0, "null": None}
    for ignored, refused in ([], "other, scale"), (["other"], "scale"):
        view = ConfigView(values, PATH, ignored)
        assert view.size("hidden_size") == 8
        with pytest.raises(AxzooError, match=rf"keys axzoo does not know: {refused}\. They may change"):
            view.finish()
    view = ConfigView(values, PATH, ["other", "scale"])
    view.size("hidden_size")
    view.finish()


LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 2}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 2.0}


def _rope(theta: float = 10000.0, rotary_dim: int = 8, **scaling: Any) -> RopeSpec:
    return RopeSpec(theta, rotary_dim, False, {"rope_type": "default"} | scaling)


@pytest.mark.parametrize(
    "values, wanted",
    [
        ({}, _rope()),
        ({"rope_theta": 500000}, _rope(500000.0)),
        ({"rope_theta": 5.0, "rope_scaling": None}, _rope(5.0)),
        ({"rope_theta": None}, _rope()),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, _rope(**LINEAR)),
        ({"rope_scaling": {"type": "linear", **LINEAR}}, _rope(**LINEAR)),
        ({"rope_parameters": {"rope_theta": 7.0}}, _rope(7.0)),
        ({"rope_parameters": {}, "rope_theta": 7.0}, _rope(7.0)),
        ({"rope_parameters": {"rope_theta": 7.0, **LINEAR}}, _rope(7.0, **LINEAR)),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 9.0}, _rope(9.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9}, "rope_theta": 9.0}, _rope(9.0)),
        ({"partial_rotary_factor": 1.0, "rope_parameters": {"partial_rotary_factor": 1.0}}, _rope()),
        # the training length: max_position_embeddings, one of the parameters, a key of config.json, or both
        ({"rope_scaling": YARN}, _rope(**YARN, original_max_position_embeddings=64)),
        ({"rope_scaling": YARN | TRAINED}, _rope(**YARN, **TRAINED)),
        ({"rope_scaling": YARN, **TRAINED}, _rope(**YARN, **TRAINED)),
        ({"rope_parameters": YARN | {"rope_theta": 3.0}, **TRAINED}, _rope(3.0, **YARN, **TRAINED)),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 9}, **TRAINED}, _rope(**YARN, **TRAINED)),
        ({**TRAINED}, _rope()),
    ],
)
def test_both_generations_of_rope_keys(values: dict[str, Any], wanted: RopeSpec) -> None:
    view = _view(**values)
    assert view.rope(8, 64) == wanted
    view.finish()


@pytest.mark.parametrize(
    "values, rotary_dim",
    [
        ({}, 10),
        ({"partial_rotary_factor": None}, 10),
        ({"partial_rotary_factor": 0.4}, 8),
        ({"partial_rotary_factor": 1}, 20),
        ({"rope_parameters": {"partial_rotary_factor": 0.7}}, 14),
        ({"rope_parameters": {"partial_rotary_factor": 0.7, "rope_theta": 2.0}, "partial_rotary_factor": 0.7}, 14),
        ({"partial_rotary_factor": 0.65}, 13),
    ],
)
def test_partial_rotary_factor(values: dict[str, Any], rotary_dim: int) -> None:
    view = _view(**values)
    if rotary_dim % 2:
        with pytest.raises(AxzooError, match="needs an even number of dimensions from 2 to 65536, not 13"):
            view.rope(20, 64, partial_rotary_factor=0.5)
    else:
        assert view.rope(20, 64, partial_rotary_factor=0.5).rotary_dim == rotary_dim
        view.finish()


def test_reading_rope_does_not_change_the_config() -> None:
    values = {"rope_parameters": {"rope_theta": 7.0, "rope_type": "yarn", "factor": 2.0}, **TRAINED}
    for _ in range(2):
        assert ConfigView(values, PATH).rope(8, 64) == _rope(7.0, **YARN, **TRAINED)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rope_scaling": []}, r"rope_scaling is \[\], but must be a mapping or null"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_parameters": 3}, "rope_parameters is 3, but must be a mapping or null"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4', but must be a positive number"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta is -1, but must be a positive number"),
        ({"rope_parameters": {"rope_theta": [7]}}, r"rope_theta is \[7\], but must be a positive number"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta is nan, but must be a positive number"),
        (
            {"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}, "rope_theta": 8.0},
            "rope_theta is 8.0, but must be 7.0, the value in its rope parameters",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.25},
            "partial_rotary_factor is 0.25, but must be 0.5, the value in its rope parameters",
        ),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5, but must be above 0 and at most 1"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor is 0, but must be a positive number"),
        ({"rope_parameters": {"partial_rotary_factor": "half"}}, "partial_rotary_factor is 'half', but must be"),
        ({"rope_scaling": {"factor": 2.0}}, r"^the rope parameters factor have no rope_type: add it"),
        ({"rope_scaling": {"type": ["linear"]}}, r"rope_type \['linear'\] is not supported"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": "64"}, "original_max_position_embeddings is '64'"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": -4}, "original_max_position_embeddings is -4"),
    ],
)
def test_invalid_rope_keys(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        _view(**values).rope(8, 64, partial_rotary_factor=1.0)


@pytest.mark.parametrize(
    "parameters, scaling, beside",
    [
        ({"rope_theta": 7.0}, LINEAR, {}),
        ({"rope_theta": 7.0, **LINEAR}, LINEAR, {}),  # transformers then uses the default rope_theta
        (LINEAR, {"type": "linear", "factor": 4}, {}),
        (LINEAR, {"type": "default"}, {}),
    ],
)
def test_both_generations_are_refused_if_they_contradict_each_other(
    parameters: dict[str, Any], scaling: dict[str, Any], beside: dict[str, Any]
) -> None:
    message = (
        "rope_parameters and rope_scaling contradict each other, .* a model_config that sets the wrong one to null"
    )
    with pytest.raises(AxzooError, match=message):
        _view(rope_parameters=parameters, rope_scaling=scaling, **beside).rope(8, 64)


@pytest.mark.parametrize("scaling", [None, {}, {"type": "linear", "factor": 2}, {"rope_theta": 7.0, **LINEAR}])
def test_both_generations_are_accepted_if_they_agree(scaling: dict[str, Any] | None) -> None:
    view = _view(rope_parameters={"rope_theta": 7.0, **LINEAR}, rope_scaling=scaling, rope_theta=7.0)
    assert view.rope(8, 64) == _rope(7.0, **LINEAR)
    view.finish()


@pytest.mark.parametrize("values", [HALF, {"rope_parameters": HALF}])
def test_a_family_that_rotates_whole_heads_refuses_a_partial_factor(values: dict[str, Any]) -> None:
    with pytest.raises(
        AxzooError, match=r"partial_rotary_factor is 0\.5, but must be 1, since this model_type rotates"
    ):
        _view(**values).rope(8, 64)


@pytest.mark.parametrize(
    "values, window, wanted",
    [
        ({}, None, ()),
        ({}, 7, (7, 7, 7)),
        ({"layer_types": None}, 7, (7, 7, 7)),
        ({"layer_types": []}, 7, (7, 7, 7)),
        ({"layer_types": ["full_attention"] * 3}, 7, ()),
        ({"layer_types": ["full_attention"] * 3}, None, ()),
        ({"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, 7, (7, None, 7)),
    ],
)
def test_sliding_windows(values: dict[str, Any], window: int | None, wanted: tuple[int | None, ...]) -> None:
    view = _view(**values)
    assert view.sliding_windows(3, window) == wanted
    view.finish()


@pytest.mark.parametrize(
    "kinds", [["full_attention"] * 2, ["full_attention"] * 4, ["linear_attention"] * 3, [None] * 3, "full_attention", 3,
              {"full_attention": 3}, [["full_attention"]] * 3, [{}] * 3]
)  # fmt: skip
def test_invalid_layer_types(kinds: Any) -> None:
    message = r"layer_types is .*, but must be a list of 3 entries, full_attention or sliding_attention"
    with pytest.raises(AxzooError, match=message):
        _view(layer_types=kinds).sliding_windows(3, 7)


def test_sliding_attention_without_a_window() -> None:
    with pytest.raises(
        AxzooError, match="sliding_window is None, but must be a length, since layer_types contains sliding"
    ):
        _view(layer_types=["full_attention", "sliding_attention"]).sliding_windows(2, None)


def test_optional_sizes_and_counts() -> None:
    view = _view(window=7, null=None, none=0)
    assert [view.optional_size(key) for key in ("window", "null", "absent")] == [7, None, None]
    assert [view.count(key, 3) for key in ("window", "null", "none", "absent")] == [7, 3, 0, 3]
    assert view.optional_size("none") is None
    with pytest.raises(AxzooError, match="has no absent, which this model_type needs"):
        view.count("absent")
    view.finish()


@pytest.mark.parametrize("value", [-1, 1 << 31, 1.5, 2.0, 0.0, True, False, "7", [], float("nan"), 10**400])
def test_invalid_optional_sizes_and_counts(value: Any) -> None:
    for read in (_view(window=value).optional_size, _view(window=value).count):
        with pytest.raises(AxzooError, match=r"window is .*, but must be an integer of 0 or more"):
            read("window")


def test_ignored_keys_are_known_and_a_membership_test_does_not_count_as_reading() -> None:
    view = _view(seen=1, quiet=2, null=None)
    assert ("seen" in view, "null" in view, "absent" in view) == (True, False, False)
    with pytest.raises(AxzooError, match="does not know: quiet, seen"):
        view.finish()
    view.ignore("quiet", "null", "absent")
    with pytest.raises(AxzooError, match="does not know: seen"):
        view.finish()


@pytest.mark.parametrize("value", [2, "1", None, [1], {}])
def test_choices(value: Any) -> None:
    assert _view(tp=1).choice("tp", [1]) == 1
    if value is None:
        assert _view(tp=None).choice("tp", [1], 1) == 1
    else:
        with pytest.raises(AxzooError, match=r"tp is .*, but must be 1$"):
            _view(tp=value).choice("tp", [1], 1)


@pytest.mark.parametrize("heads, kv_heads, wanted", [(8, 2, (8, 2)), (8, None, (8, 8)), (7, 1, (7, 1)), (6, 6, (6, 6))])
def test_heads(heads: int, kv_heads: int | None, wanted: tuple[int, int]) -> None:
    assert _view(num_attention_heads=heads, num_key_value_heads=kv_heads).heads() == wanted


def test_a_family_is_a_file() -> None:
    types = supported_model_types()
    assert "llama" in types
    assert "config_view" not in types
    for model_type in types:
        family = load_family(model_type)
        for name in ("decoder_spec", "layer_tensors", "post_tensors", "embed_tensor", "PARITY_TESTS"):
            assert hasattr(family, name)
    for other in ("Llama", "config_view", "__init__", "../llama", ""):
        with pytest.raises(AxzooError, match=f"model_type '{other}' is not supported; supported are: .*llama"):
            load_family(other)


EPSILONS = [1e300, 1e39, 1.5, 1e-31, 1e-46, 1e-300, 10**400]
SCALES = [1e300, 1e39, 1e7, 1e-7, 1e-300, 10**400]
WRONG = [0, -1, float("nan"), float("inf"), True, "1", [1]]


@pytest.mark.parametrize("value", [*EPSILONS, *WRONG], ids=lambda value: repr(value)[:9])
def test_an_epsilon_has_a_range(value: Any) -> None:
    with pytest.raises(AxzooError, match=r"there/config\.json: eps is .*, but must be a (positive )?number") as caught:
        _view(eps=value).epsilon("eps")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [*SCALES, *WRONG], ids=lambda value: repr(value)[:9])
def test_a_scale_has_a_range(value: Any) -> None:
    with pytest.raises(AxzooError, match=r"there/config\.json: scale_emb is .*, but must be a (positive )?number"):
        _view(scale_emb=value).scale("scale_emb")


@pytest.mark.parametrize("value", [1e300, 1e16, 1e-31])
def test_a_theta_has_a_range(value: float) -> None:
    for values in ({"rope_theta": value}, {"rope_parameters": {"rope_theta": value}}):
        with pytest.raises(AxzooError, match=r"rope_theta is .*, but must be a number from 1e-30 to 1e\+15"):
            ConfigView(values, PATH).rope(8, 64)


def test_a_training_length_has_a_range() -> None:
    """yarn supports `factor` times this length."""
    for length in (1e308, 1 << 31):
        scaling = {"rope_type": "yarn", "factor": 1e3, "original_max_position_embeddings": length}
        with pytest.raises(AxzooError, match=r"original_max_position_embeddings is .*, but must be at most 2147483647"):
            ConfigView({"rope_scaling": scaling}, PATH).rope(8, 64)


def test_usual_numbers_are_in_range() -> None:
    for value in (1e-12, 1e-5, 0.01, 1, 1.0):
        assert _view(eps=value).epsilon("eps") == value
    for value in (1e-3, 1.4, 12, 256, 1e4):
        assert _view(scale=value).scale("scale") == value
    for value in (1e4, 5e8, 4.6e10):
        assert _view(rope_theta=value).rope(8, 64).theta == value
