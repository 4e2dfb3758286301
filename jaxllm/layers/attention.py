"""Grouped-query attention (Ainslie et al. 2023), with rotary positions, ALiBi or none.

The kernel is chosen while tracing, from the platform of the ambient mesh, and runs inside one `shard_map`: samples over
the batch axes, heads over tensor; and inside a ring where devices share a sequence (see `ring`).

B batch, T sequence, D model, N query heads, K key and value heads, H width of a head.
"""

import functools
import logging

import jax

from jaxllm.config import AttentionConfig, NormConfig
from jaxllm.layers import kernels
from jaxllm.layers.alibi import tilts
from jaxllm.layers.cached import Cache, Query, attend_cached
from jaxllm.layers.largest_logits import largest_logits
from jaxllm.layers.linear import add_bias, contract, enter, leave
from jaxllm.layers.norm import HeadNorm
from jaxllm.layers.param import Declaration, Layer, Recipe
from jaxllm.layers.ring import ring_attention
from jaxllm.layers.rope import rotate
from jaxllm.sharding import platform

logger = logging.getLogger("jaxllm")

_BIASES = {
    "none": (),
    "qkv": ("query_bias", "key_bias", "value_bias"),
    "all": ("query_bias", "key_bias", "value_bias", "output_bias"),
}
"""Biases by `AttentionConfig.bias`."""

ALIBI = ("alibi", "falcon_alibi")
"""What `AttentionConfig.positions` may say that adds to the logits."""


class Attention(Layer):
    """Attention; the biases of its projections, if any, are `query_bias`, `key_bias`, `value_bias`, `output_bias`."""

    def __init__(
        self,
        config: AttentionConfig,
        norm: NormConfig,
        dim: int,
        head_dim: int,
        std: float,
        residual_std: float,
        recipe: Recipe,
    ) -> None:
        heads, kv_heads = config.num_heads, config.kv_heads
        biases = {
            "query_bias": Declaration((heads, head_dim), ("heads", "head_dim"), "bias", num_inputs=0),
            "key_bias": Declaration((kv_heads, head_dim), ("kv_heads", "head_dim"), "bias", num_inputs=0),
            "value_bias": Declaration((kv_heads, head_dim), ("kv_heads", "head_dim"), "bias", num_inputs=0),
            "output_bias": Declaration((dim,), ("norm",), "bias", num_inputs=0),
        }
        super().__init__(
            recipe,
            query=Declaration((dim, heads, head_dim), ("embed", "heads", "head_dim"), "matrix", std=std),
            key=Declaration((dim, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), "matrix", std=std),
            value=Declaration((dim, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), "matrix", std=std),
            output=Declaration(
                (heads, head_dim, dim), ("heads", "head_dim", "embed"), "matrix", num_inputs=2, std=residual_std
            ),
            **{name: biases[name] for name in _BIASES[config.bias]},
        )
        self.config, self.scale = config, config.query_scale or head_dim**-0.5
        if config.qk_norm != "none":
            self.query_norm = HeadNorm(norm, config.qk_norm, (heads, head_dim), "heads", recipe)
            self.key_norm = HeadNorm(norm, config.qk_norm, (kv_heads, head_dim), "kv_heads", recipe)

    def __call__(
        self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """[B, T, D] -> [B, T, D]; position t sees the positions up to t of its own segment.

        With a cache it sees those of earlier calls too; the cache comes back with keys and values of this one.
        """
        recipe, config = self.recipe, self.config
        with jax.named_scope("attention"):
            x_BTD = enter(x_BTD, recipe)
            q_BTNH, k_BTKH = self._queries_and_keys(x_BTD, positions_BT)
            v_BTKH = self._heads(x_BTD, "value", "kv_heads")
            scoring = kernels.Scoring(self.scale, config.soft_cap, config.window)
            tilts_BTN, seen = self._tilts(positions_BT), None
            if cache is not None:
                seen, cache = cache.extend(k_BTKH, v_BTKH, positions_BT, segments_BT)
            if seen is None:
                mixed_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, segments_BT, config.kernel, recipe, scoring, tilts_BTN)
            else:
                query = Query(q_BTNH, positions_BT, segments_BT, tilts_BTN)
                mixed_BTNH = attend_cached(query, seen, self._tilts(seen.positions_BS), scoring, recipe)
            y_BTD = leave(contract(mixed_BTNH, self.matrix("output"), (None,), recipe, num_inputs=2), recipe)
            return add_bias(y_BTD, self.use("output_bias")) if config.bias == "all" else y_BTD, cache

    def largest_logits(self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        """[B, T, D], as `__call__` gets it -> float32[N]: the largest logit of each head, without cap and ALiBi."""
        with jax.named_scope("attention"):
            q_BTNH, k_BTKH = self._queries_and_keys(enter(x_BTD, self.recipe), positions_BT)
            return largest_logits(q_BTNH, k_BTKH, segments_BT, self.recipe, self.scale, self.config.window)

    def _queries_and_keys(self, x_BTD: jax.Array, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, T, D], entered -> [B, T, N, H] and [B, T, K, H], as scores are made of them."""
        q_BTNH, k_BTKH = self._heads(x_BTD, "query", "heads"), self._heads(x_BTD, "key", "kv_heads")
        if self.config.qk_norm != "none":
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if self.config.positions != "rope":
            return q_BTNH, k_BTKH
        return rotate(q_BTNH, positions_BT, self.config.rope), rotate(k_BTKH, positions_BT, self.config.rope)

    def _tilts(self, positions_BT: jax.Array) -> jax.Array | None:
        """What ALiBi adds, by position and head, if it does."""
        config = self.config
        if config.positions not in ALIBI:
            return None
        return tilts(positions_BT, config.num_heads, self.scale, falcon=config.positions == "falcon_alibi")

    def _heads(self, x_BTD: jax.Array, name: str, heads: str) -> jax.Array:
        """A projection that lies over tensor by heads: [B, T, N, H]."""
        y_BTNH = contract(x_BTD, self.matrix(name), (heads, None), self.recipe)
        return y_BTNH if self.config.bias == "none" else add_bias(y_BTNH, self.use(f"{name}_bias"))


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    kernel: str,
    recipe: Recipe,
    scoring: kernels.Scoring,
    tilts_BTN: jax.Array | None = None,
) -> jax.Array:
    """Causal attention within segments: [B, T, N, H]; a shared sequence comes in head-tail order (see `context`).

    Args:
        q_BTNH: queries.
        k_BTKH: keys.
        v_BTKH: values.
        segments_BT: document of each position.
        kernel: as in `AttentionConfig.kernel`.
        recipe: rules of the mesh.
        scoring: how products of queries and keys become scores, and which are seen.
        tilts_BTN: of ALiBi (see `alibi`); none by default.

    Raises:
        ValueError: when a kernel was asked for by name and cannot compute this.
    """
    axis = recipe.rules.ring
    context = jax.sharding.get_abstract_mesh().shape[axis] if axis else 1
    name = choose(
        kernel,
        platform(),
        q_BTNH.shape[1],
        q_BTNH.shape[3],
        str(q_BTNH.dtype),
        context,
        scoring.cap,
        scoring.window,
        tilts_BTN is not None,
    )
    compute = functools.partial(ring_attention, kernel=name, axis=axis) if axis else kernels.KERNELS[name]
    compute = functools.partial(compute, scoring=scoring)
    with jax.named_scope(name):
        heads = recipe.rules.activation("batch", "sequence", "heads", None)
        rows = recipe.rules.activation("batch", "sequence")
        tilts = recipe.rules.activation("batch", "sequence", "heads")
        if tilts_BTN is not None:
            tilts_BTN = jax.reshard(tilts_BTN, tilts)
        # pallas kernels do not say over which axes their results vary, hence check_vma=False
        return jax.shard_map(
            compute, in_specs=(heads, heads, heads, rows, tilts), out_specs=heads, check_vma=name != "splash"
        )(q_BTNH, k_BTKH, v_BTKH, segments_BT, tilts_BTN)


@functools.cache
def choose(
    kernel: str,
    platform: str,
    sequence_length: int,
    head_dim: int,
    dtype: str,
    context: int = 1,
    cap: float = 0.0,
    window: int = 0,
    alibi: bool = False,
) -> str:
    """The kernel to use; says once, in one sentence, when it is not the platform's own.

    Args:
        kernel: as in `AttentionConfig.kernel`.
        platform: `cpu`, `gpu` or `tpu`.
        sequence_length: of the whole sequence.
        head_dim: width of a head.
        dtype: of queries, keys and values.
        context: devices that share a sequence.
        cap: soft cap of the logits; 0 means none.
        window: tokens that a query sees; 0 means all before it.
        alibi: whether ALiBi is added to the logits.

    Raises:
        ValueError: when a kernel was asked for by name and cannot compute this.
    """
    wanted = kernels.PREFERRED.get(platform, "xla") if kernel == "auto" else kernel
    reason = kernels.refusal(wanted, platform, sequence_length, head_dim, dtype, context, cap, window, alibi)
    if not reason:
        return wanted
    if kernel != "auto":
        raise ValueError(f'model.attention.kernel = "{kernel}": {reason}; use "auto"')
    logger.warning("attention runs as plain XLA, slower and with more memory: %s", reason)
    return "xla"
