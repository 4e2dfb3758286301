"""Keys of experts: which layers have them, what is passed over, and what is refused in one sentence."""

import msgspec
import pytest
from parity import GOLDEN
from test_hf_mistakes import renamed, spoil

from jaxllm.hf.config import parse, read_tree, write_tree
from jaxllm.hf.load import match, read_config
from jaxllm.hf.safetensors import open_tensors

replace = msgspec.structs.replace
QWEN, DEEPSEEK = "qwen3_moe/every_second_layer_plain_gates", "deepseek/first_layer_dense"


def read(name, **keys):
    return parse(read_tree(GOLDEN / name) | keys, "config.json")


def sparse(model):
    return "".join("s" if block.mlp.experts else "d" for block in model.blocks)


LAYERS = [
    (QWEN, {"decoder_sparse_step": 1}, "ssss"),
    (QWEN, {"decoder_sparse_step": 3}, "ddsd"),
    (QWEN, {"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]}, "sdds"),
    (QWEN, {"mlp_only_layers": [3]}, "dsdd"),
    (QWEN, {"num_local_experts": 0}, "dddd"),
    (DEEPSEEK, {"num_hidden_layers": 6, "first_k_dense_replace": 0}, "ssssss"),
    (DEEPSEEK, {"num_hidden_layers": 6, "first_k_dense_replace": 2}, "ddssss"),
    (DEEPSEEK, {"num_hidden_layers": 6, "first_k_dense_replace": 1, "moe_layer_freq": 2}, "ddsdsd"),
    (DEEPSEEK, {"num_hidden_layers": 6, "moe_layer_freq": 3}, "dddsdd"),
    (DEEPSEEK, {"n_routed_experts": None, "n_shared_experts": None, "num_experts_per_tok": None}, "ddd"),
]


@pytest.mark.parametrize(("name", "keys", "layers"), LAYERS)
def test_layers_with_experts_are_those_that_the_keys_name_both_ways(name, keys, layers):
    model = read(name, **keys)
    assert sparse(model) == layers
    assert parse(write_tree(model, 64), "config.json") == model


def test_widths_gates_and_shared_experts_are_the_keys():
    model = read(DEEPSEEK, num_experts_per_tok=2, norm_topk_prob=True)
    dense, experts = model.blocks[0].mlp, model.blocks[1].mlp
    assert (dense.d_ff, experts.d_ff, experts.experts.shared_d_ff) == (20, 6, 12)
    assert (experts.experts.experts_per_token, experts.experts.renormalise) == (2, True)
    assert read(DEEPSEEK, n_shared_experts=None).blocks[1].mlp.experts.shared_d_ff == 0
    assert read("mixtral/gqa").mlp.experts.renormalise and not read("olmoe/mha").mlp.experts.renormalise


def test_keys_of_others_training_are_passed_over():
    for name, keys in (
        ("mixtral/gqa", {"router_aux_loss_coef": 0.5, "output_router_logits": True, "router_jitter_noise": 0.1}),
        (DEEPSEEK, {"aux_loss_alpha": 0.5, "seq_aux": False}),
    ):
        assert read(name, **keys) == read(name)


REFUSED = [
    ("olmoe/mha", {"clip_qkv": 8.0}, r"clip_qkv = 8.0: jaxllm does not compute such models"),
    (DEEPSEEK, {"scoring_func": "sigmoid"}, r"scoring_func = \"sigmoid\": jaxllm computes \"softmax\" in this family"),
    (DEEPSEEK, {"num_experts_per_tok": None}, r"num_experts_per_tok = None: say how many experts a token goes through"),
    (DEEPSEEK, {"moe_layer_freq": 0}, r"moe_layer_freq = 0: use 1 or more"),
    (DEEPSEEK, {"topk_method": "greedy"}, r"topk_method = \"greedy\": jaxllm does not know what it changes"),
    ("mixtral/gqa", {"num_local_experts": 0}, r"num_local_experts = 0: use 1 or more"),
    ("mixtral/gqa", {"num_experts": 6}, r"num_experts = 6: another name of this key says 5"),
    (
        "mixtral/gqa",
        {"num_experts_per_tok": 6},
        r"num_experts_per_tok = 6: use 1 or more, and at most num_local_experts = 5",
    ),
    ("mixtral/gqa", {"norm_topk_prob": False}, r"norm_topk_prob = false: jaxllm does not know what it changes"),
    (QWEN, {"moe_intermediate_siz": 3}, r"moe_intermediate_siz = 3: did you mean moe_intermediate_size\?"),
    (QWEN, {"mlp_only_layers": [0.5]}, r"mlp_only_layers = 0.5: use a whole number"),
    (QWEN, {"norm_topk_prob": 1}, r"norm_topk_prob = 1: use true or false"),
]


@pytest.mark.parametrize(("name", "keys", "sentence"), REFUSED)
def test_keys_that_jaxllm_does_not_compute_are_named(name, keys, sentence):
    with pytest.raises(ValueError, match=f"^config.json: {sentence}"):
        read(name, **keys)


def test_experts_that_a_family_has_no_keys_for_are_refused():
    model = read("mixtral/gqa")
    plain = replace(model.mlp, experts=None)
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.experts = \"none\": all layers of .* mixtral have exp"):
        write_tree(replace(model, period=(model.default_block, replace(model.default_block, mlp=plain))), 64)
    for field, value in (("gate_scale", 2.5), ("balancing_bias", True), ("renormalise", False), ("shared_d_ff", 8)):
        other = replace(model.mlp, experts=replace(model.mlp.experts, **{field: value}))
        with pytest.raises(ValueError, match=rf"model.layers.0.mlp.experts.{field} = {str(value).lower()}: .* mixtral"):
            write_tree(replace(model, mlp=other), 64)


def test_an_expert_that_is_missing_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes((GOLDEN / "mixtral/gqa/config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "mixtral/gqa/model.safetensors").read_bytes())
    name = "model.layers.1.block_sparse_moe.experts.4.w3.weight"
    spoil(tmp_path, renamed(name, "model.layers.1.block_sparse_moe.experts.5.w3.weight"))
    with pytest.raises(ValueError, match=rf"there is no tensor '{name}', of shape \[12, 16\], as config.json asks"):
        match(open_tensors(tmp_path), read_config(tmp_path))
