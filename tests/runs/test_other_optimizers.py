"""Short runs of every optimiser: recorded, resumed, analysed, drawn and reported."""

import numpy as np
import pytest

from periodic_jax import ConfigError, RunConfig, analysis, open_run, plots, resume_run, run_sweep
from periodic_jax.core.optimizers import OPTIMIZERS
from periodic_jax.reporting import html
from periodic_jax.runs.config import check
from periodic_jax.storage.run_directory import read_config
from periodic_jax.storage.schema import UPDATES

SMALL = {"weight_decay": (0.1,), "width": 2, "depth": 1, "use_data_size": 64, "batch_size": 8}
COSTLY = [pytest.param(name, marks=() if name == "adamw" else pytest.mark.slow) for name in OPTIMIZERS if name != "sgd"]


@pytest.mark.parametrize("name", COSTLY)
def test_a_run_of_it_is_recorded_resumed_analysed_drawn_and_reported(tmp_path, name):
    axis = {"momentum": (0.5, 0.9)} if OPTIMIZERS[name].is_sgd else {"beta1": (0.5, 0.9)}
    config = RunConfig(out=tmp_path / "run", optimizer=name, steps=110, eval_every=60, lr=(0.02,), **axis, **SMALL)
    path = run_sweep(config).path
    resume_run(path, steps=120)
    assert read_config(path)["config"]["optimizer"] == name
    dataset = open_run(path, flat=True)
    assert dataset.sizes["step"] == 120
    for quantity in UPDATES:
        assert np.isfinite(dataset[quantity]).all(), quantity
    norm, radial, tangential = (
        dataset[quantity].values.astype(np.float64)
        for quantity in ("weight_norm", "radial_update", "tangential_update")
    )
    np.testing.assert_allclose(np.hypot(norm + radial, tangential)[:, :-1], norm[:, 1:], rtol=1e-6)
    found = analysis.analyze(dataset, predict=True)
    assert found.check_violations.isnull().all()  # with momentum or averages no relation of plain SGD is stated
    assert found.forecast_soonest.isnull().all()
    assert found.equilibrium_angular_step.isnull().all() == (name == "adam")
    assert np.isfinite(found.measured_angular_step).all()
    assert set(found.regime.values) <= set(analysis.regimes.REGIMES)
    assert plots.save_all(dataset, found, tmp_path / "figures", formats=("png",))
    assert html.report_contents(dataset, found)["name"] == "run"


REFUSED = [
    ({"optimizer": "adamax"}, "--optimizer: adamax is not accepted; expected one of sgd, sgdw, nesterov, adam"),
    (
        {"optimizer": "adamw", "momentum": (0.9,)},
        "--momentum: --optimizer adamw does not read it; leave it out, or give one of sgd, sgdw, nesterov",
    ),
    ({"optimizer": "lion", "eps": (1e-6,)}, "--eps: --optimizer lion does not read it; .* adam, adamw"),
    ({"beta1": (0.9, 0.95)}, "--beta1: --optimizer sgd does not read it"),
    ({"optimizer": "adam", "elr": (0.1,)}, "--elr: --optimizer adam does not read it"),
    ({"optimizer": "adam", "beta2": (1.0,)}, "--beta2: 1 is not accepted; expected numbers from 0 to below 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_hyperparameters_that_it_does_not_read_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(RunConfig(out="x", steps=5, **changes))
