"""Numbers as people read them: what the terminal and the report have in common."""

import math


def integer(value: float) -> str:
    """12345 -> 12,345."""
    return f"{value:,.0f}"


def count(value: float) -> str:
    """Three digits and a thousands unit: 124475904 -> 124 M; whole numbers below 1000 as they are."""
    if not math.isfinite(value):
        return three_digits(value)
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999,500 has three digits only as 1.00 M.
        if abs(value) >= 0.9995 * size:
            return f"{three_digits(value / size)} {unit}"
    return str(int(value)) if value == round(value) else three_digits(value)


def three_digits(value: float) -> str:
    """Three significant digits: 3.14, 31.4, 314, 0.00314, 3.14e-6; 31,416 in full."""
    if value == 0 or not math.isfinite(value) or 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1000:
        digits = 2 - math.floor(math.log10(abs(float(f"{value:.2e}"))))
        return f"{value:.{max(digits, 0)}f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def loss(value: float) -> str:
    """Four decimals: 3.2145."""
    return f"{value:.4f}"


def percent(fraction: float) -> str:
    """0.4123 -> 41.2 %."""
    return f"{100 * fraction:.1f} %"


def gibibytes(value: float) -> str:
    """Bytes as GiB, or as MiB where they are few."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 3 min 05 s, 2 h 07 min, 3 d 04 h."""
    whole = round(seconds)
    for unit, below, size in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if whole >= size:
            part = {"h": 3600, "min": 60, "s": 1}[below]
            return f"{whole // size} {unit} {whole % size // part:02d} {below}"
    return f"{whole} s"


def mesh(axes: dict[str, int]) -> str:
    """Axes that have more than one device: data 2 x fsdp 4."""
    return " x ".join(f"{axis} {size}" for axis, size in axes.items() if size > 1) or "one device"
