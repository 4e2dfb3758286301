"""What cannot be read is refused in one sentence that names the file and the tensor or key."""

import json
import shutil

import pytest
from parity import GOLDEN, on

from jaxllm.hf.config import parse, read_tree
from jaxllm.hf.load import load, match, read_config
from jaxllm.hf.safetensors import MAX_HEADER, open_tensors, read_header

TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path):
    """A copy of a model, to be spoilt."""
    return shutil.copytree(GOLDEN / "llama/mha", tmp_path / "model")


def spoil(model, change):
    """Change the header of a model's file; the values stay where they are."""
    file = model / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return file


def renamed(old, new):
    return lambda header: header.update({new: header.pop(old)})


def changed(name, **fields):
    return lambda header: header[name].update(fields)


def moved(name, by):
    return lambda header: header[name].update(data_offsets=[one + by for one in header[name]["data_offsets"]])


HEADERS = {
    "overlapping": (moved(TENSOR, -16), rf"tensor '{TENSOR}' overlaps tensor '.*'; copy the file again"),
    "hole": (moved(TENSOR, 16), rf"tensor '{TENSOR}' leaves 16 bytes before it to none; copy the file again"),
    "out of range": (
        lambda header: header.update(late={"dtype": "F32", "shape": [9], "data_offsets": [10**6, 10**6 + 36]}),
        r"tensor 'late' leaves .* bytes before it to none",
    ),
    "size": (
        changed(TENSOR, shape=[40, 23]),
        rf"tensor '{TENSOR}' of dtype F32 and shape \[40, 23\] needs 3,680",
    ),
    "backwards": (changed(TENSOR, data_offsets=[8, 4]), rf"tensor '{TENSOR}' has shape .* and bytes 8 to 4"),
    "negative": (changed(TENSOR, shape=[-40, -24]), rf"tensor '{TENSOR}' has shape \[-40, -24\]"),
    "no offsets": (changed(TENSOR, data_offsets="here"), rf"the header's entry of tensor '{TENSOR}' is broken"),
    "missing": (renamed(TENSOR, "model.layers.7.mlp.up_proj.weight"), rf"there is no tensor '{TENSOR}', of shape"),
    "dtype": (
        changed(TENSOR, dtype="I32"),
        rf"tensor '{TENSOR}' has dtype I32; parameters are read in F32, F16, BF16: save it in one of these",
    ),
    "shape": (changed(TENSOR, shape=[24, 40]), rf"tensor '{TENSOR}' has shape \[24, 40\], and config.json asks for"),
    "unknown": (
        lambda header: header.update(extra={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        r"tensor 'extra' is no part of the llama model",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_broken_headers_name_file_and_tensor(model, name):
    change, sentence = HEADERS[name]
    spoil(model, change)
    with pytest.raises(ValueError, match=sentence) as caught:
        match(open_tensors(model), read_config(model))
    assert str(model) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_cut_off_or_no_safetensors_are_refused(model):
    file = model / "model.safetensors"
    content = file.read_bytes()
    for size, sentence in (
        (4, "its header should have"),
        (200, "its header should have"),
        (len(content) - 10, "ends at byte"),
    ):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match=sentence):
            read_header(file)
    file.write_bytes(content + b"more")
    with pytest.raises(ValueError, match=r"4 bytes behind tensor .* belong to none"):
        read_header(file)
    file.write_bytes((8).to_bytes(8, "little") + b"not json")
    with pytest.raises(ValueError, match="what should be JSON is not"):
        read_header(file)
    with open(file, "wb") as sparse:
        sparse.write((MAX_HEADER + 1).to_bytes(8, "little"))
        sparse.truncate(2 * MAX_HEADER)
    with pytest.raises(ValueError, match="at most 100,000,000 are read"):
        read_header(file)


def test_shards_that_are_missing_or_elsewhere_are_refused(tmp_path):
    model = shutil.copytree(GOLDEN / "llama/sharded_bfloat16", tmp_path / "model")
    index = model / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    name, file = next(iter(tree["weight_map"].items()))
    kept = (model / file).read_bytes()
    (model / file).unlink()
    with pytest.raises(ValueError, match=rf"{file}: missing, and model.safetensors.index.json has tensor '.*' in it"):
        open_tensors(model)
    (model / file).write_bytes(kept)
    other = next(one for one in tree["weight_map"].values() if one != file)
    index.write_text(json.dumps({**tree, "weight_map": {**tree["weight_map"], name: other}}))
    with pytest.raises(ValueError, match=rf"{other}: has no tensor '{name}'"):
        open_tensors(model)
    index.write_text(json.dumps({**tree, "weight_map": {name: "../model/" + file}}))
    with pytest.raises(ValueError, match="weight_map must give every tensor a file of this directory"):
        open_tensors(model)


def test_a_tensor_that_the_index_forgets_is_read_and_one_in_two_files_is_refused(tmp_path):
    model = shutil.copytree(GOLDEN / "llama/sharded_bfloat16", tmp_path / "model")
    index = model / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    whole = set(open_tensors(model))
    first = min(names.values())
    forgotten = next(name for name, file in names.items() if list(names.values()).count(file) > 1)
    index.write_text(json.dumps({"weight_map": {name: file for name, file in names.items() if name != forgotten}}))
    assert set(open_tensors(model)) == whole
    (model / "more.safetensors").write_bytes((model / first).read_bytes())
    index.write_text(json.dumps({"weight_map": names | {"extra": "more.safetensors"}}))
    with pytest.raises(ValueError, match="has no tensor 'extra'"):
        open_tensors(model)
    name = next(name for name, file in names.items() if file == first)
    index.write_text(json.dumps({"weight_map": names | {name: "more.safetensors"}}))
    with pytest.raises(ValueError, match=r"tensor '.*' is in another file too; copy the model again"):
        open_tensors(model)


def test_pickles_are_refused_and_so_is_what_is_no_model(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle, which runs code .* take .* safetensors"):
        open_tensors(tmp_path)
    with pytest.raises(ValueError, match=r"there is no model.safetensors"):
        open_tensors(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"there is no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config.json: not a table of JSON"):
        read_config(tmp_path)


def test_a_config_that_contradicts_the_weights_is_refused(model):
    tree = read_tree(model)

    def written(**keys):
        (model / "config.json").write_text(json.dumps(tree | keys))
        return load(model, on()[1])

    with pytest.raises(ValueError, match=r"tensor 'lm_head.weight' differs from 'model.embed_tokens.weight', .* true"):
        written(tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"there is no tensor 'model.layers.2.input_layernorm.weight', of"):
        written(num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"tensor 'model.layers.1.\S+' is no part of the llama model"):
        written(num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"no tensor 'model.layers.0.self_attn.q_proj.bias', of shape \[24\]"):
        written(attention_bias=True)
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.q_proj.weight' has shape \[24, 24\], and config"):
        written(head_dim=8)


KEYS = {
    "family": ({"model_type": "lama"}, r"model_type = \"lama\": the nearest that jaxllm knows is llama"),
    "another family": ({"model_type": "t5"}, r"model_type = \"t5\": jaxllm knows "),
    "no family": ({"model_type": None}, r"model_type = None: jaxllm knows "),
    "unknown": ({"rope_tetha": 1e6}, r"rope_tetha = 1000000.0: did you mean rope_theta\?"),
    "unheard of": ({"zzz": 3}, r"zzz = 3: jaxllm does not know what it changes; take it out if nothing"),
    "activation": ({"hidden_act": "relu"}, r"hidden_act = \"relu\": jaxllm knows silu, "),
    "rope type": (
        {"rope_parameters": {"rope_type": "yarm", "factor": 2.0}},
        r"rope_parameters.rope_type = \"yarm\": did you mean yarn\?",
    ),
    "rope key": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "fator": 3}},
        r"rope_parameters.fator = 3: did you mean factor\?",
    ),
    "no factor": ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, r"rope_scaling.factor is missing"),
    "two ropes": ({"rope_scaling": {"type": "linear", "factor": 9.0}}, r"rope_scaling = .*; leave one of them out"),
    "low theta": ({"rope_parameters": {"rope_theta": 0}}, r"rope_parameters.rope_theta = 0: use a number above 1"),
    "part of a head": ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0.5: all dims of a head turn"),
    "kind": ({"hidden_size": "24"}, r"hidden_size = \"24\": use a whole number"),
    "truth": ({"tie_word_embeddings": 0}, r"tie_word_embeddings = 0: use true or false"),
    "heads": ({"num_key_value_heads": 3}, r"num_key_value_heads = 3: it must divide num_attention_heads = 4"),
    "quantised": ({"quantization_config": {"bits": 4}}, r"quantization_config = .*: jaxllm does not compute such"),
    "no layers": ({"num_hidden_layers": 0}, r"num_hidden_layers = 0: use 1 or more"),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_are_unknown_or_wrong_are_named(name):
    keys, sentence = KEYS[name]
    with pytest.raises(ValueError, match=sentence) as caught:
        parse(read_tree(GOLDEN / "llama/mha") | keys, "DIR/config.json")
    assert str(caught.value).startswith("DIR/config.json: ")


def test_keys_that_other_families_do_not_compute_are_named():
    for name, keys, sentence in (
        ("gemma2/gqa", {"layer_types": ["full_attention"]}, r"layer_types = \[\"full_attention\"\]: give 3 values"),
        ("gemma2/gqa", {"layer_types": ["chunked"] * 3}, r"layer_types = \"chunked\": jaxllm knows full_attention"),
        ("gemma2/gqa", {"sliding_window": None}, r"sliding_window = None: layers of sliding_attention need"),
        ("gemma2/gqa", {"attn_logit_softcapping": -1}, r"attn_logit_softcapping = -1.0: use a number above 0, or null"),
        ("gemma3/six_layers_and_one", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50.0: .* does not"),
        ("gemma/mha", {"use_bidirectional_attention": True}, r"use_bidirectional_attention = true: jaxllm does not"),
        ("gpt2/inner", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx"),
        ("gpt2/inner", {"hidden_size": 25}, r"hidden_size = 25: another name of this key says 24"),
        ("mistral/window", {"attention_bias": True}, r"attention_bias = true: jaxllm does not compute such models"),
        ("bloom/six_heads", {"apply_residual_connection_post_layernorm": True}, r"does not compute such models"),
        ("falcon/multi_query", {"num_ln_in_parallel_attn": 2}, r"num_ln_in_parallel_attn = 2: use 1"),
        ("phi3/longrope_past", {"rope_parameters": {"rope_type": "longrope"}}, r"short_factor = None: longrope needs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            parse(read_tree(GOLDEN / name) | keys, "config.json")


def test_changed_keys_change_the_model():
    for name, keys in (
        ("llama/mha", {"rope_theta": 50.0, "rope_parameters": None}),
        ("llama/mha", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rope_parameters": None}),
        ("llama/mha", {"rms_norm_eps": 1e-2}),
        ("llama/mha", {"initializer_range": 0.5}),
        ("mistral/window", {"sliding_window": 8}),
        ("qwen3/windows_from_a_layer", {"layer_types": ["sliding_attention"] * 3}),
        ("gemma2/gqa", {"query_pre_attn_scalar": 9}),
        ("gemma2/gqa", {"final_logit_softcapping": None}),
        ("smollm3/every_fourth_without_rope", {"no_rope_layers": [1, 1, 1, 1, 0]}),
        ("glm/gqa", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}}),
        ("gpt2/inner", {"activation_function": "silu"}),
        ("falcon/alibi_biased", {"alibi": False}),
    ):
        tree = read_tree(GOLDEN / name)
        assert parse(tree | keys, name) != parse(tree, name), keys
