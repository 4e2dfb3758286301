"""Files, bases, overrides, presets, blocks: what an experiment is made from."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxllm import config
from jaxllm.config import experiment as experiment_module
from jaxllm.config import load, load_tree
from jaxllm.config.schema import TAG, walk

LLAMA = {
    "d_model": 256,
    "num_layers": 4,
    "attention": {"num_heads": 8, "num_kv_heads": 2, "rope": {"theta": 500_000.0, "scaling": {"type": "llama3"}}},
    "mlp": {"d_ff": 512},
}
PRESETS = {"llama-tiny": LLAMA}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def smallest_toml(smallest: dict, **sections: dict) -> str:
    return config.dump({**smallest, **sections})


def test_the_smallest_file_takes_every_default_from_the_schema(tmp_path, smallest):
    experiment = load(write(tmp_path / "tiny.toml", config.dump(smallest)))
    assert experiment.model.d_model == 64
    assert experiment.data.phases == (config.PhaseConfig(steps=3),)
    assert experiment.mesh == config.MeshConfig()
    assert experiment.optim == config.OptimConfig()


def test_importing_the_config_does_not_import_jax():
    code = "import sys, jaxllm.config; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_without_a_name_is_called_after_its_file(tmp_path, smallest):
    path = write(tmp_path / "quickstart.toml", config.dump(smallest))
    assert load(path).run.name == "quickstart"
    assert load(path).run.path == "runs/quickstart"
    assert load(path, {"run.name": "mine"}).run.name == "mine"
    assert load_tree(path)["run"] == {"name": "quickstart"}  # so that a run's config.toml does not call it "config"
    assert load(smallest).run.name == ""


def test_nothing_given_is_changed(tmp_path, smallest):
    tree = {**smallest, "model": {**smallest["model"], "preset": "llama-tiny", "period": [{"mlp": {"d_ff": 4}}]}}
    overrides = {"data.phases.0.steps": "9", "optim.optimizer": {"type": "muon"}}
    before = copy.deepcopy((tree, overrides, PRESETS))
    load(tree, overrides, PRESETS)
    assert (tree, overrides, PRESETS) == before


# ---- base


def test_a_file_is_merged_over_its_base_and_lists_are_replaced(tmp_path, smallest):
    write(
        tmp_path / "shared" / "root.toml",
        smallest_toml(smallest, mesh={"tensor": 2, "data": 3}, train={"remat": "none"}),
    )
    write(tmp_path / "middle.toml", 'base = "shared/root.toml"\n[mesh]\ntensor = 4\n')
    path = write(tmp_path / "top.toml", 'base = "middle.toml"\n[mesh]\nexpert = 5\n[[data.phases]]\ntokens = 1000\n')
    experiment = load(path)
    assert (experiment.mesh.tensor, experiment.mesh.data, experiment.mesh.expert) == (4, 3, 5)
    assert experiment.train.remat == "none"
    assert experiment.data.phases == (config.PhaseConfig(tokens=1000),)
    assert experiment.run.name == "top"
    assert "base" not in load_tree(path)


def test_another_kind_over_a_base_starts_from_that_kinds_defaults(tmp_path, smallest):
    optim = {"learning_rate": 0.01, "optimizer": {"type": "adamw", "beta1": 0.5, "weight_decay": 0.3}}
    write(tmp_path / "base.toml", smallest_toml(smallest, optim=optim))
    path = write(tmp_path / "top.toml", 'base = "base.toml"\n[optim.optimizer]\ntype = "muon"\nmomentum = 0.7\n')
    assert load(path).optim == config.OptimConfig(learning_rate=0.01, optimizer=config.Muon(momentum=0.7))


def test_the_same_kind_over_a_base_keeps_the_bases_fields(tmp_path, smallest):
    # The base says no kind: it has the default one, and the file above says just that.
    write(tmp_path / "base.toml", smallest_toml(smallest, optim={"optimizer": {"beta1": 0.5}}))
    path = write(tmp_path / "top.toml", 'base = "base.toml"\n[optim.optimizer]\ntype = "adamw"\nbeta2 = 0.7\n')
    assert load(path).optim.optimizer == config.AdamW(beta1=0.5, beta2=0.7)
    path = write(tmp_path / "top.toml", 'base = "base.toml"\n[optim.optimizer]\ntype = "muon"\n')
    assert load(path).optim.optimizer == config.Muon()


# ---- overrides


def test_overrides_by_dotted_name(smallest):
    experiment = load(
        smallest,
        {
            "mesh.tensor": 2,
            "data.phases.0.steps": 20,
            "data.phases.0.batch_size": 4,
            "optim.optimizer.type": "muon",
            "mesh": {"data": 3},
        },
    )
    assert (experiment.mesh.tensor, experiment.mesh.data) == (2, 3)
    assert experiment.data.phases == (config.PhaseConfig(steps=20, batch_size=4),)
    assert experiment.optim.optimizer == config.Muon()


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_overrides_does_not_matter(smallest, order):
    smallest["optim"] = {"optimizer": {"type": "adamw", "weight_decay": 0.3}}
    overrides = [
        ("optim.learning_rate", 0.5),
        ("optim", {"clip_norm": 0.0}),
        ("optim.optimizer.momentum", 0.7),
        ("optim.optimizer.type", "muon"),
    ]
    experiment = load(smallest, dict(overrides[::order]))
    assert experiment.optim == config.OptimConfig(learning_rate=0.5, clip_norm=0.0, optimizer=config.Muon(momentum=0.7))


def test_a_field_of_the_default_kind_needs_no_type(smallest):
    assert load(smallest, {"optim.optimizer.weight_decay": 0}).optim.optimizer == config.AdamW(weight_decay=0.0)
    tokenizer = load(smallest, {"data.tokenizer.vocab_size": "512"}).data.tokenizer
    assert tokenizer == config.SentencePieceTokenizer(vocab_size=512)
    scaling = load(smallest, {"model.attention.rope.scaling.factor": 16}).model.attention.rope.scaling
    assert scaling == config.Llama3Scaling(factor=16.0)


def test_overrides_make_the_entries_of_lists(smallest):
    experiment = load(smallest, {"data.sources.0.path": "corpus", "data.sources.1.path": "more/*.txt"})
    assert [source.path for source in experiment.data.sources] == ["corpus", "more/*.txt"]
    assert experiment.data.sources[0].name == ""  # not the default source's, of which nothing is left
    del smallest["data"]
    assert load(smallest, {"data.phases.0.steps": "7"}).data.num_steps == 7


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("run.name", "123", "123"),
        ("run.name", "1e3", "1e3"),
        ("run.name", "true", "true"),
        ("evaluation.sample_prompt", '"quoted"', '"quoted"'),
        ("evaluation.sample_prompt", "", ""),
        ("evaluation.sample_prompt", "one\ntwo = 3", "one\ntwo = 3"),
        ("train.remat", "none", "none"),
        ("run.seed", "17", 17),
        ("run.seed", "1_000", 1000),
        ("data.phases.0.steps", "2e3", 2000),
        ("mesh.fsdp", "-1", -1),
        ("mesh.zero", "2", 2),
        ("optim.learning_rate", "1e-3", 1e-3),
        ("optim.learning_rate", "1", 1.0),
        ("optim.learning_rate", ".5", 0.5),
        ("data.shuffle", "false", False),
        ("model.attention.rope.scaling", "none", None),
    ],
)
def test_text_from_the_command_line_is_read_as_the_fields_type(smallest, name, text, value):
    found: Any = load(smallest, {name: text})
    for part in name.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_tables_and_lists_from_the_command_line_are_toml(smallest):
    experiment = load(smallest, {"mesh": "{tensor = 2, data = 4}", "data.phases": "[{steps = 5, batch_size = 2}]"})
    assert (experiment.mesh.tensor, experiment.mesh.data) == (2, 4)
    assert experiment.data.phases == (config.PhaseConfig(steps=5, batch_size=2),)


# ---- presets and blocks


def test_a_preset_is_merged_under_the_model(smallest):
    smallest["model"] = {"preset": "llama-tiny", "attention": {"rope": {"theta": 7.0}}, "num_layers": 2}
    model = load(smallest, {"model.mlp.d_ff": 64}, PRESETS).model
    assert (model.preset, model.d_model, model.num_layers, model.mlp.d_ff) == ("llama-tiny", 256, 2, 64)
    assert model.attention.num_kv_heads == 2
    assert model.attention.rope == config.RopeConfig(theta=7.0, scaling=config.Llama3Scaling())


def test_a_section_of_a_preset_can_be_switched_off(smallest):
    smallest["model"] = {"preset": "llama-tiny", "attention": {"rope": {"scaling": "none"}}}
    assert load(smallest, presets=PRESETS).model.attention.rope == config.RopeConfig(theta=500_000.0)


def test_what_is_asked_of_a_model_is_kept_as_it_was_asked(tmp_path, smallest):
    # What it leaves out may come from the preset, which is not known before `load`.
    smallest["model"]["attention"]["rope"] = {"scaling": {"factor": 4.0}}
    assert load_tree(write(tmp_path / "tiny.toml", config.dump(smallest)))["model"] == smallest["model"]


def test_a_section_that_is_switched_off_can_be_switched_on_again(smallest):
    smallest["model"]["attention"]["rope"] = {"scaling": "none"}
    experiment = load(smallest, {"model.attention.rope.scaling.factor": 2})
    assert experiment.model.attention.rope.scaling == config.Llama3Scaling(factor=2.0)


def test_blocks_state_only_what_differs(smallest):
    smallest["model"].update(
        num_layers=5,
        norm={"epsilon": 1e-6},
        prefix=[{"mlp": {"d_ff": 256}}],
        period=[{}, {"attention": {"num_kv_heads": 2, "rope": {"theta": 50.0}}}],
    )
    model = load(smallest).model
    assert model.prefix[0] == config.BlockConfig(
        attention=model.attention, mlp=config.MLPConfig(d_ff=256), norm=config.NormConfig(epsilon=1e-6)
    )
    assert model.period[0] == model.default_block
    assert model.period[1].attention == config.AttentionConfig(
        num_heads=4, num_kv_heads=2, rope=config.RopeConfig(theta=50.0)
    )
    assert [block.mlp.d_ff for block in model.blocks] == [256, 128, 128, 128, 128]


def test_full_blocks_stay_as_they_are(smallest):
    smallest["model"]["attention"]["rope"] = {"scaling": {"type": "llama3", "factor": 4.0}}
    smallest["model"]["period"] = [{"attention": {"rope": {"scaling": "none"}}}, {"mlp": {"d_ff": 8}}]
    once = load(smallest)
    assert [block.attention.rope.scaling for block in once.model.period] == [None, config.Llama3Scaling(factor=4.0)]
    assert load(config.resolved(once)) == once


def test_a_preset_may_have_blocks_and_a_model_may_replace_them(smallest):
    presets = {"two": {**LLAMA, "period": [{"mlp": {"d_ff": 8}}, {}]}}
    smallest["model"] = {"preset": "two"}
    assert [block.mlp.d_ff for block in load(smallest, presets=presets).model.period] == [8, 512]
    smallest["model"]["period"] = [{"mlp": {"d_ff": 16}}]
    assert [block.mlp.d_ff for block in load(smallest, presets=presets).model.period] == [16]


# ---- old names


@pytest.fixture
def second_version(monkeypatch):
    monkeypatch.setattr(experiment_module, "SCHEMA_VERSION", 2)
    renamed = {"train.micro_batches": "train.accumulate", "length.warmup": "optim.schedule.warmup_steps", "a.b": "c"}
    for old, new in renamed.items():
        monkeypatch.setitem(experiment_module.RENAMED, old, new)


def test_names_of_an_older_schema_are_renamed(tmp_path, smallest, second_version):
    old = {"schema_version": 1, "train": {"micro_batches": 2}, "length": {"warmup": 5}, **smallest}
    write(tmp_path / "old.toml", config.dump(old))
    assert load(old).train.accumulate == 2
    assert old["train"] == {"micro_batches": 2}  # nothing given is changed
    path = write(tmp_path / "new.toml", 'schema_version = 2\nbase = "old.toml"\n[train]\nunroll = true\n')
    experiment = load(path)
    assert (experiment.train.accumulate, experiment.train.unroll) == (2, True)
    assert experiment.optim.schedule == config.Cosine(warmup_steps=5)
    assert load_tree(path)["schema_version"] == 2


def test_a_name_of_an_older_schema_in_a_current_config_is_refused_with_its_new_name(smallest, second_version):
    smallest.update(schema_version=2, train={"micro_batches": 2})
    sentence = r"^train.micro_batches = 2: unknown field; it is now called train.accumulate$"
    with pytest.raises(config.ConfigError, match=sentence):
        load(smallest)
    smallest.update(schema_version=1, train={"micro_batches": 2, "accumulate": 4})  # both: which one is meant?
    with pytest.raises(config.ConfigError, match=sentence):
        load(smallest)


def test_no_field_is_called_as_what_tells_kinds_apart():
    assert not [entry.name for entry in walk() if entry.field.name == TAG]


def test_steps_of_phases(smallest):
    phases = [
        {"sequence_length": 64, "batch_size": 4, "steps": 3},
        {"sequence_length": 96, "batch_size": 2, "tokens": 400},
        {"sequence_length": 32, "batch_size": 2, "steps": 2},
    ]
    data = load(smallest, {"data.phases": phases}).data
    assert (data.num_steps, data.unit) == (8, 192)
    assert hash(data) == hash(load(smallest, {"data.phases": phases}).data)
