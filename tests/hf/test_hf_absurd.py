"""Whatever a key of any family's config.json holds, it is read, or refused in a sentence that names that key."""

import math
import re

import pytest
from parity import GOLDEN, NAMES

from jaxllm.config import AttentionConfig, MLPConfig, ModelConfig, NormConfig
from jaxllm.hf.config import describe, parse, read_tree
from jaxllm.hf.keys import HARMLESS

ABSURD = [None, True, "24", [], {}, [24], 0, -1, 0.5, 25, 10**12, 2**63, 10**30, -1e300, 1e300, math.inf, math.nan]

OURS = {
    name
    for section in (AttentionConfig, MLPConfig, ModelConfig, NormConfig)
    for name in section.__struct_fields__
    if "_" in name
} - {"head_dim", "vocab_size"}
"""Names of our config that no config.json has."""

FIRST = {name.partition("/")[0]: name for name in NAMES} | {
    shape: shape for shape in ("llama/yarn_scaling", "llama/llama3_scaling_tied", "phi3/longrope_past")
}


def leaves(tree, *path):
    """Every place of a tree."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, *path, key)


def changed(tree, path, value):
    key, *below = path
    return tree | {key: changed(tree[key], below, value) if below else value}


@pytest.mark.parametrize("name", sorted(set(FIRST.values())))
def test_absurd_values_are_read_or_refused_by_their_key(name):
    tree = read_tree(GOLDEN / name)
    refused = 0
    parts = {part for path in leaves(tree) for part in path}
    for path in leaves(tree):
        if path[0] in HARMLESS:
            continue
        for value in ABSURD:
            try:
                parse(changed(tree, path, value), "DIR/config.json")
            except ValueError as error:
                refused += 1
                sentence = str(error)
                named = re.match(r"DIR/config\.json: ([\w.]+)( = .+: .+| is missing; copy the file again)$", sentence)
                assert named, (path, value, sentence)
                assert set(named[1].split(".")) <= parts, (path, value, sentence)
                assert not (OURS - tree.keys()) & set(re.findall(r"\w+", sentence)), (path, value, sentence)
    assert refused > 50


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", "bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [0.5, {}, [None], "2", True])
def test_what_lies_beside_the_model_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=rf"^DIR/config.json: {key} = .*: (use|write)"):
        describe({**read_tree(GOLDEN / "llama/mha"), "dtype": None, key: value}, "DIR/config.json")
