"""What a run may change when it goes on."""

import pytest

from jaxllm.config import MAY_CHANGE, ConfigError, Difference, differences, load, refuse_changes
from jaxllm.config.schema import TAG, walk

MODEL = {
    "d_model": 64,
    "num_layers": 4,
    "attention": {"num_heads": 4, "rope": {"scaling": {"type": "llama3"}}},
    "mlp": {"d_ff": 128},
    "prefix": [{}],
    "period": [{}, {"mlp": {"d_ff": 64}}],
}


@pytest.fixture
def tree(smallest) -> dict:
    return {**smallest, "model": MODEL}


def test_equal_experiments_do_not_differ(tree):
    old = load(tree)
    new = load({**tree, "mesh": {"tensor": 1}, "optim": {"optimizer": {"type": "adamw"}}})  # the defaults, spelt out
    assert differences(old, new) == []
    refuse_changes(old, new, "runs/x")


MAY = {
    "train.accumulate": 2,
    "train.pipeline": "gpipe",
    "run.name": "other",
    "run.directory": "elsewhere",
    "log.interval": 10,
    "watch.interval": 7,
    "evaluation.sample_prompt": "Once",
    "checkpoint.keep": 7,
    "mesh.tensor": 2,
    "mesh.zero": 1,
    "data.prefetch": 9,
    "data.store": "stores/other",
    "data.phases.0.steps": 9,
    "train.unroll": True,
    "train.remat": "none",
    "train.loss.chunk": 0,
    "model.preset": "tiny",
    "model.attention.kernel": "xla",
}
MAY_NOT = {
    "run.seed": 1,
    "run.init_from": "base",
    "run.deterministic": True,
    "model.d_model": 128,
    "model.num_layers": 5,
    "model.tie_embeddings": True,
    "model.attention.num_kv_heads": 2,
    "model.attention.rope.theta": 5.0,
    "model.attention.qk_norm": "head",
    "model.attention.soft_cap": 50.0,
    "model.final_soft_cap": 30.0,
    "data.seed": 1,
    "data.shuffle": False,
    "data.held_out_fraction": 0.1,
    "data.tokenizer.vocab_size": 512,
    "data.sources.0.path": "corpus",
    "data.phases.0.batch_size": 4,
    "data.phases.0.sequence_length": 512,
    "optim.learning_rate": 0.1,
    "optim.update_clip": 0.1,
    "optim.optimizer.beta1": 0.5,
    "optim.schedule.warmup_steps": 5,
    "train.precision.compute": "float32",
    "train.loss.z_loss": 1e-4,
}


@pytest.mark.parametrize("key", MAY)
def test_what_may_change(tree, key):
    old, new = load(tree, presets={"tiny": {}}), load(tree, {key: MAY[key]}, {"tiny": {}})
    found = differences(old, new)
    assert key in [one.key for one in found]
    assert all(one.may_change for one in found)
    refuse_changes(old, new, "runs/x")


@pytest.mark.parametrize("key", MAY_NOT)
def test_what_may_not_change(tree, key):
    old, new = load(tree, {"data.sources.0.path": "x"}), load(tree, {"data.sources.0.path": "x", key: MAY_NOT[key]})
    found = differences(old, new)
    assert key in [one.key for one in found]
    assert not any(one.may_change for one in found)
    with pytest.raises(ConfigError, match=rf"^runs/x: .*{key} = .* may not change when a run goes on; take "):
        refuse_changes(old, new, "runs/x")


def test_a_run_may_be_counted_in_tokens_from_now_on(tree):
    old, new = load(tree), load(tree, {"data.phases.0.steps": 0, "data.phases.0.tokens": 10**6})
    assert [(one.key, one.may_change) for one in differences(old, new)] == [
        ("data.phases.0.steps", True),
        ("data.phases.0.tokens", True),
    ]


def phases(tree, *given):
    """The experiment with phases of (steps, sequence length, batch size, weight of the source `a`)."""
    names = "steps", "sequence_length", "batch_size"
    listed = [dict(zip(names, one, strict=False), mixture={"a": one[3], "b": 1}) for one in given]
    return load({**tree, "data": {"sources": [{"path": "a"}, {"path": "b"}], "phases": listed}})


OLD = ((10, 64, 8, 1), (5, 128, 4, 2))


@pytest.mark.parametrize(
    ("step", "new"),
    [
        (None, (OLD[0], (9, 128, 4, 2))),
        (None, (*OLD, (7, 32, 2, 1))),
        (None, (OLD[0], (9, 128, 4, 2), (7, 32, 2, 1))),
        (12, (OLD[0], (2, 128, 4, 2), (7, 128, 2, 1))),
        (10, (OLD[0], (5, 128, 8, 3))),
        (9, ((9, 64, 8, 1), OLD[1])),
    ],
    ids=["longer", "one more", "longer and one more", "shortened to here", "not begun", "this one ends here"],
)
def test_phases_that_are_still_to_come_may_change(tree, step, new):
    refuse_changes(phases(tree, *OLD), phases(tree, *new), "runs/x", step)


@pytest.mark.parametrize(
    ("step", "new", "named"),
    [
        (None, ((11, 64, 8, 1), OLD[1]), r"data.phases.0.steps = 11 \(was 10\)"),
        (None, (OLD[0], (5, 128, 4, 3)), r"data.phases.1.mixture.a = 3.0 \(was 2.0\)"),
        (11, (OLD[0], (5, 128, 8, 2)), r"data.phases.1.batch_size = 8 \(was 4\)"),
        (13, (OLD[0], (2, 128, 4, 2), (7, 32, 2, 1)), "the phases of the steps up to 13"),
        (1, (*OLD, (7, 384, 2, 1)), r"the least common multiple of all sequence_length = 384 \(was 128\)"),
    ],
    ids=["an earlier one longer", "another weight", "begun", "shortened too far", "another unit"],
)
def test_phases_that_the_run_has_seen_may_not_change(tree, step, new, named):
    with pytest.raises(ConfigError, match=rf"^runs/x: .*{named}.* may not change when a run goes on"):
        refuse_changes(phases(tree, *OLD), phases(tree, *new), "runs/x", step)


def test_kinds_and_lists_are_one_difference(tree):
    old = load(tree)
    new = load(tree, {"optim.optimizer.type": "muon", "model.period": [{}]})
    kinds = Difference("optim.optimizer.type", "adamw", "muon", may_change=False)
    blocks = differences(old, new)[0]
    assert differences(old, new) == [blocks, kinds]
    assert isinstance(blocks.old, list) and isinstance(blocks.new, list)
    assert (blocks.key, len(blocks.old), len(blocks.new), blocks.may_change) == ("model.period", 2, 1, False)


def test_the_sentence_names_what_may_not_change_and_what_may(tree):
    old, new = load(tree), load(tree, {"data.seed": 1, "mesh.tensor": 2, "optim.learning_rate": 0.1, "log.interval": 5})
    with pytest.raises(ConfigError) as caught:
        refuse_changes(old, new, "runs/x")
    assert str(caught.value) == (
        "runs/x: data.seed = 1 (was 0), optim.learning_rate = 0.1 (was 0.0003) may not change when a run goes on, "
        "while mesh.tensor, log.interval may; take the old values back, or start another run under a new run.name"
    )


def test_the_sentence_stays_short(tree):
    changes = {key: value for key, value in MAY_NOT.items() if key != "data.phases.0.batch_size"}
    with pytest.raises(ConfigError, match=r" and \d+ more may not change when a run goes on") as caught:
        refuse_changes(load(tree), load(tree, changes), "runs/x")
    assert len(str(caught.value)) < 800


def test_every_freedom_is_a_field_and_has_a_reason():
    known = {entry.name.replace(".N.", ".*.") for entry in walk()}
    assert {freedom.pattern for freedom in MAY_CHANGE} <= known
    assert all(freedom.reason for freedom in MAY_CHANGE)
    assert not [freedom for freedom in MAY_CHANGE if freedom.pattern.endswith(TAG)]
