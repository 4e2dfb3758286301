"""Generated texts are those of one forward pass a token, whatever the batch, the mesh and the rope scaling."""

import families
import jax
import numpy as np
import pytest
import tiny

from jaxllm.config import MeshConfig, ModelConfig
from jaxllm.generate.engine import Generator, in_compute
from jaxllm.layers.param import Recipe, leaves
from jaxllm.models.decoder import Decoder, merge

VOCAB = 60
"""Of 64 rows of the embedding."""

PLAIN = families.stack([families.plain(window=families.WINDOW)], repeats=2)
STRETCHED = families.stack([families.plain(scaling=name) for name in ("dynamic", "longrope")], repeats=1)
PROMPTS = [[5, 9, 13, 2], [7, 1, 40, 33, 21, 8, 8, 30, 11, 3, 17], [50]]
LENGTH = 32


class Texts:
    """A model that generates, and one pass for each of its tokens."""

    def __init__(self, model: ModelConfig, mesh: MeshConfig | None = None) -> None:
        self.running = tiny.program(tiny.experiment(model, mesh, shape=(8, LENGTH)))
        decoder = self.running.decoder
        with jax.set_mesh(self.running.mesh):
            self.params = tiny.place(self.running, tiny.make_params(model))
            self.generator = Generator(decoder, self.params, VOCAB)
        self.forward = jax.jit(lambda params, *call: merge(decoder, params)(*call).logits)

    def complete(self, *arguments):
        with jax.set_mesh(self.running.mesh):
            return self.generator.complete(*arguments)

    def likeliest(self, text: list[int]) -> int:
        """What one pass over the text says comes next; padding behind it, of which no position is seen."""
        tokens, positions = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), np.int32)
        tokens[0, : len(text)], positions[0, : len(text)] = text, np.arange(len(text))
        with jax.set_mesh(self.running.mesh):
            logits = self.forward(self.params, tokens, positions, (np.arange(LENGTH)[None] < len(text)).astype("int32"))
        return int(np.argmax(logits[0, len(text) - 1, :VOCAB]))


@pytest.fixture(scope="module")
def plain():
    return Texts(PLAIN)


def test_greedy_texts_are_the_likeliest_tokens_of_whole_passes(plain):
    found = plain.complete(PROMPTS, 14)
    for prompt, text in zip(PROMPTS, found, strict=True):
        assert len(text) == 14
        for num in range(14):
            assert text[num] == plain.likeliest(prompt + text[:num])
    assert len({one for text in found for one in text}) > 5, "not one token over and over"


@pytest.mark.parametrize("prompt", [PROMPTS[1], PROMPTS[0] * 3 + [1]], ids=["grows beyond 12 tokens", "begins beyond"])
def test_scalings_that_change_with_the_length_are_those_of_whole_passes(stretched, prompt):
    (found,) = stretched.complete([prompt], 4)
    assert found == [stretched.likeliest(prompt + found[:num]) for num in range(4)]


@pytest.fixture(scope="module")
def stretched():
    return Texts(STRETCHED)


def test_a_text_ends_with_a_token_that_ends_texts(plain):
    whole = plain.complete(PROMPTS, 14)
    stop = whole[1][3]
    found = plain.complete(PROMPTS, 14, None, {stop})
    wanted = [text[: text.index(stop) + 1] if stop in text else text for text in whole]
    assert found == wanted and len(found[1]) <= 4


def test_on_a_mesh_texts_are_those_of_one_device(plain):
    mesh = MeshConfig(fsdp=2, tensor=2, sequence_parallel=True)
    assert Texts(PLAIN, mesh).complete(PROMPTS, 6) == plain.complete(PROMPTS, 6)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [([[1], []], "prompt is empty"), ([[3, VOCAB]], "token id 60: .* from 0 to 59"), ([[-1]], "token id -1")],
)
def test_a_prompt_that_cannot_be_read_is_refused(plain, prompts, words):
    with pytest.raises(ValueError, match=words):
        plain.complete(prompts, 2)


def test_learned_positions_are_not_outgrown():
    texts = Texts(families.stack([families.plain()], repeats=1, learned_positions=LENGTH))
    with pytest.raises(ValueError, match=r"5 tokens behind a prompt of 29: .* for 32 .*; ask for at most 4"):
        texts.complete([[1] * 29], 5)
    with pytest.raises(ValueError, match=r"the prompt has 33 tokens, .* 32 \(model.learned_positions\)"):
        texts.complete([[1] * 33], 1)


def test_a_mesh_over_which_no_cache_lies_is_refused():
    model = families.stack([families.plain()], repeats=2)
    running = tiny.program(tiny.experiment(model, MeshConfig(pipe=2, fsdp=1), shape=(8, LENGTH)))
    with pytest.raises(ValueError, match=r"mesh.pipe: .* set mesh.pipe = 1"):
        Generator(running.decoder, {}, VOCAB)


def test_routers_are_read_as_in_training_and_other_parameters_are_cast_once():
    model = families.stack([families.sparse()], repeats=2)
    cast = in_compute(Decoder(model, Recipe(compute="bfloat16")), tiny.make_params(model))
    found = {name: str(x.dtype) for name, x in leaves(cast)}
    assert found.pop("period.0.mlp.router.kernel") == "float32"
    assert set(found.values()) == {"bfloat16"}
