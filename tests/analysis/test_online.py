"""The reading of periods without the future, against a slow reading of whole curves and against `detect_periods`."""

import itertools
import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from periodic_jax.analysis.online import conclude_periods, initial_rule, most_periods, update_rule
from periodic_jax.analysis.periods import detect_periods

EVERY = 20


def read_online(loss, norm, every=EVERY, pieces=None, diverged=None):
    """Of each configuration the minima of periods that ended, as (step, told after), and the last candidate."""
    rule, ended = initial_rule(len(loss), every, loss.dtype), [[] for _ in loss]
    for end in range(every, loss.shape[1] + 1, every):
        cuts = sorted({end - every, *(c for c in pieces or () if end - every < c < end), end})
        for first, last in itertools.pairwise(cuts):
            update_rule(rule, first, loss[:, first:last], norm[:, first:last])
        alive = np.ones(len(loss), bool) if diverged is None else ~(diverged < end)
        verdict = conclude_periods(rule, end, alive)
        for i in np.flatnonzero(verdict.ended):
            ended[i].append((int(verdict.step[i]), end))
    return ended, rule


def read_slowly(loss, norm, every=EVERY):
    """The same of one configuration, from its whole curves, with plain loops; and how far the nearest of its decisions
    is from being another one.
    """
    ended, candidates, margins = [], [], []  # (score, step, noise)
    high, high_step, low_step, low, falling = -math.inf, 0, 0, math.inf, False
    for end in range(every, len(loss) + 1, every):
        window = range(end - every, end)
        losses, norms = [float(loss[t]) for t in window], [float(norm[t]) for t in window]
        over = False
        if falling:
            bottom = min(norms)
            if bottom < low:
                low, low_step = bottom, end - every + norms.index(bottom)
            peak = max(float(loss[t]) for t in range(low_step, end))
            bends = sorted(
                abs(math.log(a) - 2 * math.log(b) + math.log(c))
                for a, b, c in zip(norms, norms[1:], norms[2:], strict=False)
            )
            quiet = 1.4826 / math.sqrt(6) * float(np.median(bends))
            grown = math.log(norms[-1] / low) - max(math.log(1.1), 10 * quiet)
            margins.append(grown)
            if grown >= 0:
                score, step, noise = min(candidates)
                loud = math.log(peak / score) - max(math.log(3), 6 * noise)
                slow = end - 1 - low_step - max((low_step - high_step) / 3, every)
                margins += [loud, slow, *(other - score for other, *_ in candidates if other != score)]
                over = loud >= 0 and slow <= 0
                falling, high = False, max(norms)
                high_step = end - every + norms.index(high)
                if over:
                    ended.append((step, end))
                    candidates = []
        else:
            if max(norms) > high:
                high = max(norms)
                high_step = end - every + norms.index(high)
            margins.append(norms[-1] * 1.1 - high)
            if norms[-1] * 1.1 <= high:
                falling, low, low_step = True, norms[-1], end - 1
        steps = [abs(math.log(a) - math.log(b)) for a, b in itertools.pairwise(losses)]
        score = max(float(np.median(losses)), sum(losses[-10:]) / 10)
        candidates.append((score, end, 1.4826 / math.sqrt(2) * float(np.median(steps))))
    if candidates:
        margins += [other - min(candidates)[0] for other, *_ in candidates if other != min(candidates)[0]]
    nearest = min(map(abs, margins), default=math.inf)
    return ended, min(candidates)[1] if candidates else -1, nearest


@st.composite
def curves(draw):
    """Falls of the norm with jumps between them, and a loss that falls, and rises at some of the jumps."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    norm, loss, level = [], [], 3.0
    for _ in range(draw(st.integers(1, 5))):
        length, burst = draw(st.integers(15, 200)), draw(st.integers(1, 40))
        fall, jump = draw(st.floats(1.0, 3.0)), draw(st.floats(1.0, 3.0))
        norm += list(level * np.geomspace(1, 1 / fall, length)) + list(level / fall * np.geomspace(1, jump, burst))
        loss += list(np.geomspace(1, draw(st.floats(0.001, 0.5)), length)) + [draw(st.floats(0.01, 5.0))] * burst
        level *= jump / fall
    noise = draw(st.sampled_from([0.0, 0.01, 0.3]))
    return np.array(loss) * np.exp(noise * rng.normal(size=len(loss))), np.array(norm)


@settings(max_examples=60, deadline=None)
@given(curves(), st.lists(st.integers(1, 900), max_size=8))
def test_it_reads_what_plain_loops_read_however_the_chunks_are_cut(both, pieces):
    loss, norm = both
    ended, rule = read_online(loss[None], norm[None], pieces=pieces)
    expected, last, nearest = read_slowly(loss, norm)
    assume(nearest > 1e-9)  # else rounding decides: the rule computes its logarithms and means in another order
    assert ended[0] == expected
    assert rule["found"][0] == len(expected)
    assert rule["step"][0] == last


def periodic(periods=5, length=300, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(periods * length) % length
    norm = 3 * np.exp(-0.003 * t)
    loss = np.where(t < 6, 3.0, np.maximum(np.exp(-t / 30), 0.003)) * np.exp(0.2 * rng.normal(size=len(t)))
    return loss.astype(np.float32), norm.astype(np.float32)


def test_each_destabilisation_ends_a_period_whose_minimum_lies_before_it():
    loss, norm = periodic()
    found = detect_periods({"loss": loss, "weight_norm": norm, "effective_lr": 0.1 / norm**2})
    onsets = found.onset[np.isfinite(found.onset)]
    ended = read_online(np.stack([loss] * 2), np.stack([norm] * 2))[0]
    assert ended[0] == ended[1]
    assert len(onsets) == len(ended[0]) == 4
    before = 0
    for onset, (step, told) in zip(onsets, ended[0], strict=True):
        assert before < step <= onset + 1 <= told <= onset + 2 * EVERY
        assert loss[step - 10 : step].mean() < 0.01
        before = told


def test_a_burst_at_the_end_of_a_window_is_no_candidate():
    loss = np.full(3 * EVERY, 0.1)
    loss[EVERY : 2 * EVERY] = 0.05
    loss[2 * EVERY - 2 : 2 * EVERY] = 9.0  # the lowest median, but it ends in a burst
    rule = read_online(loss[None], np.linspace(3, 2, len(loss))[None])[1]
    assert rule["step"][0] in (EVERY, 3 * EVERY)


def test_a_slow_descent_and_a_diverged_configuration_end_no_period():
    loss, norm = periodic()
    gone = np.where(np.arange(len(loss)) > 450, np.nan, loss)
    both = np.stack([np.geomspace(1, 0.01, len(loss)), gone]), np.stack([np.geomspace(3, 1, len(loss)), norm])
    ended, rule = read_online(*both, diverged=np.array([np.inf, 450]))
    assert ended[0] == []
    assert rule["step"][0] == len(loss)
    assert [told for _, told in ended[1]] == [320]
    assert 320 <= rule["step"][1] <= 450


def test_no_run_has_more_periods_than_fit():
    loss, norm = periodic()
    rate = np.array([0.003])
    assert len(read_online(loss[None], norm[None])[0][0]) <= most_periods(len(loss), EVERY, rate)[0]
