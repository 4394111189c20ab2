"""What the experiments declare, and that their pages say what is kept beside them."""

import dataclasses
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from periodic_jax import data
from periodic_jax.core.errors import ConfigError, CorruptedRunError
from periodic_jax.data import Dataset
from periodic_jax.runs import config as config_module
from periodic_jax.training import xla

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "experiments"
OVERVIEW = (PAGES / "README.md").read_text()
NAMES = (
    "rate_and_decay", "one_period", "ablations", "product", "practice", "full_batch", "minima", "sphere", "theory",
    "optimizers", "ideal_gas",
)  # fmt: skip
WRITTEN = [(name, "laptop") for name in NAMES]
AT_DESKTOP = ("ablations", "ideal_gas", "minima", "optimizers", "practice", "product", "rate_and_decay", "sphere")
WRITTEN += [(name, "desktop") for name in AT_DESKTOP] + [("rate_and_decay", "paper")]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def experiment(name):
    return importlib.import_module(f"experiments.{name}").EXPERIMENT


@pytest.fixture
def stand_ins(monkeypatch):
    """Images of CIFAR's shape in place of CIFAR, which may not be on this machine."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (100, 32, 32, 3), np.uint8), np.arange(10_000, dtype=np.int32)
    images = np.tile(images, (100, 1, 1, 1))
    real = data.load

    def load(name, **options):
        if name == "digits":
            return real(name, **options)
        classes = {"cifar10": 10, "cifar100": 100}[name]
        return Dataset(
            name=name, images=images, labels=labels % classes, test_images=images[:128],
            test_labels=labels[:128] % classes, mean=(0.5,) * 3, std=(0.2,) * 3, num_classes=classes, source="made up",
        )  # fmt: skip

    monkeypatch.setattr(data, "load", load)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["laptop", "desktop", "paper"])
def test_the_declared_runs_can_run(name, scale, stand_ins, tmp_path):
    from experiments.declare import Branch, placed

    declared = experiment(name)
    assert declared.name == name
    if scale not in declared.runs:
        with pytest.raises(ConfigError, match=f"--scale: {scale} is not accepted; expected one of laptop"):
            placed(declared, scale, tmp_path, None)
        return
    assert declared.optional < {run for runs in declared.runs.values() for run in runs}
    runs = placed(declared, scale, tmp_path, None)
    assert runs
    for run in runs.values():
        if isinstance(run, Branch):
            parent = runs[run.parent]
            assert list(runs).index(run.parent) < list(runs.values()).index(run)
            assert run.step % parent.keep_every == 0
            assert run.step < (parent.steps or 390 * parent.epochs)  # 50,000 images in mini-batches of 128
            config_module.check(dataclasses.replace(parent, **run.change))
        else:
            config_module.check(run)


def test_the_grid_of_the_theory_is_large():
    for runs in experiment("theory").runs.values():
        assert sum(len(run.lr) * len(run.weight_decay) for run in runs.values()) >= 100


@pytest.mark.parametrize(("name", "scale"), WRITTEN)
def test_pages_say_what_is_kept_beside_them(name, scale, tmp_path):
    from experiments.checking import check

    assert check(experiment(name), scale, tmp_path / "nothing", PAGES) == []


@pytest.mark.parametrize(("name", "scale"), WRITTEN)
def test_what_is_kept_names_no_machine(name, scale):
    from experiments.pages import folder_name

    kept = PAGES / folder_name(name, scale)
    for file in kept.glob("*/config.json"):
        assert '"/' not in file.read_text()  # an absolute path
    assert sum(file.stat().st_size for file in kept.rglob("*")) < 1_500_000
    assert all(file.stat().st_size < 150_000 for file in kept.glob("*.png"))


@pytest.mark.parametrize("what", ["--check", "--rewrite"])
def test_a_page_that_was_never_written_is_told_in_a_line(what, tmp_path, capsys):
    from experiments.common import main

    with pytest.raises(SystemExit, match="2"):
        main(experiment("theory"), [what, "--pages", str(tmp_path)])
    line = (
        f"experiments.theory: {tmp_path / 'theory'}: no page yet; the experiment writes it when its runs are finished\n"
    )
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--scale", "nope"], "--scale: nope is not accepted; expected one of laptop, desktop, paper for sphere"),
        (["--sacle", "paper"], "--sacle: experiments.sphere has no such option; did you mean --scale?"),
        (["--out"], "--out: a value is missing; see experiments.sphere --help"),
        (["paper"], "paper: experiments.sphere does not know what to do with it; see experiments.sphere --help"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_line(words, line, capsys):
    from experiments.common import main

    with pytest.raises(SystemExit, match="2"):
        main(experiment("sphere"), words)
    assert capsys.readouterr().err == f"experiments.sphere: {line}\n"


def without_periods(found):
    """The evidence of a run in which nothing ever destabilised."""
    words = found.regime.dtype.type("converging")
    numbers = {name: array for name, array in found.data_vars.items() if array.dtype.kind == "f"}
    emptied = {"destabilisation", "period", "fit"}
    gone = {name: array.where(False) for name, array in numbers.items() if emptied & set(array.dims)}
    return found.assign(
        **gone, destabilisations=0 * found.destabilisations, regime=("config", [words] * found.sizes["config"])
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_written_whatever_the_runs_did(name):
    from experiments import kept, pages

    declared = experiment(name)
    found = kept.evidence_of(PAGES / name)
    nothing = {run: without_periods(part) if "regime" in part else part for run, part in found.items()}
    if "networks" in nothing:
        nothing["networks"] = nothing["networks"].isel(minimum=slice(0), pair=slice(0), ensemble=slice(0))
    numbers = pages.numeric(kept.plain(declared.measure(nothing)))
    assert declared.tables(numbers)
    findings = declared.findings(numbers)
    assert any(finding.holds is not True for finding in findings)
    assert all(finding.claim and finding.measured for finding in findings)
    # What was not measured neither agrees nor fails.
    decided = [finding for finding in findings if finding.holds is not None]
    assert not [one.measured for one in decided if re.search(r"\bnan\b|\binf\b|  |: \.| at \.|: -", one.measured)]


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(PAGES / "full_batch", tmp_path / "full_batch")
    shutil.copy(PAGES / "full_batch.md", tmp_path / "full_batch.md")
    return tmp_path


def faults(pages):
    from experiments.checking import check

    return check(experiment("full_batch"), "laptop", pages / "nothing", pages)


def test_an_altered_record_is_found(copied):
    assert faults(copied) == []
    file = copied / "full_batch" / "record.json"
    record = json.loads(file.read_text())
    record["numbers"]["rows"][1]["jumps"] += 1
    file.write_text(json.dumps(record))
    found = faults(copied)
    assert any("rows.1.jumps" in fault for fault in found)
    assert any("not what its record says" in fault for fault in found)


def test_an_altered_page_is_found(copied):
    page = copied / "full_batch.md"
    page.write_text(page.read_text().replace("0.01", "0.02", 1))
    assert any("not what its record says" in fault for fault in faults(copied))


def test_altered_evidence_is_found(copied):
    from experiments import evidence

    file = copied / "full_batch" / "run" / "evidence.npz"
    found = evidence.load(file)
    found["onset_effective_lr"] = found.onset_effective_lr * 2
    evidence.save(found, file)
    fault = faults(copied)
    assert any("not as it was written" in one for one in fault)
    assert any("onset_elr" in one for one in fault)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CorruptedRunError, match="evidence"):
        faults(copied)


def test_a_missing_figure_is_found(copied):
    (copied / "full_batch" / "run.png").unlink()
    assert any("missing" in fault for fault in faults(copied))


def test_evidence_comes_back_as_it_was_kept(tmp_path):
    from experiments import evidence

    found = evidence.load(PAGES / "full_batch" / "run" / "evidence.npz")
    evidence.save(found, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (PAGES / "full_batch" / "run" / "evidence.npz").read_bytes()
    assert evidence.differences(found, evidence.load(tmp_path / "again.npz")) == []
    assert evidence.differences(found, found.assign(lr=found.lr + 1)) == ["lr"]
    assert evidence.differences(found, found.drop_vars("late_loss")) == ["late_loss"]


def test_a_run_from_start_to_page_to_check(tmp_path, monkeypatch, capsys):
    from experiments import common, evidence
    from experiments.checking import check
    from experiments.declare import Branch, laptop

    small = {
        "run": laptop(lr=(1.0,), width=2, steps=40, eval_every=20, keep_every=20),
        "branch": Branch("run", 20, change={"weight_decay": (0.0,)}),
    }
    base = experiment("full_batch")
    tiny = dataclasses.replace(base, runs={"laptop": small, "paper": small})
    monkeypatch.setattr(sys, "argv", ["tiny"])
    for settled in ("use_cores_as_devices", "keep_compiled_programs"):  # for the process, which others share here
        monkeypatch.setattr(xla, settled, lambda: None)
    arguments = ["--out", str(tmp_path / "runs"), "--pages", str(tmp_path / "pages")]
    common.main(tiny, arguments)
    kept = tmp_path / "pages" / "full_batch"
    assert "branched from run at step 20" in (tmp_path / "pages" / "full_batch.md").read_text()
    assert str(tmp_path) not in (kept / "branch" / "config.json").read_text().replace(str(tmp_path / "runs"), "")
    common.main(tiny, arguments)
    assert "run: finished before" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        common.main(tiny, [*arguments, "--check"])
    assert ended.value.code == 0
    assert "read again" in capsys.readouterr().out
    # The same page, and another run in the place of the one it came from.
    found = evidence.load(kept / "run" / "evidence.npz")
    monkeypatch.setattr(evidence, "gather", lambda path: found.assign(late_loss=2 * found.late_loss))
    assert "run: late_loss of its telemetry" in check(tiny, "laptop", tmp_path / "runs", tmp_path / "pages")
    other = dataclasses.replace(tiny, runs={"laptop": {"run": laptop(lr=(0.2,), width=2, steps=40)}})
    with pytest.raises(SystemExit) as ended:
        common.main(other, arguments)
    assert ended.value.code == 2


def test_a_page_names_the_runs_that_it_can_do_without(tmp_path, monkeypatch, capsys):
    from experiments import common
    from experiments.declare import laptop

    run = laptop(lr=(1.0,), width=2, steps=40, eval_every=20)
    base = experiment("full_batch")
    tiny = dataclasses.replace(base, runs={"laptop": {"run": run, "later": run}}, optional=frozenset({"later"}))
    for settled in ("use_cores_as_devices", "keep_compiled_programs"):
        monkeypatch.setattr(xla, settled, lambda: None)
    arguments = ["--out", str(tmp_path / "runs"), "--pages", str(tmp_path / "pages")]
    with pytest.raises(SystemExit) as ended:
        common.main(tiny, [*arguments, "--runs", "other"])
    assert ended.value.code == 2
    assert "--runs: other is not accepted; expected one of run, later" in capsys.readouterr().err
    common.main(tiny, [*arguments, "--runs", "run"])
    page = tmp_path / "pages" / "full_batch.md"
    assert "Not run yet: `later`." in page.read_text()
    with pytest.raises(SystemExit) as ended:
        common.main(tiny, [*arguments, "--check"])
    assert ended.value.code == 0

    needed = dataclasses.replace(tiny, optional=frozenset())
    page.unlink()
    common.main(needed, [*arguments, "--runs", "run"])
    assert "no page yet: later not finished" in capsys.readouterr().out
    assert not page.exists()


def test_a_page_is_written_again_from_what_is_kept(copied):
    from experiments.common import rewrite

    before = (copied / "full_batch.md").read_text(), (copied / "full_batch" / "record.json").read_text()
    (copied / "full_batch.md").write_text("gone")
    assert rewrite(experiment("full_batch"), "laptop", copied) == copied / "full_batch.md"
    assert ((copied / "full_batch.md").read_text(), (copied / "full_batch" / "record.json").read_text()) == before


def test_what_is_published_of_a_run_names_no_folder():
    from experiments.kept import published

    record = {"command": ["sweep", "--out", "/a/b/run"], "data": {"source": "/data/cifar", "images": 5}}
    assert published(record) == {"command": ["sweep", "--out", "run"], "data": {"source": "cifar", "images": 5}}


@pytest.mark.parametrize(("name", "scale"), WRITTEN)
def test_a_page_without_failures_points_to_what_is_open(name, scale):
    from experiments.pages import CANNOT_TELL, UNTESTED, folder_name

    text = (PAGES / f"{folder_name(name, scale)}.md").read_text()
    _, failed, rest = text.split("## ", 2)
    headings = [line.removeprefix("## ") for line in ("## " + rest).splitlines() if line.startswith("## ")]
    assert UNTESTED in headings
    if "No finding failed." in failed:
        assert f'"{UNTESTED}"' in failed
        assert (f'"{CANNOT_TELL}"' in failed) == (CANNOT_TELL in headings)
    else:
        assert failed.splitlines()[2].startswith("- *")


def test_the_overview_has_the_numbers_of_the_pages():
    rows = re.findall(
        r"^\| (.*) \| \[(agrees|does not reproduce|cannot tell)\]\((\S+)\) \| (\S+ \[.*?\])", OVERVIEW, re.M
    )
    assert len(rows) == 3
    for claim, verdict, page, interval in rows:
        text = (PAGES / page).read_text()
        finding = next(line for line in text.splitlines() if interval in line)
        assert finding.lower().startswith(f"- *{claim}.*")
        heading = {"cannot tell": "What the numbers cannot tell"}.get(verdict, f"What {verdict}")
        assert finding in text[text.index(f"## {heading}") :].split("\n## ")[0]


@pytest.mark.parametrize("scale", ["laptop", "desktop", "paper"])
def test_how_far_off_the_minima_are_is_the_interval_of_their_checkpoints(scale):
    declared = experiment("minima")
    every = declared.runs[scale]["run"].keep_every
    assert f"at most {every:,} steps off" in " ".join(declared.limits[scale])


def test_how_long_a_run_takes_is_estimated_from_a_step(monkeypatch, tmp_path):
    from experiments import common
    from experiments.declare import laptop
    from periodic_jax.runs import build
    from periodic_jax.sweeps import autotune

    monkeypatch.setattr(autotune, "seconds_per_step", lambda train: 0.5)
    monkeypatch.setattr(build, "build_sweep", lambda config: None)
    config = dataclasses.replace(laptop(steps=100, eval_every=10, batch_size=100), out=tmp_path / "run")
    seconds, per_step, left = common.estimate(config)
    # 1,797 images are 17.97 forward passes of a third of a step, ten times.
    assert (per_step, left) == (0.5, 100)
    assert seconds == pytest.approx(50 + 10 * 17.97 * 0.5 / 3)
