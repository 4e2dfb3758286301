"""What one step computes: dtypes, micro-batches, rematerialisation, the loss."""

from typing import Literal

from jaxllm.config.base import Section, require

Float = Literal["float32", "bfloat16", "float16"]


class PrecisionConfig(Section, frozen=True, kw_only=True):
    """Dtypes by name.

    Attributes:
        parameters: the master weights and the optimizer state.
        compute: matrix products and what flows between blocks; float16 brings a dynamic loss scale.
        reduction: sums of gradients over micro-batches and devices.
    """

    parameters: Literal["float32", "bfloat16"] = "float32"
    compute: Float = "bfloat16"
    reduction: Literal["float32", "bfloat16"] = "float32"


class LossConfig(Section, frozen=True, kw_only=True):
    """Cross-entropy over the vocabulary, and what keeps routers of experts in order.

    Attributes:
        chunk: tokens whose logits exist at a time, per device; 0 means all of them.
        z_loss: weight of the mean squared log of the softmax's denominator (PaLM: 1e-4, Chowdhery et al. 2022).
        balance: weight of the auxiliary loss that evens the experts' loads over a micro-batch, summed over layers, 1
            each where all are alike (Fedus et al. 2021, Switch, section 2.2: 1e-2; OLMoE: 1e-2).
        sequence_balance: weight of the same loss within each row of a batch (DeepSeek-V3: 1e-4, beside a balancing
            bias).
        router_z_loss: weight of the mean squared log of the denominator of routers' softmax, summed over layers
            (ST-MoE: 1e-3, Zoph et al. 2022; OLMoE: 1e-3).
    """

    chunk: int = 1024
    z_loss: float = 0.0
    balance: float = 0.0
    sequence_balance: float = 0.0
    router_z_loss: float = 0.0

    def __post_init__(self) -> None:
        require(self.chunk >= 0, "chunk", self.chunk, "use a number of tokens such as 1024, or 0 for all")
        for field in ("z_loss", "balance", "sequence_balance", "router_z_loss"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "use 0 or a small weight such as 1e-4")


class TrainConfig(Section, frozen=True, kw_only=True):
    """One step.

    Attributes:
        accumulate: micro-batches of a step.
        pipeline: order of passes where mesh.pipe > 1: `1f1b` (memory for 2 pipe - 1 micro-batches), or `gpipe` (for
            all of them). Either way (pipe - 1) / accumulate of the ideal time is lost.
        remat: what the backward pass computes again: `none`; `dots` keeps the matrix products' results; `block`
            keeps the inputs of blocks; `offload` keeps those in host memory.
        precision: dtypes.
        loss: cross-entropy.
        unroll: run the blocks as straight code instead of a scan: slower to compile, sometimes faster to run.
    """

    accumulate: int = 1
    pipeline: Literal["1f1b", "gpipe"] = "1f1b"
    remat: Literal["none", "dots", "block", "offload"] = "block"
    precision: PrecisionConfig = PrecisionConfig()
    loss: LossConfig = LossConfig()
    unroll: bool = False

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, "accumulate", self.accumulate, "use 1 or more")
