"""Every field of the schema, broken in every way that its type allows: one sentence each, and it names the field.

The broken configs are made from the schema and from five experiments that have every kind of every union between them,
so a new field or kind is covered, or fails here, without a line added.
"""

import copy
import datetime
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from msgspec import inspect as types

from jaxllm.config import ConfigError, dump, load, resolved
from jaxllm.config.schema import EXPERIMENT, TAG, alternatives, items, kind_of, sections_of, walk

KINDS = (
    {
        "data.tokenizer.type": "sentencepiece",
        "optim.schedule.type": "cosine",
        "optim.optimizer.type": "adamw",
        "model.attention.rope.scaling.type": "llama3",
        "model.prefix.0.mlp.d_ff": 16,
        "guard.policy.type": "palm",
    },
    {
        "data.tokenizer": {"type": "huggingface", "path": "t"},
        "optim.schedule.type": "wsd",
        "optim.optimizer.type": "muon",
        "guard.policy.type": "falcon",
        "optim.qk_clip.threshold": 50.0,
        "model.mlp.experts": {"num_experts": 4, "experts_per_token": 2},
        "model.attention.rope.scaling": {"type": "yarn", "factor": 4.0, "original_max_positions": 64},
    },
    {
        "data.tokenizer.type": "bytes",
        "optim.schedule.type": "constant",
        "run.init_from": "base",
        "tune.lora.rank": 4,
        "guard.policy.type": "replay",
        "model.attention.rope.scaling": {"type": "dynamic", "factor": 4.0, "original_max_positions": 64},
    },
    {"guard.policy.type": "ladder", "model.attention.rope.scaling": {"type": "linear", "factor": 4.0}},
    {
        "guard.policy.type": "off",
        "guard.drop": False,
        "guard.follow": "runs/other",
        "model.attention.rope.fraction": 0.25,
        "model.attention.rope.scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.5],
            "long_factor": [1.0, 4.0],
            "original_max_positions": 64,
        },
    },
)

OUT_OF_RANGE = -7
"""No field of the schema takes it."""

WRONG: dict[type[types.Type], tuple[Any, ...]] = {
    types.BoolType: (1, "true", [True]),
    types.IntType: (2.5, "3", True, [3]),
    types.FloatType: ("0.5", True, {"x": 0.5}),
    types.StrType: (5, True, ["text"], datetime.date(2024, 1, 2)),
    types.LiteralType: ("no such choice", 99, True, []),
    types.StructType: (5, "text", [1]),
    types.VarTupleType: (5, "text", [5]),
    types.DictType: (5, "text", [5]),
}

type Path = tuple[str | int, ...]


class Spot(NamedTuple):
    """A field of a tree: where it is, its declaration, and the names its section has."""

    path: Path
    field: types.Field
    known: frozenset[str]


def spots(value: Any, declared: types.Type, path: Path = ()) -> Iterator[Spot]:
    for index, entry in enumerate(value if isinstance(value, list) else ()):
        yield from spots(entry, items([declared])[0], (*path, index))
    if isinstance(value, dict) and sections_of([declared]):
        section = kind_of(sections_of([declared]), value.get(TAG))
        assert section is not None
        known = frozenset(field.name for field in section.fields)
        for field in section.fields:
            yield Spot((*path, field.name), field, known)
            yield from spots(value[field.name], field.type, (*path, field.name))


def changed(tree: dict, path: Path, value: Any = None, *, name: str = "") -> dict:
    """The tree with another value at the path, or with the value under another name, or without it."""
    tree = copy.deepcopy(tree)
    section: Any = tree
    for part in path[:-1]:
        section = section[part]
    if value is None:
        value = section.pop(path[-1])
        if name:
            section[name] = value
    else:
        section[path[-1]] = value
    return tree


def misspelt(name: str, known: frozenset[str]) -> list[str]:
    middle = len(name) // 2
    found = {name[:middle] + name[middle - 1 :], name[1:], name + "x", name.upper(), name.replace("_", "-")}
    return sorted(found - known)


def broken(tree: dict, spots_of_tree: Iterable[Spot]) -> Iterator[tuple[str, Path, dict]]:
    """What was done, the path of the field that the sentence must name, and the tree."""
    for spot in spots_of_tree:
        path, kinds = spot.path, alternatives(spot.field.type)
        for name in misspelt(str(path[-1]), spot.known):
            yield "misspelt", (*path[:-1], name), changed(tree, path, name=name)
        for wrong in WRONG[type(kinds[0])]:
            yield "wrong type", path, changed(tree, path, wrong)
        if isinstance(kinds[0], types.IntType | types.FloatType):
            yield "out of range", path, changed(tree, path, OUT_OF_RANGE)
        if spot.field.required and not {"prefix", "period"} & set(path):  # blocks take what they lack from the model
            yield "missing", path, changed(tree, path)
        tags = [kind.tag for kind in kinds if isinstance(kind, types.StructType) and kind.tag]
        for tag in ("no such kind", "", 5, f"{tags[0]}x") if tags else ():
            yield "unknown kind", (*path, TAG), changed(tree, path, {TAG: tag})


@pytest.fixture
def trees(smallest) -> list[dict]:
    smallest["model"]["period"] = [{}]
    return [resolved(load(smallest, kinds)) for kinds in KINDS]


def test_the_experiments_have_every_field(trees):
    found = {(spot.field.name, spot.known) for tree in trees for spot in spots(tree, EXPERIMENT)}
    expected = {(entry.field.name, frozenset(f.name for f in entry.section.fields)) for entry in walk()}
    assert found == expected
    for tree in trees:
        load(tree)


def test_every_broken_config_is_refused_in_one_sentence_that_names_the_field(trees, tmp_path):
    file = tmp_path / "broken.toml"
    seen: set[tuple[Path, frozenset[str]]] = set()
    counts: dict[str, int] = {}
    for tree in trees:
        new = [spot for spot in spots(tree, EXPERIMENT) if (spot.path, spot.known) not in seen]
        seen.update((spot.path, spot.known) for spot in new)  # what the experiments share is broken once
        for what, path, bad in broken(tree, new):
            counts[what] = counts.get(what, 0) + 1
            source: Any = bad
            if sum(counts.values()) % 10 == 0:  # TOML and back costs more than all the rest
                file.write_text(dump(bad))
                source = file
            name = ".".join(map(str, path))
            if what == "out of range" and name.endswith("low_freq_factor"):
                name = name.replace("low_freq", "high_freq")  # which, it says, is not above it
            with pytest.raises(ConfigError) as caught:
                load(source)
                pytest.fail(f"accepted: {what}, {name}")
            sentence = str(caught.value)
            assert sentence.startswith((f"{name} = ", f"{name}.0 = ", f"{name} is missing: ")), (what, sentence)
            assert len(sentence.splitlines()) == 1
            assert "$" not in sentence  # the decoder's way of naming a place
    assert set(counts) == {"misspelt", "wrong type", "out of range", "missing", "unknown kind"}
    assert min(counts.values()) >= 10 and sum(counts.values()) >= 200, counts


def test_every_misspelt_override_is_refused_with_the_right_name(trees):
    for tree in trees:
        for path, _, known in spots(tree, EXPERIMENT):
            for wrong in misspelt(str(path[-1]), known):
                name = ".".join(map(str, (*path[:-1], wrong)))
                with pytest.raises(ConfigError) as caught:
                    load(tree, {name: "1"})
                expected = (
                    rf"{re.escape(name)} = .*: unknown field; did you mean {re.escape('.'.join(map(str, path)))}\?"
                )
                assert re.fullmatch(expected, str(caught.value)), str(caught.value)
