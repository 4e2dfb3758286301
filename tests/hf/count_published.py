"""Parameter counts of the published configs, as transformers' models on the meta device have them.

Environment: see `make_goldens.py`. Writes `golden/counts.json`: name of the preset -> parameters, tied ones once; and
`golden/active.json`: of those with experts, how many a token goes through.

    python tests/hf/count_published.py
"""

import json
from pathlib import Path
from typing import Any

import deepseek  # noqa: F401  (registers the model)
import torch
from published_configs import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM


def count(config: dict[str, Any]) -> tuple[int, int]:
    """Parameters of the model of a config, and those that a token goes through."""
    values = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values))
    total = sum(weight.numel() for weight in model.parameters())
    num = next((config[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in config), 0)
    if not num:
        return total, total
    experts = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    return total, total - experts + experts * config["num_experts_per_tok"] // num


if __name__ == "__main__":
    found = {name: count(config) for name, config in CONFIGS.items()}
    golden = Path(__file__).with_name("golden")
    counts = {name: total for name, (total, _) in found.items()}
    golden.joinpath("counts.json").write_text(json.dumps(counts, indent=2) + "\n")
    active = {name: active for name, (total, active) in found.items() if active < total}
    golden.joinpath("active.json").write_text(json.dumps(active, indent=2) + "\n")
