"""What a family's name table is made of: where each parameter lies in the family's Hugging Face tensors.

A table maps our names, of a layer without its number, to theirs, with `{}` in the number's place, and in that of an
expert's number where one array of ours has all experts of a layer:

    "layers.attention.query": "model.layers.{}.self_attn.q_proj.weight"
    "layers.mlp.experts.gate": "model.layers.{}.mlp.experts.{}.gate_proj.weight"

What follows from a parameter's declaration is not in the table: matrices and heads are stored [outputs, inputs] there,
as torch's Linear does, and heads and their width are one dim. A `Place` says what does not follow.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter lies, if not alone and [outputs, inputs] in one tensor.

    Attributes:
        name: of the tensor. Parameters of one name lie in it behind each other, in the table's order, by their outputs.
        by_head: whether they take turns, one key head and its share of the others at a time.
        plain: whether the tensor is [inputs, outputs] (GPT-2's Conv1D).
        parallel: the name in models with `branches = "parallel"`, where it is another.
    """

    name: str
    by_head: bool = False
    plain: bool = False
    parallel: str = ""


type Names = Mapping[str, str | Place]

_BLOCK, _ATTENTION, _MLP = "model.layers.{}.", "model.layers.{}.self_attn.", "model.layers.{}.mlp."

LLAMA: Names = {
    "embedding.table": "model.embed_tokens.weight",
    "layers.attention_norm.scale": f"{_BLOCK}input_layernorm.weight",
    "layers.attention.query": f"{_ATTENTION}q_proj.weight",
    "layers.attention.query_bias": f"{_ATTENTION}q_proj.bias",
    "layers.attention.key": f"{_ATTENTION}k_proj.weight",
    "layers.attention.key_bias": f"{_ATTENTION}k_proj.bias",
    "layers.attention.value": f"{_ATTENTION}v_proj.weight",
    "layers.attention.value_bias": f"{_ATTENTION}v_proj.bias",
    "layers.attention.output": f"{_ATTENTION}o_proj.weight",
    "layers.attention.output_bias": f"{_ATTENTION}o_proj.bias",
    "layers.mlp_norm.scale": f"{_BLOCK}post_attention_layernorm.weight",
    "layers.mlp.gate": f"{_MLP}gate_proj.weight",
    "layers.mlp.gate_bias": f"{_MLP}gate_proj.bias",
    "layers.mlp.up": f"{_MLP}up_proj.weight",
    "layers.mlp.up_bias": f"{_MLP}up_proj.bias",
    "layers.mlp.down": f"{_MLP}down_proj.weight",
    "layers.mlp.down_bias": f"{_MLP}down_proj.bias",
    "norm.scale": "model.norm.weight",
    "head.kernel": "lm_head.weight",
}
"""Llama's names, which most families share."""

QK_NORM: Names = {
    "layers.attention.query_norm.scale": f"{_ATTENTION}q_norm.weight",
    "layers.attention.key_norm.scale": f"{_ATTENTION}k_norm.weight",
}
"""Names of the norms of queries and keys."""

GATE_UP: Names = dict.fromkeys(("layers.mlp.gate", "layers.mlp.up"), Place(f"{_MLP}gate_up_proj.weight"))
"""Gate and up in one tensor."""

EXPERTS: Names = {
    "layers.mlp.router.kernel": f"{_MLP}gate.weight",
    "layers.mlp.experts.gate": f"{_MLP}experts.{{}}.gate_proj.weight",
    "layers.mlp.experts.up": f"{_MLP}experts.{{}}.up_proj.weight",
    "layers.mlp.experts.down": f"{_MLP}experts.{{}}.down_proj.weight",
}
"""Names of routers and experts."""

SHARED: Names = {
    "layers.mlp.shared.gate": f"{_MLP}shared_experts.gate_proj.weight",
    "layers.mlp.shared.up": f"{_MLP}shared_experts.up_proj.weight",
    "layers.mlp.shared.down": f"{_MLP}shared_experts.down_proj.weight",
}
"""Names of the expert that all tokens share."""
