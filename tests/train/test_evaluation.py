"""Held-out sets: one for each source, the whole by tokens, and an end when a signal asks for it."""

import types
from typing import Any

import numpy as np
import pytest

from jaxllm.config import BytesTokenizer, DataConfig, EvalConfig, PhaseConfig, SourceConfig
from jaxllm.data.store import build
from jaxllm.train.evaluation import Evaluation


class Program:
    """Its loss is the sum of the tokens that count."""

    decoder = None

    def rows(self, num_rows: int) -> slice:
        return slice(0, num_rows)

    def put(self, batch: Any, num_rows: int) -> Any:
        assert len(batch["tokens"]) == num_rows
        return batch

    def evaluate(self, params: Any, batch: Any) -> dict[str, float]:
        return {"loss": params * float((batch["tokens"] * batch["weights"]).sum()), "tokens": batch["weights"].sum()}


@pytest.fixture
def evaluation(tmp_path):
    for letter, size in (("a", 3000), ("b", 1000)):
        (tmp_path / f"{letter}.txt").write_text("\n".join(letter * 20 for _ in range(size)))
    config = DataConfig(
        sources=tuple(SourceConfig(path=f"{tmp_path}/{x}.txt", name=x, documents="line") for x in "ab"),
        tokenizer=BytesTokenizer(),
        store=str(tmp_path / "store"),
        held_out_fraction=0.1,
        phases=(PhaseConfig(sequence_length=32, batch_size=4, steps=1),),
    )
    return Evaluation(Program(), build(config), config, EvalConfig(batches=0), 0)  # type: ignore[arg-type]


def test_each_source_is_a_set_and_held_out_is_all(evaluation):
    facts = {one["set"]: one for one in evaluation.measure(1.0, lambda: False)}
    assert list(facts) == ["a", "b", "held_out"]
    # The last token of a document, its end, has no target: what counts are the letters, and they are their own loss.
    assert facts["a"]["loss"] == ord("a") and facts["b"]["loss"] == ord("b")
    tokens = facts["a"]["tokens"], facts["b"]["tokens"]
    assert tokens[0] > 2 * tokens[1] > 0
    assert facts["held_out"]["tokens"] == sum(tokens)
    assert facts["held_out"]["loss"] == pytest.approx(np.average([ord("a"), ord("b")], weights=tokens))
    # 21 tokens for the 20 bytes of a document
    assert facts["a"]["bits_per_byte"] == pytest.approx(ord("a") / np.log(2) * 21 / 20)


def test_a_set_that_is_cut_short_says_nothing(evaluation):
    asked = iter([False, True])
    state = types.SimpleNamespace(last=False)

    def ask() -> bool:
        state.last = next(asked, True)
        return state.last

    assert list(evaluation.measure(1.0, ask)) == []
