"""Golden files: tiny random models of every family, with what transformers computes from them.

The tests that read them run without PyTorch. To make them again, in an environment of their own (Python 3.11):

    pip install torch==2.13.0 transformers==5.23.0
    python tests/hf/make_goldens.py [FAMILY | FAMILY/SHAPE ...]

Each `golden/FAMILY/SHAPE/` holds `config.json` and `model.safetensors` as `save_pretrained` writes them, and
`expected.safetensors`:

    tokens         int32[B, T]
    logits         float32[B, T, V]   of the tokens, nothing padded
    padded_tokens  int32[B, T]        the tokens' first ones behind padding on the left, each row another length
    padded_mask    int32[B, T]        0 where a token is padding
    padded_logits  float32[B, T, V]   with the mask and the positions that `generate()` gives; of padding: arbitrary
    grad.NAME      float32            for some shapes: of the mean next-token cross-entropy over `tokens`, every weight

and `config_transformers4.json`, the same model in the schema of transformers 4 and of most published weights.

Before a file is written the model is shown to be a fair judge: every weight and every key of the config named in
`golden_shapes.py` and `golden_mixtures.py` moves the logits by more than 1e-3, float64 by less than 8e-6, and the old
schema by nothing.
"""

import copy
import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import deepseek  # noqa: F401  (registers the model)
import torch
from golden_mixtures import MIXTURES
from golden_shapes import SHAPES, Shape
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

GOLDEN = Path(__file__).parent / "golden"
NUM_ROWS = 2
NUM_PADS = (2, 9)
MOVED, ROUNDING = 1e-3, 8e-6


def main(names: list[str]) -> None:
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, shape in (SHAPES | MIXTURES).items():
        if not names or name in names or name.partition("/")[0] in names:
            make(name, shape)


def make(name: str, shape: Shape) -> None:
    """Write one directory."""
    torch.manual_seed(zlib.crc32(name.encode()))
    directory = GOLDEN / name
    shutil.rmtree(directory, ignore_errors=True)
    model = build(shape.config)
    dtype = getattr(torch, shape.dtype)
    randomise(model, dtype)
    sizes = {"max_shard_size": shape.shard_size} if shape.shard_size else {}
    copy.deepcopy(model).to(dtype).save_pretrained(directory, **sizes)
    tokens = torch.randint(3, shape.config["vocab_size"], (NUM_ROWS, shape.length))
    padded_tokens, padded_mask = pad(tokens)
    expected = {
        "tokens": tokens.int(),
        "logits": logits(model, tokens),
        "padded_tokens": padded_tokens.int(),
        "padded_mask": padded_mask.int(),
        "padded_logits": logits(model, padded_tokens, padded_mask),
    }
    reloaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **plain(shape.config))
    assert torch.equal(logits(reloaded, tokens), expected["logits"]), name
    old = old_schema(json.loads((directory / "config.json").read_text()))
    (directory / "config_transformers4.json").write_text(json.dumps(old, indent=2, sort_keys=True) + "\n")
    other = build({key: value for key, value in old.items() if not key.endswith("_token_id")})
    other.load_state_dict(dict(model.named_parameters()), strict=False)
    assert torch.equal(logits(other, tokens), expected["logits"]), name
    rounding = judge(name, shape, model, tokens)
    if shape.gradients:
        expected |= gradients(model, tokens)
    save_file({key: value.contiguous() for key, value in expected.items()}, directory / "expected.safetensors")
    size = sum(file.stat().st_size for file in directory.iterdir())
    largest = expected["logits"].abs().max().item()
    print(f"{name:32} {size / 1000:5.0f} kB, logits up to {largest:4.1f}, float64 moves them {rounding:.1e}")


def build(config: dict[str, Any]) -> PreTrainedModel:
    """A model of the config, float32."""
    values = copy.deepcopy(config)
    model_type = values.pop("model_type")
    made = AutoConfig.for_model(model_type, pad_token_id=0, bos_token_id=1, eos_token_id=2, **values)
    return AutoModelForCausalLM.from_config(made, dtype=torch.float32, **plain(config)).eval()


def plain(config: dict[str, Any]) -> dict[str, str]:
    """The plain implementations; but transformers 5.23's adds Falcon's ALiBi twice, in the mask and to the scores."""
    attention = {"attn_implementation": "sdpa" if config.get("alibi") else "eager"}
    fused = config["model_type"] in ("mixtral", "qwen3_moe", "olmoe")  # others know no such option
    return attention | ({"experts_implementation": "eager"} if fused else {})


def randomise(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Weights of a size that makes every mechanism count, norms and biases too; float32, rounded to `dtype`."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                at_rest = weight.clone() if "bias" not in name else 0.0
                weight.copy_(at_rest + 0.3 * torch.randn_like(weight))
            else:
                embedding = any(part in name for part in ("embed", "wte", "wpe"))
                num_inputs = weight.shape[0 if ".c_" in name else -1]  # GPT-2's Conv1D is [in, out]
                weight.copy_(torch.randn_like(weight) * (0.3 if embedding else 0.9 * num_inputs**-0.5))
            weight.copy_(weight.to(dtype))


def old_schema(config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` as transformers 4 wrote it, without what it did not write."""
    config = {key: value for key, value in config.items() if key != "transformers_version"}
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    ropes = config.pop("rope_parameters", None)
    layer_types = config.pop("layer_types", [])
    if config["model_type"] == "gemma":
        config["hidden_act"] = "gelu"
    if config["model_type"] == "bloom":
        config |= {"n_embed": config.pop("hidden_size"), "num_attention_heads": config.pop("n_head")}
    if config["model_type"] == "gemma3_text":
        del config["_sliding_window_pattern"]
        config["sliding_window_pattern"] = layer_types.index("full_attention") + 1
        config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        ropes = ropes["full_attention"]
    if not ropes:
        return config
    config["rope_theta"] = ropes.pop("rope_theta")
    if "partial_rotary_factor" in ropes:
        config["partial_rotary_factor"] = ropes.pop("partial_rotary_factor")
    if (kind := ropes.pop("rope_type")) == "longrope":
        del ropes["original_max_position_embeddings"]
    said = "rope_type" if kind == "llama3" or "sliding_window_pattern" in config else "type"
    config["rope_scaling"] = {said: kind} | ropes if ropes else None
    return config


def pad(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's first tokens moved to the right, padding before them; and the mask."""
    mask = torch.ones_like(tokens)
    padded = torch.zeros_like(tokens)
    for row, num_pads in enumerate(NUM_PADS):
        mask[row, :num_pads] = 0
        padded[row, num_pads:] = tokens[row, : tokens.shape[1] - num_pads]
    return padded, mask


def logits(model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """[B, T, V]; a copy computes them, because dynamic scaling remembers the longest sequence it has seen."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        if mask is None:
            return model(tokens, use_cache=False).logits
        inputs: dict[str, Any] = {"attention_mask": mask}
        inputs["position_ids"] = model._prepare_position_ids_for_generation(tokens, inputs)
        return model(**model.prepare_inputs_for_generation(tokens, use_cache=False, **inputs)).logits


def judge(name: str, shape: Shape, model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """Whether the logits show every weight and config key, and are well conditioned; returns how far float64 is."""
    right = logits(model, tokens)
    for key, value in shape.matters.items():
        other = build(changed(shape.config, key, value))
        other.load_state_dict(dict(model.named_parameters()), strict=False)
        moved = (logits(other, tokens) - right).abs().max().item()
        assert moved > MOVED, f"{name}: {key} = {value!r} moves the logits by {moved:.1e} only"
    for key, weight in model.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(kept.flatten().flip(0).view_as(kept))
        moved = (logits(model, tokens) - right).abs().max().item()
        assert (moved > MOVED) != (key in shape.still), f"{name}: {key} read backwards moves the logits by {moved:.1e}"
        with torch.no_grad():
            weight.copy_(kept)
    rounding = (logits(copy.deepcopy(model).double(), tokens) - right).abs().max().item()
    assert rounding < ROUNDING, f"{name}: float64 moves the logits by {rounding:.1e}"
    return rounding


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The config with another value behind a dotted key."""
    config = copy.deepcopy(config)
    section = config
    *sections, last = key.split(".")
    for part in sections:
        section = section[part]
    section[last] = value
    return config


def gradients(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the mean next-token cross-entropy, by `grad.` and the name of the weight's tensor on disk."""
    predicted = model(tokens, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(predicted.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for weight in model.parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0
        weight.data = weight.grad
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return {f"grad.{name}": grad for name, grad in load_file(f"{directory}/model.safetensors").items()}


if __name__ == "__main__":
    main(sys.argv[1:])
