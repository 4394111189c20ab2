"""What must be settled around JAX: XLA flags before it starts, a self-check of its arithmetic, precision.

jaxlib 0.10.2 computes some float32 reductions on CPU wrongly (jax issue 39103): the sum of squares of 0 .. 32768 comes
out one percent low. One XLA flag cures it. XLA reads its flags once, when the first backend starts, so
`guard_xla_flags` runs on ``import periodic_jax``.
"""

import contextlib
import os
from collections.abc import Iterator

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.files import cache_folder

# name -> what JAX calls that precision of matrix products
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16", "float64": "highest"}

SAFE_REDUCTIONS = "--xla_cpu_experimental_ynn_fusion_type=-reduce"


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
    well_formed = [token for token in tokens if token.startswith("--")]
    rest = [token for token in tokens if not token.startswith("--")]
    os.environ["XLA_FLAGS"] = " ".join([*well_formed, flag, *rest])


def guard_xla_flags() -> None:
    """Keep XLA's CPU backend from the reductions that are wrong in jaxlib 0.10.2; harmless elsewhere."""
    add_xla_flag(SAFE_REDUCTIONS)


def use_cores_as_devices() -> None:
    """Make each CPU core a JAX device of its own, over which a sweep spreads its configurations.

    In a prototype one single-threaded network per core was 1.3 - 1.7 times faster than one on all cores. Only
    before JAX's first computation.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add_xla_flag(f"--xla_force_host_platform_device_count={cores}")
    add_xla_flag("--xla_cpu_multi_thread_eigen=false")


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs on disk, so that the second start of a sweep does not compile; a user's own
    ``JAX_COMPILATION_CACHE_DIR`` goes before.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def reductions_are_right() -> bool:
    """Whether this JAX sums float32 numbers rightly: the sum of squares of 0 .. 32768, known in closed form.

    Returns:
        True where the relative error is below 1e-3 (the defect makes 1e-2; plain rounding 1e-6).
    """
    import jax
    import jax.numpy as jnp

    n = 32769
    exact = (n - 1) * n * (2 * n - 1) / 6
    total = jax.jit(lambda: (jnp.arange(n, dtype=jnp.float32) ** 2).sum())()
    return abs(float(total) / exact - 1) < 1e-3


def check_reductions() -> None:
    """Refuse to compute with a JAX whose float32 sums are wrong.

    Raises:
        ConfigError: they are, as when jaxlib 0.10.2 started before ``periodic_jax`` was imported.
    """
    if not reductions_are_right():
        raise ConfigError(
            "XLA_FLAGS",
            repr(os.environ.get("XLA_FLAGS", "")),
            f"{SAFE_REDUCTIONS}, set before JAX starts: its float32 sums are wrong",
        )


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Set the precision of all matrix products, and 64-bit numbers for ``float64``, within a ``with`` block.

    Args:
        name: ``float32`` (exact products of float32 numbers, the default for science), ``tf32`` or ``bf16`` (faster on
            accelerators; products of numbers rounded to 10 or 7 bits), ``float64`` (for parity tests).

    Raises:
        ConfigError: none of these.
    """
    if name not in PRECISIONS:
        raise ConfigError("--precision", name, "one of " + ", ".join(PRECISIONS))

    import jax

    with jax.default_matmul_precision(PRECISIONS[name]), jax.enable_x64(name == "float64"):
        yield
