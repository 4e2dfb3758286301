"""What a run tells of its model: the held-out losses, and a sample of text at the end.

Of several sources each is a set of its own, by its name; `held_out` is all of them together. A set is read from its
beginning, always the same batches, so its losses compare from step to step and from run to run.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxllm.config import DataConfig, EvalConfig
from jaxllm.data.batches import Batches
from jaxllm.data.store import Store
from jaxllm.generate.draw import Sampling
from jaxllm.generate.engine import Generator
from jaxllm.generate.sample import sample
from jaxllm.layers.param import Tree
from jaxllm.train.assemble import Program

WHOLE = "held_out"


class Evaluation:
    """The held-out sets of a run.

    Args:
        program: compiled functions.
        store: the tokens.
        data: shape of the batches.
        config: how many.
        seed: of the sampled text.
    """

    def __init__(self, program: Program, store: Store, data: DataConfig, config: EvalConfig, seed: int) -> None:
        self._program, self._store, self._config, self._seed = program, store, config, seed
        self._length = data.phases[0].sequence_length
        self._num_rows = data.phases[0].batch_size
        self._rows = program.rows(self._num_rows)
        names = [source.name for source in store.manifest.sources]
        if len(names) == 1:
            self._sets = {WHOLE: Batches(store, data, "held_out")}
        else:
            self._sets = {name: Batches(store, data, "held_out", source=i) for i, name in enumerate(names)}

    def measure(self, params: Tree, asked: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """The facts of each set's `evaluated` event: set, tokens, loss, perplexity, bits_per_byte.

        Ends early, without the set at hand, when asked to.
        """
        total = tokens = 0.0
        for name, batches in self._sets.items():
            losses = [0.0, 0.0]
            for index in range(min(self._config.batches or batches.num_batches, batches.num_batches)):
                if asked():
                    return
                batch = batches.rows(batches.cursor(index), self._rows)
                sums = jax.device_get(self._program.evaluate(params, self._program.put(batch, self._num_rows)))
                losses = [losses[0] + float(sums["loss"]), losses[1] + float(sums["tokens"])]
            total, tokens = total + losses[0], tokens + losses[1]
            yield self._facts(name, *losses)
        if len(self._sets) > 1:
            yield self._facts(WHOLE, total, tokens)

    def _facts(self, name: str, total: float, tokens: float) -> dict[str, Any]:
        loss = total / max(tokens, 1.0)
        return {
            "set": name,
            "tokens": int(tokens),
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": self._store.manifest.bits_per_byte(loss, "" if name == WHOLE else name),
        }

    def write_sample(self, params: Tree) -> dict[str, str]:
        """A prompt and the text that the model goes on with; empty where none is wanted."""
        config, tokenizer = self._config, self._store.tokenizer
        if not config.sample_tokens:
            return {}
        prompt = [int(one) for one in (tokenizer.eos_id, *tokenizer.encode(config.sample_prompt))]
        how = Sampling(temperature=config.sample_temperature, seed=self._seed)
        decoder, num_tokens = self._program.decoder, config.sample_tokens
        rules = decoder.recipe.rules
        if rules.staged or rules.ring or len(prompt) + num_tokens > self._length:
            ids = sample(decoder, params, prompt, num_tokens, how, tokenizer.vocab_size, self._length)
        else:
            ids = Generator(decoder, params, tokenizer.vocab_size).complete([prompt], num_tokens, how)[0]
        text = tokenizer.decode(one for one in ids if one != tokenizer.eos_id)
        return {"prompt": config.sample_prompt, "sample": text}
