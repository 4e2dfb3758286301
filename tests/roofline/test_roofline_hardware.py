"""The table of chips: names as jax and vendors say them, the book's ratios, and figures that must agree."""

import pytest

from jaxllm.roofline.hardware import CHIPS, find_chip


def chip(name):
    found = find_chip(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v2", "TPU v2"),
        ("TPU v3", "TPU v3"),
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5e", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v5p", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("TPU v6e", "TPU v6e"),
        ("TPU7x", "TPU7x"),
        ("tpu7x", "TPU7x"),
        ("v5litepod", "TPU v5e"),
        ("v5p", "TPU v5p"),
        ("Trillium", "TPU v6e"),
        ("Ironwood", "TPU7x"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA GH200 480GB", "GH200 96GB"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100 SXM 16GB"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell"),
    ],
)
def test_names_of_jax_and_of_vendors(device_kind, name):
    assert chip(device_kind).name == name


@pytest.mark.parametrize(
    "device_kind",
    [
        "cpu",
        "",
        "TPU",
        "NVIDIA",
        "TPU v9",
        "TPU v4 lite",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Quadro RTX 6000",
    ],
)
def test_what_is_not_in_the_table_gets_no_other_chips_figures(device_kind):
    assert find_chip(device_kind) is None


def test_no_name_means_two_chips():
    assert len({entry.name for entry in CHIPS}) == len(CHIPS)
    for entry in CHIPS:
        for alias in (entry.name, *entry.aliases):
            assert find_chip(alias) is entry, alias


@pytest.mark.parametrize(
    ("name", "dtype", "bandwidth", "ratio"),
    [
        ("v5e", "bfloat16", "hbm_bytes_per_second", 240.24),  # the book, R2
        ("v5e", "int8", "hbm_bytes_per_second", 2 * 240.24),
        ("H100", "bfloat16", "hbm_bytes_per_second", 295.22),  # R9
        ("B200", "bfloat16", "hbm_bytes_per_second", 281.25),  # R10
        ("H100", "bfloat16", "nvlink_bytes_per_second", 2197.8),  # N19
        ("B200", "bfloat16", "nvlink_bytes_per_second", 2500.0),  # N23
    ],
)
def test_critical_intensities_of_the_book(name, dtype, bandwidth, ratio):
    found = chip(name)
    assert found.flops_per_second[dtype] / getattr(found, bandwidth) == pytest.approx(ratio, rel=3e-5)


def test_links_of_the_book():
    # Two directions a link: 2550 on v5p (N1), 2189 on v5e (section 8).
    v5p, v5e = chip("v5p"), chip("v5e")
    assert v5p.ici_bytes_per_second and v5e.ici_bytes_per_second
    assert v5p.flops_per_second["bfloat16"] / (2 * v5p.ici_bytes_per_second) == 2550.0
    assert v5e.flops_per_second["bfloat16"] / (2 * v5e.ici_bytes_per_second) == pytest.approx(2188.9, rel=1e-5)
    # A pod of 8,960 v5p: H3.
    assert 8960 * v5p.flops_per_second["bfloat16"] == pytest.approx(4.1126e18, rel=1e-4)
    assert 8960 * v5p.hbm_bytes == pytest.approx(8.6016e14)


def test_a_jax_device_may_be_half_a_chip():
    assert chip("TPU v3").device_flops_per_second("bfloat16") == 70e12
    assert chip("TPU v4").device_flops_per_second("bfloat16") == 275e12
    assert chip("TPU7x").device_flops_per_second("bfloat16") == 1150e12
    assert chip("NVIDIA H100 80GB HBM3").device_flops_per_second("bfloat16") == 989e12
    assert chip("Tesla V100-SXM2-32GB").device_flops_per_second("bfloat16") is None


def test_figures_are_dense_and_in_plain_units():
    for entry in CHIPS:
        peaks = entry.flops_per_second
        half = peaks.get("bfloat16") or peaks["float16"]
        assert 1e13 < half < 1e16, entry.name
        assert 5e9 < entry.hbm_bytes < 1e12 and 1e11 < entry.hbm_bytes_per_second < 1e13, entry.name
        # Halving the width doubles the rate, or leaves it: anything else means that one figure counts sparsity.
        for dtype in ("int8", "float8"):
            if dtype in peaks:
                assert 0.99 < peaks[dtype] / half < 4.1, (entry.name, dtype)
        if "tensorfloat32" in peaks:
            assert 1.95 < half / peaks["tensorfloat32"] < 2.05, entry.name
