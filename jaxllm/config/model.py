"""The decoder's shape. A family is a set of values of this section; see jaxllm/models for the published ones."""

from typing import Literal

from jaxllm.config.base import Section, require
from jaxllm.config.experts import ExpertsConfig
from jaxllm.config.rope import RopeConfig


class AttentionConfig(Section, frozen=True, kw_only=True):
    """Grouped-query attention (Ainslie et al. 2023).

    Attributes:
        num_heads: query heads.
        num_kv_heads: key and value heads; 0 means as many as query heads.
        head_dim: width of a head; 0 means d_model / num_heads.
        positions: how attention knows them: `rope` turns queries and keys; `alibi` adds -slope x distance to the
            logits, a slope a head (Press et al. 2021; BLOOM); `falcon_alibi` likewise, with slopes and their products
            rounded to bfloat16 and divided by sqrt(head_dim) (Falcon-RW); `none` not at all (NoPE layers of SmolLM3;
            GPT-2, whose positions are in the embedding).
        rope: rotary position embedding, where positions says so.
        window: tokens that a query sees at most, its own included (Mistral; Gemma 2); 0 means all before it.
        query_scale: multiplies the products of queries and keys; 0 means head_dim^-0.5 (Gemma 2 and 3:
            query_pre_attn_scalar^-0.5).
        bias: which projections add one: `none`; `qkv` those of queries, keys and values (Qwen 2, GLM); `all` the
            output's too (GPT-2).
        qk_norm: RMSNorm of queries and keys before rope (Henry et al. 2020; Dehghani et al. 2023 against growing
            logits): `head` over each head's width, with one scale for all heads (Qwen 3, Gemma 3); `projection` over
            all heads together (OLMo 2); `none`.
        soft_cap: logits become soft_cap tanh(logits / soft_cap) before the softmax (Gemma 2: 50; Gemma Team 2024,
            section 2); 0 means none.
        kernel: which attention computes it: `auto` takes the platform's (splash on TPU, cuDNN on GPU where it can
            honour the batch, xla elsewhere); a kernel asked for by name is used or the run stops.
    """

    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    positions: Literal["rope", "alibi", "falcon_alibi", "none"] = "rope"
    rope: RopeConfig = RopeConfig()
    window: int = 0
    query_scale: float = 0.0
    bias: Literal["none", "qkv", "all"] = "none"
    qk_norm: Literal["none", "head", "projection"] = "none"
    soft_cap: float = 0.0
    kernel: Literal["auto", "xla", "splash", "cudnn"] = "auto"

    def __post_init__(self) -> None:
        require(self.num_heads >= 1, "num_heads", self.num_heads, "use 1 or more")
        require(self.num_kv_heads >= 0, "num_kv_heads", self.num_kv_heads, "use 1 or more, or 0 for num_heads")
        require(
            self.num_kv_heads == 0 or self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"it must divide num_heads = {self.num_heads}",
        )
        require(
            self.head_dim >= 0 and (self.head_dim % 2 == 0 or self.positions != "rope"),
            "head_dim",
            self.head_dim,
            "rope needs an even number (or 0 for d_model / num_heads)",
        )
        require(self.window >= 0, "window", self.window, "use a number of tokens, or 0 for all before a query")
        require(self.query_scale >= 0, "query_scale", self.query_scale, "use a positive number, or 0 for head_dim^-0.5")
        require(self.soft_cap >= 0, "soft_cap", self.soft_cap, "use a positive number such as 50, or 0 for none")

    @property
    def kv_heads(self) -> int:
        """Key and value heads, as a number."""
        return self.num_kv_heads or self.num_heads


class MLPConfig(Section, frozen=True, kw_only=True):
    """Feed-forward layer: gated (SwiGLU and GeGLU, Shazeer 2020), or two matrices with an activation between them.

    Attributes:
        d_ff: hidden units.
        gated: whether a second product with the input multiplies the activation.
        activation: of the gate, or of the hidden units where there is none: `silu`; `gelu` by the error function;
            `gelu_tanh` by its approximation (`gelu_new` and `gelu_pytorch_tanh` of Hugging Face's configs).
        bias: whether every product adds one.
        experts: makes the layer one of many experts of this shape, of which each token goes through a few; none by
            default, and not for a block that leaves it out where the model's own mlp has none either.
    """

    d_ff: int
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    bias: bool = False
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        require(self.d_ff >= 1, "d_ff", self.d_ff, "use 1 or more")
        require(self.experts is None or self.gated, "gated", self.gated, "experts are gated; use true")
        require(self.experts is None or not self.bias, "bias", self.bias, "experts have no biases; use false")

    @property
    def active_d_ff(self) -> int:
        """Hidden units that a token goes through."""
        experts = self.experts
        return self.d_ff if experts is None else experts.experts_per_token * self.d_ff + experts.shared_d_ff


class NormConfig(Section, frozen=True, kw_only=True):
    """Normalisation of the residual stream or of a branch.

    Attributes:
        kind: `rms`, RMSNorm (Zhang and Sennrich 2019); `layer`, LayerNorm with a bias (Ba et al. 2016).
        epsilon: added to the mean square, or to the variance.
        unit_offset: whether the result is multiplied by 1 + scale instead of scale, whose initial value is then 0
            (Gemma).
    """

    kind: Literal["rms", "layer"] = "rms"
    epsilon: float = 1e-5
    unit_offset: bool = False

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, "epsilon", self.epsilon, "use a small positive number such as 1e-5")


class BlockConfig(Section, frozen=True, kw_only=True):
    """One decoder block: attention and feed-forward, each normalised and added to the residual stream.

    Attributes:
        attention: the first branch.
        mlp: the second branch.
        norm: of both branches.
        norm_placement: what is normalised: `pre` each branch's input; `post` its output, before it is added (OLMo 2);
            `both` (Gemma 2 and 3, GLM-4).
        branches: `sequential`, the feed-forward layer reads what attention has been added to; `parallel`, both read
            the block's input, each behind its own norm (Falcon-40B); `parallel_shared_norm`, behind one norm
            (Falcon-7B).
    """

    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()
    norm_placement: Literal["pre", "post", "both"] = "pre"
    branches: Literal["sequential", "parallel", "parallel_shared_norm"] = "sequential"

    def __post_init__(self) -> None:
        require(
            self.branches != "parallel_shared_norm" or self.norm_placement != "post",
            "branches",
            self.branches,
            'norm_placement = "post" leaves no norm of the input to share; use branches = "parallel"',
        )


Family = Literal[
    "bloom",
    "deepseek",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "glm",
    "glm4",
    "gpt2",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
]
"""Names of families, as Hugging Face's `model_type` has them (of Gemma 3 the text model)."""


class ModelConfig(Section, frozen=True, kw_only=True):
    """A decoder-only transformer: embedding, prefix + period x repeats + remainder of blocks, norm, head.

    Attributes:
        preset: name of published values to start from (`jaxllm show --help` lists them); fields beside it win.
        family: whose name table Hugging Face import and export use.
        vocab_size: rows of the embedding; 0 means the tokenizer's size, rounded up to a multiple of 128.
        d_model: width of the residual stream.
        num_layers: blocks in all.
        attention: attention of every block that does not say otherwise.
        mlp: feed-forward layer of every block that does not say otherwise.
        norm: norms of every block that does not say otherwise, and the last one.
        norm_placement: what each block normalises, where it does not say otherwise; as in a block.
        branches: how each block's branches are put together, where it does not say otherwise; as in a block.
        prefix: blocks before the repeated part, each a table of what differs (`[{mlp = {d_ff = 4096}}]`).
        period: blocks of one repetition, likewise; empty means one block that differs in nothing.
        tie_embeddings: whether the head is the embedding transposed.
        learned_positions: rows of a table of positions, added to the embedding (GPT-2: 1,024); 0 means none. No
            sequence may be longer.
        embedding_scale: multiplies the embedding, rounded to the compute dtype (Gemma: sqrt(d_model)).
        embedding_norm: whether the embedding is normalised before the first block (BLOOM).
        final_soft_cap: the head's logits become final_soft_cap tanh(logits / final_soft_cap) (Gemma 2: 30; Gemma Team
            2024, section 2); 0 means none.
        initializer_std: standard deviation of the initial weights, normal, cut at three; the projections back
            into the residual stream divide it by sqrt(2 num_layers) (GPT-2, Radford et al. 2019).
    """

    preset: str = ""
    family: Family = "llama"
    vocab_size: int = 0
    d_model: int
    num_layers: int
    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()
    norm_placement: Literal["pre", "post", "both"] = "pre"
    branches: Literal["sequential", "parallel", "parallel_shared_norm"] = "sequential"
    prefix: tuple[BlockConfig, ...] = ()
    period: tuple[BlockConfig, ...] = ()
    tie_embeddings: bool = False
    learned_positions: int = 0
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    final_soft_cap: float = 0.0
    initializer_std: float = 0.02

    def __post_init__(self) -> None:
        require(self.vocab_size >= 0, "vocab_size", self.vocab_size, "use 0 (the tokenizer's size) or more")
        require(self.d_model >= 1, "d_model", self.d_model, "use 1 or more")
        require(self.num_layers >= 1, "num_layers", self.num_layers, "use 1 or more")
        require(
            len(self.prefix) <= self.num_layers,
            "prefix",
            len(self.prefix),
            f"there are only num_layers = {self.num_layers} blocks",
        )
        require(
            self.final_soft_cap >= 0,
            "final_soft_cap",
            self.final_soft_cap,
            "use a positive number such as 30, or 0 for none",
        )
        require(
            self.learned_positions >= 0, "learned_positions", self.learned_positions, "use 1 or more, or 0 for none"
        )
        require(
            self.embedding_scale > 0, "embedding_scale", self.embedding_scale, "use a positive number, 1 for no scale"
        )
        require(self.initializer_std > 0, "initializer_std", self.initializer_std, "use a positive number such as 0.02")
        places = [f"prefix.{index}." for index in range(len(self.prefix))]
        places += [f"period.{index}." for index in range(len(self.period))] or [""]
        for place, block in zip(places, self.prefix + self.slots, strict=True):
            self._check_heads(place, block.attention)
            self._check_rope(place, block.attention)
            self._check_experts(place, block.mlp)
        self._check_rope("", self.attention)

    def _check_heads(self, place: str, attention: AttentionConfig) -> None:
        """Refuse heads that d_model does not split into, or that rope cannot turn."""
        heads, turns = attention.num_heads, attention.positions == "rope"
        require(
            attention.head_dim > 0 or (self.d_model % heads == 0 and (self.d_model // heads % 2 == 0 or not turns)),
            f"{place}attention.num_heads",
            heads,
            f"d_model = {self.d_model} does not split into heads of {'an even' if turns else 'one'} width; "
            "set attention.head_dim",
        )

    def _check_rope(self, place: str, attention: AttentionConfig) -> None:
        if attention.positions == "rope":
            attention.rope.check(self.head_dim(attention), f"{place}attention.rope")

    def _check_experts(self, place: str, mlp: MLPConfig) -> None:
        """Refuse layers of few experts beside layers of many: their loads are told in one table."""
        numbers = [block.mlp.experts.num_experts for block in self.prefix + self.slots if block.mlp.experts]
        require(
            mlp.experts is None or mlp.experts.num_experts == numbers[0],
            f"{place}mlp.experts.num_experts",
            mlp.experts.num_experts if mlp.experts else 0,
            f"another block has {numbers[0] if numbers else 0}; use one number in all blocks that have experts",
        )

    @property
    def default_block(self) -> BlockConfig:
        """The block made of the model's own attention, mlp and norms."""
        return BlockConfig(
            attention=self.attention,
            mlp=self.mlp,
            norm=self.norm,
            norm_placement=self.norm_placement,
            branches=self.branches,
        )

    @property
    def slots(self) -> tuple[BlockConfig, ...]:
        """The blocks of one period."""
        return self.period or (self.default_block,)

    @property
    def num_repeats(self) -> int:
        """How many whole periods follow the prefix."""
        return (self.num_layers - len(self.prefix)) // len(self.slots)

    @property
    def remainder(self) -> tuple[BlockConfig, ...]:
        """The blocks after the last whole period: the period's first ones."""
        return self.slots[: (self.num_layers - len(self.prefix)) % len(self.slots)]

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Every block, first to last."""
        return self.prefix + self.slots * self.num_repeats + self.remainder

    def head_dim(self, attention: AttentionConfig) -> int:
        """Width of a head of the given attention."""
        return attention.head_dim or self.d_model // attention.num_heads
