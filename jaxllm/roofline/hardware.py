"""What chips offer: peak FLOP/s by dtype, memory, bandwidths, and how they are joined.

Figures are the vendors', of dense matrix products (NVIDIA's headline numbers with sparsity are twice as high), in
decimal units: 80 GB is 80e9 bytes, a little less than a device reports as its limit. Peaks are reached by no program:
the book (chapter 1) sees 80 to 85 % of them on H100 and about 95 % on TPUs.

Sources, by the chip's `source`:

    book        the book, chapter 2, table "TPU specs", and the GPU chapter for link bandwidths. The vendor's own pages
                round some figures differently (v6e 918e12 for 920e12, v5p 2.765e12 B/s for 2.8e12, v3 123e12 for
                140e12).
    vendor      cloud.google.com/tpu/docs, for what the book does not list.
    datasheet   NVIDIA's datasheet of the product.
    whitepaper  NVIDIA's architecture whitepaper (Turing, Ampere GA102, Ada, Blackwell RTX). On GeForce boards the
                16-bit and float8 figures are those with float32 accumulation, which training uses; float16
                accumulation is twice as fast there.

How chips are joined: pods, hosts, PCIe and data-centre network of TPUs from the book's chapter 2, VMEM and matrix units
from jax's own table (jax/_src/tpu_info.py); nodes of H100, B200 and GB200 from the book's GPU chapter, of other GPUs
from NVIDIA's DGX reference architectures. Boards without NVLink stand in servers of every kind: assumed are eight of
them and one 100 Gb/s network card, as clouds rent them. NVLink bridges between two or four such boards are not counted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Cores:
    """What is on a chip.

    Attributes:
        count: TensorCores of a TPU, streaming multiprocessors of a GPU.
        vector_lanes: float32 units of one core.
        scratch_bytes: on-chip memory of one core: VMEM, or shared memory together with the L1 cache.
        matrix_unit: rows and columns of a TPU's matrix unit; 0 on GPUs, whose tensor cores have no single size.
        cache_bytes: second-level cache of the chip; 0 on TPUs.
    """

    count: int
    vector_lanes: int
    scratch_bytes: int
    matrix_unit: int = 0
    cache_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Torus:
    """How TPUs of a kind are joined: by a link to each neighbour along two or three dims.

    Attributes:
        pod_shape: chips along each dim of a pod, the most that links reach.
        host_shape: chips of one host.
        wrap_multiple: a dim can close to a ring where its size is a multiple of this. With three dims, optical switches
            close all dims of a slice of whole cubes with this side, and none of a smaller slice; with two, each dim for
            itself, which means the full side of a pod.
        single_chip: whether one chip alone can be had.
    """

    pod_shape: tuple[int, ...]
    host_shape: tuple[int, ...]
    wrap_multiple: int
    single_chip: bool = False


@dataclass(frozen=True, kw_only=True)
class Node:
    """How GPUs of a kind are joined: all pairs of a node by switches, nodes by a fat tree.

    Attributes:
        size: GPUs that reach each other without the network: of a server, or of an NVL72 rack.
        egress_bytes_per_second: from one node to the network, one way, all its network cards together.
        fabric: children of each switch level above the node: nodes of a leaf (scalable unit), units of the spine.
    """

    size: int
    egress_bytes_per_second: float
    fabric: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, as its vendor counts chips.

    Attributes:
        name: what jaxllm calls it.
        flops_per_second: dtype -> peak of dense matrix products, in operations a second. "float32" is the rate of the
            vector units; "tensorfloat32" that of NVIDIA's tensor cores on float32 operands, which is what XLA uses
            there by default. A dtype that the chip's matrix units do not take is absent.
        hbm_bytes: capacity of the main memory (GDDR on boards without HBM).
        hbm_bytes_per_second: its bandwidth.
        ici_bytes_per_second: of one TPU link, one way.
        nvlink_bytes_per_second: of all NVLink ports of a GPU together, one way; None for boards on PCIe.
        host_bytes_per_second: between the chip and its host, one way: PCIe, or NVLink-C2C on Grace boards.
        dcn_bytes_per_second: of a chip to the data-centre network, its share of the host's or node's.
        devices_per_chip: how many jax devices it shows. TPU v2 and v3 show their two cores and TPU7x its two chiplets
            as devices; v4 and v5p join their two cores into one device ("megacore").
        cores: what is on the chip.
        torus: how TPUs are joined; None for GPUs.
        node: how GPUs are joined; None for TPUs.
        source: where the figures are from; see the module's docstring.
        aliases: other names of it: jax's `device_kind`, the vendor's names.
    """

    name: str
    flops_per_second: Mapping[str, float]
    hbm_bytes: float
    hbm_bytes_per_second: float
    ici_bytes_per_second: float | None = None
    nvlink_bytes_per_second: float | None = None
    host_bytes_per_second: float
    dcn_bytes_per_second: float
    devices_per_chip: int = 1
    cores: Cores
    torus: Torus | None = None
    node: Node | None = None
    source: str
    aliases: tuple[str, ...] = ()

    def device_flops_per_second(self, dtype: str) -> float | None:
        """Peak of one jax device; None where the vendor names none for the dtype."""
        peak = self.flops_per_second.get(dtype)
        return None if peak is None else peak / self.devices_per_chip


def _tpu(
    name: str,
    peaks: Mapping[str, float],
    hbm: float,
    bandwidth: float,
    *aliases: str,
    ici: float,
    pod: tuple[int, ...],
    host: tuple[int, ...],
    wraps: int,
    cores: int = 1,
    devices: int = 1,
    vmem: int = 128,
    matrix_unit: int = 128,
    pcie: float = 16,
    dcn: float = 6.25,
    single: bool = False,
    source: str = "book",
) -> Chip:
    """A row of the table: peaks in 1e12 operations/s, memory in 1e9 bytes, bandwidths in 1e9 bytes/s, VMEM in MiB."""
    return Chip(
        name=name,
        flops_per_second=MappingProxyType({dtype: peak * 1e12 for dtype, peak in peaks.items()}),
        hbm_bytes=hbm * 1e9,
        hbm_bytes_per_second=bandwidth * 1e9,
        ici_bytes_per_second=ici * 1e9,
        host_bytes_per_second=pcie * 1e9,
        dcn_bytes_per_second=dcn * 1e9,
        devices_per_chip=devices,
        # 8 x 128 lanes with 4 units each (the book, chapter 2, appendix A).
        cores=Cores(count=cores, vector_lanes=4096, scratch_bytes=vmem * 2**20, matrix_unit=matrix_unit),
        torus=Torus(pod_shape=pod, host_shape=host, wrap_multiple=wraps, single_chip=single),
        source=source,
        aliases=aliases,
    )


def _gpu(
    name: str,
    peaks: Mapping[str, float],
    hbm: float,
    bandwidth: float,
    *aliases: str,
    on_chip: Cores,
    node: Node,
    nvlink: float | None = None,
    host: float,
    source: str = "datasheet",
) -> Chip:
    """A row of the table: units as in `_tpu`."""
    return Chip(
        name=name,
        flops_per_second=MappingProxyType({dtype: peak * 1e12 for dtype, peak in peaks.items()}),
        hbm_bytes=hbm * 1e9,
        hbm_bytes_per_second=bandwidth * 1e9,
        nvlink_bytes_per_second=None if nvlink is None else nvlink * 1e9,
        host_bytes_per_second=host * 1e9,
        dcn_bytes_per_second=node.egress_bytes_per_second / node.size,
        cores=on_chip,
        node=node,
        source=source,
        aliases=aliases,
    )


def _cores(count: int, shared: int, cache: float, lanes: int = 128) -> Cores:
    """Of a GPU: shared memory with L1 of one multiprocessor in KiB, second-level cache in MiB."""
    return Cores(count=count, vector_lanes=lanes, scratch_bytes=shared * 2**10, cache_bytes=round(cache * 2**20))


def _peaks(
    half: float,
    float32: float,
    tensorfloat32: float = 0,
    int8: float = 0,
    float8: float = 0,
    float4: float = 0,
    bfloat16: bool = True,
) -> dict[str, float]:
    """An NVIDIA GPU's peaks: `half` is float16's and, since Ampere, bfloat16's."""
    peaks = {"float16": half, "bfloat16": half if bfloat16 else 0, "float32": float32, "tensorfloat32": tensorfloat32}
    peaks |= {"int8": int8, "float8": float8, "float4": float4}
    return {dtype: peak for dtype, peak in peaks.items() if peak}


_HOPPER = _peaks(989, 67, 494.5, 1979, 1979)
_V100 = _peaks(125, 15.7, bfloat16=False)
_V100_PCIE = _peaks(112, 14, bfloat16=False)
_A100 = _peaks(312, 19.5, 156, 624)
_B200 = _peaks(2250, 75, 1125, 4500, 4500, 9000)
_GB200 = _peaks(2500, 80, 1250, 5000, 5000, 10000)

# PCIe of 16 lanes, by generation, and NVLink-C2C; one way.
_GEN3, _GEN4, _GEN5, _C2C = 15.75, 31.5, 63, 450

_DGX_V100 = Node(size=8, egress_bytes_per_second=50e9)
_DGX_A100 = Node(size=8, egress_bytes_per_second=200e9, fabric=(20,))
_DGX_HOPPER = Node(size=8, egress_bytes_per_second=400e9, fabric=(32,))
_NVL72 = Node(size=72, egress_bytes_per_second=3600e9, fabric=(8,))
_GRACE = Node(size=1, egress_bytes_per_second=50e9)
_SERVER = Node(size=8, egress_bytes_per_second=12.5e9)

_ON_V100, _ON_TURING = _cores(80, 128, 6, lanes=64), _cores(72, 96, 6, lanes=64)
_ON_A100, _ON_HOPPER = _cores(108, 192, 40, lanes=64), _cores(132, 256, 50)

_TPUS = (
    _tpu("TPU v2", {"bfloat16": 46}, 16, 700, ici=62, pod=(16, 16), host=(2, 2), wraps=16, cores=2, devices=2, vmem=16,
         source="vendor"),
    _tpu("TPU v3", {"bfloat16": 140}, 32, 900, ici=100, pod=(32, 32), host=(4, 2), wraps=32, cores=2, devices=2,
         vmem=16),
    _tpu("TPU v4", {"bfloat16": 275, "int8": 275}, 32, 1200, "v4p", ici=45, pod=(16, 16, 16), host=(2, 2, 1), wraps=4,
         cores=2, vmem=16),
    _tpu("TPU v5e", {"bfloat16": 197, "int8": 394}, 16, 820, "TPU v5 lite", "v5litepod", ici=45, pod=(16, 16),
         host=(4, 2), wraps=16, dcn=3.125, single=True),
    _tpu("TPU v5p", {"bfloat16": 459, "int8": 918}, 96, 2800, "TPU v5", ici=90, pod=(16, 20, 28), host=(2, 2, 1),
         wraps=4, cores=2, vmem=64),
    _tpu("TPU v6e", {"bfloat16": 920, "int8": 1840, "float8": 920}, 32, 1600, "TPU v6 lite", "Trillium", ici=90,
         pod=(16, 16), host=(4, 2), wraps=16, matrix_unit=256, pcie=32, dcn=12.5, single=True),
    # The book's column of 8-bit peaks is int8; TPU7x's matrix units take float8 instead.
    _tpu("TPU7x", {"bfloat16": 2300, "float8": 4610}, 192, 7400, "TPU v7x", "Ironwood", ici=90, pod=(4, 4, 576),
         host=(2, 2, 1), wraps=4, cores=2, devices=2, vmem=64, matrix_unit=256, dcn=12.5, single=True),
)  # fmt: skip

_NVLINKED = (
    _gpu("V100 SXM 16GB", _V100, 16, 900, "Tesla V100-SXM2-16GB", nvlink=150, on_chip=_ON_V100, node=_DGX_V100,
         host=_GEN3),
    _gpu("V100 SXM 32GB", _V100, 32, 900, "Tesla V100-SXM2-32GB", "V100", nvlink=150, on_chip=_ON_V100, node=_DGX_V100,
         host=_GEN3),
    _gpu("A100 SXM 40GB", _A100, 40, 1555, "A100-SXM4-40GB", "A100 40GB", nvlink=300, on_chip=_ON_A100, node=_DGX_A100,
         host=_GEN4),
    _gpu("A100 SXM 80GB", _A100, 80, 2039, "A100-SXM4-80GB", "A100-SXM-80GB", "A100 80GB", "A100", nvlink=300,
         on_chip=_ON_A100, node=_DGX_A100, host=_GEN4),
    _gpu("A800 SXM 80GB", _A100, 80, 2039, "A800-SXM4-80GB", "A800", nvlink=200, on_chip=_ON_A100, node=_DGX_A100,
         host=_GEN4),
    _gpu("H100 SXM", _HOPPER, 80, 3350, "H100 80GB HBM3", "H100 SXM5", "H100-SXM5-80GB", "H100", nvlink=450,
         on_chip=_ON_HOPPER, node=_DGX_HOPPER, host=_GEN5),
    _gpu("H800 SXM", _HOPPER, 80, 3350, "H800", nvlink=200, on_chip=_ON_HOPPER, node=_DGX_HOPPER, host=_GEN5),
    _gpu("H20", _peaks(148, 44, 74, 296, 296), 96, 4000, nvlink=450, on_chip=_cores(78, 256, 60), node=_DGX_HOPPER,
         host=_GEN5),
    _gpu("GH200 96GB", _HOPPER, 96, 4000, "GH200 480GB", "GH200 120GB", "GH200", nvlink=450, on_chip=_ON_HOPPER,
         node=_GRACE, host=_C2C),
    _gpu("GH200 144GB", _HOPPER, 144, 4900, "GH200 144G HBM3e", nvlink=450, on_chip=_ON_HOPPER, node=_GRACE,
         host=_C2C),
    _gpu("H200 SXM", _HOPPER, 141, 4800, "H200", "H200 141GB HBM3e", nvlink=450, on_chip=_ON_HOPPER, node=_DGX_HOPPER,
         host=_GEN5),
    _gpu("B200", _B200, 192, 8000, "B200 SXM", nvlink=900, on_chip=_cores(148, 256, 126), node=_DGX_HOPPER,
         host=_GEN5),
    _gpu("GB200", _GB200, 192, 8000, "GB200 NVL72", nvlink=900, on_chip=_cores(152, 256, 126), node=_NVL72, host=_C2C),
)  # fmt: skip

_ON_PCIE = (
    ("V100 PCIe 16GB", _V100_PCIE, 16, 900, ("Tesla V100-PCIE-16GB",), _ON_V100, _GEN3, "datasheet"),
    ("V100 PCIe 32GB", _V100_PCIE, 32, 900, ("Tesla V100-PCIE-32GB",), _ON_V100, _GEN3, "datasheet"),
    ("T4", _peaks(65, 8.1, int8=130, bfloat16=False), 16, 320, (), _cores(40, 96, 4, 64), _GEN3, "whitepaper"),
    ("A100 PCIe 40GB", _A100, 40, 1555, ("A100-PCIE-40GB",), _ON_A100, _GEN4, "datasheet"),
    ("A100 PCIe 80GB", _A100, 80, 1935, ("A100 80GB PCIe",), _ON_A100, _GEN4, "datasheet"),
    ("A30", _peaks(165, 10.3, 82, 330), 24, 933, (), _cores(56, 192, 24, 64), _GEN4, "datasheet"),
    ("A40", _peaks(149.7, 37.4, 74.8, 299.3), 48, 696, (), _cores(84, 128, 6), _GEN4, "datasheet"),
    ("A10", _peaks(125, 31.2, 62.5, 250), 24, 600, (), _cores(72, 128, 6), _GEN4, "datasheet"),
    ("A10G", _peaks(70, 35, 35, 140), 24, 600, (), _cores(80, 128, 6), _GEN4, "datasheet"),
    ("L4", _peaks(121, 30.3, 60, 242.5, 242.5), 24, 300, (), _cores(58, 128, 48), _GEN4, "datasheet"),
    ("L40", _peaks(181.05, 90.5, 90.5, 362, 362), 48, 864, (), _cores(142, 128, 96), _GEN4, "datasheet"),
    ("L40S", _peaks(362.05, 91.6, 183, 733, 733), 48, 864, (), _cores(142, 128, 96), _GEN4, "datasheet"),
    ("H100 PCIe", _peaks(756, 51, 378, 1513, 1513), 80, 2000, ("H100 PCIe 80GB",), _cores(114, 256, 50), _GEN5,
     "datasheet"),
    ("H100 NVL", _peaks(835, 60, 417.5, 1671, 1671), 94, 3900, (), _ON_HOPPER, _GEN5, "datasheet"),
    ("H200 NVL", _peaks(835.5, 60, 417.5, 1671, 1671), 141, 4800, (), _ON_HOPPER, _GEN5, "datasheet"),
    ("RTX 2080 Ti", _peaks(53.8, 13.4, int8=215.2, bfloat16=False), 11, 616, (), _cores(68, 96, 5.5, 64), _GEN3,
     "whitepaper"),
    ("TITAN RTX", _peaks(130.5, 16.3, int8=261, bfloat16=False), 24, 672, (), _ON_TURING, _GEN3, "whitepaper"),
    ("RTX 3090", _peaks(71, 35.6, 35.6, 284), 24, 936, (), _cores(82, 128, 6), _GEN4, "whitepaper"),
    ("RTX 3090 Ti", _peaks(80, 40, 40, 320), 24, 1008, (), _cores(84, 128, 6), _GEN4, "whitepaper"),
    ("RTX 4080", _peaks(97.5, 48.7, 48.7, 389.9, 194.9), 16, 716.8, (), _cores(76, 128, 64), _GEN4, "whitepaper"),
    ("RTX 4090", _peaks(165.2, 82.6, 82.6, 660.6, 330.3), 24, 1008, (), _cores(128, 128, 72), _GEN4, "whitepaper"),
    ("RTX 5080", _peaks(112.6, 56.3, 56.3, 450.2, 225.1, 900.4), 16, 960, (), _cores(84, 128, 64), _GEN5,
     "whitepaper"),
    ("RTX 5090", _peaks(209.5, 104.8, 104.8, 838, 419, 1676), 32, 1792, (), _cores(170, 128, 96), _GEN5, "whitepaper"),
    ("RTX A5000", _peaks(111.1, 27.8, 55.6, 222.2), 24, 768, (), _cores(64, 128, 6), _GEN4, "datasheet"),
    ("RTX A6000", _peaks(154.8, 38.7, 77.4, 309.7), 48, 768, (), _cores(84, 128, 6), _GEN4, "datasheet"),
    ("RTX 6000 Ada", _peaks(364.2, 91.1, 182.1, 728.5, 728.5), 48, 960, ("RTX 6000 Ada Generation",),
     _cores(142, 128, 96), _GEN4, "datasheet"),
    ("RTX PRO 6000 Blackwell", _peaks(503.8, 126, 251.9, 1007.6, 1007.6, 2015.2), 96, 1792,
     ("RTX PRO 6000 Blackwell Workstation Edition",), _cores(188, 128, 128), _GEN5, "whitepaper"),
)  # fmt: skip

CHIPS: tuple[Chip, ...] = (
    *_TPUS,
    *_NVLINKED,
    *(
        _gpu(name, peaks, hbm, bandwidth, *aliases, on_chip=on_chip, node=_SERVER, host=host, source=source)
        for name, peaks, hbm, bandwidth, aliases, on_chip, host, source in _ON_PCIE
    ),
)


def _key(name: str) -> str:
    """A name without makers' words, case, spaces and signs: `NVIDIA H100 80GB HBM3` -> h10080gbhbm3."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "".join(word for word in words if word not in ("nvidia", "geforce", "tesla", "google", "cloud", "tpu"))


_BY_KEY = {_key(alias).removeprefix("tpu"): chip for chip in CHIPS for alias in (chip.name, *chip.aliases)}


def find_chip(device_kind: str) -> Chip | None:
    """The chip that a name means, or None.

    Names match as a whole, so that a laptop's GPU, a slice of a GPU (MIG) or a chip that nobody has entered gets None
    and never the figures of another; so does a CPU, whose peak has to be measured.

    Args:
        device_kind: jax's `device.device_kind` ("TPU v5 lite", "NVIDIA H100 80GB HBM3"), or a vendor's name of the
            chip ("v5e", "A100 80GB", "RTX 4090").
    """
    return _BY_KEY.get(_key(device_kind).removeprefix("tpu"))
