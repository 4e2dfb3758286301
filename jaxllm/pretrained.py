"""Trained models, to compute with: a run's newest checkpoint, or a directory in Hugging Face's format."""

import contextlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxllm import mesh_sizes
from jaxllm.config import AXES, HuggingFaceTokenizer, MeshConfig, ModelConfig, SentencePieceTokenizer
from jaxllm.data.store import find_tokenizer
from jaxllm.data.tokenizer import HuggingFace, SentencePiece, Tokenizer, from_files, load_tokenizer
from jaxllm.layers.param import Recipe, Tree
from jaxllm.models.decoder import Decoder, Output, merge
from jaxllm.sharding import make_mesh, make_rules, num_shards
from jaxllm.storage import Place, is_url, open_storage
from jaxllm.train.directory import CONFIG, DTYPE, TOKENIZER
from jaxllm.train.initial import Origin, find_origin

logger = logging.getLogger("jaxllm")

HF_CONFIG = "config.json"
"""The file that a directory in Hugging Face's format has."""


class Model:
    """A trained decoder on a mesh; called with tokens, it gives logits.

    Args:
        decoder: the declarations.
        params: arrays in their place, on the mesh.
        mesh: of the parameters.
        start: ids that a text begins with.
        stop: ids that end a text.
        context_length: tokens that it was trained to see; 0 where nobody says.
    """

    def __init__(
        self,
        decoder: Decoder,
        params: Tree,
        mesh: Mesh,
        start: tuple[int, ...] = (),
        stop: frozenset[int] = frozenset(),
        context_length: int = 0,
    ) -> None:
        self.decoder, self.params, self.mesh = decoder, params, mesh
        self.start, self.stop, self.context_length = start, stop, context_length
        self._forward = jax.jit(self._forward_call, static_argnames="num_rows")

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        return self.decoder.config

    def __call__(self, tokens: ArrayLike) -> Output:
        """Logits of every position: int[B, T] -> `.logits`, float32[B, T, V].

        Raises:
            ValueError: an id is not of the vocabulary.
        """
        tokens_BT = np.asarray(tokens, np.int32)
        if tokens_BT.size and not 0 <= tokens_BT.min() <= tokens_BT.max() < self.config.vocab_size:
            raise ValueError(f"tokens: ids must be from 0 to {self.config.vocab_size - 1}, the model's vocabulary")
        with jax.set_mesh(self.mesh):
            more = -len(tokens_BT) % num_shards()  # the mesh wants as many rows on each device
            return self._forward(self.params, np.pad(tokens_BT, ((0, more), (0, 0))), num_rows=len(tokens_BT))

    def _forward_call(self, params: Tree, tokens_BT: jax.Array, num_rows: int) -> Output:
        lay = self.decoder.recipe.rules.activation
        logits_BTV = merge(self.decoder, params)(jax.reshard(tokens_BT, lay("batch", "sequence"))).logits
        if num_rows < len(tokens_BT):
            logits_BTV = jax.reshard(logits_BTV, lay(None, "sequence", "vocab"))[:num_rows]
        return Output(logits_BTV)


def load_pretrained(path: Place, mesh: Mesh | Mapping[str, int] | None = None) -> tuple[Model, Tokenizer | None]:
    """A trained model and its tokenizer.

    Args:
        path: a run, which may be a URL: its newest checkpoint; or a directory in Hugging Face's format.
        mesh: devices: a mesh, or sizes by axis, such as {"tensor": 4}, the others 1. By default tensor, over as many
            devices as divide the model.

    Returns:
        The model, its parameters in the dtype that it computes in; and the tokenizer, None where there is none.

    Raises:
        ValueError: one sentence: there is no model, it is damaged, or it does not fit the mesh.
    """
    if not is_url(path) and (Path(path) / HF_CONFIG).is_file():
        return _from_hugging_face(Path(path), mesh)
    storage = open_storage(path)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        storage.read(CONFIG, size=1)
        return _from_run(find_origin(str(path), path, logger.warning), mesh)
    raise ValueError(
        f"{path}: there is neither a run, with {CONFIG}, nor a Hugging Face model, with {HF_CONFIG}; name a directory "
        "such as runs/quickstart"
    )


def _from_run(origin: Origin, mesh: Mesh | Mapping[str, int] | None) -> tuple[Model, Tokenizer | None]:
    experiment = origin.experiment
    if experiment.tune.lora:
        raise ValueError(
            f"{origin.directory}: its checkpoints hold adapters only; merge them first, with: "
            f"jaxllm merge {origin.directory} {origin.directory}-merged"
        )
    # as it was trained; what was only imported, as the directory that it came from
    dtype = origin.newest.extra.get(DTYPE, experiment.train.precision.compute)
    model = _on_any_platform(origin.model)
    devices = _mesh(mesh, model)
    decoder = Decoder(model, _recipe(devices, dtype))
    with jax.set_mesh(devices):
        params, meta = origin.read(decoder, devices, dtype)
    tokenizer = _tokenizer_of(origin, meta.extra.get("tokenizer"))
    ends = () if tokenizer is None else (tokenizer.eos_id,)
    length = max(phase.sequence_length for phase in experiment.data.phases)
    # documents follow each other, so that to a model one begins behind the end of another
    return Model(decoder, params, devices, ends, frozenset(ends), length), tokenizer


def _tokenizer_of(origin: Origin, digest: str | None) -> Tokenizer | None:
    """The tokenizer that a run was trained with, its own copy or its store's; None, with a sentence, without either."""
    names = origin.storage.list(f"{TOKENIZER}/")
    if names:
        files = {name.removeprefix(f"{TOKENIZER}/"): origin.storage.read(name) for name in names}
        found = from_files(files, f"{origin.directory}/{TOKENIZER}")
    else:
        found = find_tokenizer(origin.experiment.data)
    if found is not None and digest in (None, found.digest):
        return found
    why = "the store that it was in is gone" if found is None else "the one that is there is another"
    logger.warning("%s: its tokenizer is not to be found, %s; it takes and gives token ids only", origin.directory, why)
    return None


def _from_hugging_face(directory: Path, mesh: Mesh | Mapping[str, int] | None) -> tuple[Model, Tokenizer | None]:
    from jaxllm.hf import config as configs
    from jaxllm.hf.load import load_tensors
    from jaxllm.hf.safetensors import open_tensors

    found, tensors = configs.read(directory), open_tensors(directory)
    devices = _mesh(mesh, found.model)
    recipe = _recipe(devices, found.dtype or tensors.dtype)
    with jax.set_mesh(devices):
        params = load_tensors(tensors, recipe, found.model)
    tokenizer, start = _tokenizer_beside(directory, found.ids("bos_token_id"))
    stop = configs.ends(directory, found) | (set() if tokenizer is None else {tokenizer.eos_id})
    return Model(Decoder(found.model, recipe), params, devices, start, stop, found.context_length), tokenizer


def _tokenizer_beside(directory: Path, begin: tuple[int, ...]) -> tuple[Tokenizer | None, tuple[int, ...]]:
    """The tokenizer in a directory of Hugging Face's, and the ids that a text begins with.

    Args:
        directory: of the model.
        begin: what its config says of that.
    """
    if (path := directory / HuggingFace.FILE).exists():
        import tokenizers

        found = load_tokenizer(HuggingFaceTokenizer(path=str(directory)))
        # what it puts around no text at all: in decoders the beginning, where there is one
        return found, tuple(tokenizers.Tokenizer.from_file(str(path)).encode("", add_special_tokens=True).ids[:1])
    if (path := directory / SentencePiece.FILE).exists():
        from jaxllm.hf.config import read_tree

        about = read_tree(directory, HuggingFace.CONFIG) if (directory / HuggingFace.CONFIG).exists() else {}
        begins = about.get("add_bos_token", True)
        return load_tokenizer(SentencePieceTokenizer(path=str(path))), begin if begins else ()
    return None, ()


def _recipe(mesh: Mesh, dtype: str) -> Recipe:
    return Recipe(make_rules(MeshConfig(), dict(mesh.shape)), parameters=dtype, compute=dtype, reduction=dtype)


def _mesh(mesh: Mesh | Mapping[str, int] | None, model: ModelConfig) -> Mesh:
    if mesh is None:
        sizes = [(block.attention.kv_heads, block.mlp.d_ff) for block in model.blocks]
        mesh = {"tensor": math.gcd(jax.device_count(), model.vocab_size, *(size for both in sizes for size in both))}
    if not isinstance(mesh, Mesh):
        if unknown := sorted(set(mesh) - set(AXES)):
            raise ValueError(f"mesh.{unknown[0]}: there is no such axis; use {', '.join(AXES)}")
        config = msgspec.convert({"fsdp": 1, **mesh}, MeshConfig)
        count = jax.device_count() if -1 in config.shape else math.prod(config.shape)
        mesh = make_mesh(config, jax.devices()[:count])
    mesh_sizes.check_model(model, dict(mesh.shape))
    return mesh


def _on_any_platform(model: ModelConfig) -> ModelConfig:
    """The model with each platform's own kernel, whichever it was trained with."""
    replace = msgspec.structs.replace

    def free(block: Any) -> Any:
        return replace(block, attention=replace(block.attention, kernel="auto"))

    return replace(free(model), prefix=tuple(map(free, model.prefix)), period=tuple(map(free, model.period)))
