"""The plan's order against the programs', with programs from a file; and Spearman's correlation."""

import pytest

from jaxllm.bench import plan_rank
from jaxllm.plan.compile import DoesNotFit, Machine
from jaxllm.plan.program_time import Spent
from jaxllm.plan.schedule import Scheduled, memory_bytes


def test_spearmans_correlation():
    assert plan_rank.places([3.0, 1.0, 3.0]) == [2.5, 1.0, 2.5]
    assert plan_rank.rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert plan_rank.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 x (1 + 1) / (4 x 15)
    assert plan_rank.rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)


@pytest.fixture
def programs(monkeypatch):
    """Schedules that are the plan's own, but for one mesh, whose program is the slowest, and one that does not fit."""

    def scheduled(experiment, machine):
        assert (machine.chip, machine.shape) == ("v5e", (4, 4))
        assert experiment.train.remat == "block"
        assert experiment.optim.schedule.warmup_steps < experiment.data.num_steps
        if experiment.mesh.data == 8:
            raise DoesNotFit("Used 20G of 15G hbm", Machine(platform="tpu", chip="v5e", shape=(4, 4)))
        return Scheduled(str(experiment.mesh.fsdp), 10**10)

    def seconds(text, found, option):
        slow = 100.0 if text == "16" else 0.0
        return Spent(option.time.total - option.time.attention + slow, 1.0)

    monkeypatch.setattr(plan_rank, "scheduled", scheduled)
    monkeypatch.setattr(plan_rank, "program_seconds", seconds)
    monkeypatch.setattr(plan_rank, "require_compiler", lambda platform: None)


def test_the_table(programs):
    result = plan_rank.measure(["llama3.2-1b"])
    (model,) = result["models"]
    assert len(model["meshes"]) > 80 and len(model["too_large"]) > 1
    assert 0.9 < model["rank_correlation"] < 1
    lines = plan_rank.text(result).splitlines()
    assert lines[0].startswith("llama3.2-1b on 16 chips of TPU v5e, 4x4: rank correlation 0.")
    assert lines[3].startswith("  fsdp 16; accumulate 1 ")
    assert lines[-1].startswith("left out, as the compiler finds no memory for them: ")


def test_a_model_that_is_not_there():
    with pytest.raises(ValueError, match=r"'gpt5' is not compared; use one of llama3\.2-1b, qwen3-4b"):
        plan_rank.measure(["gpt5"])


def test_what_a_called_computation_is_given_is_not_counted_again():
    assignment = """BufferAssignment:
allocation 0: size 4, color 8, page 0, thread-local:
 value: <3 call-start.1{2} @8> (size=4,offset=0): u32[]
allocation 5: size 777912320, page 0, thread-local:
allocation 6: size 224133120, page 0, parameter 36, shape |f32[36,9728,160]| at ShapeIndex {}, maybe-live-out:
allocation 7: size 512, page 0, constant:
allocation 686: size 6737821696, page 0, preallocated-temp:
allocation 687: size 50225152, color 1, page 0, preallocated-temp:
"""
    assert memory_bytes(assignment) == 224133120 + 512 + 6737821696
