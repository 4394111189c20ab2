import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from periodic_jax import ConfigError
from periodic_jax.data import Dataset, Variations, load, vary
from periodic_jax.data.transforms import area_mean


@pytest.fixture(scope="module")
def cifar10():
    """Sixty images under the name of CIFAR-10, whose pixels tell their number."""
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    labels = (np.arange(60) * 7 % 10).astype(np.int32)
    return Dataset("cifar10", images[:40], labels[:40], images[40:], labels[40:], 10, (0.5,) * 3, (0.2,) * 3)


def numbers(images):
    return images[:, 0, 0, 0].tolist()


def test_nothing_changes_unless_asked_for(cifar10):
    assert vary(cifar10, Variations()) is cifar10


def test_the_last_training_images_validate(cifar10):
    varied = vary(cifar10, Variations(validation=15))
    assert numbers(varied.images) == list(range(25))
    assert numbers(varied.test_images) == list(range(25, 40))
    assert np.array_equal(varied.test_labels, cifar10.labels[25:])


@pytest.mark.parametrize(("half", "classes"), [(0, [0, 1, 2, 8, 9]), (1, [3, 4, 5, 6, 7])])
def test_half_of_the_classes_renumbered(cifar10, half, classes):
    varied = vary(cifar10, Variations(split_classes=half))
    assert varied.num_classes == 5
    for images, labels in ((varied.images, varied.labels), (varied.test_images, varied.test_labels)):
        assert [classes[label] for label in labels] == [n * 7 % 10 for n in numbers(images)]
    assert len(varied.images) + len(varied.test_images) == 30


def test_the_first_images_are_those_that_are_not_held_out(cifar10):
    varied = vary(cifar10, Variations(validation=10, use_data_size=12))
    assert numbers(varied.images) == list(range(12))
    assert numbers(varied.test_images) == list(range(30, 40))


def test_corruption_is_uniform_and_marked():
    digits = load("digits")
    varied = vary(digits, Variations(corrupt_train=0.4))
    changed = varied.labels != digits.labels
    assert not changed[~varied.corrupted].any()
    assert varied.corrupted.mean() == pytest.approx(0.4, abs=5 * np.sqrt(0.24 / 1500))
    # Nine in ten of the drawn labels are wrong.
    assert changed[varied.corrupted].mean() == pytest.approx(0.9, abs=5 * np.sqrt(0.09 / 600))
    counts = np.bincount(varied.labels[varied.corrupted], minlength=10)
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())
    assert np.array_equal(vary(digits, Variations(corrupt_train=0.4)).labels, varied.labels)
    assert np.array_equal(varied.test_labels, digits.test_labels)
    assert vary(digits, Variations(corrupt_train=1.0)).corrupted.all()


def test_corruption_draws_the_reference_s_labels():
    """The first ones of its generator, seeded with 228, for 1,500 labels and a half of them."""
    rng = np.random.RandomState(228)
    drawn = rng.rand(1500) <= 0.5
    new = rng.choice(10, drawn.sum())
    varied = vary(load("digits"), Variations(corrupt_train=0.5))
    assert np.array_equal(varied.labels[drawn], new)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_area_mean_is_the_rounded_mean_of_each_block(block, rows, columns, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, rows * block, columns * block, 3), dtype=np.uint8)
    small = area_mean(images, block)
    assert small.shape == (2, rows, columns, 3)
    for where in np.ndindex(small.shape):
        n, i, j, c = where
        mean = images[n, i * block : (i + 1) * block, j * block : (j + 1) * block, c].astype(float).mean()
        assert small[where] == int(np.floor(mean + 0.5))


def test_resizing_changes_both_sets(cifar10):
    varied = vary(cifar10, Variations(resize=4))
    assert varied.images.shape == (40, 4, 4, 3)
    assert numbers(varied.test_images) == list(range(40, 60))
    assert vary(cifar10, Variations(resize=8)).images.shape == (40, 8, 8, 3)


@pytest.mark.parametrize(
    ("variations", "said"),
    [
        (Variations(validation=0), "--validation: 0 "),
        (Variations(validation=39), "--validation: 39 is not accepted; expected less than the 40 training images"),
        (Variations(use_data_size=1), "--use-data-size: 1 "),
        (Variations(validation=10, use_data_size=31), "--use-data-size: 31 is not accepted; expected from 2 to the 30"),
        (Variations(split_classes=2), "--split-classes: 2 is not accepted; expected 0 or 1"),
        (Variations(corrupt_train=-0.1), "--corrupt-train: -0.1"),
        (Variations(corrupt_train=1.5), "--corrupt-train: 1.5"),
        (Variations(corrupt_train=float("nan")), "--corrupt-train: nan"),
        (Variations(resize=3), "--resize: 3 is not accepted; expected one of 8, 4, 2, 1 for images of 8x8"),
        (Variations(resize=16), "--resize: 16"),
        (Variations(resize=-2), "--resize: -2"),
    ],
)
def test_what_cannot_be_is_refused(cifar10, variations, said):
    with pytest.raises(ConfigError) as caught:
        vary(cifar10, variations)
    assert str(caught.value).startswith(said)


def test_only_cifar10_has_two_halves():
    with pytest.raises(ConfigError, match="--split-classes: digits has no such halves"):
        vary(load("digits"), Variations(split_classes=0))
