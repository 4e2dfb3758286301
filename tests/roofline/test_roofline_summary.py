"""The summary that `jaxllm show` prints."""

import json
import subprocess
import sys

from jaxllm.config import AttentionConfig, MLPConfig, ModelConfig, TrainConfig
from jaxllm.roofline.conventions import Convention
from jaxllm.roofline.summary import summarise, text

LLAMA3_8B = ModelConfig(
    vocab_size=128256,
    d_model=4096,
    num_layers=32,
    attention=AttentionConfig(num_heads=32, num_kv_heads=8),
    mlp=MLPConfig(d_ff=14336),
)
MEMORY = {"parameters": 32, "optimizer": 64}


def test_summary_of_a_model():
    summary = summarise(LLAMA3_8B, 8192, MEMORY, name="llama3-8b")
    assert summary["name"] == "llama3-8b" and summary["sequence_length"] == 8192
    parts = summary["parameters"]
    assert parts["total"] == parts["active"] == 8_030_261_248
    assert sum(parts[part] for part in ("embedding", "head", "attention", "mlp", "norm")) == parts["total"]
    assert summary["flops_per_token"]["torchtitan"] == 57_914_449_920
    assert summary["flops_per_token"].keys() == summary["hardware_flops_per_token"].keys() == set(Convention)
    assert summary["hardware_flops_per_token"]["scaling_book"] > summary["flops_per_token"]["scaling_book"]
    assert summary["memory_per_device"] == {"parameters": 32, "optimizer": 64, "total": 96}
    assert summary["kv_cache_bytes_per_token"] == 2 * 2 * 32 * 8 * 128
    assert json.loads(json.dumps(summary)) == summary


def test_text_says_the_same():
    lines = text(summarise(LLAMA3_8B, 8192, MEMORY, name="llama3-8b")).splitlines()
    assert lines[0] == "llama3-8b"
    assert any("8,030,261,248" in line for line in lines)
    named = {line.split()[0] for line in lines} & set(Convention)
    assert named == {"palm", "torchtitan", "causal", "scaling_book"}
    assert any("HFU is 1.30 x MFU under palm" in line for line in lines)
    assert "HFU" not in text(summarise(LLAMA3_8B, 8192, MEMORY, train=TrainConfig(remat="none")))
    assert any("torchtitan" in line and "5.7914e+10" in line for line in lines)
    assert any("131,072 bytes" in line for line in lines)


def test_the_room_needs_no_jax():
    code = "import jaxllm.roofline.summary, jaxllm.roofline.hardware, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
