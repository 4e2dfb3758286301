"""One sentence for every kind of mistake: the field, the value, the fix."""

import datetime

import pytest

from jaxllm.config import ConfigError, load, load_tree

PRESETS = {"llama3-8b": {"d_model": 4096}, "llama3-70b": {"d_model": 8192}}


def sentence(*arguments, **keywords) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **keywords)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # unknown fields
        ({"mesh.tensr": 2}, "mesh.tensr = 2: unknown field; did you mean mesh.tensor?"),
        ({"trian.remat": "x"}, 'trian = {remat = "x"}: unknown field; did you mean train?'),
        ({"data.phases.0": {"stpes": 5}}, "data.phases.0.stpes = 5: unknown field; did you mean data.phases.0.steps?"),
        ({"mesh.seed": 4}, "mesh.seed = 4: unknown field here; it belongs to another section: run.seed or data.seed"),
        (
            {"model": {"num_heads": 4}},
            "model.num_heads = 4: unknown field here; it belongs to another section: model.attention.num_heads",
        ),
        (
            {"model.period": [{"num_heads": 4}]},
            "model.period.0.num_heads = 4: unknown field here; it belongs to another section: "
            "model.period.N.attention.num_heads",
        ),
        (
            {"optim.optimizer.momentum": "0.9"},
            'optim.optimizer.momentum = 0.9: unknown field of type "adamw"; '
            'it belongs to optim.optimizer.type = "muon"',
        ),
        ({"log.x": 1}, "log.x = 1: unknown field; log has interval, all_processes, loggers"),
        ({"log": {"a\nb": 1}}, 'log."a\\nb" = 1: unknown field; log has interval, all_processes, loggers'),
        (
            {"train.remat": "é\u2028\x7f"},
            'train.remat = "é\\u2028\\u007f": expected one of "block", "dots", "none", "offload"',
        ),
        ({"mesh.tensor.size": 2}, "mesh.tensor.size = 2: mesh.tensor is a whole number and has no fields"),
        (
            {"data.phases.first.steps": 2},
            "data.phases.first.steps = 2: data.phases is a list; give the number of an entry, as in data.phases.0",
        ),
        (
            {"data.phases.4.steps": 2},
            "data.phases.4.steps = 2: there is no such entry; the next free one is data.phases.1",
        ),
        # experts
        (
            {
                "model.period": [
                    {"mlp": {"d_ff": 8, "experts": {"num_experts": n, "experts_per_token": 2}}} for n in (4, 8)
                ]
            },
            "model.period.1.mlp.experts.num_experts = 8: another block has 4; use one number in all blocks that have "
            "experts",
        ),
        (
            {"model.mlp.experts": {"num_experts": 4, "experts_per_token": 5}},
            "model.mlp.experts.experts_per_token = 5: use 1 or more, and at most num_experts = 4",
        ),
        (
            {"model.mlp.experts": {"num_experts": 8, "experts_per_token": 2, "scores": "sigmoid", "num_groups": 3}},
            "model.mlp.experts.num_groups = 3: it must divide num_experts = 8; 1 means no groups",
        ),
        (
            {"model.mlp.experts": {"num_experts": 8, "experts_per_token": 2, "num_groups": 4}},
            "model.mlp.experts.num_groups = 4: groups are chosen by sigmoid scores; "
            'use scores = "sigmoid", or 1 for no groups',
        ),
        (
            {"train.loss.balance": 0.01},
            "train.loss.balance = 0.01: the model has no experts (model.mlp.experts); use 0",
        ),
        # wrong types
        ({"optim.learning_rate": "abc"}, 'optim.learning_rate = "abc": expected a number, got text'),
        (
            {"data": {"seed": "4"}},
            'data.seed = "4": expected a whole number, got text; write 4 without quotes',
        ),
        ({"mesh.tensor": 2.0}, "mesh.tensor = 2.0: expected a whole number, got a number with a point; write 2"),
        ({"mesh.tensor": "2.5"}, "mesh.tensor = 2.5: expected a whole number, got a number with a point"),
        ({"mesh.tensor": True}, "mesh.tensor = true: expected a whole number, got a truth value"),
        ({"train.unroll": "yes"}, 'train.unroll = "yes": expected true or false, got text'),
        ({"train.unroll": "true\na = 1"}, 'train.unroll = "true\\na = 1": expected true or false, got text'),
        ({"run.name": 123}, "run.name = 123: expected text, got a whole number; put it in quotes"),
        (
            {"run.name": datetime.date(2024, 1, 2)},
            "run.name = 2024-01-02: expected text, got a date; put it in quotes",
        ),
        ({"run.name": None}, "run.name = None: expected text, got nothing"),
        ({"log": 5}, "log = 5: expected a section ([log] with interval, all_processes, loggers), got a whole number"),
        ({"data.phases": [5]}, "data.phases.0 = 5: expected a section, got a whole number"),
        (
            {"data.phases": {"steps": 5}},
            "data.phases = {steps = 5}: expected a list of sections "
            "([[data.phases]] with sequence_length, batch_size, steps, tokens, mixture), got a section",
        ),
        (
            {"model.attention.rope.scaling": "linear"},
            'model.attention.rope.scaling = "linear": expected a section or "none" '
            "([model.attention.rope.scaling] with type), got text",
        ),
        (
            {"log.loggers": "wandb"},
            'log.loggers = "wandb": expected a list of "swanlab", "tensorboard", "wandb", got text; write ["wandb"]',
        ),
        # choices
        (
            {"train.remat": "blocks"},
            'train.remat = "blocks": expected one of "block", "dots", "none", "offload"; did you mean "block"?',
        ),
        ({"mesh.zero": "5"}, "mesh.zero = 5: expected one of 1, 2, 3"),
        (
            {"optim.optimizer.type": "adam"},
            'optim.optimizer.type = "adam": expected one of "adamw", "muon"; did you mean "adamw"?',
        ),
        (
            {"model.attention.rope.scaling.type": "ntk"},
            'model.attention.rope.scaling.type = "ntk": '
            'expected one of "llama3", "linear", "dynamic", "yarn", "longrope"',
        ),
        # what the sections themselves refuse
        ({"mesh.tensor": 0}, "mesh.tensor = 0: use a positive number, or -1 for whatever devices are left"),
        ({"data.phases.0.batch_size": 0}, "data.phases.0.batch_size = 0: use 1 or more"),
        ({"optim.optimizer.beta1": 1}, "optim.optimizer.beta1 = 1.0: use a number from 0 to 1, 1 excluded"),
        ({"optim.learning_rate": "nan"}, "optim.learning_rate = nan: use a finite number"),
        ({"train.loss.z_loss": float("inf")}, "train.loss.z_loss = inf: use a finite number"),
        ({"data.phases.0.steps": "1e40"}, f"data.phases.0.steps = {int(1e40)}: use a number of at most 64 bits"),
        ({"data.store": "a\0b"}, 'data.store = "a\\u0000b": leave out the character \\u0000'),
        (
            {"profile": {"start": 100, "steps": 2}},
            "profile.start = 100: the run has 3 steps, and none behind it to trace; use less",
        ),
        ({"run.seed": 2**32}, "run.seed = 4294967296: use 0 to 4294967295"),
        ({"run.name": ".."}, "run.name = '..': it is no directory of its own; use another"),
        ({"data.store": "gs://b/x"}, "data.store = 'gs://b/x': it is mapped into memory; name a local directory"),
        (
            {"data.sources": [{"path": "s3://b/x.txt"}]},
            "data.sources.0.path = 's3://b/x.txt': text is read from local files, or from hf://datasets/OWNER/NAME/PATH",
        ),
        (
            {"mesh.data": -1, "mesh.tensor": -1, "mesh.fsdp": 2},
            "mesh.data = -1: tensor = -1 too, and only one axis may be; give the others a number",
        ),
        (
            {"train.accumulate": 3},
            "data.phases.0.batch_size = 8: it must be a multiple of train.accumulate = 3",
        ),
        (
            {"data.phases.0.mixture": {"pyton": 2}},
            "data.phases.0.mixture.pyton = 2.0: no source is called so; did you mean python?",
        ),
        (
            {"data.phases.0.mixture.*/a.txt": "1"},
            'data.phases.0.mixture."*/a.txt" = 1.0: no source is called so; the sources are python',
        ),
        (
            {"data.phases.0.mixture.python": "0"},
            "data.phases.0.mixture.python = 0.0: use a weight above 0, or leave the source out",
        ),
        (
            {"data.phases.0.mixture.python": "much"},
            'data.phases.0.mixture.python = "much": expected a number, got text',
        ),
        (
            {"data.phases.0.mixture": "python"},
            'data.phases.0.mixture = "python": expected a table of names, each with a number, got text',
        ),
        (
            {"model.prefix": [{"attention": {"num_heads": 6}}]},
            "model.prefix.0.attention.num_heads = 6: d_model = 64 does not split into heads of an even width; "
            "set attention.head_dim",
        ),
        (
            {"model.attention.num_heads": 6},
            "model.attention.num_heads = 6: d_model = 64 does not split into heads of an even width; "
            "set attention.head_dim",
        ),
        ({"schema_version": 0}, "schema_version = 0: this jaxllm reads versions 1 to 1"),
        ({"schema_version": 9}, "schema_version = 9: this jaxllm reads versions 1 to 1; update jaxllm"),
        # missing
        (
            {"data.tokenizer.type": "huggingface"},
            "data.tokenizer.path is missing: give text (the file, or the directory that holds it; `hf://OWNER/NAME` is "
            "fetched from the Hugging Face hub)",
        ),
        ({"model.preset": "x"}, 'model.preset = "x": there is no such preset; no presets are known here'),
    ],
)
def test_the_sentence(smallest, overrides, expected):
    assert sentence(smallest, overrides) == expected


def test_what_is_missing(smallest):
    assert sentence({}) == (
        "model is missing: give a section ([model] with d_model, num_layers, attention, mlp; the decoder)"
    )
    smallest["data"] = {}
    assert sentence(smallest) == (
        "data.phases is missing: give a list of sections "
        "([[data.phases]] with sequence_length, batch_size, steps, tokens, mixture; "
        "what is trained on, one after the other)"
    )
    smallest["model"] = {}
    assert sentence(smallest) == "model.d_model is missing: give a whole number (width of the residual stream)"


def test_sections_that_are_none(smallest):
    for wrong in (5, "x", [], None):
        for name in ("model", "data", "run", "mesh"):
            tree = {**smallest, name: wrong}
            assert sentence(tree).startswith(f"{name} = ")
            if wrong is not None:
                assert sentence(tree, {f"{name}.seed": 3} if name in ("run", "data") else {}).startswith(f"{name} = ")
    smallest["model"]["period"] = 5
    assert sentence(smallest).startswith("model.period = 5: expected a list of sections")
    smallest["model"]["period"] = [5]
    assert sentence(smallest) == "model.period.0 = 5: expected a section, got a whole number"


def test_unknown_presets(smallest):
    expected = 'model.preset = "llama3-8B": there is no such preset; did you mean "llama3-8b"?'
    assert sentence(smallest, {"model.preset": "llama3-8B"}, PRESETS) == expected
    expected = 'model.preset = "gpt": there is no such preset; use one of llama3-70b, llama3-8b'
    assert sentence(smallest, {"model.preset": "gpt"}, PRESETS) == expected


def test_a_mistake_in_what_blocks_share_is_reported_where_it_was_written(smallest):
    attention = smallest["model"].pop("attention")
    smallest["model"].update(period=[{}], attention={**attention, "num_kv_heads": 3})
    assert sentence(smallest).startswith("model.attention.num_kv_heads = 3: it must divide num_heads = 4")


def test_the_first_mistake_is_reported_and_unknown_fields_come_before_missing_ones(smallest):
    smallest["model"]["d_modle"] = smallest["model"].pop("d_model")
    smallest["mesh"] = {"tensor": "x"}
    assert sentence(smallest) == "model.d_modle = 64: unknown field; did you mean model.d_model?"


def test_long_values_are_cut(smallest):
    found = sentence(smallest, {"mesh": {"tensor": list(range(1000))}})
    assert found.startswith("mesh.tensor = [0, 1, 2, ")
    assert found.endswith("...: expected a whole number, got a list")
    assert len(found) < 200


# ---- files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[mesh]\ntensor = = 2\n", "not valid TOML: Invalid value (at line 2, column 10)"),
        (b"[mesh]\ntensor = 2", None),
        (b"\xef\xbb\xbf[mesh]\ntensor = 2", None),
        (b"x = " + b"[" * 3000, "its lists are nested too deeply; no field needs that"),
        (b"[mesh]\ntensor = 2\ntensor = 3\n", "not valid TOML: Cannot overwrite a value (at line 3, column 11)"),
        (b"[mesh", "not valid TOML: Expected ']' at the end of a table declaration (at end of document)"),
        (b"# caf\xe9\n", "the byte at offset 5 is not UTF-8; save the file as UTF-8"),
        ("mesh = 1".encode("utf-16"), "the byte at offset 0 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_files_that_are_not_toml(tmp_path, content, expected):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    if expected is None:
        assert load_tree(path)["mesh"] == {"tensor": 2}
    else:
        assert sentence(path) == f"{path}: {expected}"


def test_files_that_are_missing(tmp_path):
    (tmp_path / "quickstart.toml").write_text("")
    expected = f"no such file or directory; did you mean {tmp_path / 'quickstart.toml'}?"
    assert sentence(tmp_path / "quikstart.toml") == f"{tmp_path / 'quikstart.toml'}: {expected}"
    assert sentence(str(tmp_path / "nowhere" / "x.toml")).endswith("no such file or directory; name a TOML file")
    assert sentence(tmp_path) == f"{tmp_path}: is a directory; name a TOML file"
    assert sentence(tmp_path / "quickstart.toml" / "x.toml").endswith("not a directory; name a TOML file")


def test_bases_that_are_missing_or_wrong(tmp_path):
    path = tmp_path / "top.toml"
    path.write_text('base = "shared/root.toml"')
    missing = tmp_path / "shared" / "root.toml"
    assert sentence(path) == f'{path}: base = "{missing}": no such file or directory; name a TOML file'
    path.write_text("base = 3")
    assert sentence(path) == f"{path}: base = 3: expected a TOML file's path, from this one's directory"
    missing.parent.mkdir()
    missing.write_text("[mesh\n")
    path.write_text('base = "shared/root.toml"')
    assert sentence(path).startswith(f"{missing}: not valid TOML")


def test_bases_in_a_circle(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('base = "two.toml"')
    two.write_text('base = "./one.toml"')
    assert sentence(one) == f"{one}: its base leads back to itself ({one} -> {two} -> {one})"
    one.write_text('base = "one.toml"')
    assert sentence(one) == f"{one}: its base leads back to itself ({one} -> {one})"
