"""Trees as TOML, and experiments as trees: both ways round."""

import pytest

from jaxllm import config
from jaxllm.config import dump, load, load_tree, resolved

PRESETS = {
    "tiny": {
        "d_model": 256,
        "num_layers": 3,
        "attention": {"num_heads": 8, "rope": {"scaling": {"type": "llama3"}}},
        "mlp": {"d_ff": 512},
        "period": [{"mlp": {"d_ff": 8}}, {"attention": {"rope": {"scaling": "none"}}}],
    }
}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model": {"preset": "tiny"}},
        {"model": {"preset": "tiny", "attention": {"rope": {"scaling": None}}, "period": []}},
        {"optim.optimizer.type": "muon", "optim.schedule.type": "wsd", "data.tokenizer.type": "bytes"},
        {"data.tokenizer": {"type": "huggingface", "path": "t.json"}, "mesh": {"fsdp": 1, "data": -1}},
        {
            "evaluation.sample_prompt": 'a "b"\n\t\\ é \x7f 漢',
            "optim.learning_rate": 1 / 3,
            "data.phases": ({"steps": 5},),
        },
    ],
)
def test_a_resolved_experiment_loads_again_to_an_equal_one(smallest, tmp_path, overrides):
    experiment = load(smallest, {"run.name": "r", **overrides}, PRESETS)
    tree = resolved(experiment)
    assert load(tree, presets=PRESETS) == experiment
    file = tmp_path / "config.toml"
    file.write_text(dump(tree))
    assert load(file, presets=PRESETS) == experiment
    assert config.read_toml(file.read_bytes(), "config.toml") == tree


def test_a_resolved_experiment_has_every_field(smallest):
    tree = resolved(load(smallest))
    assert tree["mesh"]["fsdp"] == -1
    assert tree["model"]["attention"]["rope"] == {
        "theta": 10000.0,
        "fraction": 1.0,
        "interleaved": False,
        "scaling": "none",
    }
    assert tree["optim"]["optimizer"]["type"] == "adamw"
    assert list(tree) == list(config.Experiment.__struct_fields__)


def test_a_run_keeps_what_was_asked(smallest, tmp_path):
    (tmp_path / "shared.toml").write_text(dump(smallest))
    asked = tmp_path / "asked.toml"
    asked.write_text(
        'base = "shared.toml"\n[model]\npreset = "tiny"\nperiod = [{mlp = {d_ff = 8}}]\n[mesh]\ndata = 2\n'
    )
    overrides = {"optim.optimizer.type": "muon", "data.phases.0.steps": "5", "model.attention.rope.scaling": None}
    tree = load_tree(asked, overrides)
    kept = tmp_path / "runs" / "asked" / "config.toml"
    kept.parent.mkdir(parents=True)
    kept.write_text(dump(tree))
    assert kept.read_text().startswith("schema_version = 1\n")
    assert "base" not in tree and tree["mesh"] == {"data": 2}
    assert tree["model"]["period"] == [{"mlp": {"d_ff": 8}}]
    assert load(kept, presets=PRESETS) == load(asked, overrides, PRESETS)
    assert dump(load_tree(kept)) == kept.read_text()
