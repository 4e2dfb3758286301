"""A small corpus of two sources, split by document and inside documents."""

import pathlib

from jaxllm.config import BytesTokenizer, DataConfig, PhaseConfig, SourceConfig


def write_corpus(directory: pathlib.Path) -> None:
    """Sixty lines of poetry-like text, and three files."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [f"{number}: " + "the quick brown 狐 jumps\t" * (number % 7) for number in range(60)]
    (directory / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in "abc":
        (directory / "files").mkdir(exist_ok=True)
        (directory / "files" / f"{name}.py").write_text(
            f"def {name}(x):\n    return x + 1\n\n\n" * 20, encoding="utf-8"
        )


def make_config(directory: pathlib.Path, **fields) -> DataConfig:
    """A config over the small corpus; fields replace its own."""
    defaults = {
        "sources": (
            SourceConfig(path=str(directory / "lines.txt"), name="lines", documents="line"),
            SourceConfig(path=str(directory / "files"), name="files"),
        ),
        "tokenizer": BytesTokenizer(),
        "held_out_fraction": 0.1,
        "phases": (PhaseConfig(sequence_length=64, batch_size=4, steps=50),),
    }
    return DataConfig(**(defaults | fields))
