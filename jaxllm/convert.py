"""Hugging Face models as runs, and runs as Hugging Face models.

An imported run is one checkpoint, without an optimizer's state: what `run.init_from` starts from. Beside it, under
`huggingface/`, lie the files that came with the model: its config.json and its tokenizer's. They go along when a run
that began there is exported.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import msgspec

from jaxllm.config import (
    BytesTokenizer,
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
from jaxllm.data.store import open_store
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.hf import config as configs
from jaxllm.hf.load import load_tensors, match, read_config
from jaxllm.hf.safetensors import DTYPES, Tensors, open_tensors
from jaxllm.hf.save import check_target, save
from jaxllm.layers.param import Recipe
from jaxllm.models.decoder import Decoder
from jaxllm.sharding import make_mesh, make_rules
from jaxllm.storage import Place, Storage, open_storage
from jaxllm.train.directory import CARRIED, carried
from jaxllm.train.initial import Origin, find_origin
from jaxllm.tune.merge import begun, write

FILES = (
    configs.CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that are carried along with a model."""

DTYPE = "huggingface_dtype"
"""What an imported checkpoint's `extra` calls the dtype that its tensors had."""


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
    config, tensors = read_config(directory), open_tensors(directory)
    match(tensors, config)
    storage = open_storage(out)
    if Path(out).is_file() or storage.list():
        raise ValueError(f"{out} is not empty; name a new directory")
    dtype = _dtype(tensors)
    experiment, extra = _experiment(directory, config, dtype, str(out), say)
    mesh, recipe = _recipe(config, experiment.train.precision.parameters)
    try:
        for name in FILES:
            if (Path(directory) / name).is_file():
                storage.write(f"{CARRIED}/{name}", (Path(directory) / name).read_bytes())
        with jax.set_mesh(mesh):
            state = begun(load_tensors(tensors, recipe, config), 0, 0)
            write(storage, experiment, state, 0, {**extra, DTYPE: dtype}, say)
    except BaseException:
        _clear(storage)
        raise
    return f"{config.family}, {_values(tensors):,} parameters in {dtype}"


def _values(tensors: Tensors) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _dtype(tensors: Tensors) -> str:
    """The dtype that most values have."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    found = {code: size for code, size in sizes.items() if code in DTYPES}
    return str(DTYPES[max(found, key=lambda code: found[code])])


def _clear(storage: Storage) -> None:
    for name in storage.list():
        storage.remove(name)


def _recipe(config: ModelConfig, dtype: str) -> tuple[jax.sharding.Mesh, Recipe]:
    num_devices = math.gcd(jax.device_count(), config.d_model)
    mesh = make_mesh(MeshConfig(fsdp=num_devices), jax.devices()[:num_devices])
    return mesh, Recipe(make_rules(MeshConfig(), dict(mesh.shape)), parameters=dtype)


def _experiment(
    directory: str, config: ModelConfig, dtype: str, out: str, say: Callable[[str], None]
) -> tuple[Experiment, dict[str, Any]]:
    """What the run says that it trained, and what its checkpoint says of the tokenizer."""
    tokenizer, extra = _tokenizer(directory, say)
    data: dict[str, Any] = {}
    if tokenizer is not None:
        # the run's own copy, where it lies on a disk
        place = directory if "://" in out else f"{Path(out).resolve()}/{CARRIED}"
        named = Path(tokenizer.path).name if isinstance(tokenizer, SentencePieceTokenizer) else ""
        data["tokenizer"] = msgspec.structs.replace(tokenizer, path=f"{place}/{named}".rstrip("/"))
    length = configs.max_positions(configs.read_tree(directory))
    experiment = Experiment(
        run=RunConfig(name=Path(out).resolve().name),
        model=config,
        data=DataConfig(phases=(PhaseConfig(sequence_length=length, batch_size=1, steps=1),), **data),
        train=TrainConfig(precision=PrecisionConfig(parameters="bfloat16" if dtype == "bfloat16" else "float32")),
    )
    return experiment, extra


def _tokenizer(
    directory: str, say: Callable[[str], None]
) -> tuple[HuggingFaceTokenizer | SentencePieceTokenizer | None, dict[str, Any]]:
    """The tokenizer that came with a model, and how checkpoints name it."""
    place = Path(directory)
    found: HuggingFaceTokenizer | SentencePieceTokenizer | None = None
    if (place / "tokenizer.json").is_file():
        found = HuggingFaceTokenizer(path=directory)
    elif (place / "tokenizer.model").is_file():
        found = SentencePieceTokenizer(path=str(place / "tokenizer.model"))
    if found is None:
        say(f"{directory}: there is no tokenizer; name the model's own where you train it on")
        return None, {}
    try:
        return found, {"tokenizer": load_tokenizer(found).digest}
    except ValueError as error:
        say(f"{error}; the model comes without its tokenizer")
        return None, {}


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
    came = msgspec.json.decode(files.pop(configs.CONFIG, b"{}"), type=dict[str, Any])
    files, keys = files or _tokenizer_files(origin, say), _token_ids(came)
    lengths = [phase.sequence_length for phase in origin.experiment.data.phases]
    length = max(lengths + ([configs.max_positions(came)] if came else []))
    configs.write_tree(model, length)  # refuses before anything is read
    mesh, recipe = _recipe(model, own)
    with jax.set_mesh(mesh):
        params, meta = origin.read(Decoder(model, recipe), mesh, own)
        chosen = dtype or str(meta.extra.get(DTYPE, own))
        save(out, model, params, dtype=chosen, length=length, files=files, keys=keys)
    return f"{model.family}, step {meta.step} of {run} in {chosen}"


def _token_ids(came: dict[str, Any]) -> dict[str, Any]:
    """Keys of the special tokens: those that came with the model, else none.

    Where they are absent a family's class in transformers takes numbers of its own, which other vocabularies lack.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    inner = came.get("text_config")
    came = {**came, **inner} if isinstance(inner, dict) else came
    return {name: came.get(name) for name in names}


def _tokenizer_files(origin: Origin, say: Callable[[str], None]) -> dict[str, bytes]:
    """The files of the tokenizer that a run was trained with."""
    if isinstance(origin.experiment.data.tokenizer, BytesTokenizer):
        return {}
    try:
        return dict(open_store(origin.experiment.data).tokenizer.files)
    except (ValueError, OSError) as error:
        say(f"{origin.directory}: exported without a tokenizer, for its data are not here ({error})")
        return {}
