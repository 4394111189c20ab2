"""Does a page say what is kept beside it, and what its runs say where they are on the machine?"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import evidence, pages
from experiments.declare import Experiment, runs_of
from experiments.kept import EVIDENCE, configs_of, digest_of, evidence_of, held, plain, published, read_record
from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.storage.run_directory import CONFIG_FILE

SAME = 1e-3  # relative, of numbers derived on another machine: fits and thresholds multiply rounding


def check(experiment: Experiment, scale: str, out: Path, folder: Path) -> list[str]:
    """Derive everything on a page anew and compare.

    Args:
        experiment: whose page.
        scale: of the page.
        out: where the runs may be.
        folder: of the pages.

    Returns:
        What differs; empty where all is as it should be.

    Raises:
        UsageError: there is no page.
        CorruptedRunError: what is kept beside it cannot be read.
    """
    name = pages.folder_name(experiment.name, scale)
    kept, page = folder / name, folder / f"{name}.md"
    record = read_record(kept)
    try:
        text = page.read_text()
    except OSError as error:
        raise CorruptedRunError(page, type(error).__name__, "write it again") from None
    faults = [
        f"{kept / file}: {'not as it was written' if (kept / file).exists() else 'missing'}"
        for file, digest in record["sha256"].items() if not (kept / file).exists() or digest_of(kept / file) != digest
    ]  # fmt: skip
    found = evidence_of(kept)
    faults += [f"number {one}" for one in unequal(record["numbers"], plain(experiment.measure(found)))]
    runs = [run for run in runs_of(experiment, scale) if run not in experiment.optional or (kept / run).exists()]
    configs = configs_of(kept, runs)
    if text != pages.render(experiment, record | {"runs": configs}):
        faults.append(f"{page}: not what its record says")
    for run in runs:
        record_there = held(out / run)
        if record_there is None:
            print(f"{run}: no run in {out / run}; numbers derived from {kept / run / EVIDENCE}")
            continue
        print(f"{run}: {out / run} read again")
        if published(record_there) != configs[run]:
            faults.append(f"{out / run / CONFIG_FILE}: of another run than {kept / run / CONFIG_FILE}")
        again = evidence.gather(out / run)
        faults += [f"{run}: {quantity} of its telemetry" for quantity in evidence.differences(found[run], again)]
    there = {run: out / run for run in runs if held(out / run)}
    if experiment.extra and len(there) == len(runs):
        for part, again in experiment.extra(there).items():
            faults += [f"{part}: {one}" for one in evidence.differences(found[part], evidence.narrowed(again))]
    if not faults:
        print(f"{page}: {sum(1 for _ in _leaves(record['numbers']))} numbers as derived anew")
    return faults


def unequal(recorded: Any, derived: Any) -> list[str]:
    """Where two trees of plain numbers differ by more than `SAME`.

    Example:
        >>> unequal({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]})
        ['a.1: 2.0 recorded, 2.5 derived']
    """
    a, b = dict(_leaves(recorded)), dict(_leaves(derived))
    return [
        f"{key}: {a.get(key)} recorded, {b.get(key)} derived"
        for key in {**a, **b}
        if not _equal(a.get(key), b.get(key))
    ]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        number = isinstance(a, int | float) and isinstance(b, int | float)
        return number and math.isclose(a, b, rel_tol=SAME, abs_tol=1e-12)
    return a == b


def _leaves(tree: Any, name: str = ""):
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield name, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
