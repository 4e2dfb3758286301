"""`jaxllm show --preset` counts what transformers counts, for every published size."""

import json
from pathlib import Path

import pytest

from jaxllm.cli import main
from jaxllm.models import PRESETS

GOLDEN = Path(__file__).with_name("golden")
COUNTS, ACTIVE = (json.loads((GOLDEN / name).read_text()) for name in ("counts.json", "active.json"))


def test_show_counts_every_preset_as_transformers_does(capsys):
    found = {}
    for name in PRESETS:
        with pytest.raises(SystemExit, match="0"):
            main(["show", "--preset", name, "--json"])
        parameters = json.loads(capsys.readouterr().out)["parameters"]
        found[name] = parameters["total"], parameters["active"]
    assert found == {name: (total, ACTIVE.get(name, total)) for name, total in COUNTS.items()}
