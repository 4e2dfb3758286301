"""Steps that others published, with all that a prediction needs to know of them, and those that say too little.

Each row is a model, chips, batch, parallelism and what was recomputed, as its source states them. Feed-forward layers
without a gate (GPT, MPT) stand here as gated ones of two thirds of their width, which have the same parameters, FLOPs
and memory traffic. The steps are other trainers': what theirs does otherwise than jaxllm's is said in the row, not
fitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from jaxllm.config import AttentionConfig, MLPConfig, ModelConfig
from jaxllm.config.train import Float
from jaxllm.plan.computed import Again

NOTHING = Again()
FULL = Again(query_key_value=1, output=1, gate_up=1, attention=1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published step.

    Attributes:
        trainer: whose step.
        model: its name.
        family: of models; one at a time is left out of the calibration.
        shape: the decoder.
        target: chips, as `jaxllm plan` takes them.
        sequence_length: tokens of a row.
        batch_size: rows of a step, of all devices.
        seconds: of a step, as published or worked out from tokens a second.
        sizes: devices along the mesh axes that have more than one.
        accumulate: micro-batches.
        again: what is computed again.
        hidden: transfers that this trainer runs beside the products and jaxllm does not: names of
            `roofline.communication`.
        zero: as in `MeshConfig.zero`.
        sequence_parallel: as in `MeshConfig.sequence_parallel`.
        kernel: of attention, as `plan.efficiency.KERNELS` knows them.
        fused: whether its backward pass is one kernel, of five products.
        parameters: dtype in which they are moved once a step (zero 1 and 2).
        power: share of the chip's power limit that the board was held to.
        source: where it was published.
    """

    trainer: str
    model: str
    family: str
    shape: ModelConfig
    target: str
    sequence_length: int
    batch_size: int
    seconds: float
    sizes: Mapping[str, int]
    accumulate: int = 1
    again: Again = NOTHING
    hidden: tuple[str, ...] = ()
    zero: Literal[1, 2, 3] = 3
    sequence_parallel: bool = False
    kernel: str
    fused: bool = True
    parameters: Float = "float32"
    power: float = 1.0
    source: str


def _model(
    width: int, layers: int, heads: int, hidden: int, vocabulary: int, kv: int = 0, tied: bool = False
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_layers=layers,
        attention=AttentionConfig(num_heads=heads, num_kv_heads=kv),
        mlp=MLPConfig(d_ff=hidden),
        tie_embeddings=tied,
    )


def _gpt(width: int, layers: int, heads: int, vocabulary: int) -> ModelConfig:
    """With four times the width in feed-forward layers without a gate, and a tied embedding."""
    return _model(width, layers, heads, round(8 * width / 3), vocabulary, tied=True)


LLAMA2_7B = _model(4096, 32, 32, 11008, 32000)
LLAMA2_70B = _model(8192, 80, 64, 28672, 32000, kv=8)
LLAMA3_8B = _model(4096, 32, 32, 14336, 128256, kv=8)
LLAMA3_70B = _model(8192, 80, 64, 28672, 128256, kv=8)


def _titan(
    model: str, shape: ModelConfig, gpus: int, batch: int, rate: float, sizes: Mapping[str, int], again: Again, **more
) -> Row:
    """torchtitan on H100 of 96 GB held to 500 of 700 W."""
    return Row(
        trainer="torchtitan",
        model=model,
        family="Llama 3",
        shape=shape,
        target=f"h100x{gpus}",
        sequence_length=8192,
        batch_size=batch,
        seconds=batch * 8192 / gpus / rate,
        sizes=sizes,
        again=again,
        kernel="flash2",
        power=500 / 700,
        source="torchtitan benchmarks/llama3_h100_202412, asyncTP_llama3_h100_2025-06",
        **more,
    )


def _foundry(model: str, shape: ModelConfig, gpus: int, length: int, micro: int, accumulate: int, rate: float) -> Row:
    batch = micro * accumulate * gpus
    return Row(
        trainer="llm-foundry",
        model=model,
        family="MPT",
        shape=shape,
        target=f"h100x{gpus}",
        sequence_length=length,
        batch_size=batch,
        seconds=batch * length / gpus / rate,
        sizes={"fsdp": gpus},
        accumulate=accumulate,
        kernel="flash2",
        source="llm-foundry scripts/train/benchmarking",
    )


def _megatron(model: str, width: int, layers: int, heads: int, tensor: int, batch: int, tflops: float) -> Row:
    """Data parallel over 48 with a sharded optimizer, gradients and parameters moved beside the products."""
    gpus, length, vocabulary = 48 * tensor, 4096, 131072
    flops = 72 * batch * layers * length * width**2 * (1 + length / (6 * width) + vocabulary / (12 * layers * width))
    return Row(
        trainer="Megatron-LM",
        model=model,
        family="GPT",
        shape=_gpt(width, layers, heads, vocabulary),
        target=f"h100x{gpus}",
        sequence_length=length,
        batch_size=batch,
        seconds=flops / gpus / tflops / 1e12,
        sizes={"fsdp": 48, "tensor": tensor},
        sequence_parallel=tensor > 1,
        zero=1,
        parameters="bfloat16",
        kernel="cudnn",
        hidden=("gradients of weights", "updated parameters", "residual stream"),
        source="Megatron-LM README (2024-07)",
    )


_MPT_760M, _MPT_1B = _gpt(1536, 24, 12, 50368), _gpt(2048, 24, 16, 50368)
_MPT_3B, _MPT_7B = _gpt(2560, 32, 20, 50368), _gpt(4096, 32, 32, 50368)

# every second product, but the last one of the layer, which is not needed
_SELECTIVE = Again(query_key_value=0.5, output=0.5, gate_up=0.5)
_V6E = Again(output=1, gate_up=1, attention=1)

ROWS: tuple[Row, ...] = (
    _titan("Llama 3 8B", LLAMA3_8B, 8, 16, 6667, {"fsdp": 8}, _SELECTIVE),
    _titan("Llama 3 8B", LLAMA3_8B, 128, 256, 6514, {"fsdp": 128}, _SELECTIVE),
    _titan("Llama 3 8B", LLAMA3_8B, 64, 96, 4378, {"fsdp": 8, "tensor": 8}, _SELECTIVE, sequence_parallel=True),
    _titan("Llama 3 8B, async TP", LLAMA3_8B, 64, 96, 4809, {"fsdp": 8, "tensor": 8}, _SELECTIVE,
           sequence_parallel=True, hidden=("residual stream",)),
    _titan("Llama 3 70B", LLAMA3_70B, 256, 512, 597.3, {"fsdp": 32, "tensor": 8}, FULL, sequence_parallel=True),
    _titan("Llama 3 70B, async TP", LLAMA3_70B, 256, 512, 652.4, {"fsdp": 32, "tensor": 8}, FULL,
           sequence_parallel=True, hidden=("residual stream",)),
    Row(trainer="torchtitan", model="Llama 3 8B", family="Llama 3", shape=LLAMA3_8B, target="a100x64",
        sequence_length=8192, batch_size=64, seconds=8192 / 2973, sizes={"fsdp": 64}, again=_SELECTIVE,
        kernel="flash2", source="torchtitan docs/performance (2024)"),
    Row(trainer="torchtitan", model="Llama 3 70B", family="Llama 3", shape=LLAMA3_70B, target="a100x64",
        sequence_length=8192, batch_size=64, seconds=8192 / 331, sizes={"fsdp": 64}, again=FULL,
        kernel="flash2", source="torchtitan docs/performance (2024)"),
    _megatron("GPT 1.7B", 2048, 24, 16, 1, 192, 408.8),
    _megatron("GPT 7.1B", 4096, 30, 32, 2, 192, 465.9),
    _megatron("GPT 16B", 6144, 32, 48, 4, 192, 489.1),
    _megatron("GPT 32B", 7168, 48, 56, 8, 192, 459.6),
    _foundry("MPT 1.3B", _MPT_1B, 8, 2048, 14, 1, 45455),
    _foundry("MPT 1.3B", _MPT_1B, 8, 4096, 7, 4, 38535),
    _foundry("MPT 1.3B", _MPT_1B, 8, 8192, 3, 4, 29157),
    _foundry("MPT 1.3B", _MPT_1B, 8, 512, 56, 4, 52275),
    _foundry("MPT 760M", _MPT_760M, 8, 2048, 24, 2, 63147),
    _foundry("MPT 760M", _MPT_760M, 8, 4096, 12, 2, 55459),
    _foundry("MPT 760M", _MPT_760M, 8, 1024, 48, 2, 78581),
    _foundry("MPT 3B", _MPT_3B, 16, 2048, 10, 3, 24142),
    _foundry("MPT 7B", _MPT_7B, 8, 2048, 6, 1, 10643),
    Row(trainer="MaxText", model="Llama 2 7B", family="Llama 2", shape=LLAMA2_7B, target="h100x8",
        sequence_length=4096, batch_size=16, seconds=0.721, sizes={"fsdp": 8},
        kernel="cudnn", source="JAX-Toolbox docs/frameworks/maxtext"),
    Row(trainer="AXLearn", model="Llama 2 7B", family="Llama 2", shape=LLAMA2_7B, target="v5e-256 x 4",
        sequence_length=4096, batch_size=1024, seconds=2.21, sizes={"data": 4, "fsdp": 256},
        again=Again(attention=1), kernel="splash", fused=False, source="axlearn fuji.py, its comments"),
    Row(trainer="MaxText", model="Llama 2 70B", family="Llama 2", shape=LLAMA2_70B, target="v5p-1024",
        sequence_length=4096, batch_size=2048, seconds=4 * 4096 / 692, sizes={"fsdp": 512},
        again=Again(gate_up=1, attention=1), kernel="splash", fused=False,
        source="MaxText tiering.md, maxtext_v5p_model_configs.py"),
    Row(trainer="MaxText", model="Llama 2 70B", family="Llama 2", shape=LLAMA2_70B, target="v6e-256",
        sequence_length=4096, batch_size=768, seconds=3 * 4096 / 900, sizes={"fsdp": 256}, again=_V6E,
        kernel="splash", fused=False, source="MaxText tiering.md, tpu-recipes"),
    Row(trainer="MaxText", model="Llama 3.1 8B", family="Llama 3", shape=LLAMA3_8B, target="v6e-256",
        sequence_length=8192, batch_size=1024, seconds=4 * 8192 / 7207, sizes={"fsdp": 256},
        again=Again(gate_up=1, attention=1), kernel="splash", source="MaxText tiering.md, tpu-recipes"),
    Row(trainer="MaxText", model="Llama 3.1 70B", family="Llama 3", shape=LLAMA3_70B, target="v6e-256",
        sequence_length=8192, batch_size=1280, seconds=5 * 8192 / 960, sizes={"fsdp": 256}, again=_V6E,
        kernel="splash", source="MaxText tiering.md, tpu-recipes"),
)  # fmt: skip

UNUSABLE: Mapping[str, str] = MappingProxyType(
    {
        "mixtures (Mixtral, Qwen 3 30B-A3B, custom MoE)": "whether tokens are dropped, and what is recomputed, differs",
        "float8 and NVFP4 rows": "other peaks for some of the products",
        "torchtitan without torch.compile": "its compiled twin is there; jaxllm always compiles",
        "torchtitan 405B": "float8, and stages whose schedule alone changes the step by 28 %",
        "torchtitan over context": "float8",
        "Megatron-LM with pipeline stages": "neither interleaving nor micro-batch size is stated",
        "Megatron-LM GPT-3 175B, 96 to 4,608 GPUs": "the parallelism of each size is not stated",
        "MaxText v6e 405B": "two recipes with other meshes and other results",
        "MaxText old counts (v5p, v5e), custom models": "neither shapes nor batches are stated",
        "AXLearn in arXiv 2507.05411": "batch and recomputation are not stated",
        "AXLearn fuji on H100 and v6e": "recomputation is not stated; later runs of one config are 21 to 29 % faster",
        "AXLearn fuji-70B on v5e": "its own note says that it runs out of memory",
        "Levanter GPT-2 shapes on v3; 1B on v4; SFT on A100": "batches, or the number itself, are not stated",
        "llm-foundry 1.3B on 128 and 512 GPUs": "the micro-batch is not stated",
        "nanotron, picotron, nanochat, llm.c, TinyLlama, gpt-simple": "batch, shape or the number itself is not stated",
    }
)
"""Published rows that a prediction would have to guess at, and why."""
