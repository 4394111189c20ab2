"""Quality, re-estimated statistics and ensembles of saved minima against plain sums and PyTorch."""

import numpy as np
import pytest
from helpers.minima_runs import first

from periodic_jax.inspection.load import load_run, load_states
from periodic_jax.landscape.connectivity import combined, on_sphere
from periodic_jax.landscape.networks import Networks
from periodic_jax.storage.minima_files import saved_minima

pytestmark = pytest.mark.usefixtures("rises")


def test_statistics_quality_and_ensembles_are_those_of_plain_sums(whole, compared):
    run = load_run(whole)
    one = saved_minima(whole)[0]
    with np.load(one.file) as arrays:
        kernel, stored = arrays["params.conv0.kernel"].astype(np.float64), dict(arrays)
    data = run.config.data
    images = (data.images / 255 - np.array(data.mean)) / np.array(data.std)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    unit = {
        name: a / compared.weight_norm.values[0, 0] for name, a in stored.items() if "conv" in name and "kernel" in name
    }
    total = np.sqrt(sum(np.sum(np.square(stored[name], dtype=np.float64)) for name in unit))
    assert compared.weight_norm.values[0, 0] == pytest.approx(total)
    patches = np.stack([framed[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3)], -1)[..., 0, :]
    outputs = patches @ (kernel / total).reshape(9, -1)
    states = load_states(run, one.step, [one.config])
    labels = states.task.labels
    params, statistics = on_sphere(first(states.params), labels), first(states.batch_stats)
    networks = Networks(states.task, data)
    quality = networks.quality(params, statistics)
    np.testing.assert_allclose(quality.statistics["conv0"]["mean"], outputs.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(quality.statistics["conv0"]["var"], outputs.var((0, 1, 2), ddof=1), rtol=1e-5)
    in_parts = Networks(states.task, data, most_pixels=64 * 16).quality(params, statistics)
    np.testing.assert_allclose(in_parts.statistics["conv0"]["mean"], outputs.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(in_parts.statistics["conv0"]["var"], outputs.var((0, 1, 2)), rtol=2e-3)
    assert in_parts.train_loss == pytest.approx(quality.train_loss, rel=0.1)
    assert compared.train_loss.values[0, 0] == pytest.approx(quality.train_loss, rel=1e-5)
    logits = quality.test_outputs.astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = chances[np.arange(len(logits)), data.test_labels]
    assert quality.test_loss == pytest.approx(-np.log(right).mean(), rel=1e-5)
    other = logits[::-1] / 3
    chances = (chances + np.exp(other) / np.exp(other).sum(1, keepdims=True)) / 2
    np.testing.assert_allclose(np.exp(combined([logits, other], "cross_entropy")), chances, rtol=1e-9)
    loss, error = networks.together([logits, other])
    assert loss == pytest.approx(-np.log(chances[np.arange(len(logits)), data.test_labels]).mean(), rel=1e-5)
    assert error == pytest.approx((chances.argmax(1) != data.test_labels).mean())
    np.testing.assert_array_equal(combined([logits, other], "squared"), (logits + other) / 2)


def test_quality_is_that_of_pytorch(whole):
    """Of the same weights and re-estimated statistics, by PyTorch's kernels."""
    from helpers import torch_oracle

    run, one = load_run(whole), saved_minima(whole)[0]
    states, data = load_states(run, one.step, [one.config]), run.config.data
    params = on_sphere(first(states.params), states.task.labels)
    quality, model = Networks(states.task, data).quality(params, first(states.batch_stats)), states.task.network.module
    state = torch_oracle.state_dict(model, {"params": params, "batch_stats": quality.statistics})
    logits = torch_oracle.convnet(model, state, torch_oracle.normalised(data.test_images, data, "float32"), train=False)
    np.testing.assert_allclose(quality.test_outputs, logits.numpy(), rtol=1e-4, atol=1e-4)
    loss = torch_oracle.F.cross_entropy(logits, torch_oracle.torch.as_tensor(data.test_labels).long())
    assert quality.test_loss == pytest.approx(float(loss), rel=1e-5)
