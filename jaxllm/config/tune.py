"""Training of less than all parameters."""

from jaxllm.config.base import Section, require


class LoRAConfig(Section, frozen=True, kw_only=True):
    """Low-rank adapters (Hu et al. 2021): of a matrix W only A and B of W + (alpha / rank) A B are trained.

    Attributes:
        rank: width of A and B.
        alpha: strength of the adapters, independent of their rank.
        targets: matrices that get one, by their names behind the layer's number, `*` for any part
            (`["attention.query", "mlp.*"]`); `matrix` means all matrices of the blocks.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("matrix",)

    def __post_init__(self) -> None:
        require(self.rank >= 1, "rank", self.rank, "use 1 or more")
        require(self.alpha > 0, "alpha", self.alpha, "use a positive number such as 16")
        require(len(self.targets) > 0, "targets", [], 'name matrices, or use ["matrix"] for all')


class TuneConfig(Section, frozen=True, kw_only=True):
    """What is trained; all parameters where nothing is said.

    Attributes:
        lora: adapters beside the matrices of `run.init_from`, which stays as it is.
    """

    lora: LoRAConfig | None = None
