"""``periodic-jax launch slurm`` and ``launch ray``: the shards of a sweep on an engine.

The options of the engine are parsed first. All others are those of ``periodic-jax sweep``, and go into its command as
they were typed.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Union

from tyro.conf import Positional, UseAppendAction, arg, subcommand

from periodic_jax.cli.axis import read_count, read_number
from periodic_jax.cli.launch import log_line
from periodic_jax.cli.options import IF_GIVEN, parse_options, refuse_unknown
from periodic_jax.cli.sweep import Sweep, to_config
from periodic_jax.core.errors import UsageError
from periodic_jax.core.formatting import counted
from periodic_jax.engines import ray, slurm
from periodic_jax.engines.progress import shard_progress
from periodic_jax.runs.callbacks import LOG_PAUSE
from periodic_jax.runs.config import RunConfig, check, planned_steps
from periodic_jax.runs.settings import setting
from periodic_jax.storage.run_directory import is_sharded

SWEEP_TOO = (
    "Takes every option of periodic-jax sweep too, and requires --shards and --out. The same command again goes "
    "on with the shards that are not finished."
)


@dataclass(frozen=True)
class Slurm:
    """Submit the shards of a sweep as a Slurm job array, and print the number of the job."""

    partition: Annotated[str | None, arg(metavar="NAME"), IF_GIVEN] = setting(None, "Partition.")
    time: Annotated[str | None, arg(metavar="TIME"), IF_GIVEN] = setting(
        None,
        """Time limit of a shard's task, as for sbatch: MINUTES, HOURS:MINUTES:SECONDS ... A minute or two before, the
        task writes a checkpoint and goes back into the queue. So give a quarter of an hour at least.""",
    )
    gpus_per_task: Annotated[str | None, arg(metavar="N"), IF_GIVEN] = setting(None, "GPUs of each shard.")
    cpus_per_task: Annotated[int | None, read_count("cpus_per_task"), IF_GIVEN] = setting(None, "Cores of each shard.")
    mem: Annotated[str | None, arg(metavar="SIZE"), IF_GIVEN] = setting(None, "Memory of each shard, such as 16G.")
    sbatch: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="NAME=VALUE"), IF_GIVEN]] = setting(
        (), "A further option of sbatch, such as account=mine, exclusive or array=0-99%8; may be repeated."
    )
    print: Annotated[bool, IF_GIVEN] = setting(False, "Print the script of the job, and submit nothing.")

    def directives(self) -> list[str]:
        """The options as sbatch takes them."""
        names = ("partition", "time", "gpus_per_task", "cpus_per_task", "mem")
        given = ((name.replace("_", "-"), getattr(self, name)) for name in names)
        return [*(f"{name}={value}" for name, value in given if value is not None), *self.sbatch]


@dataclass(frozen=True)
class Ray:
    """Run the shards of a sweep as tasks of Ray, and wait for them."""

    address: Annotated[str | None, arg(metavar="ADDRESS"), IF_GIVEN] = setting(
        None,
        """Address of the cluster: auto, HOST:PORT, or local for a new one on this machine. If not given: that of
        RAY_ADDRESS, else the cluster that runs on this machine, else a new one.""",
    )
    num_cpus: Annotated[float, read_number("num_cpus")] = setting(1.0, "Cores of each shard.")
    num_gpus: Annotated[float, read_number("num_gpus")] = setting(0.0, "GPUs of each shard.")
    max_retries: Annotated[int, read_count("max_retries")] = setting(
        10, "How often a shard starts again after its process or its machine has died; -1: always."
    )


ENGINES = {"slurm": Slurm, "ray": Ray}
OF_ENGINES = " or ".join(f"periodic-jax launch {name}" for name in ENGINES)


class ParsedLaunch(NamedTuple):
    """What is to be launched."""

    engine: Slurm | Ray
    config: RunConfig
    command: list[str]  # of the sweep, as typed


def parse_launch(arguments: Sequence[str]) -> ParsedLaunch:
    """The options of the engine, and those of the sweep.

    Raises:
        ConfigError: a value that an option does not accept, or no shards.
        SystemExit: as `cli.main.parse_command`.
    """
    name = arguments[0] if arguments else ""
    if name not in (*ENGINES, "-h", "--help"):
        raise UsageError("launch", f"{name} is no engine" if name else "no engine is given", f"give {OF_ENGINES}")
    kinds: Any = Union[  # noqa: UP007 (built at run time)
        tuple(
            Annotated[kind, subcommand(name, description=f"{kind.__doc__} {SWEEP_TOO}")]
            for name, kind in ENGINES.items()
        )
    ]
    engine, words = parse_options(kinds, arguments, "periodic-jax launch")
    sweep, left = parse_options(Sweep, words, "periodic-jax sweep")
    refuse_unknown(left, f"periodic-jax launch {name}", type(engine), Sweep)
    for flag, is_given in (("--dry-run", sweep.dry_run), ("--shard", sweep.many_machines.shard is not None)):
        if is_given:
            raise UsageError(flag, "launch does not take it", "leave it out: launch starts every shard")
    if sweep.many_machines.shards is None:
        raise UsageError("--shards", "not given", "give the number of shards to cut the grid into")
    return ParsedLaunch(engine, to_config(sweep), words)


@dataclass(frozen=True)
class Launch:
    """Hand the shards of a sweep to Slurm or Ray; see periodic-jax launch slurm --help, and launch ray --help."""

    arguments: Positional[tuple[str, ...]]  # which `parse_launch` reads: they are those of two parsers

    def execute(self) -> None:
        """Submit the shards, or run them."""
        engine, config, command = parse_launch(self.arguments)
        if isinstance(engine, Slurm):
            _launch_slurm(engine, config, command)
        else:
            _launch_ray(engine, config, command)


def _launch_slurm(options: Slurm, config: RunConfig, words: list[str]) -> None:
    out, left = config.folder, _unfinished(config)
    command = [sys.executable, "-m", "periodic_jax.cli.main", "sweep", *words]
    script = slurm.job_script(command, out, left or range(config.shards or 1), options.directives())
    if not options.print:
        slurm.find_sbatch()
    _check(config, claims=not options.print)
    if not _something_is_left(left, config):
        return
    if options.print:
        print(script, end="")
        return
    (out / "logs").mkdir(exist_ok=True)  # where there is none, Slurm drops the output
    print(f"job {slurm.submit(script)}: {counted(len(left), 'shard')} of {out}, logs in {out / 'logs'}")


def _launch_ray(options: Ray, config: RunConfig, words: list[str]) -> None:
    from periodic_jax.cli.main import main

    resources = ray.RayResources(options.num_cpus, options.num_gpus, options.max_retries)
    resources.check()
    _check(config, claims=False)
    ray.find_ray()
    out, left = config.folder.absolute(), _unfinished(config)
    _check(config, claims=True)
    if not _something_is_left(left, config):
        return
    with _progress(config) as report:
        ends = ray.run_shards(
            main, ["sweep", *words, "--out", str(out)], left, out,
            resources=resources, address=options.address, report=report,
        )  # fmt: skip
    failed = {k: end for k, end in sorted(ends.items()) if end != 0}
    for k, end in failed.items():
        reason = f"exit status {end}" if isinstance(end, int) else end
        log_line(f"shard {k}: {reason}; see {config.out}/logs/{k}.log")
    print(f"{len(ends) - len(failed)} of {counted(len(ends), 'shard')} trained; in {config.out}")
    if failed:
        sys.exit(1)


def _check(config: RunConfig, *, claims: bool) -> None:
    """Refuse what the shards would refuse, and other settings than those of the folder's grid.

    Args:
        config: of the sweep.
        claims: make the folder one of this grid; otherwise nothing is written.
    """
    from periodic_jax.runs.shards import enter_shard

    if claims or is_sharded(config.folder):
        enter_shard(dataclasses.replace(config, shard=0))
        return
    check(config)
    config.whole_grid().members(config.shards or 0)


def _unfinished(config: RunConfig) -> list[int]:
    """The shards that are left to train."""
    return [k for k in range(config.shards or 0) if not shard_progress(config.folder, k).is_finished]


def _something_is_left(left: list[int], config: RunConfig) -> bool:
    """Whether there is something to train, with a line where some shards are finished."""
    shards = config.shards or 0
    if len(left) < shards:
        log_line(f"{config.out}: {shards - len(left)} of {counted(shards, 'shard')} finished")
    return bool(left)


@contextlib.contextmanager
def _progress(config: RunConfig) -> Iterator[Callable[[], None]]:
    """A bar in config-steps over all shards; in a log file, where each state is a line, twice a minute.

    Yields:
        What moves it to where the shards are.
    """
    from tqdm import tqdm

    out, steps = config.folder, planned_steps(config)
    sizes = {k: dataclasses.replace(config, shard=k).size() for k in range(config.shards or 0)}
    finished = set[int]()
    pause = 0.1 if sys.stderr.isatty() else LOG_PAUSE
    with tqdm(
        total=steps * sum(sizes.values()),
        unit="config-step",
        unit_scale=True,
        dynamic_ncols=True,
        mininterval=pause,
        maxinterval=max(pause, 10),
    ) as bar:

        def report() -> None:
            done = steps * sum(sizes[k] for k in finished)
            for k in sizes.keys() - finished:
                progress = shard_progress(out, k)
                done += progress.steps * sizes[k]
                if progress.is_finished:
                    finished.add(k)
            bar.set_description(f"{len(finished)} of {counted(len(sizes), 'shard')}", refresh=False)
            bar.update(done - bar.n)

        report()
        yield report
        report()
