"""`jaxllm show --preset` counts what transformers counts, for every published size."""

import json
from pathlib import Path

import pytest

from jaxllm.cli import main
from jaxllm.models import PRESETS

COUNTS = json.loads(Path(__file__).with_name("golden").joinpath("counts.json").read_text())


def test_show_counts_every_preset_as_transformers_does(capsys):
    found = {}
    for name in PRESETS:
        with pytest.raises(SystemExit, match="0"):
            main(["show", "--preset", name, "--json"])
        found[name] = json.loads(capsys.readouterr().out)["parameters"]["total"]
    assert found == COUNTS
