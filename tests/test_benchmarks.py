"""The parts of the benchmarks that can be wrong without anyone seeing it in the figures."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_operations_and_bytes_of_a_layer_are_counted():
    from benchmarks.roofline import Layer, layers_of
    from periodic_jax import models

    layers = layers_of(models.build("ConvNetSI", width=2), 8, 1)
    assert layers == [Layer(1, 2, 8, False), Layer(2, 4, 8, True), Layer(4, 8, 4, True), Layer(8, 16, 2, True)]
    # forward: each of 4 outputs of 64 pixels of 3 images sums 9 * 2 products; three such passes
    assert layers[1].flops(3) == 3 * (4 * 64 * 3) * (9 * 2) * 2
    assert layers[0].flops(3) == 2 * (2 * 64 * 3) * 9 * 2
    # input twice and its gradient, output thrice, a quarter of it twice
    assert layers[1].least_bytes(3) == 4 * 3 * 64 * (3 * 2 + 3 * 4 + 2 * 1)


def test_a_step_is_timed_with_the_options_of_the_worker():
    from benchmarks.roofline import step_seconds
    from periodic_jax import models

    assert step_seconds(models.build("ConvNetSI", width=2), 8, 1, 16, 2) > 0


def as_plain(variables):
    """Those of a ConvNet under the names of Flax's layers; a ResNet's have them."""
    if "conv0" not in variables["params"]:
        return variables
    plain = {"params": {}, "batch_stats": {}}
    for name, leaves in variables["params"].items():
        conv = {"kernel": leaves["kernel"]} | ({"bias": leaves["conv_bias"]} if "conv_bias" in leaves else {})
        plain["params"][name] = leaves if name == "head" else conv
        if "scale" in leaves:
            norm = {"scale": leaves["scale"], "bias": leaves["bias"]}
            plain["params"][name.replace("conv", "norm")] = norm
    plain["batch_stats"] = {name.replace("conv", "norm"): leaves for name, leaves in variables["batch_stats"].items()}
    return plain


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("ConvNetSIAf", "ResNet18SI", "ResNet18SIAf", "ResNet18")
]


@pytest.mark.parametrize("name", ["ConvNetSI", "ConvNet", *SLOW])
def test_a_plain_network_computes_what_ours_does(float64, name):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.plain_networks import plain_network
    from periodic_jax import models

    ours = models.build(name, width=2, param_dtype=jnp.float64)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    plain, rng = plain_network(ours), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), images, True))
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape)), shapes)
    expected = jax.eval_shape(lambda: plain.init(jax.random.key(0), images, True))
    assert jax.tree.map(jnp.shape, as_plain(variables)) == jax.tree.map(jnp.shape, expected)
    for train in (True, False):

        def logits(model, v, train=train):
            out = model.apply(v, images, train, mutable=["batch_stats"] if train else False)
            return out[0] if train else out

        got, wanted = jax.jit(partial(logits, plain))(as_plain(variables)), jax.jit(partial(logits, ours))(variables)
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)

    def marked(model, tree):
        labels = models.leaf_labels(tree["params"], model.labels())
        return sorted(
            leaf.shape for leaf, is_marked in zip(jax.tree.leaves(tree["params"]), labels, strict=True) if is_marked
        )

    assert marked(plain, expected) == marked(ours, shapes)


def test_a_network_without_a_plain_counterpart_is_refused():
    from benchmarks.plain_networks import plain_network
    from periodic_jax import models

    with pytest.raises(TypeError, match="MLP has no counterpart"):
        plain_network(models.build("MLPSI", width=2))


def test_ratios_are_of_medians_and_of_rounds():
    from benchmarks.common import ratio, summary

    a, b = [2.0, 4.0, 9.0], [1.0, 2.0, 3.0]
    found = ratio({"rounds": a, **summary(a)}, {"rounds": b, **summary(b)})
    assert found == {"of_medians": 2.0, "min": 2.0, "max": 3.0}


def test_results_stand_beside_the_machine(tmp_path):
    from benchmarks.common import save, table

    content = json.loads(save("question", {"x": 1}, tmp_path).read_text())
    assert content["results"] == {"x": 1}
    assert content["machine"]["jax"]
    assert table(("a", "b"), [(1, 0.12345)]) == "| a | b |\n|---|---|\n| 1 | 0.123 |"


@pytest.mark.parametrize("configs", [1, 3, 10])
def test_each_way_of_pytorch_trains_a_whole_grid(configs, monkeypatch):
    from benchmarks import vs_pytorch

    monkeypatch.setattr(vs_pytorch.os, "cpu_count", lambda: 2)
    ways = vs_pytorch.pytorch_ways(gpu=False, configs=configs, quick=False)
    for name, way in ways.items():
        together = "fused" in name or name == "stacked"
        assert way.configs * way.processes == (configs if together else way.processes)
        assert way.options[way.options.index("--configs") + 1] == str(way.configs)
        assert ("--threads" in way.options) == (way.processes == 2)
    assert ("fused channels-last, 2 processes" in ways) == (configs == 10)
    assert ("fused" in ways) == (configs > 1)


def test_a_worker_trains_what_it_is_asked_for(tmp_path, monkeypatch):
    from benchmarks import common

    (tmp_path / "benchmarks").mkdir()
    for name in ("__init__.py", "common.py"):
        (tmp_path / "benchmarks" / name).write_text((ROOT / "benchmarks" / name).read_text())
    program = """
from benchmarks.common import serve
log = open("steps", "a")
serve(lambda steps: print(steps, file=log, flush=True), layout="x")
"""
    (tmp_path / "benchmarks" / "fake.py").write_text(program)
    monkeypatch.setattr(common, "HERE", tmp_path / "benchmarks")
    contender = common.Contender([common.Worker("fake", [], python=sys.executable)], 2, seconds=1e-4)
    try:
        found = common.take_turns({"fake": contender}, rounds=3)["fake"]
    finally:
        contender.close()
    assert found["layout"] == "x"
    assert len(found["rounds"]) == 3
    assert found["min"] > 0
    assert len((tmp_path / "steps").read_text().split()) >= 4


def test_fused_networks_train_as_each_would_alone():
    torch = pytest.importorskip("torch")
    from benchmarks.train_torch import Fused, FusedSGD, network

    torch.manual_seed(0)
    models = [network(2, 3).double() for _ in range(3)]
    rates, decays = (torch.tensor(x).double() for x in ([0.01, 0.1, 1.0], [0.0, 1e-3, 1e-2]))
    fused = Fused(models)
    update = FusedSGD(fused, rates, decays)
    alone = [
        torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=float(rate), weight_decay=float(decay))
        for model, rate, decay in zip(models, rates, decays, strict=True)
    ]
    for _ in range(3):
        images, labels = torch.randn(16, 3, 8, 8).double(), torch.randint(0, 10, (16,))
        fused.zero_grad()
        loss = fused.loss(images, labels)
        loss.backward()
        update.step()
        total = 0.0
        for model, optimiser in zip(models, alone, strict=True):
            optimiser.zero_grad()
            one = torch.nn.functional.cross_entropy(model(images), labels)
            one.backward()
            optimiser.step()
            total += one.item()
        assert loss.item() == pytest.approx(total, rel=1e-12)
    layers = [[m.weight for m in model if isinstance(m, torch.nn.Conv2d)] for model in models]
    for kernel, kernels in zip(fused.kernels, zip(*layers, strict=True), strict=True):
        torch.testing.assert_close(kernel.detach(), torch.cat(kernels).detach(), rtol=1e-9, atol=1e-12)


def test_a_worker_that_fails_says_why_and_one_that_hangs_is_left(tmp_path, monkeypatch):
    from benchmarks import common

    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "fails.py").write_text("raise ValueError('so and so')")
    (tmp_path / "benchmarks" / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(common, "HERE", tmp_path / "benchmarks")
    for module, message in (("fails", "status 1: ValueError: so and so"), ("hangs", "no answer in 0 s")):
        worker = common.Worker(module, [], patience=lambda module=module: 30.0 if module == "fails" else 0.1)
        with pytest.raises(common.WorkerError, match=message):
            worker.ready()
        worker.close()


def test_a_failing_step_of_the_accelerator_benchmark_is_written_down_and_left(tmp_path, capsys):
    from benchmarks.gpu.report import markdown
    from benchmarks.gpu.session import SMOKE, Session

    def fails(session):
        raise ValueError("so " * 200)

    session = Session(SMOKE, 1.0, tmp_path, tmp_path, [])
    session.attempt("one", fails)
    session.attempt("two", lambda session: ({"x": 1}, "found"))
    session._end = 0.0
    session.attempt("three", fails)
    content = json.loads(session.file.read_text())
    assert content["results"]["errors"]["one"].startswith("ValueError: so so")
    assert len(content["results"]["errors"]["one"]) == 300
    assert content["results"]["steps"] == {"two": {"x": 1}}
    assert content["results"]["not_reached"] == ["three"]
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["one", "two", "three"]
    assert "Not reached: three" in markdown(content)


def test_whoever_fails_is_left_out_of_the_race(tmp_path):
    from benchmarks.gpu.session import SMOKE, Session, race

    class Runner:
        def __init__(self, lasts):
            self.lasts, self.is_closed = lasts, False

        def ready(self):
            return {"layout": "x"}

        def start(self, steps):
            self.lasts -= 1

        def seconds(self):
            if self.lasts < 0:
                raise RuntimeError("out of breath")
            return 1.0

        def close(self):
            self.is_closed = True

    runners = {"starts": Runner(0), "measures": Runner(2), "lasts": Runner(9)}
    session = Session(SMOKE, 1.0, tmp_path, tmp_path, [])
    figures, errors = race(session, {name: (runner, 4) for name, runner in runners.items()})
    assert errors == dict.fromkeys(("starts", "measures"), "RuntimeError: out of breath")
    assert len(figures["measures"]["rounds"]) == 1
    assert len(figures["lasts"]["rounds"]) == SMOKE.rounds
    assert figures["lasts"]["layout"] == "x"
    assert all(runner.is_closed for runner in runners.values())


def test_runs_are_compared_to_the_bit(tmp_path):
    import numpy as np
    import zarr

    from benchmarks.gpu.bits import compare

    values = np.linspace(1, 2, 12, dtype=np.float32).reshape(2, 6)
    for name, place in (("a", None), ("b", None), ("c", (1, 4))):
        group = zarr.open_group(tmp_path / name / "telemetry.zarr", mode="w")
        changed = values.copy()
        if place:
            changed[place] = np.nextafter(changed[place], np.float32(3))
        group["loss"] = changed
        group["never"] = np.full(2, np.nan)
    assert compare(tmp_path / "a", tmp_path / "b") == {"same": True, "arrays": 2, "differs": {}}
    found = compare(tmp_path / "a", tmp_path / "c")
    assert not found["same"]
    assert list(found["differs"]) == ["loss"]
    assert found["differs"]["loss"].startswith("from place 4 on, by ")


@pytest.mark.slow
def test_the_accelerator_benchmark_goes_through_all_its_steps(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is what it compares with")
    from benchmarks.gpu.__main__ import plan
    from benchmarks.gpu.session import SMOKE

    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--minutes", "8", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("gpu-smoke-*.json")
    results = json.loads(file.read_text())["results"]
    assert results["errors"] == {}
    assert results["not_reached"] == []
    assert list(results["steps"]) == [step.name for step in plan(SMOKE)]
    for name, found in results["steps"].items():
        assert not found.get("errors"), name
        assert not name.startswith("speed") or found["speed_up"]["of_medians"] > 0
    assert max(results["steps"]["correct"]["float32"]["loss"]) < 1e-4
    bits = results["steps"]["bits"].values()
    assert [found["same"] for found in bits if isinstance(found, dict) and "same" in found] == [True] * 5


def test_the_benchmark_of_equilibria_names_optimisers_that_have_one():
    from benchmarks.rotational_equilibrium import CASES, SHARES
    from periodic_jax.core.optimizers import OPTIMIZERS

    assert {case.optimizer for case in CASES} == set(SHARES) == set(OPTIMIZERS) - {"adam"}
    assert all(set(SHARES[name]) <= set(OPTIMIZERS[name].reads) for name in SHARES)


@pytest.mark.slow
def test_the_benchmark_of_equilibria_trains_and_tells(tmp_path):
    from benchmarks.rotational_equilibrium import Case, as_table, measured

    rows = measured(Case("sgd", (0.1,), (0.03,), "random"), tmp_path, 20, width=2, depth=1)
    assert [(row["optimizer"], row["labels"], row["lr"], row["steps"]) for row in rows] == [("sgd", "random", 0.1, 20)]
    assert 0 < rows[0]["norm"] < float("inf")
    assert as_table(rows).splitlines()[2].startswith("| `sgd` | random | 0.1 | 0.03 | undecided |")
