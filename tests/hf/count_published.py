"""Parameter counts of the published configs, as transformers' models on the meta device have them.

Environment: see `make_goldens.py`. Writes `golden/counts.json`: name of the preset -> parameters, tied ones once.

    python tests/hf/count_published.py
"""

import json
from pathlib import Path
from typing import Any

import torch
from published_configs import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM


def count(config: dict[str, Any]) -> int:
    """Parameters of the model of a config."""
    values = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values))
    return sum(weight.numel() for weight in model.parameters())


if __name__ == "__main__":
    counts = {name: count(config) for name, config in CONFIGS.items()}
    Path(__file__).with_name("golden").joinpath("counts.json").write_text(json.dumps(counts, indent=2) + "\n")
