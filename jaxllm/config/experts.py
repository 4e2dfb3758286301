"""Experts in the place of one feed-forward layer, and how a token's are chosen."""

from typing import Literal

from jaxllm.config.base import Section, require


class ExpertsConfig(Section, frozen=True, kw_only=True):
    """A mixture of experts (Shazeer et al. 2017): of many feed-forward layers each token goes through a few.

    Attributes:
        num_experts: experts to choose from; each has the `d_ff` hidden units of the section around this one.
        experts_per_token: how many of them a token goes through.
        shared_d_ff: hidden units of one more expert, that all tokens go through (DeepSeekMoE, Dai et al. 2024, section
            3.2: its two shared experts are one of twice the width); 0 means none.
        scores: what the router's logits become, expert by expert the share of a token's choice: `softmax` over all
            experts (Mixtral, Qwen 3, OLMoE, DeepSeekMoE); `sigmoid` of each (DeepSeek-V3).
        renormalise: whether the scores of the experts chosen are divided by their sum (Mixtral, Qwen 3 and DeepSeek-V3
            do so; OLMoE and DeepSeekMoE do not).
        gate_scale: multiplies the gates after that (DeepSeek-V3: 2.5).
        num_groups: groups of experts, of which a token chooses first (DeepSeek-V3: 8), by the sum of each group's two
            best sigmoid scores; 1 means no groups.
        groups_per_token: groups that a token may choose experts of (DeepSeek-V3: 4).
        balancing_bias: whether each expert has a bias that is added to its score for the choice only, and moved against
            its load after every step, by `optim.balancing_rate` (Wang et al. 2024; DeepSeek-V3).
    """

    num_experts: int
    experts_per_token: int
    shared_d_ff: int = 0
    scores: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    gate_scale: float = 1.0
    num_groups: int = 1
    groups_per_token: int = 1
    balancing_bias: bool = False

    def __post_init__(self) -> None:
        experts, groups = self.num_experts, self.num_groups
        require(experts >= 2, "num_experts", experts, "use 2 or more; a dense layer is one without experts")
        require(
            1 <= self.experts_per_token <= experts,
            "experts_per_token",
            self.experts_per_token,
            f"use 1 or more, and at most num_experts = {experts}",
        )
        require(self.shared_d_ff >= 0, "shared_d_ff", self.shared_d_ff, "use a number of hidden units, or 0 for none")
        require(self.gate_scale > 0, "gate_scale", self.gate_scale, "use a positive number, 1 for no scale")
        require(
            groups >= 1 and experts % groups == 0,
            "num_groups",
            groups,
            f"it must divide num_experts = {experts}; 1 means no groups",
        )
        require(
            groups == 1 or self.scores == "sigmoid",
            "num_groups",
            groups,
            'groups are chosen by sigmoid scores; use scores = "sigmoid", or 1 for no groups',
        )
        require(
            groups == 1 or experts // groups >= 2,
            "num_groups",
            groups,
            f"a group is chosen by its two best experts; use at most num_experts / 2 = {experts // 2}",
        )
        require(
            1 <= self.groups_per_token <= groups,
            "groups_per_token",
            self.groups_per_token,
            f"use 1 or more, and at most num_groups = {groups}",
        )
        require(
            self.experts_per_token <= self.groups_per_token * (experts // groups),
            "experts_per_token",
            self.experts_per_token,
            f"the groups_per_token = {self.groups_per_token} groups of a token have only "
            f"{self.groups_per_token * (experts // groups)} experts",
        )
