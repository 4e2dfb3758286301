"""From averaged gradients to the direction of an update: a chain of named optax transforms.

    embedding_scale   g = alpha g for the role embedding (Zeng et al. 2022, section 2.2), before it counts for clipping
    clip              g = g min(1, clip_norm / ||g||), the norm over all parameters (Pascanu et al. 2013)
    muon              momentum and orthogonalisation of the role matrix (see `muon`); with `type = "muon"` only
    adam              m / (sqrt(v) + epsilon), bias-corrected (Kingma and Ba 2015), of every parameter that muon has not
    weight_decay      + weight_decay * parameter for the role matrix, decoupled (Loshchilov and Hutter 2019)

The step multiplies the result by the negative learning rate; no schedule is in here. To what comes of that, u, it
applies `limit`, where `optim.update_clip` = c asks for it, to every layer of every parameter p:

    u min(1, c max(rms(p), 1e-3) / rms(u))

Adafactor (Shazeer and Stern 2018) clips an update's root mean square (section 6) and sizes it relative to the
parameter's, at least 1e-3 (section 8); this is its clip with its relative size as the threshold.

The links' names are the keys of the optimizer's state; each link's state is a nested dict of the parameters it serves
and of no others, so that there is no second moment for what muon updates.
"""

from collections.abc import Collection
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import optax

from jaxllm.config import AdamW, Muon, OptimConfig
from jaxllm.layers.param import Declaration, Role, Tree, leaves, nest, tree_map
from jaxllm.sharding import Rules
from jaxllm.train.muon import scale_by_muon

_MATRIX: frozenset[Role] = frozenset({"matrix"})
_ALL: frozenset[Role] = frozenset(get_args(Role)) - {"balance"}
_SMALLEST_RMS = 1e-3
"""Of a parameter, for `limit`: one that is zero may still grow. Adafactor's epsilon_2."""


def make_optimizer(
    config: OptimConfig, declarations: Tree, rules: Rules, compute: str = "float32"
) -> optax.GradientTransformation:
    """The update rule of a config.

    Its `init` and `update` take nested dicts laid as the optimizer table says: parameters, and float32 gradients
    averaged over the batch. `update` needs the parameters and returns float32 directions, to be multiplied by the
    negative learning rate. Moments have the parameters' dtype and layout, and are computed in float32.

    Args:
        config: clipping, embedding shrink, update rule.
        declarations: of all parameters; their roles decide.
        rules: of the mesh.
        compute: dtype of the model's matrix products, which Muon's follow.
    """
    rule, links = config.optimizer, []
    if config.embedding_gradient_scale != 1:
        links.append(("embedding_scale", _scale_embedding(config.embedding_gradient_scale, declarations)))
    if config.clip_norm:
        links.append(("clip", _clip(config.clip_norm)))
    adam = optax.scale_by_adam(rule.beta1, rule.beta2, rule.epsilon)
    match rule:
        case AdamW():
            links.append(("adam", _only(_ALL, declarations, adam)))
        case Muon():
            muon = scale_by_muon(rule, _select(declarations, declarations, _MATRIX), rules, compute)
            links.append(("muon", _only(_MATRIX, declarations, muon)))
            links.append(("adam", _only(_ALL - _MATRIX, declarations, adam)))
    links.append(("weight_decay", _decay(rule.weight_decay, declarations)))
    return optax.named_chain(*links)


def global_norm(tree: Tree) -> jax.Array:
    """Euclidean norm of all values together, float32 scalar, of arrays sharded in any way."""
    return norm(squares(tree))


def squares(tree: Tree) -> Tree:
    """The sum of squares of each array, float32 scalars, of arrays sharded in any way."""
    return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32))), tree)


def norm(squares: Any) -> jax.Array:
    """The root of the sum of sums of squares."""
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


def limit(updates: Tree, params: Tree, declarations: Tree, clip: float) -> Tree:
    """Updates of a root mean square at most `clip` times the parameter's, or 1e-3, in each layer (see above).

    Args:
        updates: what is to be added to the parameters, float32.
        params: laid as the updates are.
        declarations: which dims count layers.
        clip: the largest ratio.
    """

    def shorten(update: jax.Array, value: jax.Array, leaf: Declaration) -> jax.Array:
        dims = tuple(range(leaf.stacked, update.ndim))
        allowed = clip * jnp.maximum(_root_mean_square(value.astype(jnp.float32), dims), _SMALLEST_RMS)
        # a zero update stays zero, whatever it is multiplied by
        size = jnp.maximum(_root_mean_square(update, dims), jnp.finfo(jnp.float32).tiny)
        return update * jnp.minimum(1.0, allowed / size)

    with jax.named_scope("update_clip"):
        return tree_map(shorten, updates, params, declarations)


def _root_mean_square(value: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(value), axis=dims, keepdims=True))


def _scale_embedding(scale: float, declarations: Tree) -> optax.GradientTransformation:
    def update(gradients: Any, _: Any) -> Tree:
        return tree_map(lambda g, leaf: scale * g if leaf.role == "embedding" else g, gradients, declarations)

    return optax.stateless(update)


def _clip(limit: float) -> optax.GradientTransformation:
    def update(gradients: Any, _: Any) -> Tree:
        scale = jnp.minimum(1.0, limit / global_norm(gradients))
        return jax.tree.map(lambda g: scale * g, gradients)

    return optax.stateless(update)


def _decay(weight_decay: float, declarations: Tree) -> optax.GradientTransformation:
    def update(directions: Any, params: Any) -> Tree:
        return tree_map(
            lambda d, p, leaf: d + weight_decay * p.astype(d.dtype) if leaf.role == "matrix" else d,
            directions,
            params,
            declarations,
        )

    return optax.stateless(update)


def _only(
    roles: Collection[Role], declarations: Tree, transform: optax.GradientTransformation
) -> optax.GradientTransformation:
    """A transform of the parameters of some roles: it sees no others, and its state has no others."""

    def init(params: Any) -> Any:
        return transform.init(_select(params, declarations, roles))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Tree, Any]:
        del params
        # Moments that are stored in bfloat16 are still averaged in float32.
        wide = jax.tree.map(_widened, state)
        directions, changed = transform.update(_select(updates, declarations, roles), wide)
        changed = jax.tree.map(lambda new, old: new.astype(old.dtype), changed, state)
        return nest(dict(leaves(updates)) | dict(leaves(cast(Tree, directions)))), changed

    return optax.GradientTransformation(init, update)


def _widened(value: jax.Array) -> jax.Array:
    return value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def _select(tree: Tree, declarations: Tree, roles: Collection[Role]) -> Tree:
    """The leaves whose declarations have one of the roles."""
    declared = dict(leaves(declarations))
    return nest({name: leaf for name, leaf in leaves(tree) if declared[name].role in roles})
