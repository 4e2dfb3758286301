"""A block's operations: FLOPs and bytes by hand, and against the counts of the whole model."""

import math

import msgspec
import pytest
import tiny

from jaxllm.roofline import block
from jaxllm.roofline.conventions import Convention, flops_per_token

ROWS, LENGTH = 2, 8
TOKENS = 16
MODEL = tiny.MODEL  # D 64, N 8, K 4, H 8, F 96


def operations(part, training, width=2):
    found = block.parts(MODEL, MODEL.default_block, ROWS, LENGTH, width=width, training=training)[part]
    return {one.name: (one.flops, one.size) for one in found}


def test_products_have_the_model_s_shapes():
    shapes = [(one.name, one.contraction, one.columns) for one in block.attention_products(MODEL, MODEL.blocks[0], 5)]
    shapes += [(one.name, one.contraction, one.columns) for one in block.mlp_products(MODEL, MODEL.blocks[0], 5)]
    assert shapes == [
        ("query", 64, 64), ("key", 64, 32), ("value", 64, 32), ("output", 64, 64),
        ("gate", 64, 96), ("up", 64, 96), ("down", 96, 64),
    ]  # fmt: skip
    one = block.Product(name="", rows=3, contraction=5, columns=7)
    assert one.flops == 2 * 3 * 5 * 7
    assert one.size(4) == 4 * (3 * 5 + 5 * 7 + 3 * 7)


def test_forward_by_hand():
    pairs = ROWS * LENGTH * (LENGTH + 1) // 2
    assert operations("norm", False) == {"norm": (0, 2 * 2 * TOKENS * 64)}
    # queries and results 8 heads, keys and values 4, of 8 values each
    assert operations("kernel", False) == {"kernel": (pairs * 2 * 8 * (8 + 8), 2 * TOKENS * 2 * (8 + 4) * 8)}
    mlp = operations("mlp", False)
    assert mlp["gate"] == (0, 2 * 3 * TOKENS * 96)
    assert mlp["down"] == (2 * TOKENS * 96 * 64, 2 * (TOKENS * 96 + 96 * 64 + TOKENS * 64))
    assert operations("attention", False)["rope"] == (0, 2 * 2 * TOKENS * (8 + 4) * 8)
    assert operations("block", False)["residual"] == (0, 2 * 3 * TOKENS * 64)


def test_backward_by_hand():
    forward, both = operations("kernel", False), operations("kernel", True)
    assert both["kernel"] == (3 * forward["kernel"][0], 3 * forward["kernel"][1])
    assert operations("norm", True) == {"norm": (0, 2 * (2 + 3) * TOKENS * 64)}
    assert operations("attention", True)["rope"] == (0, 2 * 4 * TOKENS * (8 + 4) * 8)
    whole = block.parts(MODEL, MODEL.default_block, ROWS, LENGTH, width=4, training=True)["block"]
    assert [one.name for one in whole].count("down") == 3, "one product forward, two backward"
    assert sum(one.size for one in whole if one.name == "gate" and not one.flops) == 4 * 8 * TOKENS * 96
    assert sum(one.size for one in whole if one.name == "residual") == 2 * 4 * 6 * TOKENS * 64


def test_norms_of_queries_and_keys_are_moved_too():
    guarded = tiny.GUARDED.blocks[0]
    found = block.parts(tiny.GUARDED, guarded, ROWS, LENGTH, width=2, training=True)["attention"]
    assert [one.size for one in found if one.name == "query and key norms"] == [2 * 5 * TOKENS * (8 + 4) * 8]


def test_all_blocks_and_the_head_are_the_model_s_flops():
    found = block.parts(MODEL, MODEL.default_block, ROWS, LENGTH, width=2, training=True)["block"]
    counted = TOKENS * flops_per_token(MODEL, LENGTH, Convention.CAUSAL)
    # the convention takes T / 2 keys a query, the mask leaves (T + 1) / 2
    diagonal = MODEL.num_layers * 6 * TOKENS * 8 * 8
    head = 6 * TOKENS * MODEL.vocab_size * MODEL.d_model
    assert MODEL.num_layers * sum(one.flops for one in found) + head == counted + diagonal


def test_operations_run_one_after_the_other():
    some = [block.Operation(name="a", flops=6.0, size=1.0), block.Operation(name="b", flops=0.0, size=8.0)]
    assert block.seconds(some, peak=2.0, bandwidth=4.0) == 3.0 + 2.0


def test_a_block_takes_at_least_what_its_parts_take():
    model = msgspec.structs.replace(MODEL, d_model=256)
    parts = block.parts(model, model.default_block, ROWS, LENGTH, width=2, training=False)
    least = {name: block.seconds(some, peak=1e9, bandwidth=1e9) for name, some in parts.items()}
    residual = 2 * 2 * 3 * TOKENS * 256 / 1e9
    assert least["block"] == pytest.approx(least["attention"] + least["mlp"] + 2 * least["norm"] + residual)
    assert least["kernel"] < least["attention"] < math.inf
