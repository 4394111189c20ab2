"""What must be done around JAX: XLA flags before it starts, a self-check of its arithmetic, precision.

Two versions of jaxlib hand reductions on CPU to a library that fails in some of them. What came out without a flag, on
an x86-64 processor with AVX-512, of the programs of three of JAX's issues:

=================  ============================  =======================  =======================
jaxlib             39103: squares of many rows,  40412: product of rank   39257: product of rank
                   float32 and float64           7, summed                8, summed
=================  ============================  =======================  =======================
0.10.0, 0.10.1     right                         right                    right
0.10.2             0.8 % too low                 the process dies         the process dies
0.11.0             right                         right                    the process dies
0.11.1, 0.11.2     right                         right                    right
0.12.0, 0.12.0.1   right                         right                    right
=================  ============================  =======================  =======================

With `SAFE_REDUCTIONS` in ``XLA_FLAGS`` all were right in all of them. XLA reads its flags once, when the first backend
starts, so `guard_xla_flags` runs on ``import periodic_jax``. It changes nothing under the other versions. (An option of
each compiled program cures them too. But it would miss operations outside compiled programs, and those of your own.)
"""

import contextlib
import functools
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from periodic_jax.core.errors import ConfigError, first_line
from periodic_jax.core.files import cache_folder

LOG = logging.getLogger("periodic_jax")
# name -> what JAX calls that precision of matrix products
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16", "float64": "highest"}

# What decides which numbers a key gives, and which keys Flax makes of one.
RANDOM_NUMBERS: dict[str, Any] = {
    "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True, "flax_fix_rng_separator": False
}  # fmt: skip

SAFE_REDUCTIONS = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
UNSAFE_JAXLIB = frozenset({"0.10.2", "0.11.0"})  # that need it

LIBRARY = SAFE_REDUCTIONS.strip("-").partition("=")[0]  # which operations a library computes, and not XLA's own loops
PRODUCTS = "LIBRARY_FUSION_TYPE_DOT"

_started_unguarded = False  # whether JAX had read its flags before the guard was there


def add_xla_flag(flag: str) -> None:
    """Append one ``--name=value`` to ``XLA_FLAGS`` unless the user has set that name already.

    Args:
        flag: the flag with its value. XLA stops reading at the first token that does not begin with ``--``, so a user's
            malformed tokens go behind it. Flags in a file that ``XLA_FLAGS`` names are taken over.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if not given.lstrip().startswith("-"):  # the name of a file, from which XLA would read its flags
        with contextlib.suppress(OSError, ValueError), open(given) as file:
            given = file.read()
    tokens = given.split()
    name = flag.split("=")[0]
    if any(token.split("=")[0] == name for token in tokens):
        return
    os.environ["XLA_FLAGS"] = " ".join(sorted([*tokens, flag], key=lambda token: not token.startswith("--")))


def guard_xla_flags() -> None:
    """Keep XLA's CPU backend from the reductions that fail, under the versions of jaxlib where they do."""
    global _started_unguarded
    if _jaxlib_version() not in UNSAFE_JAXLIB:
        return
    if _has_started() and not _guarded():
        _started_unguarded = True
        _say_once(
            "JAX started before periodic_jax was imported, so its flag comes too late: under jaxlib "
            f"{_jaxlib_version()} some sums on a CPU are wrong or end the process, and runs there are refused; "
            "import periodic_jax first"
        )
    add_xla_flag(SAFE_REDUCTIONS)


def _has_started() -> bool:
    """Whether a backend of JAX has started, found out without an import of JAX and without starting one.

    JAX refuses to change the number of CPU devices from then on. Before, the number is put back.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    devices = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", 2 if devices == 1 else 1)
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        return True
    return False


def _jaxlib_version() -> str:
    """Without an import of it, which would take long."""
    try:
        return importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _guarded() -> bool:
    """Whether the flags keep reductions from that library: by the guard, or by a list of yours without them."""
    name = SAFE_REDUCTIONS.split("=")[0]
    given = [token.partition("=")[2] for token in os.environ.get("XLA_FLAGS", "").split() if token.startswith(name)]
    kinds = given[-1].split(",") if given else ["reduce"]
    return "-reduce" in kinds or not any("reduce" in kind or kind[:1] in ("+", "-") for kind in kinds)


@functools.cache
def cpu_options() -> dict[str, str]:
    """Compiler options of a sweep's programs on a CPU: the library makes products, XLA's own loops make sums.

    Under JAX 0.12 a step takes 6 - 16 % less time so: docs/development/decisions/xla-flag-by-version.md. There are none
    where ``XLA_FLAGS`` has the option, by the guard or by you, and under versions of jaxlib that do not know it.
    """
    import jax

    if LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return {}
    options = {LIBRARY: PRODUCTS}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError):  # no such option
        return {}
    return options


def use_cores_as_devices() -> None:
    """Make each CPU core a JAX device of its own, over which a sweep spreads its configurations.

    In a prototype one single-threaded network per core was 1.3 - 1.7 times faster than one on all cores. Only
    before JAX's first computation.
    """
    add_xla_flag(f"--xla_force_host_platform_device_count={_cores()}")
    add_xla_flag("--xla_cpu_multi_thread_eigen=false")


def say_if_cores_share_a_device() -> None:
    """Log, once, that a run on CPU has one device for several cores, and what to do."""
    import jax

    if jax.default_backend() == "cpu" and jax.local_device_count() == 1 < _cores():
        _say_once(
            f"1 device for {_cores()} cores: periodic_jax.training.xla.use_cores_as_devices(), before JAX starts, "
            "makes each core one, which is often faster"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs on disk, so that the second start of a sweep does not compile; a user's own
    ``JAX_COMPILATION_CACHE_DIR`` goes before.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def reductions_are_right() -> bool:
    """Whether this JAX sums rightly numbers of the type in use, float64 where it is enabled; takes 0.1 - 0.2 s.

    Sums known in closed form: the squares of 0 .. n, each as the squared length of a vector that a unit matrix has
    multiplied (jax issue 39103); and products of rank 5 with a dimension of one, over one dimension. Of rank 7 and 8
    (issues 40412 and 39257) a wrong version ends the process: these are refused by version.

    Returns:
        True where relative errors are below 1e-3 (the defect makes 8e-3; plain rounding 1e-6).
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    @jax.jit
    def sums(rows: jax.Array, product: jax.Array) -> tuple[jax.Array, ...]:
        lengths = jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=rows.dtype) @ row) ** 2))(rows)
        return lengths, (product * product).sum(3)

    # The least last number at which the defect shows.
    last, dtype = (16384, np.float64) if jax.config.values["jax_enable_x64"] else (32768, np.float32)
    rows, product = np.zeros((last + 1, 3), dtype), np.arange(96, dtype=dtype).reshape(3, 1, 2, 2, 8)
    rows[:, 0] = np.arange(last + 1)
    expected = np.arange(last + 1.0) ** 2, np.square(product).sum(3)
    actual = jax.device_get(sums(rows, product))
    return all(np.allclose(a, b, rtol=1e-3, atol=0) for a, b in zip(actual, expected, strict=True))


def check_reductions() -> None:
    """Refuse to compute with a JAX whose sums on CPU are wrong, or end the process.

    Raises:
        ConfigError: JAX started before ``periodic_jax`` was imported and needs a flag, your own flags undo it, or sums
            are wrong all the same.
    """
    import jax

    version = _jaxlib_version()
    unsafe = version in UNSAFE_JAXLIB and jax.default_backend() == "cpu"
    if unsafe and _started_unguarded:
        wanted = f"periodic_jax imported before JAX starts: jaxlib {version} needs {SAFE_REDUCTIONS} from then on"
    elif unsafe and not _guarded():
        wanted = f"{SAFE_REDUCTIONS} in it: jaxlib {version} fails in some sums without"
    elif not reductions_are_right():
        wanted = f"flags, or another jaxlib than {version}, with which JAX sums rightly: its self-check failed"
    else:
        return
    raise ConfigError("XLA_FLAGS", repr(os.environ.get("XLA_FLAGS", "")), wanted)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Set the precision of all matrix products, and 64-bit numbers for ``float64``, within a ``with`` block.

    JAX's searches for NaN and infinity are off in it: they stop every program that returns NaN, which stands for
    "not reached" here. So is ``disable_jit``. Random numbers are those of `RANDOM_NUMBERS`, whatever is set outside, so
    that a run that is resumed under other settings goes on with the same mini-batches. Guards of yours against
    transfers and against the promotion of ranks, and a mesh of yours, are left outside: a run transfers and places its
    configurations by itself.

    Args:
        name: ``float32`` (exact products of float32 numbers, the default for science), ``tf32`` or ``bf16`` (faster on
            accelerators; products of numbers rounded to 10 or 7 bits), ``float64`` (for parity tests). On NVIDIA
            ``bf16`` of float32 numbers is ``tf32``, to the bit on an H200.

    Raises:
        ConfigError: none of these; every seed is shifted by ``JAX_RANDOM_SEED_OFFSET``; or, in the block, JAX finds no
            device to start.
    """
    if name not in PRECISIONS:
        raise ConfigError("--precision", name, "one of " + ", ".join(PRECISIONS))

    import flax
    import jax
    import numpy as np

    if offset := getattr(jax.config, "jax_random_seed_offset", 0):
        raise ConfigError("JAX_RANDOM_SEED_OFFSET", offset, "0: --seed alone tells which random numbers a run has")
    searching = [flag for flag in ("jax_debug_nans", "jax_debug_infs") if getattr(jax.config, flag)]
    if searching:
        _say_once(
            f"{' and '.join(searching)}: off while periodic_jax computes, where NaN stands for what is not reached"
        )
    if jax.config.values["jax_disable_jit"]:
        _say_once("jax_disable_jit: off while periodic_jax computes: operation by operation a run would take days")
    for flag, value in RANDOM_NUMBERS.items():
        if (given := getattr(flax.config if flag.startswith("flax") else jax.config, flag)) != value:
            _say_once(f"{flag}={given}: {value} while periodic_jax computes, whose runs have the same random numbers")
    with (
        jax.default_matmul_precision(PRECISIONS[name]), jax.enable_x64(name == "float64"), jax.debug_nans(False),
        jax.debug_infs(False), jax.default_prng_impl(RANDOM_NUMBERS["jax_default_prng_impl"]),
        jax.threefry_partitionable(RANDOM_NUMBERS["jax_threefry_partitionable"]), jax.disable_jit(False),
        flax.config.temp_flip_flag("fix_rng_separator", RANDOM_NUMBERS["flax_fix_rng_separator"]),
        jax.transfer_guard("allow"), jax.numpy_rank_promotion("allow"),
        jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())), _started_devices(),
    ):  # fmt: skip
        yield


@contextlib.contextmanager
def _started_devices() -> Iterator[None]:
    """Say in one line, where a ``with`` block fails because JAX finds no device, what to set.

    JAX is asked after the failure only: to start it earlier would be too early for `sweeps.compilation.prepare_jax`.
    """
    try:
        yield
    except (RuntimeError, AssertionError):  # the latter, where a known platform has no device
        import jax

        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:
            given = repr(jax.config.values["jax_platforms"] or "")
            wanted = f"cpu, or platforms that start here (JAX: {first_line(error) if str(error) else 'no device'})"
            raise ConfigError("JAX_PLATFORMS", given, wanted) from None
        raise


@functools.cache
def _say_once(line: str) -> None:
    LOG.warning(line)
