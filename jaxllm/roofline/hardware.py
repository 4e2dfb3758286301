"""What chips offer: peak FLOP/s by dtype, memory, bandwidths.

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
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


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
        devices_per_chip: how many jax devices it shows. TPU v2 and v3 show their two cores and TPU7x its two chiplets
            as devices; v4 and v5p join their two cores into one device ("megacore").
        source: where the figures are from; see the module's docstring.
        aliases: other names of it: jax's `device_kind`, the vendor's names.
    """

    name: str
    flops_per_second: Mapping[str, float]
    hbm_bytes: float
    hbm_bytes_per_second: float
    ici_bytes_per_second: float | None = None
    nvlink_bytes_per_second: float | None = None
    devices_per_chip: int = 1
    source: str
    aliases: tuple[str, ...] = ()

    def device_flops_per_second(self, dtype: str) -> float | None:
        """Peak of one jax device; None where the vendor names none for the dtype."""
        peak = self.flops_per_second.get(dtype)
        return None if peak is None else peak / self.devices_per_chip


def _chip(
    name: str,
    peaks: Mapping[str, float],
    hbm: float,
    bandwidth: float,
    *aliases: str,
    ici: float | None = None,
    nvlink: float | None = None,
    devices: int = 1,
    source: str = "datasheet",
) -> Chip:
    """A row of the table: peaks in 1e12 operations/s, memory in 1e9 bytes, bandwidths in 1e9 bytes/s."""
    return Chip(
        name=name,
        flops_per_second=MappingProxyType({dtype: peak * 1e12 for dtype, peak in peaks.items()}),
        hbm_bytes=hbm * 1e9,
        hbm_bytes_per_second=bandwidth * 1e9,
        ici_bytes_per_second=None if ici is None else ici * 1e9,
        nvlink_bytes_per_second=None if nvlink is None else nvlink * 1e9,
        devices_per_chip=devices,
        source=source,
        aliases=aliases,
    )


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
_A100 = _peaks(312, 19.5, 156, 624)
_B200 = _peaks(2250, 75, 1125, 4500, 4500, 9000)
_GB200 = _peaks(2500, 80, 1250, 5000, 5000, 10000)

CHIPS: tuple[Chip, ...] = (
    _chip("TPU v2", {"bfloat16": 46}, 16, 700, ici=62, devices=2, source="vendor"),
    _chip("TPU v3", {"bfloat16": 140}, 32, 900, ici=100, devices=2, source="book"),
    _chip("TPU v4", {"bfloat16": 275, "int8": 275}, 32, 1200, "v4p", ici=45, source="book"),
    _chip("TPU v5e", {"bfloat16": 197, "int8": 394}, 16, 820, "TPU v5 lite", "v5litepod", ici=45, source="book"),
    _chip("TPU v5p", {"bfloat16": 459, "int8": 918}, 96, 2800, "TPU v5", ici=90, source="book"),
    _chip("TPU v6e", {"bfloat16": 920, "int8": 1840, "float8": 920}, 32, 1600, "TPU v6 lite", "Trillium",
          ici=90, source="book"),
    # The book's column of 8-bit peaks is int8; TPU7x's matrix units take float8 instead.
    _chip("TPU7x", {"bfloat16": 2300, "float8": 4610}, 192, 7400, "TPU v7x", "Ironwood",
          ici=90, devices=2, source="book"),
    _chip("V100 PCIe 16GB", _peaks(112, 14, bfloat16=False), 16, 900, "Tesla V100-PCIE-16GB"),
    _chip("V100 PCIe 32GB", _peaks(112, 14, bfloat16=False), 32, 900, "Tesla V100-PCIE-32GB"),
    _chip("V100 SXM 16GB", _peaks(125, 15.7, bfloat16=False), 16, 900, "Tesla V100-SXM2-16GB", nvlink=150),
    _chip("V100 SXM 32GB", _peaks(125, 15.7, bfloat16=False), 32, 900, "Tesla V100-SXM2-32GB", "V100", nvlink=150),
    _chip("T4", _peaks(65, 8.1, int8=130, bfloat16=False), 16, 320, source="whitepaper"),
    _chip("A100 PCIe 40GB", _A100, 40, 1555, "A100-PCIE-40GB"),
    _chip("A100 PCIe 80GB", _A100, 80, 1935, "A100 80GB PCIe"),
    _chip("A100 SXM 40GB", _A100, 40, 1555, "A100-SXM4-40GB", "A100 40GB", nvlink=300),
    _chip("A100 SXM 80GB", _A100, 80, 2039, "A100-SXM4-80GB", "A100-SXM-80GB", "A100 80GB", "A100", nvlink=300),
    _chip("A800 SXM 80GB", _A100, 80, 2039, "A800-SXM4-80GB", "A800", nvlink=200),
    _chip("A30", _peaks(165, 10.3, 82, 330), 24, 933),
    _chip("A40", _peaks(149.7, 37.4, 74.8, 299.3), 48, 696),
    _chip("A10", _peaks(125, 31.2, 62.5, 250), 24, 600),
    _chip("A10G", _peaks(70, 35, 35, 140), 24, 600),
    _chip("L4", _peaks(121, 30.3, 60, 242.5, 242.5), 24, 300),
    _chip("L40", _peaks(181.05, 90.5, 90.5, 362, 362), 48, 864),
    _chip("L40S", _peaks(362.05, 91.6, 183, 733, 733), 48, 864),
    _chip("H100 PCIe", _peaks(756, 51, 378, 1513, 1513), 80, 2000, "H100 PCIe 80GB"),
    _chip("H100 NVL", _peaks(835, 60, 417.5, 1671, 1671), 94, 3900),
    _chip("H100 SXM", _HOPPER, 80, 3350, "H100 80GB HBM3", "H100 SXM5", "H100-SXM5-80GB", "H100", nvlink=450),
    _chip("H800 SXM", _HOPPER, 80, 3350, "H800", nvlink=200),
    _chip("H20", _peaks(148, 44, 74, 296, 296), 96, 4000, nvlink=450),
    _chip("GH200 96GB", _HOPPER, 96, 4000, "GH200 480GB", "GH200 120GB", "GH200", nvlink=450),
    _chip("GH200 144GB", _HOPPER, 144, 4900, "GH200 144G HBM3e", nvlink=450),
    _chip("H200 NVL", _peaks(835.5, 60, 417.5, 1671, 1671), 141, 4800),
    _chip("H200 SXM", _HOPPER, 141, 4800, "H200", "H200 141GB HBM3e", nvlink=450),
    _chip("B200", _B200, 192, 8000, "B200 SXM", nvlink=900),
    _chip("GB200", _GB200, 192, 8000, "GB200 NVL72", nvlink=900),
    _chip("RTX 2080 Ti", _peaks(53.8, 13.4, int8=215.2, bfloat16=False), 11, 616, source="whitepaper"),
    _chip("TITAN RTX", _peaks(130.5, 16.3, int8=261, bfloat16=False), 24, 672, source="whitepaper"),
    _chip("RTX 3090", _peaks(71, 35.6, 35.6, 284), 24, 936, source="whitepaper"),
    _chip("RTX 3090 Ti", _peaks(80, 40, 40, 320), 24, 1008, source="whitepaper"),
    _chip("RTX 4080", _peaks(97.5, 48.7, 48.7, 389.9, 194.9), 16, 716.8, source="whitepaper"),
    _chip("RTX 4090", _peaks(165.2, 82.6, 82.6, 660.6, 330.3), 24, 1008, source="whitepaper"),
    _chip("RTX 5080", _peaks(112.6, 56.3, 56.3, 450.2, 225.1, 900.4), 16, 960, source="whitepaper"),
    _chip("RTX 5090", _peaks(209.5, 104.8, 104.8, 838, 419, 1676), 32, 1792, source="whitepaper"),
    _chip("RTX A5000", _peaks(111.1, 27.8, 55.6, 222.2), 24, 768),
    _chip("RTX A6000", _peaks(154.8, 38.7, 77.4, 309.7), 48, 768),
    _chip("RTX 6000 Ada", _peaks(364.2, 91.1, 182.1, 728.5, 728.5), 48, 960, "RTX 6000 Ada Generation"),
    _chip(
        "RTX PRO 6000 Blackwell", _peaks(503.8, 126, 251.9, 1007.6, 1007.6, 2015.2), 96, 1792,
        "RTX PRO 6000 Blackwell Workstation Edition", source="whitepaper",
    ),
)  # fmt: skip


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
