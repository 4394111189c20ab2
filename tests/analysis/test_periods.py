import numpy as np
import pytest
from helpers.synthetic import cut, stack, trajectory
from hypothesis import given, settings
from hypothesis import strategies as st

from periodic_jax.analysis.periods import Periods, cycles, delta_jumps, detect_periods
from periodic_jax.dynamics import rotation_spent

PERIODIC = (300, 700, 1200, 1500)


def equilibrium(steps=2000, **changes):
    """Training that fluctuates around the equilibrium of a constant effective gradient norm, here ρ = 5."""
    return trajectory(steps, **{"quiet": 25 * np.sqrt(1e-3 * (2 - 1e-3)), "loss": 0.5, **changes})


def assert_onsets(telemetry, onsets, **options):
    found = detect_periods(telemetry, **options)
    assert found.found == len(onsets)
    assert found.onset.tolist() == list(onsets)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_known_onsets_and_what_is_measured_at_them(seed):
    curve = trajectory(2000, PERIODIC, seed=seed)
    found = assert_onsets(curve, PERIODIC)
    onsets, ends = np.array(PERIODIC), np.array(PERIODIC) + 5
    np.testing.assert_array_equal(found.end, ends)
    np.testing.assert_array_equal(found.onset_weight_norm, curve["weight_norm"][onsets])
    np.testing.assert_array_equal(found.onset_effective_lr, curve["effective_lr"][onsets])
    np.testing.assert_array_equal(found.peak_weight_norm, curve["weight_norm"][ends])
    np.testing.assert_allclose(found.peak_weight_norm / found.onset_weight_norm, 1.08**5, rtol=1e-12)
    for k, onset in enumerate(onsets):
        assert found.loss_before[k] == pytest.approx(np.median(curve["loss"][onset - 50 : onset + 1]), rel=1e-3)
        assert found.peak_loss[k] == curve["loss"][onset : onset + 6].max()
    assert found.peak_loss.min() > 0.5 > 0.02 > found.loss_before.max()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(120, 200), min_size=1, max_size=6), st.integers(2, 8), st.integers(0, 99))
def test_onsets_of_any_spacing(gaps, length, seed):
    onsets = np.cumsum(gaps)
    assert_onsets(trajectory(int(onsets[-1]) + 60, onsets, length=length, seed=seed), onsets)


def test_first_steps_shorten_the_window():
    curve = trajectory(100, [13], weight_decay=0.02)
    found = assert_onsets(curve, [13])
    assert found.loss_before == pytest.approx(np.median(curve["loss"][:14]), rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_fast_periods_are_all_counted(seed):
    """Fifteen to 25 steps apart, half of which the noisy loss takes to fall again: 50 steps are of several periods."""
    rng = np.random.default_rng(seed)
    gaps = rng.integers(15, 26, 60)
    onsets, steps = np.cumsum(gaps), np.arange(gaps.sum() + 30)
    growth = (1 - 0.03) ** (-(gaps - 3) / 3)  # what the norm lost since the burst before
    curve = trajectory(len(steps), onsets, length=3, growth=growth, weight_decay=0.03, quiet=1e-6)
    since = steps - np.append(-99, onsets)[np.searchsorted(onsets, steps, side="right")]
    loss = np.where(since > 90, 0.1, np.maximum(2 * np.exp(-np.maximum(since - 2, 0) / 4), 0.1))
    curve["loss"] = loss * np.exp(0.25 * rng.normal(size=len(steps)))
    assert_onsets(curve, onsets)


@pytest.mark.parametrize(("spike", "counts"), [(299, False), (300, True), (303, True), (305, True), (306, False)])
def test_loss_must_rise_while_the_norm_grows(spike, counts):
    curve = trajectory(400, [300])
    curve["loss"] = np.where(np.arange(400) == spike, 1.0, 0.01)
    assert_onsets(curve, [300] * counts)


def test_a_plateau_ends_at_its_last_step():
    """Where decay is below rounding, or with frozen weights, several steps have the same lowest norm."""
    curve = trajectory(200, [100])
    curve["weight_norm"][95:100] = curve["weight_norm"][100]
    assert_onsets(curve, [100])


NO_PERIOD = {
    "slow descent": trajectory(2000),
    "noisy slow descent": trajectory(2000, noise=0.6),
    "equilibrium": equilibrium(),
    "noisy equilibrium": equilibrium(noise=0.6),
    "rise to equilibrium from below": equilibrium(norm=2.0),
    "descent to equilibrium from above": equilibrium(norm=12.0),
    "loss spikes without a jump of the norm": {**trajectory(500), "loss": np.where(np.arange(500) % 90, 0.01, 5.0)},
    "norm jumps without a rise of the loss": {**trajectory(500, [200, 400]), "loss": np.full(500, 0.01)},
    "burst at the very first step": trajectory(300, [0]),
    "burst at the very last step": trajectory(300, [299]),
    "constant": {name: np.ones(50) for name in ("loss", "weight_norm", "effective_lr", "angular_step")},
    "one step": trajectory(1),
    "no steps": trajectory(0),
    "never reached": cut(trajectory(50), 0),
}


@pytest.mark.parametrize("name", NO_PERIOD)
def test_no_period(name):
    found = assert_onsets(NO_PERIOD[name], [])
    assert all(values.shape == (0,) for values in found[1:])


@pytest.mark.parametrize(
    ("option", "blind", "seeing"), [("min_growth", 1.5, 1.4), ("min_loss_ratio", 300.0, 30.0), ("window", 2000, 50)]
)
def test_thresholds(option, blind, seeing):
    """The bursts multiply the norm by 1.47 and the loss by about 100; most of the steps before the second had a high
    loss, but the last 50 did not.
    """
    curve = trajectory(1500, [500, 1100])
    curve["loss"][300:450] = curve["loss"][550:1050] = 1.0
    assert_onsets(curve, [500] if option == "window" else [], **{option: blind})
    assert_onsets(curve, [500, 1100], **{option: seeing})


@pytest.mark.parametrize(("before", "after", "count"), [(1.2, 1.2, 1), (1.2, 1.05, 0), (1.05, 1.2, 0)])
def test_norm_must_have_fallen_as_well_as_grow(before, after, count):
    norm = np.concatenate([np.geomspace(before, 1, 100), np.geomspace(1, after, 10)[1:]])
    loss = np.where(np.arange(109) == 100, 1, 0.01)
    assert detect_periods({"loss": loss, "weight_norm": norm, "effective_lr": 1 / norm**2}).found == count


def test_ends_mid_period():
    """A burst that the run's end cuts counts, with the highest norm so far, if it has grown enough."""
    assert_onsets(trajectory(500, [200]), [200])
    found = assert_onsets(trajectory(403, [200, 400]), [200, 400])
    assert found.end.tolist() == [205, 402]
    assert_onsets(trajectory(402, [200, 400]), [200])


@pytest.mark.parametrize("last", [500, 401, 200])
def test_not_yet_reached_steps_are_as_if_they_were_not_there(last):
    curve = trajectory(800, [100, 400, 700])
    found = detect_periods(cut(curve, last))
    for values, wanted in zip(found, detect_periods({name: v[:last] for name, v in curve.items()}), strict=True):
        np.testing.assert_array_equal(values, wanted)


def diverging(bad=np.inf):
    """One period, then the loss leaves the numbers at step 600, two updates after a burst began."""
    curve = cut(trajectory(1000, [300, 598]), 601)
    curve["loss"][600] = bad
    return curve


@pytest.mark.parametrize(("bad", "onsets"), [(np.inf, [300]), (-np.inf, [300]), (np.nan, [300, 598])])
def test_divergence(bad, onsets):
    """An infinite loss has no place in a curve; a missing one leaves the norm to tell, which had grown by a sixth."""
    assert_onsets(diverging(bad), onsets)


def test_zero_norm_is_left_out():
    curve = trajectory(1000, [300])
    curve["weight_norm"][600:] = 0
    assert_onsets(curve, [300])


MANY = [trajectory(1500, PERIODIC[:3]), trajectory(1500), cut(trajectory(1500, [400, 800]), 700),
        equilibrium(1500), cut(diverging(), 1000), trajectory(1500, [1400])]  # fmt: skip
MANY[4] = {name: np.pad(values, (0, 500), constant_values=np.nan) for name, values in MANY[4].items()}


@pytest.mark.parametrize("lead", [(6,), (2, 3), (3, 1, 2)])
def test_several_at_once_are_as_one_at_a_time(lead):
    found = detect_periods({name: values.reshape(*lead, -1) for name, values in stack(MANY).items()})
    assert found.found.tolist() == np.reshape([3, 0, 1, 0, 1, 1], lead).tolist()
    for name, values in zip(Periods._fields[1:], found[1:], strict=True):
        assert values.shape == (*lead, 3)
        for curve, row in zip(MANY, values.reshape(6, 3), strict=True):
            alone = getattr(detect_periods(curve), name)
            np.testing.assert_allclose(row, np.pad(alone, (0, 3 - len(alone)), constant_values=np.nan), rtol=1e-9)


def test_no_configuration_at_all():
    found = detect_periods({name: np.ones((0, 20)) for name in ("loss", "weight_norm", "effective_lr")})
    assert found.found.shape == (0,)
    assert found.onset.shape == (0, 0)


def sawtooth(rng, lengths, *, noise, norm_noise, missing, ratio, tail):
    """A periodic curve: the norm falls at a constant rate by ``ratio`` within each length and jumps back in 4 steps,
    with a loss that falls by 100 and jumps with it; and where the onsets are.
    """
    log_norm, log_loss, onsets = [], [], []
    for length in lengths:
        log_norm.append(np.log(ratio) * np.r_[np.linspace(1, 0, length - 3), 0.4, 0.7, 0.9])
        log_loss.append(np.r_[np.linspace(0, -np.log(100), length - 3), -2, -1, 0])
        onsets.append(sum(map(len, log_norm)) - 4)
    log_norm.append(np.log(ratio) * (1 - np.arange(tail) / np.mean(lengths)))
    log_loss.append(-np.log(100) * np.arange(tail) / np.mean(lengths))
    steps = sum(map(len, log_norm))
    norm = np.exp(np.concatenate(log_norm) + norm_noise * rng.normal(size=steps))
    curve = {
        "loss": np.exp(np.concatenate(log_loss) + noise * rng.normal(size=steps)),
        "weight_norm": norm, "effective_lr": 1 / norm**2,
    }  # fmt: skip
    for values in curve.values():
        values[rng.random(steps) < missing] = np.nan
    return {name: values.astype(np.float32) for name, values in curve.items()}, np.array(onsets)


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.integers(300, 1200), min_size=1, max_size=8), noise=st.floats(0, 0.4),
    norm_noise=st.sampled_from([0, 1e-5, 3e-4]), missing=st.sampled_from([0, 0.001, 0.02, 0.1]),
    ratio=st.floats(1.5, 6), tail=st.integers(20, 250), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_planted_destabilisations_are_found_within_a_hundredth_of_a_period(
    lengths, noise, norm_noise, missing, ratio, tail, seed
):
    """Whatever the mini-batch noise, the gaps in the record, the length and number of periods; none is invented."""
    options = {"noise": noise, "norm_noise": norm_noise, "missing": missing, "ratio": ratio, "tail": tail}
    curve, onsets = sawtooth(np.random.default_rng(seed), lengths, **options)
    found = detect_periods(curve)
    assert found.found == len(onsets)
    np.testing.assert_array_less(np.abs(found.onset - onsets), 0.01 * np.array(lengths) + 1)


def test_no_destabilisation_in_a_thousand_noisy_curves_of_any_kind():
    """Slow descents, rises, equilibria of the recursion itself, random walks, white and heavy-tailed noise, waves."""
    rng = np.random.default_rng(0)
    draws, steps = 1000, 600
    t = np.arange(steps)

    def noise(scale):
        return np.exp(scale * rng.normal(size=(draws, steps)))

    scale = rng.uniform(0.01, 1, (draws, 1))
    decay = 10 ** rng.uniform(-5, -1.3, (draws, 1))
    equilibrium = np.ones((draws, steps))
    kicks = noise(rng.uniform(0.1, 0.8, (draws, 1)))
    for i in range(steps - 1):  # of ρ² where the effective gradient norm fluctuates about that of ρ = 1
        a2, square = (1 - decay[:, 0]) ** 2, equilibrium[:, i] ** 2
        equilibrium[:, i + 1] = np.sqrt(a2 * square + (1 - a2) * kicks[:, i] ** 2 / square)
    walk = np.exp(np.cumsum(0.003 * rng.normal(size=(draws, steps)), axis=1))
    wave = np.sin(2 * np.pi * t / rng.uniform(60, 500, (draws, 1)))
    curves = {
        "descent": (0.01 / (1 + t / 50) * noise(scale), np.exp(-decay * t)),
        "noisy descent": (np.exp(-t / 200) * noise(scale), np.exp(-decay * t) * noise(1e-3)),
        "rise": (noise(scale), np.exp(decay * t / 5)),
        "equilibrium": (0.5 * noise(scale), equilibrium),
        "equilibrium with a loss that follows it": (0.5 * kicks * noise(0.1), equilibrium),
        "random walk": (noise(scale), walk),
        "white noise": (noise(scale), noise(scale)),
        "heavy tails": (np.exp(scale * rng.standard_t(4, (draws, steps))), noise(0.1)),
        "absolute noise": (np.abs(rng.normal(size=(draws, steps))), np.abs(rng.normal(size=(draws, steps)))),
        "waves": (np.exp(2 * wave) * noise(0.1), np.exp(0.5 * wave)),
    }  # fmt: skip
    for name, (loss, norm) in curves.items():
        found = detect_periods({"loss": loss, "weight_norm": norm, "effective_lr": 1 / norm**2}).found
        assert found.sum() == 0, name


def test_what_is_measured_of_a_fall():
    """Two falls, the second with a spike of the loss in it that does not throw the weights."""
    curve = trajectory(1500, [400, 1200], noise=0.01)
    curve["loss"][800:803] = 0.3
    found = assert_onsets(curve, [400, 1200])
    assert found.fall.tolist() == [0, 405]
    np.testing.assert_array_equal(found.fall_weight_norm, curve["weight_norm"][[0, 405]])
    np.testing.assert_allclose(found.lowest_loss, [curve["loss"][:401].min(), curve["loss"][405:1201].min()])
    np.testing.assert_allclose(found.spike, [1.05, 30], rtol=0.1)
    spent = rotation_spent(curve["angular_step"])
    np.testing.assert_allclose(found.rotation, [spent[400:406].sum(), spent[1200:1206].sum()])
    np.testing.assert_allclose(found.fall_rotation, [spent[:400].sum(), spent[405:1200].sum()])
    between = cycles(found)
    assert [values.item() for values in between[:3]] == [800, 5, 795]
    assert between.norm_ratio.item() == curve["weight_norm"][405] / curve["weight_norm"][1200]


def test_delta_jumps_are_those_of_the_cosine():
    angles = np.random.default_rng(0).uniform(0, np.pi, (3, 500))
    delta = np.array([[0.1], [0.5], [0.9]])
    np.testing.assert_array_equal(delta_jumps(angles, delta), 1 - np.cos(angles) > delta)
    assert delta_jumps(np.float32([1e-6]), 4e-13).all()  # where 1 - cos θ is 0 in float32
