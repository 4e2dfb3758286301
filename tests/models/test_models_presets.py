"""Published shapes: exact parameter counts, values and names."""

import subprocess
import sys

import msgspec
import pytest

from jaxllm.config import LinearScaling, load
from jaxllm.layers.param import Recipe, leaves
from jaxllm.models import CONTEXT_LENGTHS, PRESETS, find, llama
from jaxllm.models.decoder import Decoder, declarations
from jaxllm.roofline.transformer import parameters


def model(name):
    return load(
        {"model": {"preset": name}, "data": {"phases": [{"steps": 1, "sequence_length": 256}]}}, presets=PRESETS
    ).model


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
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("mistral-nemo-12b", 12_247_782_400),
        ("mistral-small-24b", 23_572_403_200),
        ("gemma-2b", 2_506_172_416),
        ("gemma-7b", 8_537_680_896),
        ("gemma2-2b", 2_614_341_888),
        ("gemma2-9b", 9_241_705_984),
        ("gemma2-27b", 27_227_128_320),
        ("gemma3-270m", 268_098_176),
        ("gemma3-1b", 999_885_952),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("olmo2-1b", 1_484_916_736),
        ("olmo2-7b", 7_298_617_344),
        ("olmo2-13b", 13_716_198_400),
        ("olmo2-32b", 32_234_279_936),
        ("phi3-mini-4k", 3_821_079_552),
        ("phi3-medium-4k", 13_960_238_080),
        ("phi4", 14_659_507_200),
        ("smollm3-3b", 3_075_098_624),
        ("bloom-560m", 559_214_592),
        ("bloom-1b1", 1_065_314_304),
        ("bloom-1b7", 1_722_408_960),
        ("bloom-3b", 3_002_557_440),
        ("bloom-7b1", 7_069_016_064),
        ("bloom-176b", 176_247_271_424),
        ("falcon-rw-1b", 1_311_625_216),
        ("falcon-7b", 6_921_720_704),
        ("falcon-40b", 41_303_293_952),
        ("glm4-9b", 9_399_951_360),
        ("glm4-9b-0414", 9_400_279_040),
        ("glm4-32b-0414", 32_566_081_536),
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
