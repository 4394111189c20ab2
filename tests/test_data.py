import jax
import jax.numpy as jnp
import numpy as np
import pytest

from periodic_jax import ConfigError, data


def indices(seed, first, steps, capacity, count=23, batch_size=4):
    return np.asarray(
        data.batch_indices(
            jnp.uint32(seed), jnp.int32(first), jnp.int32(steps), capacity=capacity, count=count, batch_size=batch_size
        )
    )[:steps]


def test_digits_are_the_embedded_scans():
    digits = data.load("digits")
    assert digits.images.shape == (1500, 8, 8, 1)
    assert digits.test_images.shape == (297, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert digits.images.max() == 255
    assert set(digits.labels) == set(digits.test_labels) == set(range(10))
    from sklearn.datasets import load_digits

    ours = np.concatenate([digits.images, digits.test_images]).reshape(1797, -1) * (16 / 255)
    theirs = load_digits().data
    assert sorted(map(tuple, np.round(ours).astype(int))) == sorted(map(tuple, theirs.astype(int)))


def test_normalised_digits_have_mean_0_and_deviation_1():
    device = data.to_device(data.load("digits"))
    images = data.normalise(device.images, device)
    assert float(images.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.std()) == pytest.approx(1, abs=1e-4)


def test_normalisation_is_per_channel(tiny):
    device = data.to_device(tiny)
    expected = (tiny.images / 255 - np.array(tiny.mean)) / np.array(tiny.std)
    np.testing.assert_allclose(data.normalise(device.images, device), expected, rtol=1e-5, atol=1e-6)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ConfigError, match="--dataset: mnist is not accepted; expected one of digits"):
        data.load("mnist")


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_an_epoch_shows_each_image_at_most_once(seed):
    rows = indices(seed, 0, 10, 10)
    for epoch in (rows[:5], rows[5:]):
        assert len(set(epoch.ravel())) == 20
        assert set(epoch.ravel()) <= set(range(23))
    assert not np.array_equal(rows[:5], rows[5:])


@pytest.mark.parametrize("capacity", [1, 3, 5, 7, 40])
def test_batches_do_not_depend_on_how_the_steps_are_cut(capacity):
    whole = indices(3, 0, 40, 40)
    pieces = [indices(3, t, min(capacity, 40 - t), capacity) for t in range(0, 40, capacity)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_seeds_have_their_own_order():
    assert not np.array_equal(indices(0, 0, 5, 5), indices(1, 0, 5, 5))
    many = jax.vmap(lambda s: data.batch_indices(s, jnp.int32(2), 5, capacity=5, count=23, batch_size=4))(
        jnp.arange(3, dtype=jnp.uint32)
    )
    assert np.array_equal(many[1], indices(1, 2, 5, 5))


def test_all_images_come_up_equally_often():
    """23 images, 5 batches of 4 an epoch: over 400 epochs each image is left out of 3/23 of them."""
    rows = indices(0, 0, 2000, 2000)
    shown = np.bincount(rows.ravel(), minlength=23)
    expected, deviation = 400 * 20 / 23, np.sqrt(400 * 20 / 23 * 3 / 23)
    assert np.abs(shown - expected).max() < 5 * deviation
