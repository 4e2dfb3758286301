"""Grouped-query attention (Ainslie et al. 2023) with rotary positions.

The kernel is chosen while tracing, from the platform of the ambient mesh, and runs inside one `shard_map`: samples over
the batch axes, heads over tensor; and inside a ring where devices share a sequence (see `ring`).

B batch, T sequence, D model, N query heads, K key and value heads, H width of a head.
"""

import functools
import logging

import jax

from jaxllm.config import AttentionConfig
from jaxllm.layers import kernels
from jaxllm.layers.linear import contract, enter, leave
from jaxllm.layers.param import Declaration, Layer, Recipe
from jaxllm.layers.ring import ring_attention
from jaxllm.layers.rope import rotate
from jaxllm.sharding import platform

logger = logging.getLogger("jaxllm")


class Attention(Layer):
    """Attention whose projections have no bias."""

    def __init__(
        self, config: AttentionConfig, dim: int, head_dim: int, std: float, residual_std: float, recipe: Recipe
    ) -> None:
        heads, kv_heads = config.num_heads, config.kv_heads
        super().__init__(
            recipe,
            query=Declaration((dim, heads, head_dim), ("embed", "heads", "head_dim"), "matrix", std=std),
            key=Declaration((dim, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), "matrix", std=std),
            value=Declaration((dim, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), "matrix", std=std),
            output=Declaration(
                (heads, head_dim, dim), ("heads", "head_dim", "embed"), "matrix", num_inputs=2, std=residual_std
            ),
        )
        self.config = config

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]; position t sees the positions up to t of its own segment."""
        recipe, config = self.recipe, self.config
        with jax.named_scope("attention"):
            x_BTD = enter(x_BTD, recipe)
            q_BTNH = contract(x_BTD, self.matrix("query"), ("heads", None), recipe)
            k_BTKH = contract(x_BTD, self.matrix("key"), ("kv_heads", None), recipe)
            v_BTKH = contract(x_BTD, self.matrix("value"), ("kv_heads", None), recipe)
            q_BTNH = rotate(q_BTNH, positions_BT, config.rope)
            k_BTKH = rotate(k_BTKH, positions_BT, config.rope)
            mixed_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, segments_BT, config.kernel, recipe)
            return leave(contract(mixed_BTNH, self.matrix("output"), (None,), recipe, num_inputs=2), recipe)


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    kernel: str,
    recipe: Recipe,
) -> jax.Array:
    """Causal attention within segments: [B, T, N, H]; a shared sequence comes in head-tail order (see `context`).

    Raises:
        ValueError: when a kernel was asked for by name and cannot compute this.
    """
    axis = recipe.rules.ring
    context = jax.sharding.get_abstract_mesh().shape[axis] if axis else 1
    name = choose(kernel, platform(), q_BTNH.shape[1], q_BTNH.shape[3], str(q_BTNH.dtype), context)
    compute = functools.partial(ring_attention, kernel=name, axis=axis) if axis else kernels.KERNELS[name]
    compute = functools.partial(compute, scale=q_BTNH.shape[3] ** -0.5)
    with jax.named_scope(name):
        heads = recipe.rules.activation("batch", "sequence", "heads", None)
        rows = recipe.rules.activation("batch", "sequence")
        # pallas kernels do not say over which axes their results vary, hence check_vma=False
        return jax.shard_map(
            compute, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=name != "splash"
        )(q_BTNH, k_BTKH, v_BTKH, segments_BT)


@functools.cache
def choose(kernel: str, platform: str, sequence_length: int, head_dim: int, dtype: str, context: int = 1) -> str:
    """The kernel to use; says once, in one sentence, when it is not the platform's own.

    Args:
        kernel: as in `AttentionConfig.kernel`.
        platform: `cpu`, `gpu` or `tpu`.
        sequence_length: of the whole sequence.
        head_dim: width of a head.
        dtype: of queries, keys and values.
        context: devices that share a sequence.

    Raises:
        ValueError: when a kernel was asked for by name and cannot compute this.
    """
    wanted = kernels.PREFERRED.get(platform, "xla") if kernel == "auto" else kernel
    reason = kernels.refusal(wanted, platform, sequence_length, head_dim, dtype, context)
    if not reason:
        return wanted
    if kernel != "auto":
        raise ValueError(f'model.attention.kernel = "{kernel}": {reason}; use "auto"')
    logger.warning("attention runs as plain XLA, slower and with more memory: %s", reason)
    return "xla"
