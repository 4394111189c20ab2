"""Axes of the grid as the command line reads them."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from periodic_jax.cli.axis import parse_axis
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import AXES, SweepGrid


def refusal(call, *args, **kwargs) -> str:
    """The message of the ConfigError that the call must raise, checked to be one line."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    ("name", "words", "values"),
    [
        ("lr", ["0.5", "logspace:1e-3:1e-1:3", "2"], (0.5, 1e-3, 1e-2, 1e-1, 2.0)),
        ("lr", ["logspace:1:1e-6:7"], (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)),
        ("lr", ["logspace:1e-320:1.7976931348623157e308:2"], (1e-320, 1.7976931348623157e308)),
        ("momentum", ["linspace:0:0.9:4"], (0.0, 0.3, 0.6, 0.9)),
        ("noninvariant_lr", ["linspace:-1:1:3"], (-1.0, 0.0, 1.0)),
        ("seed", ["linspace:0:4294967295:2", "3"], (0.0, 4294967295.0, 3.0)),
        ("weight_decay", ["none", "1e-3", "logspace:1e-5:1e-4:2"], (0.0, 1e-3, 1e-5, 1e-4)),
        ("weight_decay", ["linspace:0:1e-3:3"], (0.0, 5e-4, 1e-3)),
        ("weight_decay", ["0"], (0.0,)),
        ("elr", ["0"], (0.0,)),
    ],
)
def test_parse_axis(name, words, values):
    assert parse_axis(name, words) == values


@pytest.mark.parametrize(
    ("name", "word", "accepted"),
    [
        ("lr", "none", "a range such as"),
        ("momentum", "none", "from 0 to below 1"),
        ("lr", "", "above 0"),
        ("lr", "abc", "above 0"),
        ("lr", "0", "above 0"),
        ("lr", "-1", "above 0"),
        ("lr", "nan", "finite"),
        ("lr", "inf", "finite"),
        ("lr", "1e400", "finite"),
        ("lr", "0.1,0.2", "a range such as"),
        ("lr", "logspace", "FIRST:LAST:COUNT"),
        ("lr", "logspace:1:2", "FIRST:LAST:COUNT"),
        ("lr", "logspace:1:2:3:4", "FIRST:LAST:COUNT"),
        ("lr", "logspace:1:2:1", "COUNT from 2"),
        ("lr", "logspace:1:2:10001", "to 10000"),
        ("lr", "logspace:1:2:2.5", "COUNT from 2"),
        ("lr", "logspace:0:1:3", "ends above 0"),
        ("lr", "logspace:1:-1:3", "ends above 0"),
        ("lr", "logspace:1:inf:3", "ends above 0"),
        ("lr", "linspace:nan:1:3", "FIRST:LAST:COUNT"),
        ("lr", "linspace:0:1:3", "above 0"),
        ("lr", "linspace:1:1:2", "once"),
        ("fixed_norm", "linspace:-1e308:1e308:3", "FIRST:LAST:COUNT"),
        ("seed", "linspace:0:1:3", "whole numbers"),
        ("weight_decay", "-1", "from 0"),
        ("weight_decay", "None", "from 0"),
        ("weight_decay", "none:1", "from 0"),
    ],
)
def test_parse_axis_refuses(name, word, accepted):
    message = refusal(parse_axis, name, [word])
    assert message.startswith(f"{flag_of(name)}: ")
    assert accepted in message


@pytest.mark.parametrize("words", [[], ["0.1", "0.1"], ["0.01", "logspace:1e-3:1e-1:3"]])
def test_parse_axis_refuses_nothing_and_duplicates(words):
    assert "--lr" in refusal(parse_axis, "lr", words)


@settings(deadline=None)
@given(
    st.floats(1e-300, 1e300), st.floats(1e-300, 1e300), st.integers(2, 50), st.sampled_from(["logspace", "linspace"])
)
@example(0.30000000000000004, 0.7000000000000001, 3, "logspace")
@example(1e-300, 1e300, 50, "logspace")
def test_ranges_have_exact_ends_and_even_steps(first, last, count, kind):
    assume(not math.isclose(first, last, rel_tol=1e-12))  # 15 digits would not tell the values apart
    values = parse_axis("lr", [f"{kind}:{first!r}:{last!r}:{count}"])
    assert (values[0], values[-1]) == (first, last)
    assert len(values) == count
    t = np.arange(count) / (count - 1)
    even = {"linspace": (1 - t) * first + t * last, "logspace": np.exp((1 - t) * np.log(first) + t * np.log(last))}
    np.testing.assert_allclose(values, even[kind], rtol=1e-12)


words = st.one_of(
    st.text(max_size=12),
    st.text("0123456789.eE+-_naifx: ", max_size=12),
    st.builds(
        lambda kind, parts: ":".join([kind, *parts]),
        st.sampled_from(["logspace", "linspace", "none", ""]),
        st.lists(st.one_of(st.floats().map(repr), st.integers(-2, 40).map(str), st.text(max_size=3)), max_size=5),
    ),
)


@settings(deadline=None)
@given(st.sampled_from(AXES), st.lists(words, max_size=3))
@example("lr", ["1" * 5000])
@example("lr", ["logspace:1:2:" + "1" * 5000])
@example("lr", ["\ud800"])
def test_parse_axis_gives_numbers_or_one_line(name, words):
    try:
        values = parse_axis(name, words)
    except ConfigError as error:
        message = str(error)
        assert message.startswith(flag_of(name))
        assert message.isprintable()
    else:
        assert len(values) >= len(words) > 0
        assert all(isinstance(value, float) and math.isfinite(value) for value in values)
        # What the command line takes, the library takes.
        np.testing.assert_array_equal(SweepGrid.product(**{"lr": 1e-320, name: values}).coords[name], values)


def test_an_unknown_axis_is_refused():
    assert "axis: rate is not accepted; expected one of lr, weight_decay" in refusal(parse_axis, "rate", ["0.1"])
