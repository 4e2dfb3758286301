"""What is watched of a run besides its loss: signs of trouble, before the loss shows it.

Every step, of what it has at hand, by group of parameters (embedding, head, norms, attention, mlp):

    grad_norm/GROUP      ||g||, before clipping; the squares of all groups' add up to grad_norm's
    update_ratio/GROUP   ||update|| / ||parameters||, learning rate included (about 1e-3 is usual for Adam)

Every `watch.interval` steps, of a forward pass of its own (see `models.activity`) over the step's batch, before its
update, a list with a number a layer:

    activation_rms        root mean square of the residual stream behind the layer
    activation_max        largest magnitude in it
    attention_logit_max   largest attention logit, before a soft cap

Growing attention logits come before the divergence of many runs (Dehghani et al. 2023; Wortsman et al. 2023, section
3.1), and gradient norms of single groups, the embedding's above all, before a loss spike (Zeng et al. 2022; Molybog et
al. 2023); section 5 of Wortsman et al. foretells instabilities from curves such as these.

R repeats of a slot, N query heads, L layers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import ModelConfig, TrainConfig
from jaxllm.layers.param import Declaration, Tree, leaves
from jaxllm.models import stages
from jaxllm.models.activity import Activity, activity, over_micro_batches
from jaxllm.models.decoder import Decoder, canonical_name, layer_numbers, merge
from jaxllm.train.objectives import Batch
from jaxllm.train.optim import norm
from jaxllm.train.state import NO_BASE, Trained

LAYERS = ("activation_rms", "activation_max", "attention_logit_max")
"""Metrics that are lists with a number a layer, first to last."""

type Logits = dict[str, jax.Array]
"""By slot (`period.0`): the largest attention logit of each layer and head, float32[R, N]."""


def group_of(name: str, declaration: Declaration) -> str:
    """The group of a parameter of a dotted name: `period.0.mlp.up` -> mlp; every norm's scale and bias -> norms."""
    match declaration.role:
        case "embedding" | "head":
            return declaration.role
        case "norm":
            return "norms"
        case "bias" if name.rpartition(".")[0].endswith("norm"):
            return "norms"
    return canonical_name(name).removeprefix("layers.").partition(".")[0]


def by_group(declared: Tree, gradients: Tree, params: Tree, updates: Tree) -> dict[str, jax.Array]:
    """grad_norm/GROUP and update_ratio/GROUP, from sums of squares of each array (`optim.squares`)."""
    groups: dict[str, list[str]] = {}
    for name, leaf in leaves(declared):
        groups.setdefault(group_of(name, leaf), []).append(name)

    def norms(squares: Tree) -> dict[str, jax.Array]:
        flat = dict(leaves(squares))
        return {group: norm([flat[name] for name in names]) for group, names in groups.items()}

    grads, values, changes = (norms(squares) for squares in (gradients, params, updates))
    return {f"grad_norm/{group}": grads[group] for group in groups} | {
        # adapters begin with zeros
        f"update_ratio/{group}": changes[group] / jnp.maximum(values[group], jnp.finfo(jnp.float32).tiny)
        for group in groups
    }


def make_watch(
    decoder: Decoder, config: TrainConfig, trained: Trained
) -> Callable[..., tuple[dict[str, jax.Array], Logits]]:
    """(parameters that are trained, batch, base) -> the metrics of `LAYERS`, float32[L] each, and logits by head.

    The batch goes through in the micro-batches of a step, so that no more memory is needed than for one of these.
    """

    def watch(params: Tree, batch: Batch, base: Tree = NO_BASE) -> tuple[dict[str, jax.Array], Logits]:
        model = merge(decoder, trained.attach(params, base))
        batch = {name: batch[name] for name in ("tokens", "positions", "segments")}
        micros = jax.tree.map(lambda x: stages.split(x, config.accumulate), batch)
        seen = over_micro_batches(jax.lax.map(lambda micro: activity(model, micro), micros))
        return by_layer(decoder.config, seen), {slot: one.logits_RN for slot, one in seen.items()}

    return watch


def by_layer(model: ModelConfig, seen: dict[str, Activity]) -> dict[str, jax.Array]:
    """The metrics of `LAYERS` from what was seen by slot."""
    numbers = [number for slot in seen for number in layer_numbers(model, f"{slot}.")]
    order = np.argsort(numbers)
    values = [(jnp.sqrt(one.mean_square_R), one.largest_R, jnp.max(one.logits_RN, axis=1)) for one in seen.values()]
    return {name: jnp.concatenate(parts)[order] for name, parts in zip(LAYERS, zip(*values, strict=True), strict=True)}
