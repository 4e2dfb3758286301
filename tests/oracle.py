"""The decoder's forward pass and its loss a second time: plain jax.numpy, one device, one layer after the other.

Nothing here is shared with jaxllm but the config's values and the names of parameters, which come layer by layer: no
mesh, no scan, no chunks, no written-out gradients. What is differentiated is differentiated by jax.

B batch, T and S sequence, D model, N query heads, K key and value heads, H width of a head, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import (
    BlockConfig,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    YarnScaling,
)

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


def wavelengths(rope: RopeConfig, dims: int, longest: int = 0) -> np.ndarray:
    """Tokens of a full turn, float64[R / 2], feature by feature and case by case, as the releases' codes have them."""
    theta, scaling = rope.theta, rope.scaling
    if isinstance(scaling, DynamicScaling):
        times = max(longest, scaling.original_max_positions) / scaling.original_max_positions
        theta *= (scaling.factor * times - (scaling.factor - 1)) ** (dims / (dims - 2))
    waves = [2 * np.pi * theta ** (2 * pair / dims) for pair in range(dims // 2)]
    if isinstance(scaling, LinearScaling):
        return np.array([wave * scaling.factor for wave in waves])
    if isinstance(scaling, LongRopeScaling):
        is_long = longest > scaling.original_max_positions
        each = scaling.long_factor if is_long else scaling.short_factor
        return np.array([wave * factor for wave, factor in zip(waves, each, strict=True)])
    if isinstance(scaling, YarnScaling):
        return np.array([1 / stretched(1 / wave, pair, waves, scaling) for pair, wave in enumerate(waves)])
    if isinstance(scaling, Llama3Scaling):
        return np.array([_llama3(wave, scaling) for wave in waves])
    return np.array(waves)


def stretched(frequency: float, pair: int, waves: list[float], scaling: YarnScaling) -> float:
    """YaRN: by where a pair lies between those that turn beta_fast and beta_slow times."""
    # the pair, not a whole one, whose wave is so long; waves grow by one ratio from pair to pair
    ends = [
        np.log(scaling.original_max_positions / turns / waves[0]) / np.log(waves[1] / waves[0])
        for turns in (scaling.beta_fast, scaling.beta_slow)
    ]
    low, high = (np.floor(ends[0]), np.ceil(ends[1])) if scaling.truncate else ends
    low, high = max(low, 0), min(high, 2 * len(waves) - 1)
    if pair <= low:
        return frequency
    if pair >= high:
        return frequency / scaling.factor
    share = (pair - low) / (high - low)
    return (1 - share) * frequency + share * frequency / scaling.factor


def _llama3(wave: float, scaling: Llama3Scaling) -> float:
    if wave < scaling.original_max_positions / scaling.high_freq_factor:
        return wave
    if wave > scaling.original_max_positions / scaling.low_freq_factor:
        return wave * scaling.factor
    smooth = (scaling.original_max_positions / wave - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return 1 / ((1 - smooth) / (scaling.factor * wave) + smooth / wave)


def growth(rope: RopeConfig) -> float:
    """What turned features are longer by."""
    scaling = rope.scaling
    if isinstance(scaling, YarnScaling):
        return scaling.attention_factor or 0.1 * np.log(scaling.factor) + 1
    if isinstance(scaling, LongRopeScaling):
        plain = np.sqrt(1 + np.log(scaling.factor) / np.log(scaling.original_max_positions))
        return scaling.attention_factor or plain
    return 1.0


def turn(x_BTNH: jax.Array, positions_BT: np.ndarray, rope: RopeConfig) -> jax.Array:
    """Pairs of features as complex numbers, multiplied by exp(2 pi i position / wavelength)."""
    dims = int(rope.fraction * x_BTNH.shape[-1])
    waves = wavelengths(rope, dims, int(positions_BT.max()) + 1)
    factors = growth(rope) * np.exp(2j * np.pi * positions_BT[:, :, None, None] / waves[None, None, None, :])
    turning, still = x_BTNH[..., :dims], x_BTNH[..., dims:]
    order = np.arange(dims).reshape(-1, 2).T if rope.interleaved else np.arange(dims).reshape(2, -1)
    turned = jax.lax.complex(turning[..., order[0]], turning[..., order[1]]) * factors.astype(np.complex64)
    for half, part in zip(order, (turned.real, turned.imag), strict=True):
        turning = turning.at[..., half].set(part)
    return jnp.concatenate([turning, still], axis=-1)


def slopes(heads: int) -> list[float]:
    """ALiBi's, by the recursion of the paper's code."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (head + 1) / heads) for head in range(heads)]
    whole = 1
    while 2 * whole < heads:
        whole *= 2
    return slopes(whole) + slopes(2 * whole)[0::2][: heads - whole]


def alibi(kind: str, heads: int, head_dim: int, positions: np.ndarray) -> np.ndarray:
    """What is added to the scores of each head and key, float32[B, N, 1, S]."""
    places, each = positions[:, None, None, :].astype(np.float32), np.array(slopes(heads), np.float32)[:, None, None]
    if kind == "alibi":
        return each[None] * places
    low = jnp.bfloat16.dtype
    rounded = (each.astype(low)[None].astype(np.float32) * places.astype(low).astype(np.float32)).astype(low)
    return rounded.astype(np.float32) / np.float32(np.sqrt(head_dim))


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
    if attention.window:
        places = np.arange(x.shape[1])
        mask_BTS = mask_BTS & (places[None, :, None] - places[None, None, :] < attention.window)
    scale = attention.query_scale or 1 / np.sqrt(q.shape[3])
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * np.float32(scale)
    largest_N = jnp.where(mask_BTS[:, None], scores, -jnp.inf).max((0, 2, 3))
    scores = cap(scores, attention.soft_cap)
    if "alibi" in attention.positions:
        scores = scores + alibi(attention.positions, q.shape[2], q.shape[3], positions)
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
