"""The decoder's shape. A family is a set of values of this section; see jaxllm/models for the published ones."""

from typing import Literal

from jaxllm.config.base import Choice, Section, require


class Llama3Scaling(Choice, frozen=True, kw_only=True, tag="llama3"):
    """Llama 3.1's stretch of the low rope frequencies (Grattafiori et al. 2024; values of the 3.1 release).

    Attributes:
        factor: how much longer than `original_max_positions` the context is to be.
        low_freq_factor: wavelengths above original_max_positions / this are divided by `factor`.
        high_freq_factor: wavelengths below original_max_positions / this stay as they are.
        original_max_positions: the sequence length of pretraining, in tokens.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        require(self.factor >= 1, "factor", self.factor, "use 1 or more")
        require(
            self.high_freq_factor > self.low_freq_factor > 0,
            "high_freq_factor",
            self.high_freq_factor,
            f"it must be above low_freq_factor = {self.low_freq_factor}",
        )
        require(self.original_max_positions > 0, "original_max_positions", self.original_max_positions, "use 1 or more")


class RopeConfig(Section, frozen=True, kw_only=True):
    """Rotary position embedding (Su et al. 2021), halves rotated against each other as in Llama's published weights.

    Attributes:
        theta: base of the wavelengths: 10,000 for Llama 1 and 2, 500,000 for Llama 3.
        scaling: how the wavelengths are stretched for a longer context; none by default.
    """

    theta: float = 10_000.0
    scaling: Llama3Scaling | None = None

    def __post_init__(self) -> None:
        require(self.theta > 1, "theta", self.theta, "use a number above 1, 10000 for Llama 2")


class AttentionConfig(Section, frozen=True, kw_only=True):
    """Grouped-query attention (Ainslie et al. 2023).

    Attributes:
        num_heads: query heads.
        num_kv_heads: key and value heads; 0 means as many as query heads.
        head_dim: width of a head; 0 means d_model / num_heads.
        rope: rotary position embedding.
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
    rope: RopeConfig = RopeConfig()
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
            self.head_dim >= 0 and self.head_dim % 2 == 0,
            "head_dim",
            self.head_dim,
            "rope needs an even number (or 0 for d_model / num_heads)",
        )
        require(self.soft_cap >= 0, "soft_cap", self.soft_cap, "use a positive number such as 50, or 0 for none")

    @property
    def kv_heads(self) -> int:
        """Key and value heads, as a number."""
        return self.num_kv_heads or self.num_heads


class MLPConfig(Section, frozen=True, kw_only=True):
    """Gated feed-forward layer, SwiGLU (Shazeer 2020).

    Attributes:
        d_ff: hidden units.
        activation: of the gate.
    """

    d_ff: int
    activation: Literal["silu"] = "silu"

    def __post_init__(self) -> None:
        require(self.d_ff >= 1, "d_ff", self.d_ff, "use 1 or more")


class NormConfig(Section, frozen=True, kw_only=True):
    """Normalisation before each branch and before the head: RMSNorm (Zhang and Sennrich 2019).

    Attributes:
        kind: only rms so far.
        epsilon: added to the mean square.
    """

    kind: Literal["rms"] = "rms"
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, "epsilon", self.epsilon, "use a small positive number such as 1e-5")


class BlockConfig(Section, frozen=True, kw_only=True):
    """One decoder block: attention and feed-forward, each behind its norm and added to the residual stream.

    Attributes:
        attention: the first branch.
        mlp: the second branch.
        norm: of both branches.
    """

    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()


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
        prefix: blocks before the repeated part, each a table of what differs (`[{mlp = {d_ff = 4096}}]`).
        period: blocks of one repetition, likewise; empty means one block that differs in nothing.
        tie_embeddings: whether the head is the embedding transposed.
        final_soft_cap: the head's logits become final_soft_cap tanh(logits / final_soft_cap) (Gemma 2: 30; Gemma Team
            2024, section 2); 0 means none.
        initializer_std: standard deviation of the initial weights, normal, cut at three; the projections back
            into the residual stream divide it by sqrt(2 num_layers) (GPT-2, Radford et al. 2019).
    """

    preset: str = ""
    family: Literal["llama"] = "llama"
    vocab_size: int = 0
    d_model: int
    num_layers: int
    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()
    prefix: tuple[BlockConfig, ...] = ()
    period: tuple[BlockConfig, ...] = ()
    tie_embeddings: bool = False
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
        require(self.initializer_std > 0, "initializer_std", self.initializer_std, "use a positive number such as 0.02")
        places = [f"prefix.{index}." for index in range(len(self.prefix))]
        places += [f"period.{index}." for index in range(len(self.period))] or [""]
        for place, block in zip(places, self.prefix + self.slots, strict=True):
            heads = block.attention.num_heads
            require(
                block.attention.head_dim > 0 or (self.d_model % heads == 0 and self.d_model // heads % 2 == 0),
                f"{place}attention.num_heads",
                heads,
                f"d_model = {self.d_model} does not split into heads of an even width; set attention.head_dim",
            )

    @property
    def default_block(self) -> BlockConfig:
        """The block made of the model's own attention, mlp and norm."""
        return BlockConfig(attention=self.attention, mlp=self.mlp, norm=self.norm)

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
