"""What an hour of a chip costs, in US dollars, on demand; `--price` says otherwise.

List prices without commitment. They change: each has its source and date, and both are printed.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Price:
    """Of one chip.

    Attributes:
        dollars_per_hour: US dollars.
        source: whose list, and when.
    """

    dollars_per_hour: float
    source: str


_BOOK = "How to Scale Your Model, applied inference, February 2025"
_GOOGLE = "cloud.google.com/tpu/pricing, us regions, on demand, 2025"

PRICES = {
    "TPU v4": Price(dollars_per_hour=3.22, source=_GOOGLE),
    "TPU v5e": Price(dollars_per_hour=1.2, source=_BOOK),
    "TPU v5p": Price(dollars_per_hour=4.2, source=_BOOK),
    "TPU v6e": Price(dollars_per_hour=2.7, source=_GOOGLE),
    "H100 SXM": Price(dollars_per_hour=10.8, source=_BOOK),
}
"""By the chip's name."""
