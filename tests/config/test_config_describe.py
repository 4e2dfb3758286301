"""Help from the schema."""

import pytest

from jaxllm.config import ConfigError, Row, describe
from jaxllm.config.schema import texts, walk


def test_every_field_is_documented_and_nothing_else_is():
    for section in {entry.section.cls for entry in walk()}:
        documented = texts(section)
        assert list(documented) == list(section.__struct_fields__), section.__name__
        assert all(documented.values()), section.__name__


def test_rows_say_type_default_and_text():
    rows = {(row.name, row.kind): row for row in describe()}
    assert rows["run.seed", ""] == Row("run.seed", "", "whole number", "0", "of the initial weights.")
    assert rows["model.d_model", ""].default == "required"
    assert rows["data.shuffle", ""][2:4] == ("true or false", "true")
    assert rows["run.name", ""][2:4] == ("text", '""')
    assert rows["optim.learning_rate", ""][2:4] == ("number", "0.0003")
    assert rows["mesh.zero", ""][2:4] == ("1, 2, 3", "3")
    assert rows["train.remat", ""][2:4] == ('"block", "dots", "none", "offload"', '"block"')
    assert rows["data.phases", ""][2:4] == ("list of sections", "required")
    assert rows["data.sources", ""].default == '[{path = "embedded:python", name = "python"}]'
    assert rows["model.attention.rope.scaling", ""][2:4] == ('section or "none"', '"none"')
    assert rows["mesh", ""][2:] == ("section", "", "devices.")
    # A text that runs over several lines of the docstring is one line here.
    assert rows["mesh.zero", ""].text.endswith("2 gradients and optimizer state, 1 optimizer state only.")


def test_kinds_of_a_section_come_one_after_the_other():
    rows = describe("optim.schedule")
    assert [(row.name.rpartition(".")[2], row.kind, row.default) for row in rows] == [
        ("schedule", "", ""),
        ("type", "", '"cosine"'),
        ("warmup_steps", "cosine", "2000"),
        ("final_fraction", "cosine", "0.1"),
        ("warmup_steps", "wsd", "2000"),
        ("decay_fraction", "wsd", "0.2"),
        ("final_fraction", "wsd", "0.0"),
        ("warmup_steps", "constant", "0"),
    ]
    assert rows[1].type == '"cosine", "wsd", "constant"'
    assert rows[1].text.startswith("cosine: Linear warm-up, then half a cosine")
    assert "; constant: Linear warm-up, then a constant rate" in rows[1].text


def test_all_sections_are_described_and_none_twice():
    rows = describe()
    assert {row.name.split(".")[0] for row in rows} >= {"run", "model", "data", "mesh", "train", "optim", "log"}
    assert {row.kind for row in rows} >= {"adamw", "muon", "sentencepiece", "huggingface", "llama3"}
    assert len({(row.name, row.kind) for row in rows}) == len(rows)
    assert not [row.name for row in rows if row.name.startswith("model.period.")]  # as in model.prefix and model
    assert {row.name for row in rows} >= {"model.prefix", "model.prefix.N.mlp", "model.period"}


def test_a_part_of_the_help():
    assert [row.name for row in describe("log")] == ["log", "log.interval", "log.all_processes", "log.loggers"]
    assert {row.name.split(".")[0] for row in describe("data")} == {"data"}  # not mesh.data
    assert describe("data.phases.0") == describe("data.phases.N")
    assert [row.name for row in describe("batch_size")] == ["data.phases.N.batch_size"]
    assert [row.name for row in describe("optimizer")][:2] == ["optim.optimizer", "optim.optimizer.type"]
    assert "model.period.N.attention.rope.theta" in [row.name for row in describe("model.period")]


@pytest.mark.parametrize(
    ("section", "fix"),
    [
        ("mesg", "did you mean mesh?"),
        ("model.atention", "did you mean model.attention?"),
        (
            "qqq",
            "the sections are schema_version, run, model, data, mesh, train, tune, optim, guard, evaluation, "
            "checkpoint, log, watch, profile",
        ),
    ],
)
def test_an_unknown_section(section, fix):
    with pytest.raises(ConfigError) as caught:
        describe(section)
    assert str(caught.value) == f"there is no section or field {section}; {fix}"
