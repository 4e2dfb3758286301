"""`config.json` of the published weights are the presets, and both schemas of the golden models say the same."""

import json

import pytest
from parity import GOLDEN, NAMES
from published_configs import CONFIGS

from jaxllm.config import load
from jaxllm.hf.config import describe, ends, parse, read_tree, write_tree
from jaxllm.models import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_published_configs_are_the_presets(name):
    values = {"model": {"preset": name}, "data": {"phases": [{"steps": 1, "sequence_length": 256}]}}
    preset, released = load(values, presets=PRESETS).model, CONFIGS[name]
    length = describe(released, name).context_length
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


def test_what_lies_beside_the_model_is_found_under_each_familys_keys():
    for name, length in (("gpt2/inner", 30), ("bloom/four_heads", 0), ("falcon/multi_query", 64), ("llama/mha", 64)):
        assert describe(read_tree(GOLDEN / name), name).context_length == length
    bloom = read_tree(GOLDEN / "bloom/four_heads") | {"seq_length": 40, "dtype": None, "torch_dtype": "float16"}
    found = describe(bloom, "bloom")
    assert (found.context_length, found.dtype) == (40, "float16")


def test_what_a_model_of_images_says_is_found_outside_and_inside(tmp_path):
    """As in google/gemma-3-*-it: the text model's keys are few, and the tokens that end a text are said outside."""
    inner = {"hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    outer = {"model_type": "gemma3", "text_config": inner, "eos_token_id": [1, 106], "torch_dtype": "bfloat16"}
    found = describe(outer, "config.json")
    assert (found.context_length, found.dtype, found.ids("eos_token_id")) == (131_072, "bfloat16", (1, 106))
    assert found.ids("bos_token_id") == () and found.model.num_layers == 34
    assert ends(tmp_path, found) == {1, 106}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert ends(tmp_path, found) == {7}
    with pytest.raises(ValueError, match=r"^config.json: text_config.hidden_size = 0: use 1 or more"):
        describe(outer | {"text_config": inner | {"hidden_size": 0}}, "config.json")
    with pytest.raises(ValueError, match=r"text_config.model_type = \"llama\": use gemma3_text"):
        describe(outer | {"text_config": inner | {"model_type": "llama"}}, "config.json")
