import jax
import numpy as np
import pytest
from helpers.small_sweeps import collect, forget_programs, network

from periodic_jax import SweepGrid
from periodic_jax.sweeps.programs import Programs
from periodic_jax.sweeps.sweep import Sweep
from periodic_jax.training.spec import TrainingSpec

FIVE = SweepGrid.product(lr=[0.02, 0.05, 0.1, 0.3, 1.0], weight_decay=1e-2)
TWO_SEEDS = SweepGrid.product(lr=[0.05, 0.3, 1.0], weight_decay=1e-2, momentum=0.5, seed=[4, 0])


@pytest.mark.parametrize(
    ("platform", "layout", "grid", "options"),
    [
        ("cuda", "map:2", FIVE, {"augment": True}),  # and one configuration that is left over
        pytest.param("cuda", "map", TWO_SEEDS, {"augment": True}, marks=pytest.mark.slow),
        pytest.param("cuda", "vmap", FIVE, {"augment": True}, marks=pytest.mark.slow),
        pytest.param("cuda", "map:2", FIVE, {"full_batch": True}, marks=pytest.mark.slow),
        pytest.param("tpu", "map:2", FIVE, {"augment": True}, marks=pytest.mark.slow),
    ],
)
def test_the_form_for_accelerators_records_what_that_for_cpus_does(float64, tiny, platform, layout, grid, options):
    spec = TrainingSpec(12, track_sharpness=3, per_layer=True, **options)
    devices = jax.devices()[:1] if grid is FIVE else None

    def run(platform, layout):
        sweep = Sweep(network(platform=platform), tiny, grid, spec, layout=layout, devices=devices)
        return collect(sweep, 10, eval_every=5)

    telemetry, evaluations = run(platform, layout)
    for found, expected in zip((telemetry, evaluations), run("cpu", "map"), strict=True):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-9, strict=True, err_msg=name)
    assert np.isfinite(telemetry["loss"]).all()
    assert np.isfinite(telemetry["sphere_sharpness"]).nonzero()[1].tolist() == [0, 3, 6, 9] * len(grid)


@pytest.mark.parametrize("layout", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_step_is_traced_once(monkeypatch, float64, tiny, layout):
    """A deep network takes seconds for each trace."""
    traced, gradients = [], Programs._gradients

    def counted(self, batch, state):
        traced.append(1)
        return gradients(self, batch, state)

    forget_programs()
    monkeypatch.setattr(Programs, "_gradients", counted)
    sweep = Sweep(
        network(), tiny, TWO_SEEDS, TrainingSpec(12, per_layer=True), layout=layout, devices=jax.devices()[:1]
    )
    sweep.compile()
    assert len(traced) == 1
