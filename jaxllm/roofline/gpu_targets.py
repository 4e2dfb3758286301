"""NVIDIA GPUs as XLA's compiler sees them: what it must know to compile for one that is not here.

`target_config` writes XLA's text form of them (the protocol buffer `GpuTargetConfigProto`), which
`sharding.absent_devices("cuda", topology, target_config=...)` takes. The figures are what boards report of themselves
through CUDA's device properties, as the XLA project lists them (openxla/xla, xla/backends/gpu/target_config/specs);
limits that these boards share are in the text below.

The compiler tunes nothing for an absent board, so the program is a plausible one and its memory real; the fastest one
is found on the board.
"""

import dataclasses

from jaxllm.roofline.hardware import find_chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPU:
    """One board.

    Attributes:
        description: how CUDA names it.
        capability: CUDA's compute capability, major and minor.
        num_cores: streaming multiprocessors.
        lanes_per_core: float32 units of one.
        clock_ghz: highest clock.
        memory_bytes: main memory that the driver leaves a program, a little less than the datasheet's.
        memory_bytes_per_second: its bandwidth.
        cache_bytes: second-level cache.
        shared_bytes_per_core: shared memory of one multiprocessor; a block may ask for 1 KiB less.
    """

    description: str
    capability: tuple[int, int]
    num_cores: int
    lanes_per_core: int
    clock_ghz: float
    memory_bytes: int
    memory_bytes_per_second: int
    cache_bytes: int
    shared_bytes_per_core: int


_KIB, _MIB = 2**10, 2**20

GPUS = {
    "A100 SXM 80GB": GPU(
        description="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        num_cores=108,
        lanes_per_core=64,
        clock_ghz=1.41,
        memory_bytes=85_100_068_864,
        memory_bytes_per_second=2_039_040_000_000,
        cache_bytes=40 * _MIB,
        shared_bytes_per_core=164 * _KIB,
    ),
    "H100 SXM": GPU(
        description="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        num_cores=132,
        lanes_per_core=128,
        clock_ghz=1.98,
        memory_bytes=84_942_979_072,
        memory_bytes_per_second=3_352_320_000_000,
        cache_bytes=50 * _MIB,
        shared_bytes_per_core=228 * _KIB,
    ),
    "H200 SXM": GPU(
        description="NVIDIA H200 141GB HBM3e",
        capability=(9, 0),
        num_cores=132,
        lanes_per_core=128,
        clock_ghz=1.98,
        memory_bytes=151_397_597_184,
        memory_bytes_per_second=4_800_000_000_000,
        cache_bytes=50 * _MIB,
        shared_bytes_per_core=228 * _KIB,
    ),
    "B200": GPU(
        description="NVIDIA B200",
        capability=(10, 0),
        num_cores=148,
        lanes_per_core=128,
        clock_ghz=1.965,
        memory_bytes=191_514_411_008,
        memory_bytes_per_second=7_672_320_000_000,
        cache_bytes=126 * _MIB + 512 * _KIB,
        shared_bytes_per_core=228 * _KIB,
    ),
}
"""By the name that `hardware` gives the chip."""


def target_config(chip: str) -> str:
    """XLA's description of a GPU.

    Args:
        chip: any name that `hardware.find_chip` knows, such as `H100`.

    Raises:
        ValueError: when there is no description of it.
    """
    found = find_chip(chip)
    if found is None or found.name not in GPUS:
        raise ValueError(f"{chip!r}: the GPU compiler is given no description of it; use one of {', '.join(GPUS)}")
    gpu = GPUS[found.name]
    extension = "ACCELERATED_FEATURES" if gpu.capability >= (9, 0) else "NONE"  # sm_90a, sm_100a
    return f"""
platform_name: "CUDA"
device_description_str: "{gpu.description}"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} feature_extension: {extension} }}
  core_count: {gpu.num_cores}
  fpus_per_core: {gpu.lanes_per_core}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory_bytes}
  memory_bandwidth: {gpu.memory_bytes_per_second}
  l2_cache_size: {gpu.cache_bytes}
  shared_memory_per_core: {gpu.shared_bytes_per_core}
  shared_memory_per_block_optin: {gpu.shared_bytes_per_core - _KIB}
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
