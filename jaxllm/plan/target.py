"""What a plan is made for: a kind of chip, how many of them, and how they are joined.

v5p-256          a slice by its vendor's name; v2, v3, v4, v5p and TPU7x names count TensorCores: 128 chips, 4x4x8
v5p:4x4x8        the same by its shape
v6e-256 x 4      four slices of 256 chips, joined by the data-centre network
h100x64          GPUs, in nodes as their vendor builds them
"""

import dataclasses
import functools
import math
import re

from jaxllm.config.errors import nearest
from jaxllm.roofline.hardware import CHIPS, Chip, find_chip
from jaxllm.roofline.topology import Level, TorusAxis, check_slice, gpu_tree, nearest_sizes, slice_shapes, torus_axes

_NAME = re.compile(
    r"(?P<chip>.+?)(?:-(?P<number>[0-9]+)|:(?P<shape>[0-9]+(?:x[0-9]+)*))?(?:\s*x\s*(?P<times>[0-9]+))?", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Chips to plan for.

    Attributes:
        name: as it was asked for.
        chip: what each of them offers.
        shape: chips along each dim of a slice's torus; empty for GPUs.
        num_slices: slices joined by the data-centre network only.
        num_chips: in all.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...] = ()
    num_slices: int = 1
    num_chips: int

    @property
    def num_devices(self) -> int:
        """As jax counts: TPU v2, v3 and TPU7x show two devices a chip."""
        return self.num_chips * self.chip.devices_per_chip

    @functools.cached_property
    def torus(self) -> tuple[TorusAxis, ...]:
        """Dims of a slice; the devices of a chip, where it shows several, are the last one."""
        dims = torus_axes(self.chip, self.shape)
        inside = self.chip.devices_per_chip
        return (*dims, TorusAxis(size=inside, wraps=False)) if inside > 1 else dims

    @functools.cached_property
    def switches(self) -> tuple[Level, ...]:
        """The levels of switches above GPUs."""
        return gpu_tree(self.chip, self.num_chips)

    @property
    def memory(self) -> float:
        """Bytes of a device's memory, by the datasheet."""
        return self.chip.hbm_bytes / self.chip.devices_per_chip

    def describe(self) -> str:
        """For people: `128 chips of TPU v5p, 4x4x8`."""
        chips = f"{self.num_chips:,} chip{'s' * (self.num_chips > 1)} of {self.chip.name}"
        shape = "x".join(map(str, self.shape))
        if self.num_slices > 1:
            return f"{chips}, {self.num_slices} slices of {shape}"
        if shape:
            return f"{chips}, {shape}"
        node = self.chip.node.size if self.chip.node else 1
        return chips if self.num_chips <= node else f"{chips}, in nodes of {node}"


def parse(name: str) -> Target:
    """The chips that a target's name means; forms in the module's docstring.

    Raises:
        ValueError: no such chip (the nearest is named), no slice of this size or shape, or no number of GPUs.
    """
    text = name.strip()
    if (chip := find_chip(text)) is not None:
        raise ValueError(f'target "{name}": say how many, as in {_example(chip)}')
    found = _NAME.fullmatch(text)
    if found is None:
        raise ValueError(f'target "{name}": name chips and a number of them, as in v5p-256, v6e-256 x 4 or h100x64')
    chip = find_chip(found["chip"])
    if chip is None:
        raise ValueError(f'target "{name}": {found["chip"]} is no chip known here; {_meant(found["chip"])}')
    times = found["times"]
    number, shape = found["number"], found["shape"]
    if chip.torus is None:
        if shape or bool(number) == bool(times):
            raise ValueError(f'target "{name}": write GPUs and how many of them as {_example(chip)}')
        return Target(name=name, chip=chip, num_chips=_positive(name, chip, int(number or times)))
    if shape:
        sides = tuple(int(side) for side in shape.lower().split("x"))
        check_slice(chip, sides)
    elif number:
        sides = _sides(name, chip, int(number))
    else:
        raise ValueError(f'target "{name}": TPUs come in slices; say which, as in {_example(chip)}')
    num_slices = 1 if times is None else _positive(name, chip, int(times))
    return Target(name=name, chip=chip, shape=sides, num_slices=num_slices, num_chips=math.prod(sides) * num_slices)


def _positive(name: str, chip: Chip, number: int) -> int:
    if number < 1:
        raise ValueError(f'target "{name}": there must be at least one; use {_example(chip)}')
    return number


def _sides(name: str, chip: Chip, number: int) -> tuple[int, ...]:
    """The shape of a slice that its vendor calls by a number."""
    cores = chip.cores.count  # names count TensorCores
    shapes = slice_shapes(chip, number // cores) if number and number % cores == 0 else ()
    if shapes:
        return shapes[0]
    near = {chips * cores for chips in nearest_sizes(chip, max(1, number // cores))}
    near |= {chips * cores for chips in nearest_sizes(chip, max(1, number // cores + 1))}
    counted = f" ({_short(chip)} names count TensorCores, {cores} a chip)" if cores > 1 else ""
    options = " or ".join(f"{_short(chip)}-{size}" for size in sorted(near))
    raise ValueError(f'target "{name}": there is no such slice{counted}; use {options}')


def _short(chip: Chip) -> str:
    return chip.name.removeprefix("TPU ").lower()


def _example(chip: Chip) -> str:
    if chip.torus is None:
        return (
            f"{chip.name.split()[0].lower() if chip.nvlink_bytes_per_second else chip.name.replace(' ', '').lower()}x8"
        )
    return f"{_short(chip)}-{16 * chip.cores.count}"


def _meant(name: str) -> str:
    names = [alias for chip in CHIPS for alias in (_short(chip), *chip.aliases)]
    near = nearest(name, names)
    if near:
        return f"did you mean {near}?"
    return f"the kinds are {', '.join(_short(chip) for chip in CHIPS[:7])} and {len(CHIPS) - 7} GPUs such as h100, b200"
