"""`jaxllm import` makes a run to start from, `jaxllm export` a directory of one; mistakes leave nothing behind."""

import json
import shutil

import jax
import msgspec
import numpy as np
import pytest
from parity import GOLDEN
from test_hf_roundtrip import contents
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxllm.cli import main
from jaxllm.config import HuggingFaceTokenizer, LoRAConfig, TuneConfig, dump, resolved
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.hf.config import effective, read_tree
from jaxllm.pretrained import load_pretrained
from jaxllm.storage import LocalStorage
from jaxllm.train.directory import read_config
from jaxllm.train.initial import open_origin


def command(*words):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return ended.value.code


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of float16 with a tokenizer."""
    directory = shutil.copytree(GOLDEN / "mistral/head_dim_float16", tmp_path_factory.mktemp("model") / "here")
    words = {"</s>": 0, "one": 1, "two": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (directory / "generation_config.json").write_text('{"eos_token_id": 2}')
    return directory


@pytest.fixture(scope="module")
def run(model):
    assert command("import", model, model.with_name("run")) == 0
    return model.with_name("run")


def test_an_imported_run_is_what_another_starts_from(model, run, capsys):
    experiment = read_config(LocalStorage(run))
    assert experiment is not None and experiment.data.phases[0].sequence_length == 64
    assert experiment.data.tokenizer == HuggingFaceTokenizer(path=str(run / "huggingface"))
    new = msgspec.structs.replace(experiment, run=msgspec.structs.replace(experiment.run, init_from=str(run)))
    said = []
    digest = load_tokenizer(HuggingFaceTokenizer(path=str(model))).digest
    origin = open_origin(new, experiment.model, digest, said.append)
    assert origin is not None and origin.newest.step == 0 and said == []
    assert load_tokenizer(experiment.data.tokenizer).digest == digest


def test_an_imported_run_computes_what_the_directory_that_it_came_from_does(model, run):
    ours, theirs = (load_pretrained(path)[0] for path in (run, model))
    assert effective(ours.config) == effective(theirs.config)
    assert ours.decoder.recipe == theirs.decoder.recipe and ours.decoder.recipe.compute == "float16"
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), ours.params, theirs.params)
    )


@pytest.mark.parametrize("dtype", ["float8", 8, ["float32"]])
def test_a_dtype_that_is_none_is_named(model, tmp_path, dtype):
    there = shutil.copytree(model, tmp_path / "there")
    keys = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps(keys | {"dtype": dtype}))
    with pytest.raises(ValueError, match=r"config.json: dtype = .*: write one of float32, bfloat16, float16"):
        load_pretrained(there)


def test_an_export_of_an_import_is_the_same_model(model, run):
    out = run.with_name("out")
    assert command("export", run, out) == 0
    assert contents(out) == contents(model)
    kept = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    assert all((out / name).read_bytes() == (model / name).read_bytes() for name in kept)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [read_tree(out)[name] for name in ids] == [read_tree(model)[name] for name in ids]
    assert command("export", run, run.with_name("wide"), "--dtype", "float32") == 0
    assert {dtype for dtype, _ in contents(run.with_name("wide")).values()} == {"F32"}


def test_mistakes_are_one_sentence_and_leave_nothing(model, run, tmp_path, capsys):
    broken = shutil.copytree(model, tmp_path / "broken")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-6])
    for words, sentence in (
        (("import", broken, tmp_path / "out"), f"{file}: tensor"),
        (("import", tmp_path / "none", tmp_path / "out"), "there is no config.json"),
        (("import", model, run), "is not empty; name a new directory"),
        (("import", model), "the following arguments are required: OUT"),
        (("export", run, model), "is not empty; name a new directory"),
        (("export", model, tmp_path / "out"), "it holds no run, for it has no config.toml"),
        (("export", run, "gs://bucket/out"), "transformers reads local directories; name one"),
        (("export", run, tmp_path / "out", "--dtype", "int8"), "invalid choice: 'int8'"),
    ):
        assert command(*words) == 2
        error = capsys.readouterr().err
        assert sentence in error and "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} == {"broken"}


def test_adapters_are_to_be_merged_before_they_are_exported(run, tmp_path, capsys):
    tuned = shutil.copytree(run, tmp_path / "tuned")
    experiment = read_config(LocalStorage(run))
    assert experiment is not None
    replace = msgspec.structs.replace
    lora = replace(
        experiment, run=replace(experiment.run, init_from=str(run)), tune=TuneConfig(lora=LoRAConfig(rank=2))
    )
    (tuned / "config.toml").write_text(dump(resolved(lora)))
    assert command("export", tuned, tmp_path / "out") == 2
    assert f"merge them first, with: jaxllm merge {tuned} {tuned}-merged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failure_while_a_run_is_written_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr("jaxllm.convert.write", fail)
    assert command("import", model, tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()
    assert json.loads((model / "generation_config.json").read_text()) == {"eos_token_id": 2}
