"""What experts cost and what balances them: the models and runs that are compared, what is claimed, what is refused."""

import msgspec
import pytest
import tiny

from jaxllm.bench import balance, experts
from jaxllm.config import ExpertsConfig, MeshConfig, MLPConfig, ModelConfig
from jaxllm.roofline.transformer import parameters

MIXTURE = ExpertsConfig(num_experts=4, experts_per_token=2, shared_d_ff=16, balancing_bias=True)
LAYER = msgspec.structs.replace(tiny.MODEL.default_block, mlp=MLPConfig(d_ff=48, experts=MIXTURE))
MODEL = msgspec.structs.replace(tiny.MODEL, num_layers=2, prefix=(tiny.MODEL.default_block,), period=(LAYER,))
"""A dense layer, then one with experts."""


def active_matrices(model: ModelConfig) -> int:
    """Weights that a token meets, without those of routers, which grow with the number of experts."""
    routers = sum(model.d_model * block.mlp.experts.num_experts for block in model.blocks if block.mlp.experts)
    biases = sum(block.mlp.experts.num_experts for block in model.blocks if block.mlp.experts)
    return parameters(model).active - routers - biases


def test_what_is_compared_has_the_same_active_parameters():
    found = {name: experts.changed(MODEL, name, 8) for name in ("dense", "few", "many", "fine")}
    assert len({active_matrices(model) for model in found.values()}) == 1
    assert found["few"] == MODEL
    assert all(block.mlp.experts is None for block in found["dense"].blocks)
    mlp = {name: model.blocks[1].mlp for name, model in found.items() if name in ("many", "fine")}
    assert [(mlp[name].experts.num_experts, mlp[name].experts.experts_per_token) for name in mlp] == [(32, 2), (32, 16)]
    assert (mlp["many"].d_ff, mlp["fine"].d_ff) == (48, 6)
    assert all(model.blocks[0] == MODEL.blocks[0] for model in found.values())
    assert experts.changed(MODEL, "fine", 5) is None, "48 hidden units are not five times a whole number"


def test_steps_take_turns_and_are_compared_in_each(monkeypatch):
    """A machine that is twice as slow in one turn changes seconds and no ratio."""
    cost, speeds = {0: 1.0, 4: 1.2, 8: 1.5}, iter([1.0, 2.0, 1.0])

    class Step:
        speed = 1.0

        def __init__(self, experiment, program):
            mlp = program.decoder.config.blocks[1].mlp
            self.cost = cost[mlp.experts.num_experts if mlp.experts else 0]

        def run(self):
            Step.speed = next(speeds) if self.cost == 1 else Step.speed
            return self.cost * Step.speed, 0.0

    monkeypatch.setattr(experts.step, "Step", Step)
    monkeypatch.setattr(experts.step, "WARM_UP", 0)
    result = experts.measure(tiny.experiment(MODEL, MeshConfig()), 3, 2)
    found = {row["name"]: row for row in result["steps"]}
    assert [found[name]["ratio"] for name in found] == pytest.approx([1, 1.2, 1.25, 1.25])
    assert [found[name]["compared"] for name in found] == ["dense", "dense", "few", "few"]
    assert found["few"]["step_seconds_quartiles"] == pytest.approx([1.2, 1.8])
    assert found["many"]["rows"] == tiny.ROWS * tiny.LENGTH * 2 / 8
    assert "1.25 x few" in experts.text(result)
    assert result["tokens"] == tiny.ROWS * tiny.LENGTH
    speeds = iter([1.0])
    assert (
        experts.measure(tiny.experiment(MODEL, MeshConfig()), 1, 2, 16 * tiny.LENGTH + 1)["tokens"] == 16 * tiny.LENGTH
    )


def test_runs_differ_in_what_balances_them_only():
    found = {arm: balance.arranged(tiny.experiment(MODEL), arm, 3, 20, "somewhere") for arm in balance.ARMS}
    assert [one.model.blocks[1].mlp.experts.balancing_bias for one in found.values()] == [True, False, False]
    assert [one.train.loss.balance for one in found.values()] == [0.0, balance.AUXILIARY, 0.0]
    for one in found.values():
        assert (one.run.seed, one.data.seed, one.data.num_steps) == (3, 3, 20)
        assert one.optim == tiny.experiment(MODEL).optim


def test_a_claim_holds_up_to_its_bar():
    def held(share, above):
        means = {"bias": (share, above), "loss": (9.0, 0.0), "unbalanced": (1.0, 5.0)}
        summary = {arm: {"max_violation": most, "loss": loss} for arm, (most, loss) in means.items()}
        return [claim["held"] for claim in balance.claims(summary)]

    assert held(0.24, 0.01) == [True, True]
    assert held(0.25, 0.011) == [False, False]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: experts.measure(tiny.experiment()), "there are none to measure"),
        (lambda: experts.measure(tiny.experiment(MODEL), 0), "--turns 0: time at least one turn"),
        (lambda: experts.measure(tiny.experiment(MODEL), 1, 1), "--times 1: use 2 or more"),
        (lambda: experts.measure(tiny.experiment(MODEL), 1, 2, 3), f"--tokens 3: a row alone has {tiny.LENGTH}"),
        (lambda: balance.measure(tiny.experiment()), "there are none to balance"),
        (lambda: balance.measure(tiny.experiment(MODEL), 0), "--seeds 0: train one at least"),
        (lambda: balance.measure(tiny.experiment(MODEL), 1, -1), "--steps -1: use a number"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
