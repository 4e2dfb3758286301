"""What it takes to serve a model: memory, prefill, decode, concurrency, chips and cost.

A decode step makes one token for each of B requests (`roofline.inference`): it reads the weights once and every
request's cache, and multiplies. Weights in 8 or 4 bits are multiplied in the training dtype, so they save bytes and no
FLOPs. A mixture of E experts a layer, of which a token chooses k, holds all of them and reads those that some request
of the step chose: E (1 - (1 - k / E)^B) of each layer if choices are uniform, which real routers' nearly are. So one
request reads the active parameters only; with more of them each gets slower, until every expert is read anyway, and
from there on the weights cost each of them nothing more.

Experts can be split over chips in two ways. Expert-parallel: every chip holds E / Z of them, and tokens travel, once to
every chip that holds one of theirs and back. Token-parallel: every chip holds all of them and tokens stay, so that each
chip reads what its own B / Z tokens chose. In both, each chip keeps the rest of the model and a share of the requests.

Sources: the book, chapters 7 and 8; DeepSeek-AI 2024 (V3), section 3.4, for expert-parallel serving.
"""

import math
from dataclasses import dataclass

from jaxllm.config import ModelConfig
from jaxllm.config.base import require
from jaxllm.plan.budget import training_dtype
from jaxllm.plan.capacity import USABLE
from jaxllm.plan.target import Target
from jaxllm.roofline.attention import pair_flops
from jaxllm.roofline.collectives import all_to_all_seconds, tree_all_to_all_seconds
from jaxllm.roofline.counts import expected_experts_read, latent_attention_parameters, mlp_parameters
from jaxllm.roofline.inference import fewest_chips, general_decode_seconds, largest_batch
from jaxllm.roofline.transformer import parameters, vocabulary

BITS = (16, 8, 4)
"""Of a weight."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model as serving sees it.

    Attributes:
        name: for people.
        d_model: width of the residual stream, which experts are sent.
        rows: parameters that are held and of which single rows are read: an embedding that is not the head.
        dense: parameters that every step reads.
        expert: parameters of one routed expert of one layer.
        expert_layers: layers that have experts.
        num_experts: of each, E.
        num_chosen: by a token in each, k.
        cache_values: cached values of a token, all layers together.
        pair_flops: forward FLOPs of attention for one query and one key, all layers together.
    """

    name: str
    d_model: int
    rows: int = 0
    dense: int
    expert: int = 0
    expert_layers: int = 0
    num_experts: int = 0
    num_chosen: int = 0
    cache_values: int
    pair_flops: int = 0

    @property
    def held(self) -> int:
        """Parameters that must be in memory."""
        return self.rows + self.dense + self.expert_layers * self.num_experts * self.expert

    @property
    def active(self) -> int:
        """Parameters in products that one token meets."""
        return self.dense + self.expert_layers * self.num_chosen * self.expert

    def experts_read(self, tokens: int) -> float:
        """Of each layer's experts, how many so many tokens choose, as expected of uniform choices."""
        return expected_experts_read(self.num_experts, self.num_chosen, tokens) if self.num_experts else 0.0

    def read(self, tokens: int) -> float:
        """Parameters that a step reads for so many tokens."""
        return self.dense + self.expert_layers * self.expert * self.experts_read(tokens)


def dense(model: ModelConfig, name: str = "") -> Served:
    """A decoder of the config.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    count = parameters(model)
    rows = 0 if model.tie_embeddings else vocabulary(model) * model.d_model
    heads = [(block.attention, model.head_dim(block.attention)) for block in model.blocks]
    return Served(
        name=name,
        d_model=model.d_model,
        rows=rows,
        dense=count.total - rows,
        cache_values=sum(2 * attention.kv_heads * width for attention, width in heads),
        pair_flops=sum(pair_flops(attention.num_heads, width, width, training=False) for attention, width in heads),
    )


def deepseek_v3() -> Served:
    """DeepSeek-V3 without its module for a second token: 671 billion parameters, 37 billion active.

    (DeepSeek-AI 2024, section 4.2, and the released config.)
    """
    d_model, vocab, layers, dense_layers, experts = 7168, 129_280, 61, 3, 256
    latent = latent_attention_parameters(
        d_model, 128, query_latent=1536, kv_latent=512, nope_dim=128, rotary_dim=64, value_dim=128
    )
    expert = mlp_parameters(d_model, 2048)
    norms = layers * (2 * d_model + 1536 + 512) + d_model
    shared = (layers - dense_layers) * (expert + experts * d_model)
    return Served(
        name="deepseek-v3",
        d_model=d_model,
        rows=vocab * d_model,
        dense=vocab * d_model + layers * latent + norms + dense_layers * mlp_parameters(d_model, 18_432) + shared,
        expert=expert,
        expert_layers=layers - dense_layers,
        num_experts=experts,
        num_chosen=8,
        cache_values=layers * (512 + 64),
        pair_flops=layers * pair_flops(128, 128 + 64, 128, training=False),
    )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is served.

    Attributes:
        target: on which chips; the weights are split evenly over all of them.
        context: tokens of a request's cache.
        bits: of a weight.
        cache_bits: of a cached value.
    """

    target: Target
    context: int
    bits: int = 16
    cache_bits: int = 16

    def __post_init__(self) -> None:
        known = f"use one of {', '.join(map(str, BITS))}"
        require(self.bits in BITS, "bits", self.bits, known)
        require(self.cache_bits in BITS, "cache_bits", self.cache_bits, known)
        require(self.context >= 1, "context", self.context, "use 1 token or more")

    @property
    def usable(self) -> float:
        """Bytes of one chip's memory."""
        return USABLE * self.target.chip.hbm_bytes

    @property
    def peak(self) -> float:
        """FLOP/s of one chip, in the dtype that is multiplied."""
        return self.target.chip.flops_per_second[training_dtype(self.target.chip)]

    def weight_bytes(self, num_parameters: float) -> float:
        """Of so many parameters."""
        return num_parameters * self.bits / 8

    def cache_bytes(self, model: Served) -> float:
        """Of one request, at the full context."""
        return model.cache_values * self.context * self.cache_bits / 8


@dataclass(frozen=True, kw_only=True)
class Step:
    """One decode step.

    Attributes:
        requests: B, each of which gets one token.
        seconds: of the step.
        weights: seconds of reading weights, inside of it.
        cache: seconds of reading caches.
        products: seconds of the products with weights, at the peak.
    """

    requests: int
    seconds: float
    weights: float
    cache: float
    products: float

    @property
    def tokens_per_second(self) -> float:
        """Of all requests together."""
        return self.requests / self.seconds

    @property
    def bound(self) -> str:
        """What takes the most of it."""
        return max(("weights", self.weights), ("cache", self.cache), ("products", self.products), key=lambda x: x[1])[0]


def decode(model: Served, setting: Setting, requests: int) -> Step:
    """A decode step of so many requests, all at the full context. The book, chapter 7 (F60).

    A lower bound: memory at its full bandwidth, products at their peak, and no time for what travels between chips.
    """
    chips, chip = setting.target.num_chips, setting.target.chip
    read, cache = setting.weight_bytes(model.read(requests)), setting.cache_bytes(model)
    seconds = general_decode_seconds(
        requests,
        kv_bytes=cache,
        weight_bytes=read,
        num_parameters=model.active,
        chips=chips,
        peak=setting.peak,
        bandwidth=chip.hbm_bytes_per_second,
    )
    return Step(
        requests=requests,
        seconds=seconds,
        weights=read / (chips * chip.hbm_bytes_per_second),
        cache=requests * cache / (chips * chip.hbm_bytes_per_second),
        products=2 * requests * model.active / (chips * setting.peak),
    )


def prefill_seconds(model: Served, setting: Setting, tokens: int, utilisation: float = 0.4) -> float:
    """Reading a prompt: 2 P T + half the square of attention, at a share of the peak. The book, chapter 7 (F61).

    The book leaves attention out; at long prompts it is most of the work.

    Args:
        model: read.
        setting: on which chips.
        tokens: T, of the prompt.
        utilisation: MFU; 0.4 is the book's.
    """
    flops = 2 * model.active * tokens + model.pair_flops * tokens**2 / 2
    return flops / (setting.target.num_chips * setting.peak * utilisation)


def most_requests(model: Served, setting: Setting) -> int:
    """Requests whose caches fit beside the weights, 0 where the weights leave no room. The book, chapter 7 (F64)."""
    found = largest_batch(
        chips=setting.target.num_chips,
        hbm=setting.usable,
        weight_bytes=setting.weight_bytes(model.held),
        kv_bytes=setting.cache_bytes(model),
    )
    return max(found, 0)


def chips_needed(model: Served, setting: Setting, requests: int = 0) -> int:
    """Chips whose memory holds the weights, and the caches of so many requests. The book, chapter 7 (F64)."""
    held = setting.weight_bytes(model.held) + requests * setting.cache_bytes(model)
    return fewest_chips(held, hbm=setting.usable)


def cost_per_million(price: float, num_chips: int, tokens_per_second: float) -> float:
    """Of a million tokens, in the money of the price.

    Args:
        price: of one chip and hour.
        num_chips: paid for.
        tokens_per_second: of all of them together.
    """
    return price * num_chips / 3600 / tokens_per_second * 1e6


@dataclass(frozen=True, kw_only=True)
class Split:
    """What one way of splitting experts over chips takes in a decode step.

    Attributes:
        held_bytes: of weights on each chip.
        read: seconds of reading weights.
        exchange: seconds of sending tokens to experts and back.
    """

    held_bytes: float
    read: float
    exchange: float

    @property
    def seconds(self) -> float:
        """Both, one after the other."""
        return self.read + self.exchange


def expert_parallel(model: Served, setting: Setting, requests: int) -> Split:
    """Every chip holds its share of the experts, and tokens travel to them in 16 bits.

    A token is sent once to each chip that holds one of its experts: to Z (1 - ((Z - 1) / Z)^k) of Z as expected. The
    chosen experts are taken as evenly spread; the busiest chip reads one at least.
    """
    devices = setting.target.num_chips
    layer = model.expert_layers * model.expert
    read = max(model.experts_read(requests) / devices, 1)
    return Split(
        held_bytes=setting.weight_bytes(model.rows + model.dense + layer * model.num_experts / devices),
        read=_read_seconds(setting, model.dense + layer * read),
        exchange=2 * model.expert_layers * _exchange_seconds(model, setting.target, requests),
    )


def token_parallel(model: Served, setting: Setting, requests: int) -> Split:
    """Every chip holds all experts, and reads those that its own tokens chose; the one with most tokens binds."""
    own = math.ceil(requests / setting.target.num_chips)
    return Split(
        held_bytes=setting.weight_bytes(model.held),
        read=_read_seconds(setting, model.read(own)),
        exchange=0.0,
    )


def _read_seconds(setting: Setting, num_parameters: float) -> float:
    """On one chip."""
    return setting.weight_bytes(num_parameters) / setting.target.chip.hbm_bytes_per_second


def _exchange_seconds(model: Served, target: Target, requests: int) -> float:
    """One all-to-all of the tokens of a step, in bfloat16."""
    devices = target.num_chips
    if devices == 1:
        return 0.0
    destinations = devices * (1 - ((devices - 1) / devices) ** model.num_chosen)
    size = 2 * model.d_model * requests * destinations
    if target.chip.torus is None:
        return tree_all_to_all_seconds(size, target.switches)
    link = target.chip.ici_bytes_per_second
    assert link is not None  # of a chip with a torus
    return all_to_all_seconds(size, target.torus, link=link)


def concurrency(most: int) -> list[int]:
    """The numbers of requests worth a row: powers of two, and the most that fit."""
    return sorted({2**power for power in range(math.floor(math.log2(most)) + 1)} | {most}) if most else []
