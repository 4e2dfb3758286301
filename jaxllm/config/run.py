"""The run around the steps: where it lives, what it logs, saves and evaluates."""

import os
from typing import Literal

from jaxllm.config.base import Section, require


class LogConfig(Section, frozen=True, kw_only=True):
    """What a run writes down.

    Attributes:
        interval: steps between lines of metrics.jsonl and of the console.
        all_processes: whether every process writes its metrics, process N into metrics.N.jsonl.
        loggers: services that are told the metrics and events too, each a package of the extra `loggers`.
    """

    interval: int = 1
    all_processes: bool = False
    loggers: tuple[Literal["tensorboard", "wandb", "swanlab"], ...] = ()

    def __post_init__(self) -> None:
        require(self.interval >= 1, "interval", self.interval, "use 1 or more")


class WatchConfig(Section, frozen=True, kw_only=True):
    """What is watched besides the loss; watching changes nothing that is computed.

    Every step tells the gradient's norm and the size of the update relative to the parameters by group: embedding,
    head, norms, attention, mlp. Every `interval` steps a forward pass of its own, over the step's batch and before its
    update, tells of each layer the residual stream's root mean square and largest magnitude and the largest attention
    logit (see jaxllm/train/watch).

    Attributes:
        interval: steps between these passes, each of which takes about as long as an evaluation of the same batch;
            0 means that nothing is watched.
    """

    interval: int = 100

    def __post_init__(self) -> None:
        require(self.interval >= 0, "interval", self.interval, "use 0 (nothing is watched) or more")


class EvalConfig(Section, frozen=True, kw_only=True):
    """Evaluation on the held-out split.

    Attributes:
        interval: steps between evaluations; 0 means only at the end. With `run.init_from` there is one before the
            first step too.
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
        keep_every: of every so many steps a checkpoint is kept for good; a multiple of the interval; 0 means none.
        keep_good: newest good checkpoints kept, to roll back to.
        good_after: clean steps that must follow a checkpoint before it counts as good.
    """

    interval: int = 0
    keep: int = 2
    keep_every: int = 0
    keep_good: int = 2
    good_after: int = 100

    def __post_init__(self) -> None:
        require(self.interval >= 0, "interval", self.interval, "use 0 or more")
        require(self.keep >= 1, "keep", self.keep, "use 1 or more")
        require(self.keep_every >= 0, "keep_every", self.keep_every, "use 0 (none) or more")
        require(
            not self.interval or self.keep_every % self.interval == 0,
            "keep_every",
            self.keep_every,
            f"use a multiple of interval = {self.interval}, or no checkpoint falls on it",
        )
        require(self.keep_good >= 1, "keep_good", self.keep_good, "use 1 or more")
        require(self.good_after >= 0, "good_after", self.good_after, "use 0 or more")


class ProfileConfig(Section, frozen=True, kw_only=True):
    """A trace of what the devices do, in RUN/profile.

    Attributes:
        start: attempts before the first traced step; the first few compile.
        steps: traced; 0 means none.
    """

    start: int = 10
    steps: int = 0

    def __post_init__(self) -> None:
        require(self.start >= 0, "start", self.start, "use 0 or more")
        require(self.steps >= 0, "steps", self.steps, "use 0 (none) or more")


class RunConfig(Section, frozen=True, kw_only=True):
    """A run's place and seed.

    Attributes:
        name: of the run; empty means the config file's name.
        directory: where the run keeps its files: a path, gs://BUCKET/PREFIX, s3://... or az://... (the extra
            `object-store`); empty means runs/NAME.
        seed: of the initial weights.
        init_from: another run's directory or URL: its newest checkpoint's parameters are the initial ones (with
            tune.lora, the ones that are adapted); empty means random ones.
        compilation_cache: a directory that keeps compiled programs, for the next start or from `jaxllm plan --verify
            --export DIR`, as DIR/cache; only ever take your own, they are programs. Empty keeps none.
        deterministic: on a GPU, exclude kernels that add in no fixed order.
    """

    name: str = ""
    directory: str = ""
    seed: int = 0
    init_from: str = ""
    compilation_cache: str = ""
    deterministic: bool = False

    def __post_init__(self) -> None:
        # jax would take a larger one for its last 32 bits
        require(0 <= self.seed < 2**32, "seed", self.seed, "use 0 to 4294967295")
        require("/" not in self.name, "name", self.name, "a name has no slash; use run.directory for a place")
        require(self.name not in (".", ".."), "name", self.name, "it is no directory of its own; use another")

    @property
    def path(self) -> str:
        """The run's directory; `~` is the user's home."""
        return os.path.expanduser(self.directory) or f"runs/{self.name}"
