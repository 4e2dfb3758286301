"""A small model is loaded by both loaders, and their figures are told."""

from jaxllm.bench import hf_load
from jaxllm.config import AttentionConfig, MLPConfig, ModelConfig

MODEL = ModelConfig(
    vocab_size=4096, d_model=512, num_layers=5, attention=AttentionConfig(num_heads=8), mlp=MLPConfig(d_ff=1536)
)


def test_parameters_are_held_once_while_they_are_loaded(tmp_path):
    hf_load._write(MODEL, tmp_path / "model", "float32")
    result = hf_load._child(str(tmp_path / "model"), "float32", 2)
    assert result["bytes"] == 4 * (2 * 4096 * 512 + 5 * (4 * 512 * 512 + 3 * 512 * 1536 + 2 * 512) + 512)
    assert result["peak_share"] < 1.3
    assert [len(seconds) for seconds in result["seconds"].values()] == [2, 2]
    assert hf_load.text(result).startswith("0.08 GB of parameters in float32")
