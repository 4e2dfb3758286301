"""Published shapes: exact parameter counts, values and names."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jaxllm.config import LinearScaling, load
from jaxllm.layers.param import Recipe, leaves
from jaxllm.models import CONTEXT_LENGTHS, PRESETS, find, llama
from jaxllm.models.decoder import Decoder, declarations
from jaxllm.roofline.transformer import parameters

COUNTS = json.loads((Path(__file__).parents[1] / "hf" / "golden" / "counts.json").read_text())
"""Parameters of the published weights, as transformers' models have them."""


def model(name):
    return load(
        {"model": {"preset": name}, "data": {"phases": [{"steps": 1, "sequence_length": 256}]}}, presets=PRESETS
    ).model


@pytest.mark.parametrize("name", PRESETS)
def test_the_decoder_declares_what_transformers_counts(name):
    declared = leaves(declarations(Decoder(model(name), Recipe())))
    assert sum(leaf.size for _, leaf in declared) == parameters(model(name)).total == COUNTS[name]


def test_norms_of_queries_and_keys_are_counted():
    counts = {}
    for kind in ("none", "head", "projection"):
        base = model("llama3-8b")
        config = msgspec.structs.replace(base, attention=msgspec.structs.replace(base.attention, qk_norm=kind))
        counts[kind] = sum(leaf.size for _, leaf in leaves(declarations(Decoder(config, Recipe()))))
        assert parameters(config).total == counts[kind]
    assert counts["head"] - counts["none"] == 32 * 2 * 128
    assert counts["projection"] - counts["none"] == 32 * (32 + 8) * 128


def test_every_preset_is_named_counted_and_has_a_length():
    assert set(CONTEXT_LENGTHS) == set(PRESETS)
    assert {CONTEXT_LENGTHS[name] for name in ("llama-7b", "llama-65b")} == {2048}
    assert CONTEXT_LENGTHS["llama2-70b"] == 4096
    assert CONTEXT_LENGTHS["llama3-8b"] == 8192
    assert CONTEXT_LENGTHS["llama3.1-8b"] == CONTEXT_LENGTHS["llama3.2-1b"] == 131_072


def test_values_of_the_releases():
    assert [model(f"llama-{size}").norm.epsilon for size in ("7b", "13b", "30b", "65b")] == [1e-6, 1e-6, 1e-6, 1e-5]
    for name in llama.PRESETS:
        config = model(name)
        newer = name.startswith("llama3")
        assert config.vocab_size == (128_256 if newer else 32_000)
        assert config.attention.rope.theta == (500_000 if newer else 10_000)
        assert config.tie_embeddings == name.startswith("llama3.2")
        assert config.head_dim(config.attention) == (64 if name == "llama3.2-1b" else 128)
        scaling = config.attention.rope.scaling
        if name.startswith("llama3."):
            assert scaling is not None
            assert scaling.factor == (32 if name.startswith("llama3.2") else 8)
            assert (scaling.low_freq_factor, scaling.high_freq_factor) == (1, 4)
            assert scaling.original_max_positions == 8192
        else:
            assert scaling is None


def test_layers_of_a_period_differ_where_the_releases_say_so():
    def windows(name):
        return [block.attention.window for block in model(name).blocks]

    assert windows("gemma2-2b") == [4096, 0] * 13
    assert windows("gemma3-1b") == [512, 512, 512, 512, 512, 0] * 4 + [512, 512]
    thetas = [block.attention.rope.theta for block in model("gemma3-4b").blocks[:6]]
    assert thetas == [1e4] * 5 + [1e6]
    assert model("gemma3-4b").blocks[5].attention.rope.scaling == LinearScaling(factor=8.0)
    assert model("gemma3-4b").blocks[0].attention.rope.scaling is None
    assert [block.attention.positions for block in model("smollm3-3b").blocks] == ["rope", "rope", "rope", "none"] * 9
    assert model("mistral-7b-v0.1").attention.window == 4096 and model("mistral-7b-v0.3").attention.window == 0


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("llama3-8b", "llama3-8b"),
        ("meta-llama/Llama-2-7b-hf", "llama2-7b"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama2-13b"),
        ("Llama-2-7B", "llama2-7b"),
        ("llama2_7b", "llama2-7b"),
        ("LLAMA2 70B", "llama2-70b"),
        ("Llama-3.1-405B", "llama3.1-405b"),
        ("llama3_1_8b", "llama3.1-8b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3-8b"),
        ("meta-llama/Llama-3.2-1B", "llama3.2-1b"),
        ("huggyllama/llama-65b", "llama-65b"),
        ("LLaMA-33B", "llama-30b"),
        ("llama1-7b", "llama-7b"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("google/gemma-2-9b-it", "gemma2-9b"),
        ("google/gemma-3-1b-pt", "gemma3-1b"),
        ("google/gemma-2b", "gemma-2b"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
        ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
        ("allenai/OLMo-2-1124-7B", "olmo2-7b"),
        ("HuggingFaceTB/SmolLM3-3B", "smollm3-3b"),
        ("bigscience/bloom-560m", "bloom-560m"),
        ("tiiuae/falcon-7b-instruct", "falcon-7b"),
        ("microsoft/phi-4", "phi4"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi3-mini-4k"),
        ("zai-org/GLM-4-9B-0414", "glm4-9b-0414"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("Qwen/Qwen3-30B-A3B-Base", "qwen3-30b-a3b"),
        ("allenai/OLMoE-1B-7B-0924-Instruct", "olmoe-1b-7b"),
        ("deepseek-ai/deepseek-moe-16b-chat", "deepseek-moe-16b"),
    ],
)
def test_likely_spellings(name, preset):
    assert find(name) == preset


@pytest.mark.parametrize("name", ["codellama/CodeLlama-7b-hf", "Llama-3-18b", "llama2", "Llama-3.2-11B-Vision", ""])
def test_other_models_are_not_mistaken_for_a_preset(name):
    with pytest.raises(ValueError, match=r"model\.preset = "):
        find(name)


def test_the_sentence_names_the_nearest():
    with pytest.raises(ValueError, match=r"model\.preset = 'llama2-8b': .*the nearest are .*llama2-7b"):
        find("llama2-8b")


def test_presets_load_without_jax():
    code = "import jaxllm.models, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
