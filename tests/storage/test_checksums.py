"""What telemetry held at each place is recorded as a slow reading of the store finds it, however it was written."""

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from periodic_jax import SweepGrid
from periodic_jax.storage.checksums import OF_STEPS, TelemetryChecksums
from periodic_jax.storage.writer import TelemetryLayout, TelemetryWriter

STEPS, LENGTH, EVERY = 9000, 4000, 500  # two configurations have 4,000 steps and 100 evaluations in a chunk
RNG = np.random.default_rng(0)
CURVES = {
    "loss": RNG.normal(size=(2, STEPS)).astype(np.float32),
    "layer_weight_norm": RNG.normal(size=(2, STEPS, 3)),
}
LAYOUT = TelemetryLayout(
    SweepGrid.product(lr=[0.1, 1.0]), STEPS, range(0, STEPS + 1, EVERY),
    {name: values[:, :0] for name, values in CURVES.items()}, ["test_loss"], ["a", "b", "c"],
)  # fmt: skip


def expected(path, step, diverged):
    """Of a run after so many steps, number by number, and of complete chunks as their files end."""

    def ends(name, chunk, rest=""):
        return int.from_bytes((path / f"telemetry.zarr/{name}/c/0/{chunk}{rest}").read_bytes()[-4:], "little")

    def in_turn(values):
        one = [value.tobytes() for t in range(values.shape[1]) for value in values[:, t]]
        return google_crc32c.value(b"".join(one))

    evaluations = np.float32([[i + at for at in range(step // EVERY + 1)] for i in range(2)])
    chunks = {"test_loss": [in_turn(evaluations)]}
    for name, rest in (("loss", ""), ("layer_weight_norm", "/0")):
        whole = step // LENGTH
        partial = [in_turn(CURVES[name][:, whole * LENGTH : step])] if step % LENGTH else []
        chunks[name] = [*(ends(name, chunk, rest) for chunk in range(whole)), *partial]
    for name, steps in (("step", range(STEPS)), ("eval_step", LAYOUT.eval_steps), ("diverged_at", diverged)):
        reached = [(place, int(at)) for place, at in enumerate(steps) if 0 <= at <= step]
        places_and_steps = np.array(list(zip(*reached, strict=True)), np.int64)
        chunks[name] = [google_crc32c.value(places_and_steps.tobytes())]
    return chunks


def compare(writer, path, step, diverged):
    found = writer.checksums(step)
    assert (found.step, found.evaluations) == (step, step // EVERY + 1)
    wanted = expected(path, step, diverged)
    assert {name: list(found.chunks[name]) for name in wanted} == wanted
    assert set(OF_STEPS) < set(wanted)
    assert TelemetryChecksums.from_json(found.as_json()) == found


@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, STEPS // EVERY - 1), min_size=1, max_size=4, unique=True), resumed=st.booleans())
def test_recorded_as_it_is_found(tmp_path_factory, cuts, resumed):
    path = tmp_path_factory.mktemp("run")
    writer = TelemetryWriter(path, LAYOUT)
    diverged = np.array([-1, 700])
    writer.write_evaluation(0, {"test_loss": np.float32([0, 1])})
    first = 0
    for cut in (*sorted(cuts), STEPS // EVERY):
        last = cut * EVERY
        writer.write(first, {name: values[:, first:last] for name, values in CURVES.items()})
        for at in range(first // EVERY + 1, last // EVERY + 1):
            writer.write_evaluation(at * EVERY, {"test_loss": np.float32([at, 1 + at])})
        writer.write_diverged(np.where(diverged <= last, diverged, -1))
        compare(writer, path, last, np.where(diverged <= last, diverged, -1))
        if resumed:  # what comes later is there already, and is written again
            later = min(last + 2 * EVERY, STEPS)
            writer.write(last, {name: values[:, last:later] for name, values in CURVES.items()})
            writer = TelemetryWriter(path, LAYOUT)
            writer.truncate(last)
            compare(writer, path, last, np.where(diverged <= last, diverged, -1))
        first = last


@pytest.mark.parametrize(
    "content",
    [
        *({}, [], 3, {"step": 1, "evaluations": 1}, {"step": 1, "evaluations": 1, "chunks": 4}),
        *({"step": step, "evaluations": 1, "chunks": {}} for step in (-1, True, 1.5, None)),
        *({"step": 1, "evaluations": 1, "chunks": {"loss": text}} for text in ("12345", "1234567g", 3)),
    ],
)
def test_what_is_no_record_is_refused(content):
    with pytest.raises((ValueError, LookupError, TypeError)):
        TelemetryChecksums.from_json(content)
