"""Measured ceilings: read back as they were written, used as a chip, and refused in one sentence where broken."""

import json

import pytest

from jaxllm.roofline import ceilings
from jaxllm.roofline.hardware import find_chip

CONTENT = {
    "version": 1,
    "device_kind": "cpu",
    "dtype": "bfloat16",
    "flops_per_second": 1.4e12,
    "memory_bytes_per_second": 2e10,
    "memory_bytes": 2**34,
    "products": [
        {"name": "square", "rows": 8, "contraction": 8, "columns": 8, "seconds": 1e-6, "flops_per_second": 1.024e9}
    ],
}


def written(tmp_path, **changes):
    path = tmp_path / "ceilings.json"
    path.write_text(json.dumps({**CONTENT, **changes}))
    return path


def test_an_unknown_device_becomes_a_chip_of_its_own(tmp_path):
    chip = ceilings.load(written(tmp_path)).chip()
    assert (chip.name, chip.source, chip.devices_per_chip) == ("cpu", "measured", 1)
    assert chip.flops_per_second == {"bfloat16": 1.4e12}
    assert (chip.hbm_bytes, chip.hbm_bytes_per_second) == (2**34, 2e10)
    assert chip.device_flops_per_second("float32") is None, "what was not measured has no peak"
    assert chip.node is not None and chip.node.size == 1


def test_a_known_chip_keeps_its_links_and_counts_its_devices(tmp_path):
    chip = ceilings.load(written(tmp_path, device_kind="TPU7x")).chip()
    datasheet = find_chip("TPU7x")
    assert chip.device_flops_per_second("bfloat16") == 1.4e12
    assert chip.hbm_bytes_per_second == 2 * 2e10, "of two devices"
    assert datasheet
    assert (chip.torus, chip.hbm_bytes, chip.ici_bytes_per_second) == (
        datasheet.torus,
        datasheet.hbm_bytes,
        datasheet.ici_bytes_per_second,
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"flops_per_second": -1}, r"expected float > 0.0 - at \$\.flops_per_second"),
        ({"memory_bytes_per_second": "fast"}, r"expected float, got str - at \$\.memory_bytes_per_second"),
        ({"dtype": "int3"}, r"invalid enum value 'int3' - at \$\.dtype"),
        ({"version": 2}, r"invalid enum value 2 - at \$\.version"),
        ({"device_kind": ""}, r"expected str of length >= 1 - at \$\.device_kind"),
        ({"peak": 1}, "object contains unknown field peak"),
        ({"products": [{"name": "square"}]}, r"object missing required field rows - at \$\.products\[0\]"),
    ],
)
def test_broken_files_are_refused_in_one_sentence(tmp_path, changes, reason):
    path = written(tmp_path, **changes)
    with pytest.raises(
        ValueError, match=rf"^{path}: no file of measured ceilings \({reason}\); write one with: \S"
    ) as e:
        ceilings.load(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"1e999", b'{"flops_per_second": NaN}'])
def test_what_is_no_object_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json: no file of measured ceilings \("):
        ceilings.load(path)


def test_infinite_speed_is_refused(tmp_path):
    text = json.dumps(CONTENT).replace("1400000000000.0", "1e999")
    path = tmp_path / "ceilings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no file of measured ceilings"):
        ceilings.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json: no such file or directory; write one with"):
        ceilings.load(tmp_path / "nothing.json")
