"""Sizes that fill devices, by the recipe that trains them."""

import msgspec
import pytest

from jaxllm.config import ModelConfig
from jaxllm.models import PRESETS
from jaxllm.plan.capacity import RECIPES, USABLE, fits, largest, llama_shaped, memory
from jaxllm.roofline.hardware import find_chip
from jaxllm.roofline.transformer import parameters

ADAMW, MUON, HALF_ADAMW, HALF_MUON, LORA = RECIPES
RTX, A100 = find_chip("RTX 4090"), find_chip("A100")


def preset(name):
    return msgspec.convert(PRESETS[name], ModelConfig)


def billions(model):
    return parameters(model).total / 1e9


def test_llama_shapes_are_llamas():
    assert parameters(llama_shaped(32)).total == parameters(preset("llama2-7b")).total
    assert parameters(llama_shaped(40)).total == parameters(preset("llama2-13b")).total


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_state_takes_the_bytes_that_the_recipe_says(recipe):
    model = llama_shaped(40)
    used = memory(model, recipe, num_devices=8, data=2)
    state = (used["parameters"] + used["gradients"] + used["optimizer"]) * 4
    # Norms are not sharded, Muon's embedding and head keep a second moment, and adapters have a state of their own.
    assert state / parameters(model).total == pytest.approx(recipe.bytes_per_parameter, rel=0.06)
    assert used["total"] == sum(size for part, size in used.items() if part != "total")


def test_6b_on_one_card_of_24_gb():
    # 6 billion parameters are 12 GB in bfloat16: adapters fit beside them, a full state of any kind does not.
    assert billions(largest(RTX, LORA)) > 6
    assert billions(largest(RTX, HALF_MUON)) < 6
    assert fits(memory(llama_shaped(31), LORA)["total"], RTX)


def test_13b_at_4k_on_8_cards_with_data_2():
    # Four cards share each copy of the state: 52 GB each in float32.
    used = memory(preset("llama2-13b"), ADAMW, num_devices=8, data=2, sequence_length=4096)
    assert used["parameters"] + used["gradients"] + used["optimizer"] == pytest.approx(16 * 13.016e9 / 4, rel=1e-3)
    assert fits(used["total"], A100)
    assert billions(largest(A100, ADAMW, num_chips=8, data=2)) > 13
    # On eight cards of 24 GB only adapters.
    assert not fits(memory(preset("llama2-13b"), HALF_MUON, num_devices=8, data=2)["total"], RTX)
    assert fits(memory(preset("llama2-13b"), LORA, num_devices=8, data=2)["total"], RTX)


def test_70b_on_80_cards():
    # Even on cards of 24 GB, with AdamW in float32: 14 GB of state and the activations of one sequence.
    used = memory(preset("llama2-70b"), ADAMW, num_devices=80)
    assert fits(used["total"], RTX)
    assert 68 < billions(largest(RTX, ADAMW, num_chips=80)) < 75


def test_largest_is_largest():
    best = largest(A100, ADAMW, num_chips=8)
    larger = llama_shaped(best.num_layers + 1)
    assert memory(best, ADAMW, num_devices=8)["total"] <= USABLE * 80e9
    assert memory(larger, ADAMW, num_devices=8)["total"] > USABLE * 80e9


def test_chips_of_two_devices_halve_their_memory():
    v3 = find_chip("v3")
    assert fits(14_000_000_000, v3) and not fits(15_000_000_000, v3)


def test_nothing_fits_where_one_sequence_is_too_long():
    assert largest(RTX, ADAMW, sequence_length=2**27) is None
