"""What one device holds: the sum of the parts, and what the commands say of it."""

import json

import pytest

import jaxllm
from jaxllm import cli
from jaxllm.config import AXES, AdamW, AttentionConfig, LossConfig, MLPConfig, ModelConfig, TrainConfig
from jaxllm.roofline.device import memory_per_device, of_experiment
from jaxllm.roofline.memory import activation_bytes, logits_bytes, shards, state_bytes

LLAMA3_8B = ModelConfig(
    vocab_size=128256,
    d_model=4096,
    num_layers=32,
    attention=AttentionConfig(num_heads=32, num_kv_heads=8),
    mlp=MLPConfig(d_ff=14336),
)


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["show", *arguments])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_parts_on_a_mesh():
    train = TrainConfig(remat="dots", loss=LossConfig(chunk=512))
    memory = memory_per_device(LLAMA3_8B, train, AdamW(), {"fsdp": 8, "tensor": 4}, tokens=8192)
    assert memory["activations"] == activation_bytes(LLAMA3_8B, 8192, "dots", 2, tensor=4).total
    assert memory["logits"] == logits_bytes(LLAMA3_8B, 8192, 512, 2, vocab=4)
    state = state_bytes(LLAMA3_8B, train.precision, AdamW(), shards({"fsdp": 8, "tensor": 4}, 3))
    assert (memory["parameters"], memory["optimizer"]) == (state.parameters, state.optimizer)


def test_show_says_what_a_run_is_checked_with(capsys):
    numbers = json.loads(shown(capsys, "--preset", "llama3.2-1b", "--devices", "4", "--json"))
    phase = {"sequence_length": 131072, "batch_size": 1, "steps": 1}
    experiment = jaxllm.load_experiment({"model": {"preset": "llama3.2-1b"}, "data": {"phases": [phase]}})
    held = of_experiment(experiment, experiment.model, dict.fromkeys(AXES, 1) | {"fsdp": 4})
    assert numbers["memory_per_device"] == {**held, "total": sum(held.values())}
    assert numbers["devices"] == 4 and numbers["tokens_per_device"] == 131072


def test_show_in_words(capsys):
    last = shown(capsys, "--preset", "llama3-8b").splitlines()[-1]
    assert last.split("  ")[-1].strip() == (
        "1 device: no axis split; 8,192 tokens of a micro-batch on each; --devices N asks for others"
    )
