"""The steps of the benchmark but `bits`. Each takes the session and gives what it found, and that in one line."""

import importlib.util
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import Worker, WorkerError, ratio
from benchmarks.gpu.session import BUILD_SECONDS, Lane, Session, fastest, race, short

STORAGE = ("bf16",)  # precisions that activations can be stored in
MOST_DIFFERENCE = 0.05  # of a CUDA graph's update from that of its step, which differ by rounding
START_SECONDS = 90.0  # that PyTorch may take to start, after JAX has compiled


def correct(session: Session) -> tuple[Any, str]:
    """The first steps in each precision against float64 on this machine's processor."""
    scale = session.scale
    words = [w for name, value in scale.network(scale.widths[0]).items() for w in (f"--{name}", str(value))]
    words += ["--steps", str(scale.steps), "--states", str(session.folder / "states.npz"), "--precisions"]
    precisions = ["float32", *scale.precisions, *(f"{name}@{name}" for name in STORAGE)]

    def worker(options: list[str], **more: str) -> Worker:
        environment = {**session.environment(), **more}
        patience = partial(session.at_most, BUILD_SECONDS)
        return Worker("gpu.trajectory", [*words, *options], environment=environment, patience=patience)

    reference = worker(["float64", "--write"], JAX_PLATFORMS="cpu")
    here = worker(precisions)
    answers = []
    try:
        for precision in precisions:
            try:
                answers.append(here.read())
            except WorkerError as error:  # what came before it counts
                answers.append({"precision": precision, "error": short(error)})
                break
        expected = reference.read()
    finally:
        reference.close()
        here.close()
    if "error" in expected:
        raise RuntimeError(f"float64: {expected['error']}")
    found = {a["precision"]: _differences(a["recorded"], expected["recorded"]) for a in answers if "recorded" in a}
    found |= {a["precision"]: {"error": a["error"]} for a in answers if "error" in a}
    said = [f"{p} {d['loss'][0]:.1e} to {max(d['loss']):.1e}" for p, d in found.items() if "loss" in d]
    said += [f"{p} {d['error']}" for p, d in found.items() if "error" in d]
    return found, "relative difference of the loss at the first step and at most: " + ", ".join(said)


def _differences(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, list[float]]:
    """Name -> the largest relative difference of the configurations, by step; infinite for what is not finite."""
    found = {}
    for name, values in expected.items():
        difference = np.abs(np.asarray(actual[name]) / np.asarray(values) - 1)
        found[name] = np.where(np.isfinite(difference), difference, np.inf).max(0).tolist()
    return found


def speed(session: Session, width: int, precision: str) -> tuple[Any, str]:
    """A grid here in several layouts against all ways in PyTorch, which start while programs are compiled."""
    scale, torch = session.scale, {}
    if importlib.util.find_spec("torch"):
        torch = _torch_workers(session, width, precision)
    try:
        ours = {_name(options): options for options in _lanes(session, width, precision)}
        lanes = {name: (Lane(session, **options), scale.configs) for name, options in ours.items()}
        figures, errors = race(session, {**lanes, **torch})
    finally:
        for worker, _ in torch.values():
            worker.close()
    for name, figure in figures.items():
        if figure.get("graph_difference", 0) > MOST_DIFFERENCE:
            errors[name] = f"its graph moves the weights by {figure['graph_difference']:.1%} otherwise than its step"
    ours_found = {name: figure for name, figure in figures.items() if name in ours}
    torch_found = {name: figure for name, figure in figures.items() if name in torch}
    if not ours_found and not torch_found:
        raise RuntimeError("; ".join(errors.values()) or "nothing could be timed")
    found: dict[str, Any] = {"width": width, "precision": precision, "configs": scale.configs}
    found |= {"ours": ours_found, "torch": torch_found, "errors": errors}
    line = ", ".join(f"{name} {1e3 * figure['median']:.4g}" for name, figure in figures.items()) + " us"
    if ours_found:
        found["best_ours"] = fastest(ours_found)
        session.best.setdefault(width, ours[found["best_ours"]])
    if ours_found and torch_found:
        found["best_torch"] = fastest(torch_found)
        found["speed_up"] = _ratio(torch_found[found["best_torch"]], ours_found[found["best_ours"]])
        line += f": {found['speed_up']['of_medians']:.2f} times {found['best_torch']}"
    return found, line + "".join(f"; {name}: {error}" for name, error in errors.items())


def _ratio(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float]:
    """As `common.ratio`, of the rounds that both have."""
    return ratio(*({**x, "rounds": x["rounds"][: min(len(a["rounds"]), len(b["rounds"]))]} for x in (a, b)))


def _name(options: Mapping[str, Any]) -> str:
    storage = options.get("storage")
    return options["layout"] + (f"@{storage}" if storage else "")


def _lanes(session: Session, width: int, precision: str) -> list[dict[str, Any]]:
    """Layouts to be timed: those given, or all candidates. After the first precision only the best one of that, and it
    and the first candidate with activations stored in that precision.
    """
    candidates = session.about(width)["layouts"]
    layouts = session.layouts or candidates
    if width in session.best and not session.layouts:
        best = _name(session.best[width])
        layouts = [best]
        if "@" not in best and precision in STORAGE:
            layouts += dict.fromkeys((f"{best}@{precision}", f"{candidates[0]}@{precision}"))
    base = {**session.scale.network(width), "configs": session.scale.configs, "precision": precision}
    return [
        {**base, "layout": layout, **({"storage": storage} if storage else {})}
        for layout, _, storage in (name.partition("@") for name in layouts)
    ]


def _torch_workers(session: Session, width: int, precision: str) -> dict[str, tuple[Worker, int]]:
    """Name -> a process that starts, and the configurations that it trains."""
    scale = session.scale
    ways = [("eager", True), ("stacked", False), ("fused", True)]
    if not scale.is_smoke:
        ways = [(name, True) for name in ("eager", "compiled", "cuda_graph", "compiled_graph")] + [("stacked", False)]
        ways += [(name, last) for name in ("fused", "fused_graph") for last in (True, False)]
        if session.about(width)["platform"] == "cpu":
            ways = [way for way in ways if "graph" not in way[0]]
    words = [w for name, value in scale.network(width).items() for w in (f"--{name}", str(value))]
    found = {}
    for variant, channels_last in ways:
        configs = scale.configs if variant.startswith(("stacked", "fused")) else 1
        options = [*words, "--configs", str(configs), "--variant", variant, "--precision", precision]
        name = f"PyTorch {variant.replace('_', ' ')}"
        if channels_last:
            options, name = [*options, "--channels-last"], f"{name} channels-last"
        worker = Worker(
            "train_torch", options, environment={"TORCHINDUCTOR_COMPILE_THREADS": "4"},
            patience=partial(session.at_most, START_SECONDS),
        )  # fmt: skip
        found[name] = worker, configs
    return found


def _best(session: Session, width: int, **changes: Any) -> dict[str, Any]:
    """Options of the fastest way here in the first precision; of the first candidate, if nothing was timed."""
    scale = session.scale
    layout = (session.layouts or session.about(width)["layouts"])[0].partition("@")[0]
    base = {**scale.network(width), "configs": scale.configs, "precision": scale.precisions[0], "layout": layout}
    return {**session.best.get(width, base), **changes}


def auto(session: Session, width: int) -> tuple[Any, str]:
    """What the sweep chooses by itself, beside the best that was timed."""
    best = _best(session, width)
    lanes = {"best": Lane(session, **best), "auto": Lane(session, **{**best, "layout": "auto"})}
    found, errors = race(session, {name: (lane, session.scale.configs) for name, lane in lanes.items()})
    if "auto" not in found:
        raise RuntimeError(errors.get("auto", "nothing could be timed"))
    figure = found["auto"]
    line = f"{figure['layout']} in {figure['start_up_s']:.0f} s, {1e3 * figure['median']:.4g} us"
    return found, line + (
        f" (best: {best['layout']}, {1e3 * found['best']['median']:.4g} us)" if "best" in found else ""
    )


def grids(session: Session, width: int) -> tuple[Any, str]:
    """The same layout with more and with fewer configurations."""
    ways = {
        str(configs): (Lane(session, **_best(session, width, configs=configs)), configs)
        for configs in session.scale.grids
    }
    found, errors = race(session, ways)
    fastest(found)
    line = ", ".join(f"{configs}: {1e3 * figure['median']:.4g} us" for configs, figure in found.items())
    return found, line + "".join(f"; {configs}: {error}" for configs, error in errors.items())


def roofline(session: Session) -> tuple[Any, str]:
    """The least time by operations or bytes, whichever is larger, over the time of the step."""
    scale, found, said = session.scale, {}, []
    for precision in scale.precisions:
        limits = session.ask({"do": "limits", "precision": precision, "matrix": scale.matrix, "copied": scale.copied})
        found[precision] = limits
        said.append(f"{precision} {limits['peak_flops'] / 1e12:.3g} TFLOP/s, {limits['bandwidth'] / 1e12:.3g} TB/s")
        for width in scale.widths:
            timed = session.results["steps"].get(f"speed width {width} {precision}", {})
            counts = session.ask({"do": "counts", **scale.network(width)})
            bytes_ = counts["bytes"] // (2 if precision == "bf16" else 1)
            by = {"flops": counts["flops"] / limits["peak_flops"], "bytes": bytes_ / limits["bandwidth"]}
            entry = {**counts, "least_ms_by": {name: 1e3 * seconds for name, seconds in by.items()}}
            for whose in ("ours", "torch"):
                if best := timed.get(f"best_{whose}"):
                    entry[whose] = 1e3 * max(by.values()) / timed[whose][best]["median"]
            limits[str(width)] = entry
            said += [f"width {width}: {entry['ours']:.0%}"] if "ours" in entry else []
    return found, ", ".join(said)


def recording(session: Session, width: int) -> tuple[Any, str]:
    """What it costs to measure each step, and each layer too."""
    ways = {what: Lane(session, **_best(session, width, record=what)) for what in ("nothing", "steps", "layers")}
    found, errors = race(session, {what: (lane, session.scale.configs) for what, lane in ways.items()})
    fastest(found)
    line = ", ".join(f"{what} {1e3 * figure['median']:.4g} us" for what, figure in found.items())
    for what in ("steps", "layers"):
        if "nothing" in found and what in found:
            line += f", {what} {100 * (found[what]['median'] / found['nothing']['median'] - 1):+.1f} %"
    return found, line + "".join(f"; {what}: {error}" for what, error in errors.items())


def deterministic(session: Session, width: int) -> tuple[Any, str]:
    """What it costs to take deterministic operations only; the usual program is on disk by now."""
    ways = {"usual": {}, "deterministic": {"deterministic": True}}
    lanes = {what: Lane(session, **_best(session, width, **changes)) for what, changes in ways.items()}
    found, errors = race(session, {what: (lane, session.scale.configs) for what, lane in lanes.items()})
    if "deterministic" not in found:
        raise RuntimeError(errors.get("deterministic", "nothing could be timed"))
    line = ", ".join(f"{what} {1e3 * figure['median']:.4g} us" for what, figure in found.items())
    if "usual" in found:
        line += f": {100 * (found['deterministic']['median'] / found['usual']['median'] - 1):+.1f} %"
    return found, line + "".join(f"; {what}: {error}" for what, error in errors.items())


def memory(session: Session) -> tuple[Any, str]:
    """The most memory of the grid of the largest network against the forecast."""
    options = _best(session, session.scale.widths[-1])
    session.end_jax()  # all of the card for this one
    worker = Worker("gpu.memory_use", [json.dumps(options)], environment=session.environment(), patience=session.left)
    try:
        found = worker.read()
    finally:
        worker.close()
    if found["peak_bytes"] is None:
        return found, f"forecast {found['forecast_bytes'] / 1e9:.4g} GB; this platform tells no peak"
    found["peak_of_forecast"] = found["peak_bytes"] / found["forecast_bytes"]
    sizes = f"{found['peak_bytes'] / 1e9:.4g} GB, forecast {found['forecast_bytes'] / 1e9:.4g} GB"
    return found, f"{sizes}: {found['peak_of_forecast']:.0%}"
