"""The benchmark of the guard's cost: its figures, from steps that take made-up times."""

import msgspec
import pytest
import tiny

from jaxllm.bench import guard, step
from jaxllm.config import GuardConfig, MeshConfig, Off
from jaxllm.train.step import UNGUARDED

EXPERIMENT = tiny.experiment(mesh=MeshConfig(fsdp=8))


@pytest.fixture
def order(monkeypatch):
    """Whose steps were run, in their order; a guarded step takes 3 % longer, on a machine that ever slows down."""
    ran = []

    class Step:
        def __init__(self, experiment, program):
            del program
            self.guarded = experiment.guard != UNGUARDED

        def fetch(self):
            ran.append(self.guarded)
            slow = 100.0 if len(ran) <= 2 * step.WARM_UP else 1 + (len(ran) - 1) // 2
            return slow * (1.03 if self.guarded else 1.0), 2.5

    monkeypatch.setattr(step, "Step", Step)
    return ran


def test_the_overhead_is_that_of_pairs(order):
    result = guard.measure(EXPERIMENT, 20)
    assert result["overhead"] == pytest.approx(0.03)
    assert result["overhead_interval"] == pytest.approx([0.03, 0.03])
    assert result["pairs"] == 20 and len(order) == 2 * (20 + step.WARM_UP)
    assert {order[0::4].count(True), order[2::4].count(True)} == {0, 11}, "who comes first alternates"
    assert result["identical"]
    assert "+3.00 %, +3.00 % to +3.00 % with 95 % confidence" in guard.text(result)


def test_without_a_guard_there_is_nothing_to_measure():
    bare = msgspec.structs.replace(EXPERIMENT, guard=GuardConfig(drop=False, policy=Off()))
    with pytest.raises(ValueError, match=r"^guard\.drop = false and the policy is off"):
        guard.measure(bare)


def test_too_few_pairs():
    with pytest.raises(ValueError, match=r"^--pairs 9: use 10 or more"):
        guard.measure(EXPERIMENT, 9)
