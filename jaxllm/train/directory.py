"""The names in a run's directory, and its config read back."""

from jaxllm.config import ConfigError, Experiment, load, read_toml
from jaxllm.models import PRESETS
from jaxllm.storage import Storage, open_storage

CHECKPOINTS = "checkpoints"
CONFIG = "config.toml"
TOKENIZER = "tokenizer"
CARRIED = "huggingface"
"""Where a run that was imported keeps the files that came with its model, and its config.json."""
DTYPE = "huggingface_dtype"
"""What an imported checkpoint's `extra` calls the dtype that its tensors had."""
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


def carried(run: Storage, experiment: Experiment) -> dict[str, bytes]:
    """The files that came with the Hugging Face model that a run is, or started from; none where it did not.

    Args:
        run: its directory.
        experiment: what it trained.
    """
    names = run.list(f"{CARRIED}/")
    if names:
        return {name.removeprefix(f"{CARRIED}/"): run.read(name) for name in names}
    if not experiment.run.init_from:
        return {}
    origin = open_storage(experiment.run.init_from, "run.init_from")
    before = read_config(origin)
    return {} if before is None else carried(origin, before)
