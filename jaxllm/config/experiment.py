"""The whole experiment: one tree."""

from jaxllm.config.base import Section, require
from jaxllm.config.data import DataConfig
from jaxllm.config.guard import GuardConfig
from jaxllm.config.mesh import MeshConfig
from jaxllm.config.model import ModelConfig
from jaxllm.config.optim import OptimConfig
from jaxllm.config.run import CheckpointConfig, EvalConfig, LogConfig, ProfileConfig, RunConfig, WatchConfig
from jaxllm.config.train import TrainConfig
from jaxllm.config.tune import TuneConfig

SCHEMA_VERSION = 1

RENAMED: dict[str, str] = {}
"""Dotted names of older schema versions and what they are called now, so that an old run resumes."""


class Experiment(Section, frozen=True, kw_only=True):
    """Everything that decides what a run computes.

    Attributes:
        schema_version: of this tree; written by jaxllm into a run's config.toml.
        run: place and seed.
        model: the decoder.
        data: text, tokens, order and length of the run.
        mesh: devices.
        train: one step.
        tune: training of less than all parameters.
        optim: from gradients to an update.
        guard: against loss spikes.
        evaluation: on the held-out split.
        checkpoint: what is kept.
        log: what is written down.
        watch: what is watched besides the loss.
        profile: a trace of some steps.
    """

    schema_version: int = SCHEMA_VERSION
    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    optim: OptimConfig = OptimConfig()
    guard: GuardConfig = GuardConfig()
    evaluation: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    watch: WatchConfig = WatchConfig()
    profile: ProfileConfig = ProfileConfig()

    def __post_init__(self) -> None:
        require(
            1 <= self.schema_version <= SCHEMA_VERSION,
            "schema_version",
            self.schema_version,
            f"this jaxllm reads versions 1 to {SCHEMA_VERSION}" + "; update jaxllm" * (self.schema_version > 0),
        )
        require(
            self.tune.lora is None or self.run.init_from != "",
            "run.init_from",
            self.run.init_from,
            'tune.lora adapts trained parameters; name the directory of the run that has them, such as "runs/base"',
        )
        require(
            self.optim.qk_clip is None or self.tune.lora is None,
            "optim.qk_clip.threshold",
            self.optim.qk_clip and self.optim.qk_clip.threshold,
            "it scales weights that tune.lora does not train; leave one of them out",
        )
        require(
            self.optim.qk_clip is None or all(block.attention.qk_norm == "none" for block in self.model.blocks),
            "optim.qk_clip.threshold",
            self.optim.qk_clip and self.optim.qk_clip.threshold,
            "model.attention.qk_norm undoes what it scales, and bounds the logits by itself; leave one of them out",
        )
        require(
            self.profile.steps == 0 or self.profile.start < self.data.num_steps,
            "profile.start",
            self.profile.start,
            f"the run has {self.data.num_steps} steps, and none behind it to trace; use less",
        )
        for field in ("balance", "sequence_balance", "router_z_loss"):
            weight = getattr(self.train.loss, field)
            require(
                weight == 0 or any(block.mlp.experts for block in self.model.blocks),
                f"train.loss.{field}",
                weight,
                "the model has no experts (model.mlp.experts); use 0",
            )
        for index, phase in enumerate(self.data.phases):
            require(
                phase.batch_size % self.train.accumulate == 0,
                f"data.phases.{index}.batch_size",
                phase.batch_size,
                f"it must be a multiple of train.accumulate = {self.train.accumulate}",
            )
            require(
                phase.sequence_length <= self.model.learned_positions or not self.model.learned_positions,
                f"data.phases.{index}.sequence_length",
                phase.sequence_length,
                f"the model has a table of model.learned_positions = {self.model.learned_positions}; "
                "use shorter sequences, or a longer table",
            )
