"""The tables of a JSON file, as they stand in the README."""

from typing import Any

from benchmarks.common import table
from benchmarks.gpu.bits import verdict


def markdown(content: dict[str, Any]) -> str:
    """All tables for which there are figures.

    Args:
        content: of the JSON file.
    """
    machine, results = content["machine"], content["results"]
    steps, parts = results["steps"], []
    versions = f"JAX {machine['jax']}, PyTorch {machine['torch']}"
    parts.append(f"{machine['gpu'] or machine['cpu']}, {versions}, {machine['date']}")
    for make in (_correct, _speed, _ways, _grids, _roofline):
        if text := make(steps):
            parts.append(text)
    if found := steps.get("bits"):
        rows = [(what, verdict(value)) for what, value in found.items() if isinstance(value, dict) and "same" in value]
        parts.append(table(("a run and one that should be like it", "telemetry"), rows))
    if text := _more(steps, "deterministic", "usual", "operations"):
        parts.append(text)
    if found := steps.get("memory"):
        names = ("peak_bytes", "forecast_bytes", "temporary_bytes", "state_bytes", "record_bytes", "data_bytes")
        sizes = [found[name] / 1e9 if found[name] is not None else "-" for name in names]
        parts.append(table([f"{name.removesuffix('_bytes')}, GB" for name in names], [sizes]))
    if text := _more(steps, "recording", "nothing", "recorded"):
        parts.append(text)
    parts += [f"Error in {name}: {error}" for name, error in results["errors"].items()]
    parts += [f"Not reached: {', '.join(results['not_reached'])}"] if results["not_reached"] else []
    return "\n\n".join(parts)


def _correct(steps: dict[str, Any]) -> str:
    rows = []
    for precision, found in steps.get("correct", {}).items():
        for name in [name for name in found if name != "error"]:
            values = found[name]
            rows.append((precision, name.replace("_", " "), *(f"{values[i]:.1e}" for i in (0, len(values) // 2, -1))))
    return table(("precision", "relative difference of the", "first step", "middle", "last"), rows) if rows else ""


def _speed(steps: dict[str, Any]) -> str:
    rows = []
    for found in _of(steps, "speed width").values():
        if "speed_up" in found:
            up, ours, best = found["speed_up"], found["best_ours"], found["best_torch"]
            times = [1e3 * found[whose][name]["median"] for whose, name in (("ours", ours), ("torch", best))]
            span = f"{up['min']:.2f} - {up['max']:.2f}"
            rows.append((found["width"], found["precision"], times[0], ours, times[1], best, up["of_medians"], span))
    header = ("width", "precision", "us here", "layout", "us PyTorch", "its best way", "speed-up", "of rounds")
    return table(header, rows) if rows else ""


def _ways(steps: dict[str, Any]) -> str:
    groups = _of(steps, "speed width")
    names = dict.fromkeys(name for found in groups.values() for whose in ("ours", "torch") for name in found[whose])
    rows = [
        (name, *({**found["ours"], **found["torch"]}.get(name, {}).get("median", "-") for found in groups.values()))
        for name in names
    ]
    rows = [(name, *(x if x == "-" else 1e3 * x for x in values)) for name, *values in rows]
    return table(("us per configuration-step", *groups), rows) if rows else ""


def _grids(steps: dict[str, Any]) -> str:
    rows = [
        (width, configs, 1e3 * figure["median"], figure["layout"])
        for width, found in _of(steps, "grids width").items()
        for configs, figure in found.items()
    ]
    return table(("width", "configurations", "us per configuration-step", "layout"), rows) if rows else ""


def _roofline(steps: dict[str, Any]) -> str:
    rows = []
    for precision, found in steps.get("roofline", {}).items():
        limits = found["peak_flops"] / 1e12, found["bandwidth"] / 1e12
        for width in [key for key in found if key.isdigit()]:
            entry = found[width]
            least = [1e3 * entry["least_ms_by"][name] for name in ("flops", "bytes")]
            shares = [f"{entry[whose]:.0%}" if whose in entry else "-" for whose in ("ours", "torch")]
            rows.append((width, precision, *limits, *least, *shares))
    header = ("width", "precision", "TFLOP/s", "TB/s", "least us by FLOPs", "by bytes", "reached here", "by PyTorch")
    return table(header, rows) if rows else ""


def _more(steps: dict[str, Any], kind: str, least: str, header: str) -> str:
    """Ways of one step, and by how much each is slower than the way called ``least``."""
    rows = []
    for width, found in _of(steps, f"{kind} width").items():
        base = found.get(least, {}).get("median")
        for what, figure in found.items():
            more = f"{100 * (figure['median'] / base - 1):+.1f} %" if base else "-"
            rows.append((width, what, 1e3 * figure["median"], more))
    return table(("width", header, "us per configuration-step", "more"), rows) if rows else ""


def _of(steps: dict[str, Any], beginning: str) -> dict[str, Any]:
    """The steps of that name, by the rest of it."""
    return {name.removeprefix(beginning).strip(): steps[name] for name in steps if name.startswith(beginning)}
