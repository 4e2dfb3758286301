"""The names in a run's directory, and its config read back."""

from jaxllm.config import ConfigError, Experiment, load, read_toml
from jaxllm.models import PRESETS
from jaxllm.storage import Storage

CHECKPOINTS = "checkpoints"
CONFIG = "config.toml"
TOKENIZER = "tokenizer"
REPORT = "report.html"


def read_config(run: Storage) -> Experiment | None:
    """The experiment that a run was last asked for; None where no run is.

    Raises:
        ValueError: config.toml holds no experiment.
    """
    try:
        content = run.read(CONFIG)
    except (FileNotFoundError, NotADirectoryError):
        return None
    where = f"{run}/{CONFIG}"
    tree = read_toml(content, where)
    try:
        return load(tree, presets=PRESETS)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
