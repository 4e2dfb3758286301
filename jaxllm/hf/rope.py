"""Rotary embeddings in `config.json`, in both of its schemas.

    old    rope_theta, rope_scaling (null, or a table with `rope_type`, older `type`), partial_rotary_factor
    new    rope_parameters: one table with `rope_type`, `rope_theta`, ... (transformers 5); of models whose layers with
           and without a window differ, one table for `sliding_attention` and one for `full_attention`

Both are written, so that every version of transformers reads what is meant.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxllm.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)
from jaxllm.config.errors import nearest
from jaxllm.hf.keys import Keys

FIELDS = {
    "theta": "rope_theta",
    "fraction": "partial_rotary_factor",
    "original_max_positions": "original_max_position_embeddings",
    **{
        name: name
        for name in (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "short_factor",
            "long_factor",
        )
    },
}
"""Fields of a `RopeConfig` that may hold what they must not, and the keys that they are read from."""

TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_OLD_TYPES = {"su": "longrope"}
_ORIGINAL = "original_max_position_embeddings"


def read(keys: Keys, max_positions: int, theta: float, fraction: float, original: int | None = None) -> RopeConfig:
    """The rope of all layers.

    Args:
        keys: of the whole file.
        max_positions: tokens that the model attends over.
        theta: where the file says none.
        fraction: likewise, of a head's dims that turn.
        original: `original_max_position_embeddings` of the whole file.

    Raises:
        ValueError: naming the key.
    """
    theta = _either(keys.optional("rope_theta", float), theta)
    fraction = _either(keys.optional("partial_rotary_factor", float), fraction)
    old, new = keys.below("rope_scaling"), keys.below("rope_parameters")
    return _agreed(keys, old, new, max_positions, RopeConfig(theta=theta, fraction=fraction), original)


def read_two(keys: Keys, max_positions: int, thetas: tuple[float, float]) -> tuple[RopeConfig, RopeConfig]:
    """The ropes of layers without a window and of those with one (Gemma 3); only the first is ever stretched of old.

    Args:
        keys: of the whole file.
        max_positions: tokens that the model attends over.
        thetas: where the file says none.

    Raises:
        ValueError: naming the key.
    """
    far = RopeConfig(theta=_either(keys.optional("rope_theta", float), thetas[0]))
    near = RopeConfig(theta=_either(keys.optional("rope_local_base_freq", float), thetas[1]))
    old, new = keys.below("rope_scaling"), keys.below("rope_parameters")
    if new is None:
        return _agreed(keys, old, None, max_positions, far, None), near
    full, sliding = new.below("full_attention"), new.below("sliding_attention")
    new.close(used=("full_attention", "sliding_attention"))
    return (
        _agreed(keys, old, full, max_positions, far, None),
        _agreed(keys, None, sliding, max_positions, near, None),
    )


def _agreed(
    keys: Keys, old: Keys | None, new: Keys | None, max_positions: int, plain: RopeConfig, original: int | None
) -> RopeConfig:
    """What a table of either schema says, or both, of a rope that is `plain` without one."""
    found = plain if new is None else _table(new, max_positions, plain, original)
    if old is None:
        return found
    older = _table(old, max_positions, found, original)
    if new is not None and older != found:
        raise keys.refuse("rope_scaling", older.scaling, "rope_parameters says otherwise; leave one of them out")
    return older


def _either(value: float | None, default: float) -> float:
    return default if value is None else value


def _table(keys: Keys, max_positions: int, plain: RopeConfig, original: int | None) -> RopeConfig:
    """A table of either schema."""
    kind, older = keys.optional("rope_type", str), keys.optional("type", str)
    kind = kind or older or "default"
    kind = _OLD_TYPES.get(kind, kind)
    if kind not in TYPES:
        near = nearest(kind, TYPES)
        fix = f"did you mean {near}?" if near else f"jaxllm knows {', '.join(TYPES)}"
        raise keys.refuse("rope_type", kind, fix)
    theta = _either(keys.optional("rope_theta", float), plain.theta)
    fraction = _either(keys.optional("partial_rotary_factor", float), plain.fraction)
    given = keys.count_if_any(_ORIGINAL)
    with keys.naming(FIELDS):
        scaling = _SCALINGS[kind](keys, max_positions, original or given or max_positions)
        keys.close(used=tuple(FIELDS.values()))
        return RopeConfig(theta=theta, fraction=fraction, scaling=scaling)


def _factor(keys: Keys) -> float:
    return keys.number("factor")


def _attention_factor(keys: Keys) -> float:
    """0 where there is none; a zero that is there would mean another thing."""
    value = keys.optional("attention_factor", float)
    if value is not None and value <= 0:
        raise keys.refuse("attention_factor", value, "use a number above 0")
    return value or 0.0


def _llama3(keys: Keys, max_positions: int, original: int) -> Llama3Scaling:
    low, high = keys.number("low_freq_factor"), keys.number("high_freq_factor")
    return Llama3Scaling(
        factor=_factor(keys), low_freq_factor=low, high_freq_factor=high, original_max_positions=original
    )


def _yarn(keys: Keys, max_positions: int, original: int) -> YarnScaling:
    truncate = keys.optional("truncate", bool)
    return YarnScaling(
        factor=_factor(keys),
        original_max_positions=original,
        beta_fast=keys.optional("beta_fast", float) or 32.0,
        beta_slow=keys.optional("beta_slow", float) or 1.0,
        attention_factor=_attention_factor(keys),
        mscale=keys.optional("mscale", float) or 0.0,
        mscale_all_dim=keys.optional("mscale_all_dim", float) or 0.0,
        truncate=True if truncate is None else truncate,
    )


def _longrope(keys: Keys, max_positions: int, original: int) -> LongRopeScaling:
    factor, factors = keys.optional("factor", float), {}
    for key in ("short_factor", "long_factor"):
        values = keys.listed(key, float)
        if values is None:
            raise keys.refuse(key, None, "longrope needs a list of numbers")
        factors[key] = tuple(values)
    return LongRopeScaling(
        original_max_positions=original,
        factor=max(max_positions / original, 1.0) if factor is None else factor,
        attention_factor=_attention_factor(keys),
        **factors,
    )


_SCALINGS: Mapping[str, Callable[[Keys, int, int], Any]] = {
    "default": lambda keys, max_positions, original: None,
    "linear": lambda keys, max_positions, original: LinearScaling(factor=_factor(keys)),
    "dynamic": lambda keys, max_positions, original: DynamicScaling(
        factor=_factor(keys), original_max_positions=max_positions
    ),
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def write(rope: RopeConfig, partial: bool) -> dict[str, Any]:
    """The keys of a rope, in both schemas.

    Args:
        rope: what they say.
        partial: whether the family knows ropes of a fraction of a head's dims.
    """
    part = {"partial_rotary_factor": rope.fraction} if partial else {}
    scaling = _written(rope.scaling)
    return {
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        **part,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": rope.theta, **part},
    }


def write_two(far: RopeConfig, near: RopeConfig) -> dict[str, Any]:
    """The keys of the ropes of layers without a window and with one."""
    keys = write(far, partial=False)
    return {
        "rope_theta": far.theta,
        "rope_local_base_freq": near.theta,
        "rope_scaling": keys["rope_scaling"],
        "rope_parameters": {
            "full_attention": keys["rope_parameters"],
            "sliding_attention": write(near, partial=False)["rope_parameters"],
        },
    }


def _written(scaling: Any) -> dict[str, Any] | None:
    """A scaling's table, without theta; None where there is none."""
    match scaling:
        case None:
            return None
        case LinearScaling(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor=factor):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                _ORIGINAL: scaling.original_max_positions,
            }
        case LongRopeScaling():
            factors = {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
            own = {"attention_factor": scaling.attention_factor} if scaling.attention_factor else {}
            kind = {"rope_type": "longrope", "type": "longrope"}  # of Phi-3 transformers 4 reads the older key only
            return {**kind, "factor": scaling.factor, **factors, _ORIGINAL: scaling.original_max_positions, **own}
    assert isinstance(scaling, YarnScaling), scaling
    unset = {key: getattr(scaling, key) for key in ("attention_factor", "mscale", "mscale_all_dim")}
    return {
        "rope_type": "yarn",
        "factor": scaling.factor,
        _ORIGINAL: scaling.original_max_positions,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
        **{key: value for key, value in unset.items() if value},
    }
