"""A plan's option as the experiment that is compiled, and prediction and compiler side by side."""

import pytest

import jaxllm
from jaxllm.plan import verify
from jaxllm.plan.compile import Compiled, Moved
from tests.planned import experiment


@pytest.fixture
def plan():
    return jaxllm.plan(experiment(data__phases__0__batch_size=16), target="v5e-16")


def test_what_is_compiled_is_the_option(plan):
    option = plan.options[1]
    made = verify.as_run(plan, option)
    assert {axis: getattr(made.mesh, axis) for axis in option.candidate.mesh.sizes} == option.candidate.mesh.sizes
    assert (made.train.remat, made.train.accumulate) == (option.candidate.remat, option.candidate.accumulate)
    assert made.data.phases == (plan.phase,)


def test_an_all_reduce_in_the_place_of_a_reduce_scatter_is_shown_as_one(plan, monkeypatch):
    def confirm(made, machine, export):
        return Compiled(
            machine=str(machine),
            mesh={},
            compiler="a compiler",
            compile_seconds=2.0,
            argument_bytes=2**30,
            temporary_bytes=2**31,
            output_bytes=2**30,
            alias_bytes=2**30,
            flops=0.0,
            cycles=0,
            moved=(Moved(kind="all-reduce", axes=("fsdp",), count=3, size=2**31),),
        )

    monkeypatch.setattr(verify, "confirm", confirm)
    (one,) = verify.verify(plan, 1)
    moved = {("reduce-scatter", ("fsdp",)): 2**30}
    text = verify.text(verify.Verified(option=one.option, memory=3 * 2**30, moved=moved, compiled=one.compiled))
    lines = {line.split("  ")[1].strip(): line.split()[-4:] for line in text.splitlines()[2:]}
    assert lines["memory, GiB a device"] == ["3.00", "3.00", "+0.0", "%"]
    assert lines["reduce-scatter over fsdp, GiB a step"] == ["1.00", "2.00", "-50.0", "%"]
    assert "all-reduce" not in text
    assert verify.as_data([one])[0]["compiled"]["argument_bytes"] == 2**30
