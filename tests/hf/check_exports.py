"""Whether transformers takes what jaxllm exports: without a word, with the same tensors and the same logits.

Environment: see `make_goldens.py`. Every directory with a `config.json` below EXPORTS is held against the one of the
same relative path below ORIGINALS (the golden files where none is given):

    python tests/hf/check_exports.py EXPORTS [ORIGINALS]

- no key of the weights is missing, unexpected or of another shape, and nothing is logged or warned of while loading,
  but for what transformers says of the original too;
- every tensor has the name, dtype, shape and bytes of the original's (of a tied head, transformers' name), an index of
  several files is right, and special tokens have the same ids;
- the logits are the original's to the last bit, also with padding, and also when only the keys of `config.json` are
  left that transformers 4 knew.

Prints a line a directory; exits with 1 where one of them fails.
"""

import json
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from make_goldens import GOLDEN, logits, pad, plain
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

NEW_KEYS = ("rope_parameters", "dtype")
LENGTH = 24


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main(exports: Path, originals: Path) -> int:
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    directories = sorted(file.parent for file in exports.rglob("config.json"))
    bad = 0
    for directory in directories:
        name = directory.relative_to(exports)
        complaints = check(directory, originals / name)
        bad += bool(complaints)
        print(f"{name}: {'; '.join(complaints) or 'as the original'}")
    print(f"{len(directories) - bad} of {len(directories)} are as the originals")
    return 1 if bad or not directories else 0


def check(exported: Path, original: Path) -> list[str]:
    """What is wrong with one directory."""
    right, usual = load(original)
    wanted = tensors(original)
    if right.config.tie_word_embeddings and "lm_head.weight" in wanted:
        embedding = right.get_input_embeddings().weight
        name = next(name for name, weight in right.named_parameters() if weight is embedding)
        wanted[name] = wanted.pop("lm_head.weight")
    complaints = differences(tensors(exported), wanted) + index_faults(exported)
    try:
        model, said = load(exported)
    except Exception as error:  # any failure of transformers is a finding, and the other directories are checked too
        return [*complaints, f"transformers refuses it: {type(error).__name__}: {error}"]
    complaints += [sentence for sentence in said if sentence not in usual]
    for place in ("config", "generation_config"):
        for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
            found, wanted = (getattr(getattr(which, place), field) for which in (model, right))
            if found != wanted:
                complaints.append(f"{field} of {place} is {found}, not {wanted}")
    tokens = inputs(original, right)
    complaints += unequal("logits", logits(model, tokens), logits(right, tokens))
    complaints += unequal("padded logits", logits(model, *pad(tokens)), logits(right, *pad(tokens)))
    return complaints + unequal("logits by old keys", logits(by_old_keys(exported), tokens), logits(right, tokens))


def load(directory: Path) -> tuple[PreTrainedModel, list[str]]:
    """The float32 model, and what was said about its keys or logged while it was loaded."""
    heard = Heard()
    transformers_logging.warning_once.cache_clear()
    logger = transformers_logging.get_logger("transformers")
    logger.addHandler(heard)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, info = AutoModelForCausalLM.from_pretrained(
                directory, **options(directory), output_loading_info=True
            )
    finally:
        logger.removeHandler(heard)
    said = [f"{kind}: {', '.join(map(str, sorted(keys)))}" for kind, keys in info.items() if keys]
    return model, said + heard.messages + [str(warning.message) for warning in caught]


def by_old_keys(directory: Path) -> PreTrainedModel:
    """The model where `config.json` has lost the keys that transformers 4 did not have."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in directory.glob("*.safetensors*"):
            shutil.copy(file, copy)
        config = json.loads((directory / "config.json").read_text())
        kept = {key: value for key, value in config.items() if key not in NEW_KEYS}
        (copy / "config.json").write_text(json.dumps(kept))
        return AutoModelForCausalLM.from_pretrained(copy, **options(copy))


def options(directory: Path) -> dict[str, Any]:
    """How the golden files were computed."""
    config = json.loads((directory / "config.json").read_text())
    return {**plain(config), "dtype": torch.float32}


def inputs(original: Path, model: PreTrainedModel) -> torch.Tensor:
    """The golden file's tokens, or random ones."""
    if (expected := original / "expected.safetensors").exists():
        return load_file(expected)["tokens"].long()
    torch.manual_seed(0)
    return torch.randint(3, AutoConfig.from_pretrained(original).vocab_size, (2, LENGTH))


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory's weights."""
    files = [file for file in directory.glob("*.safetensors") if file.name != "expected.safetensors"]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def differences(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    """Of names, dtypes, shapes and bytes."""
    complaints = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    complaints += [f"{name} is not of the original" for name in found.keys() - wanted.keys()]
    for name in found.keys() & wanted.keys():
        one, other = found[name], wanted[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            complaints.append(f"{name} is {one.dtype} {tuple(one.shape)}, not {other.dtype} {tuple(other.shape)}")
        elif not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            complaints.append(f"{name} has other bytes")
    return sorted(complaints)


def index_faults(directory: Path) -> list[str]:
    """Where `model.safetensors.index.json` is missing, or is wrong about tensors, files or bytes."""
    index, files = directory / "model.safetensors.index.json", sorted(directory.glob("model*.safetensors"))
    if [file.name for file in files] == ["model.safetensors"]:
        return ["an index beside a single file"] if index.exists() else []
    if not index.exists():
        return ["several files without an index"]
    held = {file.name: load_file(file) for file in files}
    said = json.loads(index.read_text())
    num_bytes = sum(tensor.nbytes for tensors in held.values() for tensor in tensors.values())
    faults = [] if said["metadata"]["total_size"] == num_bytes else [f"the index's total_size is not {num_bytes}"]
    if said["weight_map"] != {name: file for file, tensors in held.items() for name in tensors}:
        faults.append("the index's weight_map is not what the files hold")
    return faults


def unequal(what: str, found: torch.Tensor, wanted: torch.Tensor) -> list[str]:
    """A complaint unless they are equal."""
    return [] if torch.equal(found, wanted) else [f"{what} are off by {(found - wanted).abs().max():.1e}"]


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    if len(given) not in (1, 2):
        sys.exit(__doc__)
    sys.exit(main(given[0], given[1] if len(given) > 1 else GOLDEN))
