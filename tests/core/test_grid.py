import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.formatting import flag_of, short_numbers
from periodic_jax.core.grid import AXES, HParams, SweepGrid

# Values that each axis accepts, such that no product of lr and weight decay reaches 1.
VALUES = {
    "lr": st.floats(1e-6, 0.9),
    "weight_decay": st.floats(0, 1),
    "momentum": st.floats(0, 0.99),
    "noninvariant_lr": st.floats(-1, 1),
    "elr": st.floats(0, 1),
    "fixed_norm": st.floats(-1, 100),
    "seed": st.integers(0, 2**32 - 1),
}


@st.composite
def axes(draw):
    names = draw(st.lists(st.sampled_from(list(VALUES)), unique=True))
    return {name: draw(st.lists(VALUES[name], min_size=1, max_size=3, unique=True)) for name in names}


def refusal(call, *args, **kwargs) -> str:
    """The message of the ConfigError that the call must raise, checked to be one line."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_hparams_default_and_shrink():
    assert HParams()[:6] == (0.1, 0, 0, 0, 0, 0)
    assert HParams(lr=0.5, weight_decay=0.2).shrink == 0.9
    np.testing.assert_array_equal(HParams(np.array([0.5, 1]), np.array([0.2, 0])).shrink, [0.9, 1])
    assert list(AXES) == [*HParams._fields, "seed"]


@settings(deadline=None)
@given(axes())
def test_product_is_the_product_of_itertools(axes):
    grid = SweepGrid.product(**axes)
    wanted = list(itertools.product(*axes.values()))
    assert len(grid) == len(wanted) == math.prod(map(len, axes.values()))
    assert [tuple(grid.coords[name][i] for name in axes) for i in range(len(grid))] == wanted
    assert grid.swept == tuple(name for name, values in axes.items() if len(values) > 1)
    defaults = {**HParams()._asdict(), "seed": 0}
    for name in set(AXES) - set(axes):
        assert (grid.coords[name] == defaults[name]).all()


@settings(deadline=None)
@given(axes())
def test_of_takes_the_rows_of_a_product(axes):
    product = SweepGrid.product(**axes)
    grid = SweepGrid.of({name: product.coords[name][i] for name in AXES} for i in range(len(product)))
    assert grid.swept == ()
    for name in AXES:
        np.testing.assert_array_equal(grid.coords[name], product.coords[name])


def test_views_of_a_grid():
    grid = SweepGrid.product(seed=[2**32 - 1, 7], lr=0.5)
    assert grid.seeds.dtype == np.uint32
    assert grid.seeds.tolist() == [2**32 - 1, 7]
    hparams = grid.hparams()
    assert isinstance(hparams, HParams)
    for field in hparams:
        assert field.dtype == np.float64
        assert field.shape == (2,)
    assert hparams.lr.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        (SweepGrid.product(lr=[0.1, 1], seed=[4000000000, 4000000001]),
         ["lr=0.1 seed=4000000000", "lr=0.1 seed=4000000001", "lr=1 seed=4000000000", "lr=1 seed=4000000001"]),
        (SweepGrid.product(momentum=[0.9]), ["lr=0.1 weight_decay=0 seed=0"]),
        (SweepGrid.of([{"momentum": 0.9}, {"momentum": 0.5, "elr": 1e-7}]),
         ["momentum=0.9 elr=0", "momentum=0.5 elr=1e-07"]),
    ],
)  # fmt: skip
def test_label_distinguishes_configurations(grid, labels):
    assert [grid.label(i) for i in range(len(grid))] == labels


def test_numbers_of_any_real_kind():
    given = [1, 0.5, np.int32(2), np.float64(0.25)]
    for values in (given, tuple(given), np.array(given)):
        assert SweepGrid.product(lr=values).coords["lr"].tolist() == given


BAD = [
    ("lr", 0, "0", "above 0"),
    ("lr", -0.5, "-0.5", "above 0"),
    ("lr", math.inf, "inf", "finite"),
    ("lr", [0.1, math.nan], "nan", "finite"),
    ("weight_decay", -1e-3, "-0.001", "from 0"),
    ("momentum", 1, "1", "below 1"),
    ("momentum", 1.0000001, "1.0000001", "below 1"),
    ("momentum", -0.1, "-0.1", "from 0"),
    ("noninvariant_lr", -math.inf, "-inf", "finite"),
    ("elr", -1e-5, "-1e-05", "from 0"),
    ("fixed_norm", math.nan, "nan", "finite"),
    ("seed", -1, "-1", "whole numbers"),
    ("seed", 0.5, "0.5", "whole numbers"),
    ("seed", 2**32, "4294967296", "4294967295"),
    ("lr", "0.1", "'0.1'", "numbers"),
    ("lr", ["0.1", 0.2], "['0.1', 0.2]", "numbers"),
    ("lr", None, "None", "numbers"),
    ("lr", True, "True", "numbers"),
    ("lr", 1j, "1j", "numbers"),
    ("lr", {0.1}, "{0.1}", "numbers"),
    ("lr", [[0.1]], "[[0.1]]", "numbers"),
    ("lr", [[0.1], [0.1, 0.2]], "[[0.1], [0.1, 0.2]]", "numbers"),
    ("lr", 10**400, "1000", "numbers"),
    ("lr", [0.1, 10**400], "1000", "numbers"),
    ("lr", "0.1\n\x1b[31m", r"0.1\n\x1b[31m", "numbers"),
    ("lr", [], "an empty axis", "above 0"),
    ("seed", (), "an empty axis", "whole numbers"),
    ("lr", [0.1, 0.2, 0.1], "0.1 given twice", "once"),
    ("weight_decay", [0.0, -0.0], "0 given twice", "once"),
]


@pytest.mark.parametrize("make", [SweepGrid.product, lambda **axes: SweepGrid.of([{}, axes])])
@pytest.mark.parametrize(("name", "value", "shown", "accepted"), BAD)
def test_refusal_names_argument_value_and_what_is_accepted(make, name, value, shown, accepted):
    message = refusal(make, **{name: value})
    argument, _, rest = message.partition(": ")
    got, _, wanted = rest.partition(" is not accepted; expected ")
    assert argument == flag_of(name)
    assert shown in got
    assert accepted in wanted


@pytest.mark.parametrize(("lr", "decay"), [(1, 1), (10, 0.1), (0.5, 3), (1e300, 1e300)])
def test_decay_of_a_whole_step_or_more_is_refused(lr, decay):
    message = refusal(SweepGrid.product, lr=[0.01, lr], weight_decay=[0.02, decay])
    assert f"--lr {lr:g} with --weight-decay {decay:g}" in message
    assert "below 1" in message
    assert len(SweepGrid.product(lr=lr, weight_decay=math.nextafter(1 / lr, 0) * (1 - 1e-12))) == 1


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: SweepGrid.product(rate=[0.1]), ("axis", "rate", "one of lr, weight_decay")),
        (lambda: SweepGrid.of([{"rate": 0.1}]), ("axis", "rate", "one of lr, weight_decay")),
        (lambda: SweepGrid.of([]), ("configurations", "there is none", "at least one")),
        (lambda: SweepGrid.of([{"lr": 0.5}, {}, {"lr": 0.5, "seed": 0}]), ("configurations", "lr=0.5", "once")),
        (lambda: SweepGrid.of([{"lr": [0.1, 0.2]}]), ("--lr", "[0.1, 0.2]", "one number")),
    ],
)
def test_refusal_of_axes_and_configurations(call, parts):
    argument, value, accepted = parts
    message = refusal(call)
    assert message.startswith(f"{argument}: {value}")
    assert accepted in message


def test_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(ConfigError("--lr", 0, "more")))
    assert (str(error), error.value) == ("--lr: 0 is not accepted; expected more", 0)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([], []),
        ([0.0316227766, 1.0, 1e-5, -1], ["0.0316", "1", "1e-05", "-1"]),
        ([0.12341, 0.12342, 0.12341, 5], ["0.12341", "0.12342", "0.12341", "5"]),
        ([4000000000, 4000000001], ["4000000000", "4000000001"]),
        ([0.1, 0.1 + 2**-56], ["0.10000000000000001", "0.10000000000000002"]),
    ],
)
def test_short_numbers_tell_different_ones_apart(values, texts):
    assert short_numbers(values) == texts
