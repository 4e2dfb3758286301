"""Which share of a chip's peaks programs reach: the few measured numbers of a prediction.

A share is a ceiling times what training steps keep of it. Ceilings belong to a chip or a kernel, and others measured
them:

    products    the best matrix products: A100 0.87 (271 of 312 TFLOP/s) and H100 0.80 (Bekman, ML Engineering, maximum
                achievable matmul FLOPS); other GPUs 0.80, TPUs 0.95 (the book, chapter 1); v6e 0.90 (827 of 920,
                AI-Hypercomputer/tpu-recipes, microbenchmarks)
    attention   of the peak, forward and backward together: FlashAttention-2 on H100 0.35 and cuDNN 0.55 (Shah et al.
                2024, FlashAttention-3), FlashAttention-2 on A100 0.6 (Dao 2023); splash 0.5, for want of a source
    links       0.82 = 370 of 450 GB/s, all-reduces within an H100 node (the book, GPU chapter); TPUs 0.9

What steps keep is fitted to published ones: `CALIBRATION`, five numbers for all chips. `jaxllm bench plan` fits them
again, and with each family of models left out.

Both are relative to a datasheet. Where a chip's own ceilings were measured (`roofline.ceilings`), nothing may be taken
off twice: the best product is the measured peak itself, a kernel keeps its FLOP/s, and a step keeps of a measured
copy's bandwidth what it keeps of the datasheet's over `COPY`.
"""

from dataclasses import dataclass, replace

from jaxllm.roofline.hardware import Chip


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Shares of peaks.

    Attributes:
        products: of matrix products' peak FLOP/s, in products that fill their tiles.
        attention: of the same peak, in attention kernels.
        memory: of HBM bandwidth.
        links: of the bandwidth between chips.
        exposed: of transfers beside the blocks, what they do not hide.
    """

    products: float
    attention: float
    memory: float
    links: float
    exposed: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What training steps keep of the ceilings.

    Attributes:
        gpu_products: of the best products', on GPUs.
        tpu_products: the same on TPUs.
        attention: of the kernel's best.
        memory: of HBM bandwidth, in traffic counted as if nothing were fused.
        exposed: as in `Efficiency`.
    """

    gpu_products: float
    tpu_products: float
    attention: float
    memory: float
    exposed: float


CALIBRATION = Calibration(gpu_products=0.72, tpu_products=0.8, attention=0.55, memory=0.6, exposed=0.3)
"""Fitted to all rows of `bench.published`."""

PRODUCTS = {"A100": 0.87, "TPU v6e": 0.9}
"""Ceilings of chips whose name begins so."""

KERNELS = {"flash2": 0.35, "flash2 A100": 0.6, "cudnn": 0.55, "splash": 0.5}
"""Ceilings of attention kernels; with a chip, those that differ there."""


COPY = 0.9
"""Share of a datasheet's HBM bandwidth that streaming copies reach."""


def of(chip: Chip, calibration: Calibration = CALIBRATION, kernel: str = "") -> Efficiency:
    """What programs reach on a chip.

    Args:
        chip: the kind.
        calibration: what steps keep of the ceilings.
        kernel: of attention, a name of `KERNELS`; jaxllm's own by default.
    """
    tpu = chip.torus is not None
    ceiling = next((share for name, share in PRODUCTS.items() if chip.name.startswith(name)), 0.95 if tpu else 0.8)
    kernel = kernel or ("splash" if tpu else "cudnn")
    return Efficiency(
        products=ceiling * (calibration.tpu_products if tpu else calibration.gpu_products),
        attention=KERNELS.get(f"{kernel} {chip.name.split()[0]}", KERNELS[kernel]) * calibration.attention,
        memory=calibration.memory,
        links=0.9 if tpu else 0.82,
        exposed=calibration.exposed,
    )


def of_measured(chip: Chip, measured: Chip, compute: str) -> Efficiency:
    """What programs reach of measured ceilings.

    Args:
        chip: by its datasheet.
        measured: the same, with measured peaks.
        compute: dtype of products.

    Raises:
        ValueError: neither has matrix units for it, or it was not measured.
    """
    share, calibration = of(chip), CALIBRATION
    return replace(
        share,
        products=calibration.gpu_products if chip.torus is None else calibration.tpu_products,
        attention=share.attention * peak_flops(chip, compute) / peak_flops(measured, compute),
        memory=share.memory / COPY,
    )


def peak_flops(chip: Chip, compute: str) -> float:
    """FLOP/s of one device at a dtype.

    Raises:
        ValueError: the chip has no matrix units for it.
    """
    peak = chip.device_flops_per_second(compute)
    if peak is None:
        raise ValueError(
            f'train.precision.compute = "{compute}": {chip.name} has no matrix units for it; use one of '
            f"{', '.join(name for name in ('bfloat16', 'float16', 'float32') if name in chip.flops_per_second)}"
        )
    return peak
