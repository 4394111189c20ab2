"""A run directory of an earlier version opens, is analysed, and goes on.

``tests/data/old_run`` was written at commit 703cbc1, before the package had subpackages: two configurations, stopped
after 20 of 40 steps.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from periodic_jax import RunCallbacks, analysis, dynamics, open_run, resume_run
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs.manifest import difference, from_manifest
from periodic_jax.storage.run_directory import checkpoint_steps, read_config

OLD_RUN = Path(__file__).parents[1] / "data" / "old_run"
REACHED, STEPS = 20, 40


@pytest.fixture
def path(tmp_path):
    return shutil.copytree(OLD_RUN, tmp_path / "run")


def test_it_opens_verified_and_is_analysed(path):
    dataset = open_run(path)
    assert dict(dataset.sizes) == {"lr": 2, "step": STEPS, "eval_step": 5}
    assert np.isfinite(dataset.loss[:, :REACHED]).all()
    assert dataset.loss[:, REACHED:].isnull().all()
    report = describe_run(path, verify=True)
    assert report.errors == []
    assert any(line.startswith(f"unfinished: {REACHED} of {STEPS} steps, 20 left") for line in report.lines)
    assert analysis.analyze(open_run(path, flat=True)).regime.values.tolist() == ["undecided"] * 2


def test_settings_that_it_has_not_are_as_they_were_then(path):
    """So the same sweep again goes on with it, and a sweep with such a setting is another one."""
    manifest = read_config(path)
    assert not {"storage", "deterministic", "optimizer", "beta1", "beta2", "eps"} & set(manifest["config"])
    config = from_manifest(manifest, path)
    assert (config.storage, config.deterministic, config.optimizer, config.beta1) == ("float32", False, "sgd", (0.9,))
    assert difference(config, manifest) == ""
    other = dataclasses.replace(config, storage="bf16", deterministic=True, beta1=(0.5,))
    expected = "--storage float32 there, bf16 here; --deterministic False there, True here; --beta1 0.9 there, 0.5 here"
    assert difference(other, manifest) == expected


def test_it_goes_on_from_its_checkpoint_to_its_end(path):
    before = open_run(path, flat=True).load()
    assert checkpoint_steps(path) == [REACHED]
    begun, chunks = [], []
    callbacks = RunCallbacks(
        on_start=lambda *counts: begun.append(counts),
        on_chunk=lambda chunk: chunks.append((chunk.first_step, chunk.steps)),
    )
    resume_run(path, callbacks=callbacks)
    assert begun == [(2, REACHED, STEPS)]
    assert chunks[0][0] == REACHED
    assert sum(steps for _, steps in chunks) == STEPS - REACHED
    after = open_run(path, flat=True).load()
    for name, values in before.data_vars.items():
        reached = {"step": slice(REACHED), "eval_step": slice(3)}
        kept = {dim: part for dim, part in reached.items() if dim in values.dims}
        np.testing.assert_array_equal(after[name].isel(kept), values.isel(kept), strict=True, err_msg=str(name))
    assert np.isfinite(after.loss).all()
    assert np.isfinite(after.test_loss).all()
    # The old checkpoint holds the state before step 20: the recorded norms of steps 19 and 20 are neighbours.
    predicted = dynamics.next_weight_norm(after.weight_norm, after.effective_grad_norm, after.lr, after.weight_decay)
    np.testing.assert_allclose(predicted[:, :-1], after.weight_norm[:, 1:], rtol=1e-4)
    summary = read_config(path)["summary"]
    assert (summary["config_steps"], summary["session_config_steps"]) == (2 * STEPS, 2 * (STEPS - REACHED))
    assert checkpoint_steps(path) == [STEPS]
    assert describe_run(path, verify=True).errors == []
