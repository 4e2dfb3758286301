"""The experiment as data: one frozen, strictly typed tree, decoded once from TOML and overrides, without jax.

Every field states its unit, and its source where a number was published. Defaults live here and nowhere else.
"""

from jaxllm.config.compare import MAY_CHANGE, Difference, differences, refuse_changes
from jaxllm.config.data import (
    BytesTokenizer,
    DataConfig,
    HuggingFaceTokenizer,
    PhaseConfig,
    SentencePieceTokenizer,
    SourceConfig,
    TokenizerConfig,
)
from jaxllm.config.describe import Row, describe
from jaxllm.config.dump import dump, resolved
from jaxllm.config.errors import ConfigError
from jaxllm.config.experiment import SCHEMA_VERSION, Experiment
from jaxllm.config.experts import ExpertsConfig
from jaxllm.config.guard import (
    Falcon,
    GuardConfig,
    Ladder,
    Off,
    Palm,
    PolicyConfig,
    Replay,
    RulesConfig,
    Skip,
)
from jaxllm.config.load import load, load_tree
from jaxllm.config.mesh import AXES, MeshConfig
from jaxllm.config.model import (
    AttentionConfig,
    BlockConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
)
from jaxllm.config.optim import (
    WSD,
    AdamW,
    Constant,
    Cosine,
    LossScaleConfig,
    Muon,
    OptimConfig,
    OptimizerConfig,
    QKClipConfig,
    ScheduleConfig,
)
from jaxllm.config.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)
from jaxllm.config.run import CheckpointConfig, EvalConfig, LogConfig, ProfileConfig, RunConfig, WatchConfig
from jaxllm.config.train import LossConfig, PrecisionConfig, TrainConfig
from jaxllm.config.tree import read_toml
from jaxllm.config.tune import LoRAConfig, TuneConfig

__all__ = [
    "AXES",
    "MAY_CHANGE",
    "SCHEMA_VERSION",
    "WSD",
    "AdamW",
    "AttentionConfig",
    "BlockConfig",
    "BytesTokenizer",
    "CheckpointConfig",
    "ConfigError",
    "Constant",
    "Cosine",
    "DataConfig",
    "Difference",
    "DynamicScaling",
    "EvalConfig",
    "Experiment",
    "ExpertsConfig",
    "Falcon",
    "GuardConfig",
    "HuggingFaceTokenizer",
    "Ladder",
    "LinearScaling",
    "Llama3Scaling",
    "LoRAConfig",
    "LogConfig",
    "LongRopeScaling",
    "LossConfig",
    "LossScaleConfig",
    "MLPConfig",
    "MeshConfig",
    "ModelConfig",
    "Muon",
    "NormConfig",
    "Off",
    "OptimConfig",
    "OptimizerConfig",
    "Palm",
    "PhaseConfig",
    "PolicyConfig",
    "PrecisionConfig",
    "ProfileConfig",
    "QKClipConfig",
    "Replay",
    "RopeConfig",
    "Row",
    "RulesConfig",
    "RunConfig",
    "ScheduleConfig",
    "SentencePieceTokenizer",
    "Skip",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TuneConfig",
    "WatchConfig",
    "YarnScaling",
    "describe",
    "differences",
    "dump",
    "load",
    "load_tree",
    "read_toml",
    "refuse_changes",
    "resolved",
]
