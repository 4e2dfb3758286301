"""Hugging Face models as runs, and runs as Hugging Face models.

An imported run is one checkpoint, without an optimizer's state: what `run.init_from` starts from. Beside it, under
`huggingface/`, lie the files that came with the model: its config.json and its tokenizer's. They go along when a run
that began there is exported.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import msgspec

from jaxllm.config import (
    DataConfig,
    Experiment,
    HuggingFaceTokenizer,
    MeshConfig,
    ModelConfig,
    PhaseConfig,
    PrecisionConfig,
    RunConfig,
    SentencePieceTokenizer,
    TrainConfig,
)
from jaxllm.data.hub import fetch
from jaxllm.data.store import find_tokenizer
from jaxllm.data.tokenizer import HuggingFace, SentencePiece, Tokenizer, load_tokenizer
from jaxllm.hf import config as configs
from jaxllm.hf.load import load_tensors, match
from jaxllm.hf.safetensors import Tensors, open_tensors
from jaxllm.hf.save import check_target, save
from jaxllm.layers.param import Recipe
from jaxllm.models.decoder import Decoder
from jaxllm.sharding import make_mesh, make_rules
from jaxllm.storage import Place, Storage, is_url, open_storage
from jaxllm.train.directory import CARRIED, DTYPE, TOKENIZER, carried
from jaxllm.train.initial import Origin, find_origin
from jaxllm.tune.merge import begun, write

FILES = (
    configs.CONFIG,
    "generation_config.json",
    HuggingFace.FILE,
    HuggingFace.CONFIG,
    SentencePiece.FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that are carried along with a model."""

UNSAID = 2048
"""Tokens of a sequence of an imported run, of a model that does not say how many it attends over."""


def import_model(model: str, out: Place, say: Callable[[str], None] = print) -> str:
    """Write a Hugging Face model as a run whose parameters `run.init_from` can name.

    Uses as many devices as divide the model's width.

    Args:
        model: its directory, or `hf://OWNER/NAME`.
        out: directory of the new run.
        say: is told what is left out.

    Returns:
        What was imported, for people.

    Raises:
        ValueError: one sentence, when it is no whole model that jaxllm computes, or `out` holds something.
        OSError: it could not be written.
    """
    directory = fetch(model, "HF_DIR", [*FILES, "*.safetensors", "*.safetensors.index.json"])
    described, tensors = configs.read(directory), open_tensors(directory)
    config = described.model
    match(tensors, config)
    storage = open_storage(out)
    if Path(out).is_file() or storage.list():
        raise ValueError(f"{out} is not empty; name a new directory")
    dtype, tokenizer = tensors.dtype, _tokenizer(Path(directory), say)
    experiment = _experiment(directory, described, dtype, str(out), tokenizer)
    mesh, recipe = _recipe(config, experiment.train.precision.parameters)
    files = {f"{CARRIED}/{name}": Path(directory) / name for name in FILES if (Path(directory) / name).is_file()}
    extra = {DTYPE: dtype} | ({} if tokenizer is None else {"tokenizer": tokenizer.digest})
    try:
        for name, path in files.items():
            storage.write(name, path.read_bytes())
        for name, content in () if tokenizer is None else tokenizer.files.items():
            storage.write(f"{TOKENIZER}/{name}", content)
        with jax.set_mesh(mesh):
            write(storage, experiment, begun(load_tensors(tensors, recipe, config), 0, 0), 0, extra, say)
    except BaseException:
        _clear(storage, out)
        raise
    return f"{config.family}, {_values(tensors):,} parameters in {dtype}"


def _values(tensors: Tensors) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _clear(storage: Storage, out: Place) -> None:
    """Take back what was written of a run."""
    for name in storage.list():
        storage.remove(name)
    if not is_url(out):
        with contextlib.suppress(OSError):
            Path(out).expanduser().rmdir()


def _recipe(config: ModelConfig, dtype: str) -> tuple[jax.sharding.Mesh, Recipe]:
    num_devices = math.gcd(jax.device_count(), config.d_model)
    mesh = make_mesh(MeshConfig(fsdp=num_devices), jax.devices()[:num_devices])
    return mesh, Recipe(make_rules(MeshConfig(), dict(mesh.shape)), parameters=dtype)


def _experiment(
    directory: str, described: configs.Description, dtype: str, out: str, tokenizer: Tokenizer | None
) -> Experiment:
    """What the run says that it trained."""
    length = described.context_length or UNSAID
    chosen: dict[str, Any] = {}
    if tokenizer is not None:
        # the run's own copy, where it lies on a disk
        place = Path(directory) if is_url(out) else Path(out).resolve() / CARRIED
        own = SentencePieceTokenizer(path=str(place / SentencePiece.FILE)), HuggingFaceTokenizer(path=str(place))
        chosen["tokenizer"] = own[isinstance(tokenizer, HuggingFace)]
    return Experiment(
        run=RunConfig(name=Path(out).resolve().name),
        model=described.model,
        data=DataConfig(phases=(PhaseConfig(sequence_length=length, batch_size=1, steps=1),), **chosen),
        train=TrainConfig(precision=PrecisionConfig(parameters="bfloat16" if dtype == "bfloat16" else "float32")),
    )


def _tokenizer(directory: Path, say: Callable[[str], None]) -> Tokenizer | None:
    """The tokenizer that came with a model."""
    try:
        if (directory / HuggingFace.FILE).is_file():
            return load_tokenizer(HuggingFaceTokenizer(path=str(directory)))
        if (directory / SentencePiece.FILE).is_file():
            return load_tokenizer(SentencePieceTokenizer(path=str(directory / SentencePiece.FILE)))
    except ValueError as error:
        say(f"{error}; the model comes without its tokenizer")
        return None
    say(f"{directory}: there is no tokenizer; name the model's own where you train it on")
    return None


def export_run(run: Place, out: Place, dtype: str | None = None, say: Callable[[str], None] = print) -> str:
    """Write a run's newest parameters as a directory that transformers loads.

    Uses as many devices as divide the model's width.

    Args:
        run: directory of the run.
        out: a new directory.
        dtype: of the tensors; by default what those of an imported model had, else the run's parameters have.
        say: is told what is left out.

    Returns:
        What was exported, for people.

    Raises:
        ValueError: one sentence, when there is no such run, it has adapters, Hugging Face's models of its family are
            others, or `out` holds something.
        OSError: it could not be written.
    """
    origin = find_origin(str(run), run, say)
    if origin.experiment.tune.lora:
        raise ValueError(
            f"{run}: its checkpoints hold adapters only; merge them first, with: jaxllm merge {run} {run}-merged"
        )
    check_target(out)
    model, own = origin.model, origin.experiment.train.precision.parameters
    files = carried(origin.storage, origin.experiment)
    came = _described(files.pop(configs.CONFIG, None), str(origin.directory))
    files = files or _tokenizer_files(origin, say)
    # absent ones would be numbers of the family's class in transformers, which other vocabularies lack
    ids: Mapping[str, Any] = dict.fromkeys(configs.TOKEN_IDS) if came is None else came.token_ids
    lengths = [phase.sequence_length for phase in origin.experiment.data.phases]
    length = max([*lengths, 0 if came is None else came.context_length])
    configs.write_tree(model, length)  # refuses before anything is read
    mesh, recipe = _recipe(model, own)
    with jax.set_mesh(mesh):
        params, meta = origin.read(Decoder(model, recipe), mesh, own)
        chosen = dtype or str(meta.extra.get(DTYPE, own))
        save(out, model, params, dtype=chosen, length=length, files=files, keys=ids)
    return f"{model.family}, step {meta.step} of {run} in {chosen}"


def _described(content: bytes | None, run: str) -> configs.Description | None:
    """What the config.json that came with a model says; None where none came."""
    if content is None:
        return None
    return configs.describe(msgspec.json.decode(content, type=dict[str, Any]), f"{run}/{CARRIED}/{configs.CONFIG}")


def _tokenizer_files(origin: Origin, say: Callable[[str], None]) -> dict[str, bytes]:
    """The files of the tokenizer that a run was trained with, as far as transformers knows such."""
    names = origin.storage.list(f"{TOKENIZER}/")
    if names:
        files = {name.removeprefix(f"{TOKENIZER}/"): origin.storage.read(name) for name in names}
    else:
        found = find_tokenizer(origin.experiment.data)
        files = {} if found is None else dict(found.files)
    known = {name: content for name, content in files.items() if name in FILES}
    if not known:
        say(f"{origin.directory}: exported without a tokenizer; it has none that transformers knows")
    return known
