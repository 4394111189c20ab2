import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reference import augmented, crop_and_flip
from scipy import stats

from periodic_jax import ConfigError, data
from periodic_jax.training import input_pipeline


def indices(seed, first, steps, capacity, count=23, batch_size=4):
    return np.asarray(
        input_pipeline.batch_indices(
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
    device = input_pipeline.to_device(data.load("digits"))
    images = input_pipeline.normalise(device.images, device.mean, device.std)
    assert float(images.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.std()) == pytest.approx(1, abs=1e-4)


def test_normalisation_is_per_channel(tiny):
    device = input_pipeline.to_device(tiny)
    expected = (tiny.images / 255 - np.array(tiny.mean)) / np.array(tiny.std)
    np.testing.assert_allclose(
        input_pipeline.normalise(device.images, device.mean, device.std), expected, rtol=1e-5, atol=1e-6
    )


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ConfigError, match="--dataset: mnist is not accepted; expected one of digits, cifar10"):
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


def drawn(seed, first, steps, capacity):
    """With replacement, of 23 images."""
    rows = input_pipeline.batch_indices(
        jnp.uint32(seed), jnp.int32(first), steps, capacity=capacity, count=23, batch_size=4, sampling="iid"
    )
    return np.asarray(rows)[:steps]


@pytest.mark.parametrize("capacity", [1, 7, 40])
def test_images_drawn_with_replacement_do_not_depend_on_how_the_steps_are_cut(capacity):
    """Against one draw after the other, from the seed and the number of the step alone."""
    pieces = [drawn(3, t, min(capacity, 40 - t), capacity) for t in range(0, 40, capacity)]
    key = jax.random.fold_in(jax.random.key(jnp.uint32(3)), 3)
    expected = [jax.random.randint(jax.random.fold_in(key, t), (4,), 0, 23) for t in range(40)]
    assert np.array_equal(np.concatenate(pieces), np.stack(expected))
    assert not np.array_equal(drawn(4, 0, 40, 40), np.stack(expected))


def test_images_drawn_with_replacement_are_independent():
    """The counts of 2,000 steps are multinomial: chi-squared of images, and of pairs of places in a mini-batch."""
    rows = drawn(0, 0, 2000, 2000)
    for values, cells in ((rows.ravel(), 23), (23 * rows[:, 0] + rows[:, 1], 23**2)):
        counts = np.bincount(values, minlength=cells)
        assert len(counts) == cells
        assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3


def test_seeds_have_their_own_order():
    assert not np.array_equal(indices(0, 0, 5, 5), indices(1, 0, 5, 5))
    many = jax.vmap(lambda s: input_pipeline.batch_indices(s, jnp.int32(2), 5, capacity=5, count=23, batch_size=4))(
        jnp.arange(3, dtype=jnp.uint32)
    )
    assert np.array_equal(many[1], indices(1, 2, 5, 5))


def test_all_images_come_up_equally_often():
    """23 images, 5 batches of 4 an epoch: over 400 epochs each image is left out of 3/23 of them."""
    rows = indices(0, 0, 2000, 2000)
    shown = np.bincount(rows.ravel(), minlength=23)
    expected, deviation = 400 * 20 / 23, np.sqrt(400 * 20 / 23 * 3 / 23)
    assert np.abs(shown - expected).max() < 5 * deviation


def test_augmentation_equals_plain_numpy_under_jit_and_vmap():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 6, 8, 10, 3), dtype=np.uint8)
    offsets, flips = rng.integers(0, 9, (2, 6, 2)), rng.random((2, 6)) < 0.5
    expected = np.stack([crop_and_flip(*each) for each in zip(images, offsets, flips, strict=True)])
    assert np.array_equal(jax.vmap(input_pipeline.crop_and_flip)(images, offsets.astype(np.int32), flips), expected)
    assert np.array_equal(input_pipeline.crop_and_flip(images[0], np.full((6, 2), 4), np.zeros(6, bool)), images[0])
    keys = jax.vmap(input_pipeline.augmentation_key)(jnp.uint32([0, 9]), jnp.int32([3, 4]))
    both = jax.jit(jax.vmap(input_pipeline.augment))(images, keys)
    for i in range(2):
        assert np.array_equal(both[i], augmented(images[i], keys[i]))
        assert both.dtype == np.uint8


def test_every_crop_and_flip_comes_up_equally_often():
    """A lit pixel in the middle of 9x9 tells row, column and flip; 81 crops of 8,100 images each about 100 times."""
    images = np.zeros((8100, 9, 9, 2), np.uint8)
    images[:, 4, 4, 0] = 1
    images[:, 4, 5, 1] = 1
    shown = np.asarray(input_pipeline.augment(images, input_pipeline.augmentation_key(jnp.uint32(1), jnp.int32(0))))
    places = shown[..., 0].reshape(8100, 81).argmax(1)
    counts = np.bincount(places, minlength=81)
    assert np.abs(counts - 100).max() < 50
    inside = shown.reshape(8100, -1).sum(1) == 2
    flipped = (shown[..., 1].reshape(8100, 81).argmax(1) < places)[inside]
    assert flipped.mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(len(flipped)))


def test_augmentation_has_its_own_keys():
    keys = [
        input_pipeline.augmentation_key(jnp.uint32(seed), jnp.int32(step))
        for seed, step in ((0, 0), (0, 1), (1, 0), (2**32 - 1, 5))
    ] + [
        input_pipeline.purpose_key(jnp.uint32(0), purpose)
        for purpose in (input_pipeline.INITIALISATION, input_pipeline.ORDER, input_pipeline.AUGMENTATION)
    ]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 7


def test_a_mini_batch_is_gathered_augmented_and_normalised(tiny):
    device, index, key = (
        input_pipeline.to_device(tiny),
        np.array([3, 3, 17]),
        input_pipeline.augmentation_key(jnp.uint32(0), jnp.int32(2)),
    )
    for pixels, images in (
        (tiny.images[index], input_pipeline.mini_batch(device, index)),
        (augmented(tiny.images[index], key), input_pipeline.mini_batch(device, index, key)),
    ):
        expected = (pixels / 255 - np.array(tiny.mean)) / np.array(tiny.std)
        np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)
