"""`config.json` of the published weights are the presets, and both schemas of the golden models say the same."""

import json

import pytest
from parity import GOLDEN, NAMES
from published_configs import CONFIGS

from jaxllm.config import load
from jaxllm.hf.config import max_positions, parse, write_tree
from jaxllm.models import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_published_configs_are_the_presets(name):
    values = {"model": {"preset": name}, "data": {"phases": [{"steps": 1, "sequence_length": 256}]}}
    preset, released = load(values, presets=PRESETS).model, CONFIGS[name]
    length = max_positions(released)
    assert write_tree(parse(released, name), length) == write_tree(preset, length)


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_of_transformers_4_says_the_same(name):
    new, old = (json.loads((GOLDEN / name / file).read_text()) for file in ("config.json", "config_transformers4.json"))
    assert parse(old, name) == parse(new, name)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama/mha", "model_type", ["llama"]),
        ("llama/mha", "num_hidden_layers", 0),
        ("gemma3/six_layers_and_one", "vocab_size", None),
        ("gemma3/six_layers_and_one", "sliding_window_pattern", 0),
        ("gemma2/gqa", "query_pre_attn_scalar", -1),
        ("qwen2/mha_some_windows", "max_window_layers", None),
        ("gpt2/inner", "n_positions", None),
        ("gpt2/inner", "n_layer", 0),
        ("phi3/window_mha", "attention_bias", True),
    ],
)
def test_a_value_that_makes_no_model_is_refused_by_its_key(name, key, value):
    tree = json.loads((GOLDEN / name / "config_transformers4.json").read_text())
    with pytest.raises(ValueError, match=f"^{name}: {key} = "):
        parse(tree | {key: value}, name)
