"""Devices for which a sweep can be compiled and counted without having one, described by their data sheets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from periodic_jax.core.errors import ConfigError
from periodic_jax.sweeps.traffic import Cost

LAUNCH_SECONDS = 2e-6  # least time from one kernel of a GPU to the next


# What XLA reads of a GPU. Limits of blocks and registers are those of CUDA's compute capabilities 8.0 and 9.0.
GPU_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes}
  shared_memory_per_block_optin: {gpu.shared_optin_bytes}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {gpu.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.name}"
"""


class GpuModel(NamedTuple):
    """What XLA wants to know of a GPU besides its memory."""

    name: str
    capability: int  # major number of the compute capability
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units of each
    l2_bytes: int
    clock_ghz: float
    shared_bytes: int  # of a multiprocessor
    shared_optin_bytes: int  # of a block that asks for it


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        name: on the command line.
        platform: ``cuda`` or ``tpu``.
        title: in words.
        source: of the figures.
        peak: dense FLOP/s of products at each `training.xla.PRECISIONS`, with their passes.
        bandwidth: of its memory, bytes/s.
        memory: bytes.
        gpu: of a GPU.
        topology: of the smallest slice of TPUs that XLA compiles for; one device of it is used.
        accelerator_type: the cloud's name of that slice.
        clock: cycles/s of a TPU, as follows from the peak.
    """

    name: str
    platform: str
    title: str
    source: str
    bandwidth: float
    memory: int
    peak: Mapping[str, float] = field(hash=False)
    gpu: GpuModel | None = None
    topology: str = ""
    accelerator_type: str = ""
    clock: float | None = None

    def description(self) -> str:
        """A GPU as XLA reads it."""
        return GPU_DESCRIPTION.format(gpu=self.gpu, bandwidth=int(self.bandwidth), memory=self.memory)

    def check_precision(self, precision: str) -> None:
        """Refuse a precision that it has no units for.

        Raises:
            ConfigError: float64 on a TPU.
        """
        if precision not in self.peak:
            raise ConfigError("--precision", f"{precision} for {self.name}", "one of " + ", ".join(self.peak))

    def seconds(self, cost: Cost, precision: str) -> float:
        """A lower bound of the time that something takes: by bytes or by operations, and launches on a GPU.

        Args:
            cost: of it.
            precision: of its products.
        """
        busy = max(cost.bytes / self.bandwidth, cost.flops / self.peak[precision])
        return busy + (cost.launches * LAUNCH_SECONDS if self.gpu else 0)

    def cycle_seconds(self, cost: Cost) -> float | None:
        """The time by XLA's own estimate of cycles, which it makes for TPUs: no bound, but nearer to the truth."""
        return cost.cycles / self.clock if self.clock and cost.cycles else None


def _gpu_peak(float32: float, tf32: float, bf16: float, float64: float) -> Mapping[str, float]:
    return MappingProxyType({"float32": float32, "tf32": tf32, "bf16": bf16, "float64": float64})


def _tpu_peak(bf16: float) -> Mapping[str, float]:
    """Products of float32 numbers take several passes of bfloat16: six to be exact, three for JAX's tensorfloat32."""
    return MappingProxyType({"float32": bf16 / 6, "tf32": bf16 / 3, "bf16": bf16})


HOPPER = _gpu_peak(66.9e12, 494.7e12, 989.4e12, 66.9e12)  # its tensor cores multiply float64 numbers too
TARGETS = {
    target.name: target
    for target in (
        Target(
            "h100", "cuda", "NVIDIA H100 SXM5, 80 GB", "NVIDIA H100 Tensor Core GPU Architecture, v1.04, table 3",
            3.35e12, 84_929_347_584, HOPPER,
            gpu=GpuModel("NVIDIA H100 80GB HBM3", 9, 132, 128, 52_428_800, 1.98, 233_472, 232_448),
        ),
        Target(
            "h200", "cuda", "NVIDIA H200 SXM, 141 GB", "NVIDIA H200 Tensor Core GPU, data sheet; the cores of an H100",
            4.8e12, 151_397_597_184, HOPPER,
            gpu=GpuModel("NVIDIA H200 141GB HBM3e", 9, 132, 128, 52_428_800, 1.98, 233_472, 232_448),
        ),
        Target(
            "a100", "cuda", "NVIDIA A100 SXM4, 80 GB", "NVIDIA A100 80GB Tensor Core GPU, data sheet",
            2.039e12, 85_100_068_864, _gpu_peak(19.5e12, 156e12, 312e12, 19.5e12),
            gpu=GpuModel("NVIDIA A100-SXM4-80GB", 8, 108, 64, 41_943_040, 1.41, 167_936, 166_912),
        ),
        Target(
            "v5e", "tpu", "Cloud TPU v5e, 16 GB", "docs.cloud.google.com/tpu/docs/v5e",
            0.819e12, 16 * 10**9, _tpu_peak(197e12), topology="v5e:2x2", accelerator_type="v5litepod-4",
            clock=197e12 / (4 * 128**2 * 2),  # four units of 128 x 128 products a cycle
        ),
        Target(
            "v6e", "tpu", "Cloud TPU v6e, 32 GB", "docs.cloud.google.com/tpu/docs/v6e",
            1.638e12, 32 * 10**9, _tpu_peak(918e12), topology="v6e:2x2", accelerator_type="v6e-4",
            clock=918e12 / (4 * 256**2 * 2),  # not published: a later version of the page has two units, not four
        ),
    )
}  # fmt: skip


def find_target(name: str) -> Target:
    """The device of that name.

    Raises:
        ConfigError: an unknown name.

    Example:
        >>> find_target("h100").title
        'NVIDIA H100 SXM5, 80 GB'
    """
    if name not in TARGETS:
        raise ConfigError("--for", name, "one of " + ", ".join(TARGETS))
    return TARGETS[name]
