"""Which share of a chip's peaks programs reach: the few measured numbers of a prediction, one row a kind of chip.

`products`, `attention` and `exposed` are fitted to published steps (`bench.published`; `jaxllm bench plan` fits them
again without each family of models, and says how far off that family then is). The others are measured by others:

    memory   0.85 of HBM bandwidth in large copies: 1359 of 1600 GB/s on v6e (AI-Hypercomputer/tpu-recipes,
             microbenchmarks), about 90 % on H100 for plain copies and less for what programs do
    links    0.82 = 370 of 450 GB/s, what all-reduces reach inside an H100 node (the book, GPU chapter); on TPUs 0.9
"""

from dataclasses import dataclass

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


GPU = Efficiency(products=0.66, attention=0.45, memory=0.85, links=0.82, exposed=0.2)
TPU = Efficiency(products=0.85, attention=0.5, memory=0.85, links=0.9, exposed=0.2)


def of(chip: Chip) -> Efficiency:
    """Of a kind of chip."""
    return TPU if chip.torus else GPU
