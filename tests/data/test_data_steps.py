"""Steps: whole batches of consecutive samples, none of them skipped, against a count of them one by one."""

import random

import pytest

from jaxllm.config import DataConfig, PhaseConfig
from jaxllm.data.steps import Range, Steps, union

PHASES = (
    PhaseConfig(sequence_length=64, batch_size=4, steps=9),
    PhaseConfig(sequence_length=96, batch_size=3, tokens=2000),
    PhaseConfig(sequence_length=32, batch_size=2, steps=5),
)


def counted(config: DataConfig, skipped: list[Range], num_steps: int) -> list[tuple[int, int]]:
    """Phase and first sample of each step, from a walk over all samples."""
    found, run, first = [], [], 0
    for index, phase in enumerate(config.phases):
        last = index + 1 == len(config.phases)
        end = 10_000 if last else first + phase.num_steps * phase.batch_size
        for sample in range(first, end):
            if any(start <= sample < stop for start, stop in skipped):
                run = []
                continue
            run.append(sample)
            if len(run) == phase.batch_size:
                found.append((index, run[0]))
                run = []
        run, first = [], end
    return found[:num_steps]


@pytest.mark.parametrize("seed", range(20))
def test_steps_are_those_of_a_walk_over_all_samples(seed):
    draw = random.Random(seed)
    config = DataConfig(phases=PHASES[: 1 + seed % 3])
    skipped = []
    for _ in range(seed % 5):
        start = draw.randrange(80)
        skipped.append(Range(start, start + draw.randrange(1, 40)))
    steps, expected = Steps(config, skipped), counted(config, skipped, 60)
    assert [(steps.phase(step), steps.cursor(step)) for step in range(60)] == expected
    sizes = [config.phases[index].batch_size for index, _ in expected]
    assert [steps.samples(step) for step in range(60)] == [
        Range(cursor, cursor + size) for (_, cursor), size in zip(expected, sizes, strict=True)
    ]
    assert [step for step in range(60) if steps.is_border(step)] == [
        step for step in range(1, 60) if expected[step][0] != expected[step - 1][0]
    ]
    tokens = [0]
    for index, _ in expected:
        tokens.append(tokens[-1] + config.phases[index].batch_size * config.phases[index].sequence_length)
    assert [steps.num_tokens(step) for step in range(61)] == tokens
    for start in range(0, 40, 7):
        for wanted in (0, 1, 64, 500, 3000):
            needed = next((step for step in range(start, 61) if tokens[step] - tokens[start] >= wanted), None)
            assert needed is None or steps.num_steps(start, wanted) == needed - start


def test_a_range_changes_nothing_before_it():
    config = DataConfig(phases=PHASES)
    plain, skipping = Steps(config), Steps(config, [Range(plain_cursor := Steps(config).cursor(11), plain_cursor + 6)])
    assert [skipping.cursor(step) for step in range(11)] == [plain.cursor(step) for step in range(11)]
    assert [skipping.cursor(step) for step in range(11, 20)] == [plain.cursor(step + 2) for step in range(11, 20)]


def test_union_merges_what_touches():
    assert union([Range(8, 9), Range(0, 3), Range(2, 5), Range(5, 6)]) == (Range(0, 6), Range(8, 9))
    assert union([]) == ()
