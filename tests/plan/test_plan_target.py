"""Targets by their vendors' names, and what is said of those that are none."""

import pytest

from jaxllm.plan.target import parse


@pytest.mark.parametrize(
    "name, chip, shape, slices, chips, devices",
    [
        ("v5p-256", "TPU v5p", (4, 4, 8), 1, 128, 128),
        ("v5p:4x4x8", "TPU v5p", (4, 4, 8), 1, 128, 128),
        ("v5p-17920", "TPU v5p", (16, 20, 28), 1, 8960, 8960),
        ("v6e-256 x 4", "TPU v6e", (16, 16), 4, 1024, 1024),
        ("v6e-256x4", "TPU v6e", (16, 16), 4, 1024, 1024),
        ("v5litepod-16", "TPU v5e", (4, 4), 1, 16, 16),
        ("tpu7x-128", "TPU7x", (4, 4, 4), 1, 64, 128),
        ("h100x64", "H100 SXM", (), 1, 64, 64),
        ("h100-8", "H100 SXM", (), 1, 8, 8),
        ("RTX4090x1", "RTX 4090", (), 1, 1, 1),
        ("a100 80gb x 8", "A100 SXM 80GB", (), 1, 8, 8),
    ],
)
def test_names_of_chips(name, chip, shape, slices, chips, devices):
    target = parse(name)
    assert (target.chip.name, target.shape, target.num_slices) == (chip, shape, slices)
    assert (target.num_chips, target.num_devices) == (chips, devices)
    assert f"{chips:,} chip" in target.describe() and chip in target.describe()


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("h1000x8", "h1000 is no chip known here; did you mean H100?"),
        ("v7p-8", "did you mean v5p?"),
        ("abacus", "the kinds are v2, v3, v4, v5e, v5p, v6e, tpu7x and"),
        ("h100", "say how many, as in h100x8"),
        ("v5p", "say how many, as in v5p-32"),
        ("v5p-100", r"count TensorCores, 2 a chip\); use v5p-64 or v5p-128"),
        ("v6e-0", "there is no such slice"),
        ("h100x0", "at least one"),
        ("h100:8", "write GPUs and how many"),
        ("v5p:4x5x8", "there is no slice of shape 4x5x8; near it there are 4x4x8"),
        ("v5p:4x4", "give 3"),
        ("v6e-256 x 0", "at least one"),
        ("", "name chips and a number of them"),
    ],
)
def test_what_is_no_target(name, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        parse(name)
    assert "\n" not in str(error.value)
