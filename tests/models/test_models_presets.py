"""Published shapes: exact parameter counts, values and names."""

import subprocess
import sys

import msgspec
import pytest

from jaxllm.config import ModelConfig
from jaxllm.layers.param import Recipe, leaves
from jaxllm.models import CONTEXT_LENGTHS, PRESETS, find
from jaxllm.models.decoder import Decoder, declarations
from jaxllm.roofline.transformer import parameters


def model(name):
    return msgspec.convert(PRESETS[name], ModelConfig)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-30b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3.1-8b", 8_030_261_248),
        ("llama3.1-70b", 70_553_706_496),
        ("llama3.1-405b", 405_853_388_800),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.2-3b", 3_212_749_824),
        ("llama3.3-70b", 70_553_706_496),
    ],
)
def test_parameter_counts_of_the_published_weights(name, count):
    assert parameters(model(name)).total == count


@pytest.mark.parametrize("name", PRESETS)
def test_the_decoder_declares_what_is_counted(name):
    declared = leaves(declarations(Decoder(model(name), Recipe())))
    assert sum(leaf.size for _, leaf in declared) == parameters(model(name)).total


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
    for name in PRESETS:
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
