"""Measured ceilings: what one device reaches, in a small file, to be read in the place of a datasheet's peaks.

`jaxllm bench matmul CONFIG --out ceilings.json` writes it. It is JSON:

    version                  1
    device_kind              as jax names the device
    dtype                    of the products
    flops_per_second         of the fastest product: the roof of computing
    memory_bytes_per_second  of a streaming copy, read and written bytes together: the roof of memory
    memory_bytes             capacity of the device's memory
    products                 name, rows, contraction, columns, seconds and flops_per_second of each that was measured

All figures are of one jax device, seconds are medians. Links between chips are not measured: they stay the datasheet's.
"""

import dataclasses
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec

from jaxllm.roofline.hardware import Chip, Cores, Node, find_chip

Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e21)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A product [rows, contraction] x [contraction, columns] and how fast it was.

    Attributes:
        name: of the weights that have this shape, or `square`.
        rows: of the left matrix.
        contraction: what is summed over.
        columns: of the result.
        seconds: of one product.
        flops_per_second: 2 rows x contraction x columns over these.
    """

    name: str
    rows: Count
    contraction: Count
    columns: Count
    seconds: Positive
    flops_per_second: Positive


class Ceilings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device reaches; the fields are the module's table."""

    version: Literal[1] = 1
    device_kind: Annotated[str, msgspec.Meta(min_length=1)]
    dtype: Literal["float32", "bfloat16", "float16"]
    flops_per_second: Positive
    memory_bytes_per_second: Positive
    memory_bytes: Count
    products: tuple[Measured, ...]

    def chip(self) -> Chip:
        """The device as a chip whose peaks are the measured ones; of the dtype only, as no other was measured.

        A chip of the table keeps its links and its capacity. Of any other, a CPU for one, what was not measured is
        assumed as of a lone board in the table: PCIe 4, one 100 Gb/s network card, no other board beside it.
        """
        known = find_chip(self.device_kind)
        num = known.devices_per_chip if known else 1
        peaks = MappingProxyType({self.dtype: num * self.flops_per_second})
        bandwidth = num * self.memory_bytes_per_second
        if known:
            return dataclasses.replace(known, flops_per_second=peaks, hbm_bytes_per_second=bandwidth, source="measured")
        return Chip(
            name=self.device_kind,
            flops_per_second=peaks,
            hbm_bytes=self.memory_bytes,
            hbm_bytes_per_second=bandwidth,
            host_bytes_per_second=31.5e9,
            dcn_bytes_per_second=12.5e9,
            cores=Cores(count=1, vector_lanes=1, scratch_bytes=1),
            node=Node(size=1, egress_bytes_per_second=12.5e9),
            source="measured",
        )


def load(path: str | Path) -> Ceilings:
    """Read a file of measured ceilings.

    Raises:
        ValueError: the file is missing, or holds something else.
    """
    fix = f"write one with: jaxllm bench matmul CONFIG --out {path}"
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Ceilings)
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or str(error)).lower()}; {fix}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error).replace("`", "")
        raise ValueError(f"{path}: no file of measured ceilings ({reason[:1].lower()}{reason[1:]}); {fix}") from None
