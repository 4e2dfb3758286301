"""What is exported is what was imported: the same bytes, and a config.json that says the same in both schemas."""

import json
import math

import jax
import msgspec
import pytest
from parity import GOLDEN, NAMES, loaded, on
from published_configs import CONFIGS

from jaxllm.config import load as load_config
from jaxllm.hf.config import describe, effective, parse, read_tree, write_tree
from jaxllm.hf.load import load, read_config
from jaxllm.hf.safetensors import open_tensors
from jaxllm.hf.save import save
from jaxllm.models import CONTEXT_LENGTHS, PRESETS

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def contents(directory):
    """Dtype and bytes of each tensor, by name."""
    tensors = open_tensors(directory)
    return {name: (tensor.dtype, tensors.view(name).tobytes()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", NAMES)
def test_exported_tensors_and_config_are_the_imported_ones(name, tmp_path):
    mesh, decoder, params = loaded(GOLDEN / name)
    before, tree = contents(GOLDEN / name), read_tree(GOLDEN / name)
    (dtype,) = {dtype for dtype, _ in before.values()}
    with jax.set_mesh(mesh):
        save(
            tmp_path / "out",
            decoder.config,
            params,
            dtype=DTYPES[dtype],
            length=describe(tree, name).context_length or 2048,
        )
    assert contents(tmp_path / "out") == before
    assert read_config(tmp_path / "out") == decoder.config
    written = read_tree(tmp_path / "out")
    known = tree.keys() & written.keys() - {"rope_parameters"}
    assert {key: written[key] for key in known} == {key: tree[key] for key in known}
    for schema in (
        ("rope_parameters",),
        ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"),
    ):
        assert parse({key: value for key, value in written.items() if key not in schema}, name) == decoder.config


@pytest.mark.parametrize("name", NAMES)
def test_both_versions_of_transformers_describe_the_same_model(name):
    old = json.loads((GOLDEN / name / "config_transformers4.json").read_text())
    assert parse(old, "config_transformers4.json") == read_config(GOLDEN / name)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_published_models(name):
    model = load_config(
        {"model": {"preset": name}, "data": {"phases": [{"steps": 1, "sequence_length": 64}]}}, presets=PRESETS
    ).model
    published = parse(CONFIGS[name], name)
    assert effective(published) == effective(model)
    written = write_tree(model, CONTEXT_LENGTHS[name])
    assert effective(parse(written, "config.json")) == effective(model)
    assert describe(written, name).context_length == CONTEXT_LENGTHS[name] or model.family == "bloom"


def test_the_text_model_of_a_model_of_images_is_read(tmp_path):
    _, decoder, params = loaded(GOLDEN / "gemma3/windows_and_two_ropes")
    tree = read_tree(GOLDEN / "gemma3/windows_and_two_ropes")
    outer = {"model_type": "gemma3", "text_config": tree, "vision_config": {"hidden_size": 8}, "image_token_index": 5}
    assert parse(outer, "config.json") == decoder.config
    content = (GOLDEN / "gemma3/windows_and_two_ropes/model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    for prefix, head in (("language_model.model.", "language_model."), ("model.language_model.", "")):
        header = {
            prefix + name.removeprefix("model.") if name.startswith("model.") else head * (name[0] != "_") + name: entry
            for name, entry in json.loads(content[8 : 8 + length]).items()
        }
        header["vision_tower.patch.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        mesh, recipe = on()
        with jax.set_mesh(mesh):
            again = load(tmp_path, recipe, decoder.config)
            assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))


def test_files_are_no_larger_than_asked_and_the_index_names_them(tmp_path):
    name = "gemma2/gqa"
    mesh, decoder, params = loaded(GOLDEN / name)
    with jax.set_mesh(mesh):
        save(tmp_path / "out", decoder.config, params, dtype="float32", length=64, max_shard=20_000)
        again = load(tmp_path / "out", on()[1])
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 2 and max((tmp_path / "out" / file).stat().st_size for file in files) < 25_000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(len(data) for _, data in contents(GOLDEN / name).values())
    assert contents(tmp_path / "out") == contents(GOLDEN / name)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
    mesh, decoder, params = loaded(GOLDEN / "llama/mha")
    with jax.set_mesh(mesh), pytest.raises(TypeError):
        save(tmp_path / "out", decoder.config, params, dtype="float32", length=64, keys={"eos_token_id": b"2"})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_its_family_has_no_keys_for_is_refused(tmp_path):
    model = read_config(GOLDEN / "llama/mha")
    capped = msgspec.structs.replace(model, final_soft_cap=30.0)
    with pytest.raises(ValueError, match=r"model.final_soft_cap = 30.0: .* family llama have 0.0 there"):
        write_tree(capped, 64)
    tilted = msgspec.structs.replace(model, attention=msgspec.structs.replace(model.attention, query_scale=math.pi))
    with pytest.raises(ValueError, match=r"model.layers.0.attention = .*only such models can be exported"):
        write_tree(tilted, 64)
