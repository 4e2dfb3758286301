"""DeepSeekMoE 16B as a torch model: transformers 5.23 has no class of model_type `deepseek`.

DeepSeek-V2's class is another model (its attention has latent vectors), so this one is made of what transformers has: a
Llama whose feed-forward layers are, as in the published modeling_deepseek.py (deepseek-ai/deepseek-moe-16b-base),

    s = softmax(x W);  the k largest of s choose the experts
    y = sum of s_e expert_e(x) over those, s divided by their sum where `norm_topk_prob` says so,  + shared(x)

in layers i >= first_k_dense_replace with i % moe_layer_freq = 0, and dense in the others. Import it to register the
class; its tensors have the names of the published files.
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class DeepseekConfig(LlamaConfig):
    model_type = "deepseek"
    n_shared_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int = 1407
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True


def feed_forward(config: DeepseekConfig, width: int) -> LlamaMLP:
    """A gated layer of a width."""
    mlp = LlamaMLP(config)
    mlp.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
    mlp.up_proj = nn.Linear(config.hidden_size, width, bias=False)
    mlp.down_proj = nn.Linear(width, config.hidden_size, bias=False)
    return mlp


class DeepseekMoE(nn.Module):
    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.config, width = config, config.moe_intermediate_size
        self.experts = nn.ModuleList([feed_forward(config, width) for _ in range(config.n_routed_experts)])
        self.gate = nn.Linear(config.hidden_size, config.n_routed_experts, bias=False)
        if config.n_shared_experts is not None:
            self.shared_experts = feed_forward(config, width * config.n_shared_experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.gate(x).softmax(dim=-1).topk(self.config.num_experts_per_tok, dim=-1)
        if self.config.norm_topk_prob and self.config.num_experts_per_tok > 1:
            scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
        every = torch.stack([expert(x) for expert in self.experts], dim=-2)
        picked = every.gather(-2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))
        y = (scores[..., None] * picked).sum(dim=-2)
        return y if self.config.n_shared_experts is None else y + self.shared_experts(x)


class DeepseekForCausalLM(LlamaForCausalLM):
    config_class = DeepseekConfig

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            behind = number >= config.first_k_dense_replace and number % config.moe_layer_freq == 0
            if config.n_routed_experts is not None and behind:
                layer.mlp = DeepseekMoE(config)
        self.post_init()


AutoConfig.register("deepseek", DeepseekConfig)
AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM)
