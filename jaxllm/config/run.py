"""The run around the steps: where it lives, what it logs, saves and evaluates."""

from jaxllm.config.base import Section, require


class LogConfig(Section, frozen=True, kw_only=True):
    """What a run writes down.

    Attributes:
        interval: steps between lines of metrics.jsonl and of the console.
    """

    interval: int = 1

    def __post_init__(self) -> None:
        require(self.interval >= 1, "interval", self.interval, "use 1 or more")


class EvalConfig(Section, frozen=True, kw_only=True):
    """Evaluation on the held-out split.

    Attributes:
        interval: steps between evaluations; 0 means only at the end.
        batches: batches of an evaluation; 0 means the whole split.
        sample_tokens: tokens of text written at the end of the run; 0 means none.
        sample_prompt: what the text goes on from; empty means the tokenizer's end of document.
        sample_temperature: of the sampled text; 0 is greedy.
    """

    interval: int = 0
    batches: int = 16
    sample_tokens: int = 64
    sample_prompt: str = ""
    sample_temperature: float = 0.7

    def __post_init__(self) -> None:
        require(self.interval >= 0, "interval", self.interval, "use 0 or more")
        require(self.batches >= 0, "batches", self.batches, "use 0 (the whole split) or more")
        require(self.sample_tokens >= 0, "sample_tokens", self.sample_tokens, "use 0 or more")
        require(self.sample_temperature >= 0, "sample_temperature", self.sample_temperature, "use 0 or more")


class CheckpointConfig(Section, frozen=True, kw_only=True):
    """What is kept of a run.

    Attributes:
        interval: steps between checkpoints; 0 means only the final one (and one on Ctrl-C).
        keep: newest checkpoints kept.
    """

    interval: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.interval >= 0, "interval", self.interval, "use 0 or more")
        require(self.keep >= 1, "keep", self.keep, "use 1 or more")


class RunConfig(Section, frozen=True, kw_only=True):
    """A run's place and seed.

    Attributes:
        name: of the run; empty means the config file's name.
        directory: where the run keeps its files; empty means runs/NAME.
        seed: of the initial weights.
        deterministic: on a GPU, exclude kernels that add in no fixed order.
    """

    name: str = ""
    directory: str = ""
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "use 0 or more")
        require("/" not in self.name, "name", self.name, "a name has no slash; use run.directory for a place")

    @property
    def path(self) -> str:
        """The run's directory."""
        return self.directory or f"runs/{self.name}"
