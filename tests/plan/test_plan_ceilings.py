"""Measured ceilings in the place of the datasheet's."""

import json

import pytest
from planned import experiment

import jaxllm
from jaxllm import cli
from jaxllm.plan import efficiency, report
from jaxllm.roofline.hardware import find_chip

H100 = find_chip("H100 SXM")
AS_ASSUMED = {"flops_per_second": 0.8 * H100.flops_per_second["bfloat16"], "memory_bytes_per_second": 0.9 * 3.35e12}
"""What the datasheet's shares assume of the best product and of a copy."""


def written(tmp_path, **changes):
    path = tmp_path / "ceilings.json"
    content = {"device_kind": "NVIDIA H100 80GB HBM3", "dtype": "bfloat16", **AS_ASSUMED}
    path.write_text(json.dumps(content | {"memory_bytes": 85 * 10**9, "products": []} | changes))
    return str(path)


def test_nothing_is_taken_off_twice(tmp_path):
    """A chip that measures what was assumed of it gets the same plan."""
    plain = jaxllm.plan(experiment(), target="h100x4")
    found = jaxllm.plan(experiment(), target="h100x4", ceilings=written(tmp_path))
    assert [one.candidate for one in found.options] == [one.candidate for one in plain.options]
    for one, other in zip(found.options, plain.options, strict=True):
        assert one.time.total == pytest.approx(other.time.total, rel=1e-9)
        assert found.mfu(one) == pytest.approx(plain.mfu(other), rel=1e-9)
        assert one.total_memory == other.total_memory


def test_a_slower_chip_is_slower_by_what_is_slower(tmp_path):
    plain = jaxllm.plan(experiment(), target="h100x1")
    half = {name: rate / 2 for name, rate in AS_ASSUMED.items()}
    slow = jaxllm.plan(experiment(), target="h100x1", ceilings=written(tmp_path, **half))
    before, after = (
        next(one.time for one in found.options if one.candidate.remat == "none") for found in (plain, slow)
    )
    assert after.products == pytest.approx(2 * before.products)
    assert after.traffic == pytest.approx(2 * before.traffic)
    assert after.attention == pytest.approx(before.attention)  # a kernel's rate was not measured


def test_shares_of_what_was_measured():
    share = efficiency.of_measured(H100, H100, "bfloat16")
    assert share.products == efficiency.CALIBRATION.gpu_products
    assert share.links == efficiency.of(H100).links


def test_the_command_says_what_it_took(capsys, tmp_path):
    found = jaxllm.plan(experiment(), target="h100x1", ceilings=written(tmp_path))
    told = next(line for line in report.text(found, 1).splitlines() if line.startswith("Measured ceilings"))
    assert told == (
        "Measured ceilings: 791 TFLOP/s (bfloat16) and 3,015 GB/s a device, where the datasheet says 989 and 3,350; "
        "MFU is of the datasheet's"
    )
    assert report.as_data(found, 1)["ceilings"]["source"] == "measured"


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"device_kind": "cpu"}, "device_kind = 'cpu', and the target is of H100 SXM; measure there"),
        ({"dtype": "float32"}, 'dtype = "float32", and train.precision.compute = "bfloat16"; measure that'),
        ({"flops_per_second": -1}, "no file of measured ceilings"),
    ],
)
def test_mistakes_are_one_sentence(capsys, tmp_path, changes, sentence):
    config = tmp_path / "config.toml"
    config.write_text(
        'model.preset = "llama3.2-1b"\ndata.phases = [{sequence_length = 8192, batch_size = 8, steps = 1}]\n'
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", str(config), "--target", "h100x8", "--ceilings", written(tmp_path, **changes)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert sentence in err and err.count("\n") == 1
