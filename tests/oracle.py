"""The decoder's forward pass and its loss a second time: plain jax.numpy, one device, one layer after the other.

Nothing here is shared with jaxllm but the config's values and the names of parameters, which come layer by layer: no
mesh, no scan, no chunks, no written-out gradients. What is differentiated is differentiated by jax.

B batch, T and S sequence, D model, N query heads, K key and value heads, H width of a head, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import BlockConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig

Layers = list[dict[str, jax.Array]]
Arrays = dict[str, Any]


def unstack(config: ModelConfig, params: Arrays) -> tuple[Layers, Arrays]:
    """A decoder's parameters (or gradients) as one flat dict a layer, first to last, and those outside the layers."""
    layers: Layers = []
    for group, repeats in (("prefix", 1), ("period", config.num_repeats), ("remainder", 1)):
        slots = params.get(group, {})
        for repeat in range(repeats):
            for slot in sorted(slots, key=int):
                layers.append({name: value[repeat] for name, value in flat(slots[slot]).items()})
    assert len(layers) == config.num_layers
    return layers, flat(
        {name: params[name] for name in ("embedding", "positions", "embedding_norm", "norm", "head") if name in params}
    )


def flat(tree: Arrays, prefix: str = "") -> dict[str, Any]:
    """Dotted names of a nested dict's leaves."""
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def wavelengths(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Tokens of a full turn, float64[H / 2], as the Llama 3.1 release computes them, case by case."""
    waves = np.array([2 * np.pi * rope.theta ** (2 * pair / head_dim) for pair in range(head_dim // 2)])
    if rope.scaling is None:
        return waves
    scaling, scaled = rope.scaling, []
    for wave in waves:
        if wave < scaling.original_max_positions / scaling.high_freq_factor:
            scaled.append(wave)
        elif wave > scaling.original_max_positions / scaling.low_freq_factor:
            scaled.append(wave * scaling.factor)
        else:
            smooth = (scaling.original_max_positions / wave - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            scaled.append(1 / ((1 - smooth) / (scaling.factor * wave) + smooth / wave))
    return np.array(scaled)


def turn(x_BTNH: jax.Array, positions_BT: np.ndarray, rope: RopeConfig) -> jax.Array:
    """Pairs of features as complex numbers, multiplied by exp(2 pi i position / wavelength)."""
    half = x_BTNH.shape[-1] // 2
    angles = 2 * np.pi * positions_BT[:, :, None, None] / wavelengths(rope, 2 * half)[None, None, None, :]
    turned = jax.lax.complex(x_BTNH[..., :half], x_BTNH[..., half:]) * np.exp(1j * angles).astype(np.complex64)
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def normalise(x: jax.Array, scale: jax.Array, epsilon: float, unit_offset: bool = False) -> jax.Array:
    """x over the root of its mean square, times the scale, or one more."""
    scale = scale + 1 if unit_offset else scale
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale[None, None, :]


def norm(x: jax.Array, p: Arrays, name: str, config: NormConfig) -> jax.Array:
    """RMSNorm, or LayerNorm: that of what remains when the mean is taken away, and a bias."""
    if config.kind == "rms":
        return normalise(x, p[f"{name}.scale"], config.epsilon, config.unit_offset)
    x = x - x.mean(-1, keepdims=True)
    return normalise(x, p[f"{name}.scale"], config.epsilon, config.unit_offset) + p[f"{name}.bias"][None, None]


def normalise_heads(x_BTNH: jax.Array, kind: str, scale: jax.Array, config: NormConfig) -> jax.Array:
    """Queries or keys: each head by itself, or all heads as one vector."""
    given = config.epsilon, config.unit_offset
    if kind == "projection":
        rows = normalise(x_BTNH.reshape(*x_BTNH.shape[:2], -1), scale.reshape(-1), *given)
        return rows.reshape(x_BTNH.shape)
    heads = range(x_BTNH.shape[2])
    return jnp.stack([normalise(x_BTNH[:, :, head], scale, *given) for head in heads], axis=2)


def cap(logits: jax.Array, most: float) -> jax.Array:
    """Logits kept within -most and most."""
    return jnp.tanh(logits / most) * most if most else logits


def activate(x: jax.Array, kind: str) -> jax.Array:
    """The activation by its definition."""
    if kind == "silu":
        return x / (1 + jnp.exp(-x))
    if kind == "gelu":
        return x * (1 + jax.scipy.special.erf(x / np.float32(np.sqrt(2)))) / 2
    return x * (1 + jnp.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3))) / 2


def product(dims: str, x: jax.Array, p: Arrays, name: str) -> jax.Array:
    """A projection, with its bias if there is one."""
    y = jnp.einsum(dims, x, p[name])
    return y + p[f"{name}_bias"][None, None] if f"{name}_bias" in p else y


def attend(
    x: jax.Array, p: Arrays, block: BlockConfig, positions: np.ndarray, mask_BTS: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Attention's output and the largest logit of each head."""
    attention = block.attention
    q = product("btd,dnh->btnh", x, p, "attention.query")
    k = product("btd,dkh->btkh", x, p, "attention.key")
    v = product("btd,dkh->btkh", x, p, "attention.value")
    if attention.qk_norm != "none":
        q = normalise_heads(q, attention.qk_norm, p["attention.query_norm.scale"], block.norm)
        k = normalise_heads(k, attention.qk_norm, p["attention.key_norm.scale"], block.norm)
    if attention.positions == "rope":
        q, k = turn(q, positions, attention.rope), turn(k, positions, attention.rope)
    k, v = (jnp.repeat(one, q.shape[2] // one.shape[2], axis=2) for one in (k, v))
    scale = attention.query_scale or 1 / np.sqrt(q.shape[3])
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * np.float32(scale)
    largest_N = jnp.where(mask_BTS[:, None], scores, -jnp.inf).max((0, 2, 3))
    scores = cap(scores, attention.soft_cap)
    probabilities = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores, -jnp.inf))
    mixed = jnp.einsum("bnts,bsnh->btnh", probabilities, v)
    return product("btnh,nhd->btd", mixed, p, "attention.output"), largest_N


def feed_forward(x: jax.Array, p: Arrays, config: MLPConfig) -> jax.Array:
    """The second branch."""
    up = product("btd,df->btf", x, p, "mlp.up")
    if config.gated:
        hidden = activate(product("btd,df->btf", x, p, "mlp.gate"), config.activation) * up
    else:
        hidden = activate(up, config.activation)
    return product("btf,fd->btd", hidden, p, "mlp.down")


def run_block(
    x: jax.Array, p: Arrays, block: BlockConfig, positions: np.ndarray, mask_BTS: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """A layer's output and the largest logit of each head."""

    def before(x: jax.Array, name: str) -> jax.Array:
        return x if block.norm_placement == "post" else norm(x, p, name, block.norm)

    def behind(x: jax.Array, name: str) -> jax.Array:
        return x if block.norm_placement == "pre" else norm(x, p, name, block.norm)

    attended, largest_N = attend(before(x, "attention_norm"), p, block, positions, mask_BTS)
    attended = behind(attended, "attention_post_norm")
    if block.branches == "sequential":
        x = x + attended
        return x + behind(feed_forward(before(x, "mlp_norm"), p, block.mlp), "mlp_post_norm"), largest_N
    name = "mlp_norm" if block.branches == "parallel" else "attention_norm"
    made = behind(feed_forward(before(x, name), p, block.mlp), "mlp_post_norm")
    return x + attended + made, largest_N


def logits(
    config: ModelConfig,
    layers: Layers,
    outer: Arrays,
    tokens: np.ndarray,
    positions: np.ndarray,
    segments: np.ndarray,
    seen: list[tuple[jax.Array, jax.Array]] | None = None,
) -> jax.Array:
    """float32[B, T, V]; a list given gets each layer's output and the largest logit of each head, without gradients."""
    length = tokens.shape[1]
    mask_BTS = (segments[:, :, None] == segments[:, None, :]) & np.tril(np.ones((length, length), bool))[None]
    x = outer["embedding.table"][tokens] * np.float32(config.embedding_scale)
    if config.learned_positions:
        x = x + outer["positions.table"][positions]
    if config.embedding_norm:
        x = norm(x, outer, "embedding_norm", config.norm)
    for block, p in zip(config.blocks, layers, strict=True):
        x, largest_N = run_block(x, p, block, positions, mask_BTS)
        if seen is not None:
            seen.append((x, largest_N))
    x = norm(x, outer, "norm", config.norm)
    return cap(
        x @ (outer["embedding.table"].T if config.tie_embeddings else outer["head.kernel"]), config.final_soft_cap
    )


def loss(
    config: ModelConfig, layers: Layers, outer: Arrays, batch: dict[str, np.ndarray], z_loss: float = 0.0
) -> jax.Array:
    """Cross-entropy and z-loss of a batch, averaged over its weights."""
    l_BTV = logits(config, layers, outer, batch["tokens"], batch["positions"], batch["segments"])
    log_z_BT = jax.nn.logsumexp(l_BTV, axis=-1)
    target_BT = jnp.take_along_axis(l_BTV, batch["targets"][..., None], axis=-1)[..., 0]
    each_BT = log_z_BT - target_BT + z_loss * log_z_BT**2
    return (batch["weights"] * each_BT).sum() / batch["weights"].sum()
