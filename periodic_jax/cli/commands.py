"""The commands by name: data classes of their options, each with ``execute()``."""

from periodic_jax.cli import inspection, launch_engines, results, sweep, training

COMMANDS: dict[str, type] = {
    "demo": training.Demo,
    "sweep": sweep.Sweep,
    "launch": launch_engines.Launch,
    "resume": training.Resume,
    "branch": training.Branch,
    "info": results.Info,
    "replay": inspection.Replay,
    "analyze": results.Analyze,
    "landscape": inspection.Landscape,
    "minima": inspection.Minima,
    "plot": results.Plot,
    "report": results.Report,
    "export": results.Export,
}
