"""`jaxllm generate` and `load_pretrained` on a run that only looks trained, and every mistake on the way."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

import jaxllm
from jaxllm import cli
from jaxllm.config import dump, load, resolved
from jaxllm.data.tokenizer import Bytes
from jaxllm.layers.param import leaves
from jaxllm.storage import LocalStorage
from jaxllm.train.checkpoints import Checkpoints
from tests.train.saved import ONE, make_state

CONFIG = {
    "model": {
        "vocab_size": 384,
        "d_model": 32,
        "num_layers": 1,
        "attention": {"num_heads": 4, "num_kv_heads": 2, "window": 6, "kernel": "splash"},
        "mlp": {"d_ff": 64},
        "learned_positions": 48,
        "initializer_std": 0.3,
    },
    "data": {
        "tokenizer": {"type": "bytes"},
        "sources": [{"path": "gone.txt"}],
        "phases": [{"sequence_length": 48, "batch_size": 8, "steps": 8}],
    },
    "train": {"precision": {"compute": "float32"}},
    "run": {"name": "bytes"},
}
"""A kernel that is not there on this platform does not matter to what was trained with it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A finished run with random parameters, whose store is gone; commands compile the same programs once."""
    place, experiment = tmp_path_factory.mktemp("runs") / "bytes", load(CONFIG)
    params = jax.tree.map(
        lambda x: jax.device_put(x, jax.NamedSharding(ONE, jax.P())), tiny.make_params(experiment.model)
    )
    state = dataclasses.replace(make_state(8), params=params, optimizer={})
    checkpoints = Checkpoints(LocalStorage(place / "checkpoints"), experiment.model, experiment.checkpoint)
    with jax.set_mesh(ONE):
        checkpoints.save(state, 8, 0, 64, {"tokenizer": Bytes().digest})
    checkpoints.wait()
    (place / "config.toml").write_text(dump(resolved(experiment)))
    Bytes().save(place / "tokenizer")
    cached = {"jax_compilation_cache_dir": str(place / "compiled"), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in cached}
    for name, value in cached.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield place
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def generate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """What the command printed, and what it said beside it."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", *map(str, arguments), "--mesh.tensor", "1"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    return out, err


def sentence(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command complains with."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", *map(str, arguments), *([] if "--mesh" in str(arguments) else ["--mesh.tensor", "1"])])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "", err
    assert err.count("\n") == 1 and err.startswith("jaxllm: "), err
    return err


def test_prompts_are_gone_on_from_and_seeds_decide(run, capsys):
    arguments = (run, "--prompt", "é", "--prompt", "abc ", "--max-tokens", 8)
    out, err = generate(capsys, *arguments)
    first, second = out.rstrip("\n").split("\n\n")
    assert first.startswith("é") and second.startswith("abc ") and len(second) > 6
    assert " tokens of 2 texts; the first in " in err and "tokens/s" in err
    assert generate(capsys, *arguments, "--seed", 1)[0] != out


def test_a_model_on_a_mesh_says_what_the_command_prints(run, tmp_path, capsys, caplog):
    """A run whose tokenizer is gone takes and gives ids; they are the likeliest of the model that is loaded."""
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("tokenizer", "compiled"))
    out, _ = generate(capsys, bare, "--ids", "256,97", "--max-tokens", 3, "--temperature", 0)
    assert "its tokenizer is not to be found, the store that it was in is gone" in caplog.text
    ids = [int(one) for one in out.split(",")]
    assert ids[:2] == [256, 97] and len(ids) == 5
    assert "it has no tokenizer; give token ids" in sentence(capsys, bare, "--prompt", "a")

    model, tokenizer = jaxllm.load_pretrained(run, {"fsdp": 2, "tensor": 2})
    assert isinstance(tokenizer, Bytes) and (model.start, model.stop) == ((256,), {256})
    assert model.context_length == 48
    for (name, found), (_, wanted) in zip(leaves(model.params), leaves(tiny.make_params(model.config)), strict=True):
        np.testing.assert_array_equal(found, wanted, name)
    assert model.params["period"]["0"]["mlp"]["up"].addressable_shards[0].data.shape == (1, 16, 32)
    logits = np.asarray(model([ids]).logits)
    assert logits.shape == (1, 5, 384) and logits.dtype == "float32"
    assert np.argmax(logits[0, 1:4], axis=-1).tolist() == ids[2:]
    with pytest.raises(ValueError, match="ids must be from 0 to 383"):
        model([[384]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["give a prompt", "--prompt"]),
        (["--prompt", ""], ["--prompt", "empty"]),
        (["--prompt", "a", "--ids", "1"], ["--prompt and --ids"]),
        (["--prompt", "a" * 48], ["the prompt has 49 tokens", "48", "shorten"]),
        (["--prompt", "a" * 30], ["128 tokens behind a prompt of 31", "at most 18"]),
        (["--ids", "1,384"], ["token id 384"]),
        (["--prompt", "a", "--max-tokens", "0"], ["--max-tokens = 0"]),
        (["--prompt", "a", "--top-p", "0"], ["top_p = 0"]),
        (["--prompt", "a", "--mesh.tensor", "4"], ["mesh.tensor = 4", "num_kv_heads = 2"]),
        (["--prompt", "a", "--mesh.tensors", "2"], ["mesh.tensors", "no such axis"]),
        (["--prompt", "a", "--mesh.tensor", "two"], ["--mesh.tensor", "'two'"]),
        (["--prompt", "a", "--model.d_model", "2"], ["--model.d_model", "--mesh.AXIS"]),
        (["--prompt", "a", "--fast"], ["--fast"]),
    ],
)
def test_a_mistake_gets_one_sentence(run, arguments, words, capsys):
    err = sentence(capsys, run, *arguments)
    assert all(word in err for word in words), err


def test_what_is_no_model_is_refused(run, tmp_path, capsys):
    for place in (tmp_path, tmp_path / "nowhere", run / "config.toml"):
        assert "neither a run, with config.toml, nor a Hugging Face" in sentence(capsys, place, "--prompt", "a")
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    shutil.copy(run / "config.toml", untrained)
    assert "no finished checkpoint" in sentence(capsys, untrained, "--prompt", "a")
    adapters = json.loads(json.dumps(CONFIG)) | {"tune": {"lora": {"rank": 2}}}
    adapters["run"]["init_from"] = str(run)
    tuned = tmp_path / "tuned"
    shutil.copytree(run, tuned)
    (tuned / "config.toml").write_text(dump(resolved(load(adapters))))
    assert "merge them first" in sentence(capsys, tuned, "--prompt", "a")
