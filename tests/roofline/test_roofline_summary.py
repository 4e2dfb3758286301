"""The summary that `jaxllm show` prints."""

import json
import subprocess
import sys

from jaxllm.config import AdamW, AttentionConfig, LossConfig, MLPConfig, ModelConfig, TrainConfig
from jaxllm.roofline.conventions import Convention
from jaxllm.roofline.memory import activation_bytes, logits_bytes, shards, state_bytes
from jaxllm.roofline.summary import summarise, text

LLAMA3_8B = ModelConfig(
    vocab_size=128256,
    d_model=4096,
    num_layers=32,
    attention=AttentionConfig(num_heads=32, num_kv_heads=8),
    mlp=MLPConfig(d_ff=14336),
)


def test_summary_of_a_model():
    summary = summarise(LLAMA3_8B, 8192, name="llama3-8b")
    assert summary["name"] == "llama3-8b" and summary["sequence_length"] == 8192
    parts = summary["parameters"]
    assert parts["total"] == parts["active"] == 8_030_261_248
    assert sum(parts[part] for part in ("embedding", "head", "attention", "mlp", "norm")) == parts["total"]
    assert summary["flops_per_token"]["torchtitan"] == 57_914_449_920
    assert summary["flops_per_token"].keys() == summary["hardware_flops_per_token"].keys() == set(Convention)
    assert summary["hardware_flops_per_token"]["scaling_book"] > summary["flops_per_token"]["scaling_book"]
    assert summary["memory_per_device"]["total"] == 16 * 8_030_261_248
    assert summary["kv_cache_bytes_per_token"] == 2 * 2 * 32 * 8 * 128
    assert json.loads(json.dumps(summary)) == summary


def test_memory_of_one_device_of_a_mesh():
    train = TrainConfig(remat="dots", loss=LossConfig(chunk=512))
    memory = summarise(LLAMA3_8B, 8192, train=train, mesh={"fsdp": 8, "tensor": 4}, tokens=8192)["memory_per_device"]
    assert memory["activations"] == activation_bytes(LLAMA3_8B, 8192, "dots", 2, tensor=4).total
    assert memory["logits"] == logits_bytes(LLAMA3_8B, 8192, 512, 2, vocab=4)
    state = state_bytes(LLAMA3_8B, train.precision, AdamW(), shards({"fsdp": 8, "tensor": 4}, 3))
    assert (memory["parameters"], memory["optimizer"]) == (state.parameters, state.optimizer)
    assert memory.pop("total") == sum(memory.values())


def test_text_says_the_same():
    lines = text(summarise(LLAMA3_8B, 8192, name="llama3-8b")).splitlines()
    assert lines[0] == "llama3-8b"
    assert any("8,030,261,248" in line for line in lines)
    named = {line.split()[0] for line in lines} & set(Convention)
    assert named == {"palm", "torchtitan", "causal", "scaling_book"}
    assert any("HFU is 1.30 x MFU under palm" in line for line in lines)
    assert not any(
        "HFU" in line for line in text(summarise(LLAMA3_8B, 8192, train=TrainConfig(remat="none"))).splitlines()
    )
    assert any("torchtitan" in line and "5.7914e+10" in line for line in lines)
    assert any("131,072 bytes" in line for line in lines)


def test_the_room_needs_no_jax():
    code = "import jaxllm.roofline.summary, jaxllm.roofline.hardware, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
