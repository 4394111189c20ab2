"""Several processes on this machine, with two devices each, against one."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from survival import states_at
from together import SETTINGS, finish, start

from periodic_jax import ConfigError, RunConfig, SweepGrid, distributed, open_run, run_sweep
from periodic_jax.arrival import is_known
from periodic_jax.distributed import Distributed, PeerLost, joined
from periodic_jax.layouts import ROW_COST, Arrangement, device_shape
from periodic_jax.results import checkpoint_steps, read_config, write_config
from periodic_jax.run import resume_run
from periodic_jax.telemetry import TelemetryWriter, shares

STEPS = 18


class Store:
    """A key-value store as JAX's coordination service has one."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, place):
        return [(key, value) for key, value in list(self.values.items()) if key.startswith(place)]

    def blocking_key_value_get(self, key, milliseconds):
        until = time.monotonic() + min(milliseconds, 20) / 1000
        while key not in self.values:
            if time.monotonic() > until:
                raise RuntimeError("DEADLINE_EXCEEDED")
            time.sleep(0.001)

    def key_value_delete(self, place):
        for key, _ in self.key_value_dir_get(place):
            del self.values[key]


def each(count, action, patience=5.0):
    """What an action gives, or raises, in each process of a team, here threads."""
    store, ends = Store(), [None] * count

    def run(index):
        try:
            ends[index] = action(Distributed(index, count, store, patience))
        except Exception as error:
            ends[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_processes_hear_each_other():
    def talk(team):
        heard = [team.exchange([team.index, k]) for k in range(5)]
        order = []
        team.in_turn(lambda: order.append(time.monotonic()))
        return heard, team.once(lambda: {"said": team.index}), team.together(lambda: team.index), order[0]

    ends = each(3, talk)
    for index, (heard, once, own, _) in enumerate(ends):
        assert heard == [[[i, k] for i in range(3)] for k in range(5)]
        assert (once, own) == ({"said": 0}, index)
    assert ends[0][3] < min(ends[1][3], ends[2][3])


def test_the_error_of_one_process_is_that_of_all():
    def refuse(team):
        if team.index == 1:
            raise ConfigError("--width", 0, "a whole number from 1")

    for way in ("together", "check_same", "once"):

        def act(team, way=way):
            if way == "check_same":
                return team.check_same({"--lr": "0.1", "jax": "2" if team.index == 1 else "1"})
            if way == "once":
                return team.once(lambda: refuse(Distributed(1, 3, None, 1)))
            return team.together(lambda: refuse(team))

        ends = each(3, act)
        assert {type(end) for end in ends} == {ConfigError}
        assert len({str(end) for end in ends}) == 1
        if way == "check_same":
            assert str(ends[0]) == "jax: 2 in process 1 is not accepted; expected 1, as in process 0"


def test_a_process_that_is_missing_or_gives_up_is_named():
    def miss(team):
        if team.index != 1:
            team.exchange(1)

    assert [str(end) for end in each(3, miss, patience=0.1)][::2] == ["process 1 of 3 has not answered for 0 s"] * 2

    def give_up(team):
        if team.index == 1:
            return team.part("[Errno 28] No space left")
        return team.exchange(1)

    ends = each(3, give_up)
    assert [type(ends[0]), type(ends[2])] == [PeerLost, PeerLost]
    assert str(ends[0]) == "process 1 of 3 has ended ([Errno 28] No space left)"


def test_who_is_killed_while_it_waits_is_named(monkeypatch):
    """It had come to wait, and says so no more."""
    monkeypatch.setattr(distributed, "POLL", 0.01)

    def wait(team):
        if team.index == 1:
            return team._client.key_value_set("periodic_jax/waiting/0/1", "3")
        return team.wait_for(Future())

    ends = each(3, wait, patience=0.2)
    assert [str(end) for end in ends[::2]] == ["process 1 of 3 has not answered for 0 s"] * 2


def test_who_waits_or_is_done_is_waited_for(monkeypatch):
    monkeypatch.setattr(distributed, "POLL", 0.01)

    def work(team):
        future = Future()
        timer = threading.Timer((2.5, 1.3, 0.05)[team.index], future.set_result, [None])
        timer.start()
        team.wait_for(future)
        return timer.join()

    assert each(3, work, patience=1.0) == [None] * 3


def test_who_took_long_waits_long():
    """The others may take as long as this process took since they met."""

    def work(team):
        team.exchange(0)
        time.sleep(0.3 if team.index == 0 else 0.5)
        return team.exchange(1)

    assert each(2, work, patience=0.1)[0] == [1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_all_processes_have_one_shape_and_every_configuration_a_place(seed):
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, rng.integers(1, 6), rng.integers(1, 20)) for _ in range(rng.integers(1, 4))]
    devices = int(rng.integers(1, 4))
    rows, members = shape = device_shape(parts, devices)
    for seeds in parts:
        arranged = Arrangement.of(seeds, devices, shape)
        assert arranged.source.shape == (rows * devices, members)
        assert (seeds[arranged.source] == arranged.seeds[:, None]).all()
        assert np.array_equal(arranged.flatten(arranged.source), np.arange(len(seeds)))
    least = min(
        (m + ROW_COST)
        * max(-(-sum(-(-int((seeds == s).sum()) // m) for s in set(seeds.tolist())) // devices) for seeds in parts)
        for m in range(1, 21)
    )
    assert rows * (members + ROW_COST) == pytest.approx(least)


def test_each_process_writes_its_part_and_others_regroup_it(tmp_path):
    """Three writers, each of its own chunks; then two, whose chunks are others; then one. As one writer alone."""
    grid = SweepGrid.product(lr=np.geomspace(0.1, 1, 6))
    shapes = {"loss": np.empty((6, 0)), "weight_norm": np.empty((6, 0)), "layer_weight_norm": np.empty((6, 0, 2))}
    values = {n: np.random.default_rng(0).normal(size=(6, 30, *s.shape[2:])) for n, s in shapes.items()}
    (tmp_path / "parts").mkdir()
    (tmp_path / "one").mkdir()

    def writers(path, count):
        chunk, share = shares(path, 6, count)
        parts = [slice(k * share, min((k + 1) * share, 6)) for k in range(count)]
        common = (path, grid, 30, [0, 30], shapes, ("test_loss",), ["a", "b"], 0)
        return [(part, TelemetryWriter(*common, part, chunk)) for part in parts]

    done = 0
    for count, end in ((3, 10), (2, 20), (1, 30)):
        for part, writer in writers(tmp_path / "parts", count):
            writer.write(done, {name: array[part, done:end] for name, array in values.items()})
            writer.write_diverged(np.arange(6)[part])
            if end == 30:
                writer.write_evaluation(30, {"test_loss": np.arange(6.0)[part]})
            writer.commit()
        done = end
    ((_, writer),) = writers(tmp_path / "one", 1)
    writer.write(0, values)
    writer.write_diverged(np.arange(6))
    writer.write_evaluation(30, {"test_loss": np.arange(6.0)})
    for path in ("parts", "one"):
        write_config(tmp_path / path, {"format": 1})
    parts, one = (open_run(tmp_path / name, flat=True).load() for name in ("parts", "one"))
    assert parts.drop_attrs().identical(one.drop_attrs())
    assert not list((tmp_path / "parts").glob("*.zarr.*"))


def test_chunks_are_kept_where_they_divide_evenly(tmp_path):
    grid = SweepGrid.product(lr=np.geomspace(0.1, 1, 12))
    chunk, share = shares(tmp_path, 12, 4)
    assert (chunk, share) == (3, 3)
    TelemetryWriter(tmp_path, grid, 5, [0], {"loss": np.empty((12, 0))}, (), (), 0, slice(0, 3), chunk)
    assert shares(tmp_path, 12, 1) == (3, 12)
    assert shares(tmp_path, 12, 2) == (3, 6)
    assert shares(tmp_path, 12, 3) == (4, 4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def assert_same(path, expected, steps):
    """Telemetry and last states to the bit, but for evaluations at former ends."""
    a, b = open_run(path, flat=True).load(), open_run(expected, flat=True).load()
    a = a.sel(eval_step=b.eval_step.values).assign_coords(schedule_end=b.schedule_end)
    assert a.drop_attrs().identical(b.drop_attrs())
    assert np.isfinite(a.loss[0]).all()
    states, wanted = states_at(path, steps), states_at(expected, steps)
    assert set(states) == set(wanted)
    for name, array in states.items():
        np.testing.assert_array_equal(array, wanted[name], strict=True, err_msg=name)


def alone(out, steps=STEPS, **changes):
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in SETTINGS.items()}
    return run_sweep(RunConfig(out=out, steps=steps, **{**settings, **changes}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of one process that all others must equal."""
    return alone(tmp_path_factory.mktemp("whole") / "run")


def test_two_processes_do_what_one_does(whole, tmp_path, cache):
    assert finish(start(tmp_path / "run", 2, STEPS, cache)) == [(0, "finished")] * 2
    assert_same(tmp_path / "run", whole, STEPS)
    record = read_config(tmp_path / "run")
    assert record["hardware"]["processes"] == 2
    assert record["hardware"]["devices"] == 4
    assert record["summary"]["config_steps"] == 8 * STEPS
    assert len(list((tmp_path / "run/telemetry.zarr/loss/c").iterdir())) == 2


@pytest.mark.slow
def test_four_processes_then_one_then_two(whole, tmp_path, cache):
    out = tmp_path / "run"
    assert finish(start(out, 4, 6, cache)) == [(0, "finished")] * 4
    resume_run(out, steps=12)
    assert finish(start(out, 2, STEPS, cache)) == [(0, "finished")] * 2
    assert_same(out, whole, STEPS)
    assert [s["hardware"]["processes"] for s in read_config(out)["sessions"]] == [1, 2]
    resume_run(alone(tmp_path / "alone", 6), steps=STEPS)
    assert finish(start(tmp_path / "alone", 2, STEPS + 6, cache)) == [(0, "finished")] * 2  # other chunks


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed_at_a_random_moment(tmp_path, cache, victim):
    long = 60
    expected = alone(tmp_path / "whole", long, checkpoint_seconds=10.0)
    out, wanted = tmp_path / "run", random.Random(victim).randrange(1, 40)
    processes = start(out, 2, long, cache, patience=15)
    begun = time.monotonic()
    while max(checkpoint_steps(out), default=0) < wanted:
        assert time.monotonic() - begun < 120
        assert all(process.poll() is None for process in processes)
        time.sleep(0.002)
    processes[victim].kill()
    begun = time.monotonic()
    status, said = finish(processes)[1 - victim]
    assert time.monotonic() - begun < 60
    assert status == 1, said
    assert f"process {victim} of 2" in said
    assert f"periodic-jax resume {out} goes on from there" in said
    kept = max(checkpoint_steps(out))
    assert wanted <= kept < long
    resume_run(out)
    assert_same(out, expected, long)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path, cache):
    out = tmp_path / "run"
    processes = start(out, 2, 60, cache)
    begun = time.monotonic()
    while not checkpoint_steps(out):
        assert time.monotonic() - begun < 120
        time.sleep(0.002)
    processes[1].send_signal(signal.SIGTERM)
    ends = finish(processes)
    assert [status for status, _ in ends] == [143, 143]
    assert len({said for _, said in ends}) == 1
    assert ends[0][1].startswith("stopped after")
    assert finish(start(out, 2, 60, cache)) == [(0, "finished")] * 2
    assert_same(out, alone(tmp_path / "whole", 60, checkpoint_seconds=10.0), 60)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_hangs_is_named(tmp_path, cache, victim):
    out = tmp_path / "run"
    processes = start(out, 2, 100, cache, patience=10)
    begun = time.monotonic()
    while not checkpoint_steps(out):
        assert time.monotonic() - begun < 120
        time.sleep(0.002)
    processes[victim].send_signal(signal.SIGSTOP)
    try:
        said = processes[1 - victim].communicate(timeout=60)[0].strip().splitlines()[-1]
    finally:
        processes[victim].kill()
    finish(processes)
    assert processes[1 - victim].returncode == 1
    assert f"process {victim} of 2 has not answered for" in said
    assert f"periodic-jax resume {out}" in said


def sweep_at(coordinator, count, index):
    """One of several processes, alone, from the command line: its status and what it says."""
    words = f"sweep --distributed --coordinator {coordinator} --num-processes {count} --process-id {index} --patience 2"
    command = [sys.executable, "-m", "periodic_jax.cli", *words.split(), "--steps", "5", "--out", os.devnull]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return ended.returncode, ended.stderr.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "index", "who"),
    [(2, 0, "process 1 of 2"), (3, 0, "at least one of processes 1 - 2 of 3"), (3, 1, "process 0 of 3")],
)
def test_who_never_comes_is_named(count, index, who):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    status, said = sweep_at(coordinator, count, index)
    assert (status, said.splitlines()) == (1, [
        f"periodic-jax: {who} did not come within 2 s; all need the same --coordinator and --num-processes"
    ])  # fmt: skip


@pytest.mark.parametrize("place", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:0", ":2000", "127.0.0.1:65536"])
def test_a_place_without_a_port_is_refused(place):
    with pytest.raises(ConfigError, match=re.escape(f"--coordinator: {place} is not accepted; expected HOST:PORT")):
        joined(place, 2, 1).__enter__()


@pytest.mark.parametrize("index", [-1, 2])
def test_a_process_too_many_is_refused(index):
    with pytest.raises(
        ConfigError, match=f"--process-id: {index} is not accepted; expected .* below --num-processes 2"
    ):
        joined("127.0.0.1:2000", 2, index).__enter__()


def test_hosts_are_known_or_not():
    assert is_known("127.0.0.1:2000")
    assert is_known("[::1]:2000")
    assert not is_known("no-such-host.invalid:2000")
    assert not is_known("x" * 100 + ":2000")


def test_a_port_in_use_is_refused():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="nothing can listen there: Address already in use"),
    ):
        joined(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0).__enter__()


@pytest.mark.slow
def test_processes_that_differ_are_refused(tmp_path, cache):
    ends = finish(start(tmp_path / "run", 2, 5, cache, process1={"batch_size": 64}))
    assert ends == [(2, "--batch-size: 64 in process 1 is not accepted; expected 128, as in process 0")] * 2
    ends = finish(start(tmp_path / "other", 2, 5, cache, code={0: "abc", 1: "def"}))
    assert ends == [(2, "periodic_jax's code: def in process 1 is not accepted; expected abc, as in process 0")] * 2
    ends = finish(start(tmp_path / "few", 2, 5, cache, **{f"process{k}": {"lr": [0.1], "seed": [0]} for k in range(2)}))
    assert ends == [(2, "--num-processes: 2 is not accepted; expected at most 1 for 1 configuration")] * 2
    assert not list(tmp_path.glob("*/telemetry.zarr"))
