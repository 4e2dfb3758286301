"""The one decoder: embedding, prefix + period x repeats + remainder of blocks, norm, head.

    x = embed(tokens)
    x = x + attention(norm(x));  x = x + mlp(norm(x))      in each block
    logits = norm(x) head

So it is with norms of each branch's input (Touvron et al. 2023) and branches one behind the other. Norms of the output
stand outside, x + norm(attention(x)) (OLMo 2, OLMo et al. 2024, section 3.2), or on both sides (Gemma 2). Parallel
branches both read the block's input, x + attention(norm(x)) + mlp(norm(x)) (Wang and Komatsuzaki 2021; Falcon).

Modules are declarations: a `Decoder` is built of values only, and `merge` puts arrays in the place of its parameters.
The blocks of one slot of the period are stacked in one array and run by one `lax.scan` over the repeats.

B batch, T sequence, D model, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxllm.config import BlockConfig, ModelConfig, NormConfig
from jaxllm.layers.attention import Attention
from jaxllm.layers.cached import Cache, Caches, StackedCache
from jaxllm.layers.context import balance, restore
from jaxllm.layers.embed import Embedding, Head, Positions, logits
from jaxllm.layers.linear import PRODUCT
from jaxllm.layers.mlp import MLP
from jaxllm.layers.moe import MoE
from jaxllm.layers.norm import Norm
from jaxllm.layers.param import GATHERED, Declaration, Recipe, Tree, initialise, leaves, nest
from jaxllm.layers.router import Load
from jaxllm.models import stages

BLOCK_INPUT = "block_input"

PERIOD = "period"
"""Where the parameters of the repeated blocks are."""

GROUPS = ("prefix", PERIOD, "remainder")
"""The blocks, first to last."""

type Loads = dict[str, Load]
"""What routers did, by slot (`period.0`): arrays [R, B, ...], R repeats."""


class Block(nnx.Module):
    """Attention and feed-forward layer, each normalised and added to the residual stream."""

    def __init__(self, model: ModelConfig, config: BlockConfig, recipe: Recipe) -> None:
        std = model.initializer_std
        residual_std = std / (2 * model.num_layers) ** 0.5
        head_dim = model.head_dim(config.attention)
        self.pre, self.post = config.norm_placement != "post", config.norm_placement != "pre"
        self.parallel, self.shared = config.branches != "sequential", config.branches == "parallel_shared_norm"
        self.attention = Attention(config.attention, config.norm, model.d_model, head_dim, std, residual_std, recipe)
        experts, widths = config.mlp.experts, (model.d_model, std, residual_std)
        self.mlp = MoE(config.mlp, experts, *widths, recipe) if experts else MLP(config.mlp, *widths, recipe)
        if self.pre:
            self.attention_norm = Norm(config.norm, model.d_model, recipe)
        if self.pre and not self.shared:
            self.mlp_norm = Norm(config.norm, model.d_model, recipe)
        if self.post:
            self.attention_post_norm = Norm(config.norm, model.d_model, recipe)
            self.mlp_post_norm = Norm(config.norm, model.d_model, recipe)

    def __call__(
        self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, Load | None]:
        """[B, T, D] -> [B, T, D]; the cache, if any, with what attention has added; the experts' load, if any."""
        x_BTD = checkpoint_name(x_BTD, BLOCK_INPUT)
        read_BTD = self.attention_input(x_BTD)
        attended_BTD, cache = self.attention(read_BTD, positions_BT, segments_BT, cache)
        after_BTD = x_BTD + (self.attention_post_norm(attended_BTD) if self.post else attended_BTD)
        if not self.shared:
            read_BTD = x_BTD if self.parallel else after_BTD
            read_BTD = self.mlp_norm(read_BTD) if self.pre else read_BTD
        if isinstance(self.mlp, MoE):
            made_BTD, load = self.mlp(read_BTD, segments_BT)
        else:
            made_BTD, load = self.mlp(read_BTD), None
        return after_BTD + (self.mlp_post_norm(made_BTD) if self.post else made_BTD), cache, load

    def attention_input(self, x_BTD: jax.Array) -> jax.Array:
        """What attention reads of the block's input: [B, T, D] -> [B, T, D]."""
        return self.attention_norm(x_BTD) if self.pre else x_BTD


@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    Attributes:
        logits: float32[B, T, V].
    """

    logits: jax.Array


jax.tree_util.register_dataclass(Output)


class Decoder(nnx.Module):
    """A decoder-only transformer.

    Args:
        config: its shape; `vocab_size` must be set.
        recipe: mesh rules and dtypes.
        remat: what the backward pass computes again, as in `TrainConfig.remat`.
        unroll: straight code instead of a scan.
    """

    def __init__(self, config: ModelConfig, recipe: Recipe, remat: str = "none", unroll: bool = False) -> None:
        assert config.vocab_size > 0, "the vocabulary's size is resolved before the model is built"
        self.config, self.recipe, self.remat, self.unroll = config, recipe, remat, unroll
        std = config.initializer_std
        self.embedding = Embedding(config.vocab_size, config.d_model, std, recipe)
        if config.learned_positions:
            self.positions = Positions(config.learned_positions, config.d_model, std, recipe)
        if config.embedding_norm:
            self.embedding_norm = Norm(config.norm, config.d_model, recipe)
        self.prefix = _stacks(config, config.prefix, 1, recipe)
        self.period = _stacks(config, config.slots if config.num_repeats else (), config.num_repeats, recipe)
        self.remainder = _stacks(config, config.remainder, 1, recipe)
        self.norm = Norm(config.norm if config.norm else NormConfig(), config.d_model, recipe)
        if not config.tie_embeddings:
            self.head = Head(config.vocab_size, config.d_model, std, recipe)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """int[B, T] each -> [B, T, D]: what the first block reads."""
        return self._placed(self.embedding(tokens_BT), positions_BT)

    def embed_with_weight(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What `embed` and `head_weight` give in a tied model, of a table that is read once."""
        x_BTD, weight_DV = self.embedding.with_weight(tokens_BT)
        return self._placed(x_BTD, positions_BT), weight_DV

    def _placed(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        config = self.config
        if config.embedding_scale != 1:
            x_BTD = x_BTD * jnp.asarray(config.embedding_scale, x_BTD.dtype)
        if config.learned_positions:
            x_BTD = x_BTD + self.positions(positions_BT)
        return self.embedding_norm(x_BTD) if config.embedding_norm else x_BTD

    def blocks(self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array) -> tuple[jax.Array, Loads]:
        """All blocks, first to last: [B, T, D] -> [B, T, D]; over context, in head-tail order (see layers/context)."""
        if self.recipe.rules.staged:
            num_micro = stages.num_micro(x_BTD.shape[0])
            return stages.forward(self.stage, list(self.period), x_BTD, positions_BT, segments_BT, num_micro), {}
        loads: Loads = {}
        for group in GROUPS:
            slots: list[Block] = list(getattr(self, group))
            if slots:
                x_BTD, seen = self.repeats(slots, x_BTD, positions_BT, segments_BT)
                loads |= {f"{group}.{slot}": load for slot, load in enumerate(seen) if load is not None}
        return x_BTD, loads

    def stage(self, slots: list[Block], x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        """Some repeats of the period's blocks, which have no experts: [B, T, D] -> [B, T, D]."""
        return self.repeats(slots, x_BTD, positions_BT, segments_BT)[0]

    def repeats(
        self, slots: list[Block], x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
    ) -> tuple[jax.Array, list[Load | None]]:
        """Some repeats of the blocks of a group, stacked slot by slot: [B, T, D] -> [B, T, D], and the slots' loads."""
        run = functools.partial(_run_block, positions_BT=positions_BT, segments_BT=segments_BT)
        num = len(jax.tree.leaves(slots)[0])
        straight = self.unroll or num == 1
        run = _rematerialise(run, self.remat, bool(self.recipe.rules.live), straight)
        with jax.named_scope("blocks"):
            unroll = num if self.unroll else 1
            return jax.lax.scan(functools.partial(_run_slots, run), x_BTD, slots, unroll=unroll)

    def final(self, x_BTD: jax.Array) -> jax.Array:
        """The last norm: what the head reads, [B, T, D]."""
        return self.norm(x_BTD)

    def extend(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array, cache: Caches
    ) -> tuple[jax.Array, Caches]:
        """Go on from what a cache holds: what the head reads of these tokens, [B, T, D], and the cache with them.

        Over neither pipe nor context.

        Args:
            tokens_BT: int[B, T], the next T of each row.
            positions_BT: int[B, T], in their segment.
            segments_BT: int[B, T], 0 or more; tokens see those of their own segment, of this call and earlier ones.
            cache: by group of blocks, one a slot.
        """
        assert not self.recipe.rules.staged and not self.recipe.rules.ring, "a cache lies on neither pipe nor context"
        laid = self.recipe.rules.activation("batch", "sequence")
        tokens_BT, positions_BT, segments_BT = (jax.reshard(x, laid) for x in (tokens_BT, positions_BT, segments_BT))
        x_BTD, after = self.embed(tokens_BT, positions_BT), {}
        for group in GROUPS:
            slots: list[Block] = list(getattr(self, group))
            if slots:
                run = functools.partial(_extend_slots, positions_BT=positions_BT, segments_BT=segments_BT)
                num = len(jax.tree.leaves(slots)[0])
                numbered, unroll = (slots, jnp.arange(num)), num if self.unroll else 1
                with jax.named_scope("blocks"):
                    (x_BTD, caches), _ = jax.lax.scan(run, (x_BTD, cache[group]), numbered, unroll=unroll)
                after[group] = [one.advance(positions_BT, segments_BT) for one in caches]
        return self.final(x_BTD), after

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """float32[B, T, V] of what the head reads."""
        return logits(x_BTD, self.head_weight(), self.recipe, self.config.final_soft_cap)

    def head_weight(self) -> jax.Array:
        """The head's weight in the compute dtype: [D, V]."""
        return self.embedding.weight() if self.config.tie_embeddings else self.head.weight()

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array | None = None, segments_BT: jax.Array | None = None
    ) -> Output:
        """Logits of every position.

        Args:
            tokens_BT: int[B, T].
            positions_BT: int[B, T], 0, 1, 2, ... by default.
            segments_BT: int[B, T], documents of a packed row; one by default.
        """
        if positions_BT is None:
            laid = jax.typeof(tokens_BT).sharding.spec
            positions_BT = cast(jax.Array, jax.lax.broadcasted_iota("int32", tokens_BT.shape, 1, out_sharding=laid))
        if segments_BT is None:
            segments_BT = tokens_BT * 0 + 1
        rules = self.recipe.rules
        batch = balance({"tokens": tokens_BT, "positions": positions_BT, "segments": segments_BT}, rules)
        x_BTD, _ = self.blocks(self.embed(batch["tokens"], batch["positions"]), batch["positions"], batch["segments"])
        x_BTD = jax.reshard(self.final(x_BTD), rules.activation("batch", "sequence", None))
        return Output(restore(self.logits(x_BTD), rules))


type _Run = Callable[[jax.Array, Block], tuple[jax.Array, Load | None]]


def _run_block(
    x_BTD: jax.Array, block: Block, positions_BT: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, Load | None]:
    x_BTD, _, load = block(x_BTD, positions_BT, segments_BT)
    return x_BTD, load


def _run_slots(run: _Run, x_BTD: jax.Array, slots: list[Block]) -> tuple[jax.Array, list[Load | None]]:
    """The blocks of one repetition."""
    loads: list[Load | None] = []
    for block in slots:
        x_BTD, load = run(x_BTD, block)
        loads.append(load)
    return x_BTD, loads


def _extend_slots(
    carry: tuple[jax.Array, list[StackedCache]],
    now: tuple[list[Block], jax.Array],
    positions_BT: jax.Array,
    segments_BT: jax.Array,
) -> tuple[tuple[jax.Array, list[StackedCache]], None]:
    """The blocks of one repetition and their caches, which are carried along whole: so they are written in place."""
    (x_BTD, caches), (slots, repeat), after = carry, now, []
    for block, stacked in zip(slots, caches, strict=True):
        x_BTD, cache, _ = block(x_BTD, positions_BT, segments_BT, stacked.at(repeat))
        assert cache is not None
        after.append(stacked.back(cache))
    return (x_BTD, after), None


def _rematerialise(run: Callable[..., Any], remat: str, sharded: bool, straight: bool) -> Callable[..., Any]:
    """A block's function whose backward pass keeps what the policy says.

    In straight code, not a loop's, a barrier keeps the compiler from finding the second forward pass equal to the
    first, and keeping all of it.
    """
    policies = jax.checkpoint_policies
    match remat:
        case "none" if not sharded:
            return run
        case "none":
            policy = all_but_gathered
        case "dots":
            policy = policies.save_only_these_names(PRODUCT)
        case "block":
            policy = policies.nothing_saveable
        case "offload":
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=[BLOCK_INPUT],
                offload_src="device",
                offload_dst="pinned_host",
            )
        case _:
            raise AssertionError(remat)
    return jax.checkpoint(run, policy=policy, prevent_cse=straight)


def all_but_gathered(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Gathered weights are never kept: together they are the whole model.

    Their name alone does not forbid it: what is named, the result of `param.use`, would be kept in its place. Only such
    a result of a custom rule is typed `reduced`. Nor are they kept as a `shard_map` over experts types them.
    """
    if primitive.name == "reduced_vary_cast":
        return False
    if primitive.name == "custom_vjp_call":
        return not any(x.sharding.spec.reduced for x in parameters["call_jaxpr"].out_avals)
    return parameters.get("name") != GATHERED


def _stacks(model: ModelConfig, slots: tuple[BlockConfig, ...], num: int, recipe: Recipe) -> nnx.List:
    """One stacked block a slot."""
    return nnx.List([_stack(Block(model, slot, recipe), num) for slot in slots])


def _stack(block: Block, num: int) -> Block:
    return jax.tree.map(lambda declaration: declaration.stack(num), block, is_leaf=_is_declaration)


def _is_declaration(leaf: object) -> bool:
    return isinstance(leaf, Declaration)


def layer_numbers(config: ModelConfig, name: str) -> tuple[int, ...]:
    """Numbers of the layers stacked in the parameter of a dotted name; empty outside the blocks.

    Examples: `period.0.mlp.up` of 4 layers, period 1: (0, 1, 2, 3); `norm.scale`: ().
    """
    group, _, rest = name.partition(".")
    if group not in GROUPS:
        return ()
    slot = int(rest.partition(".")[0])
    num_prefix, num_slots = len(config.prefix), len(config.slots)
    if group == "prefix":
        return (slot,)
    if group == "period":
        return tuple(num_prefix + repeat * num_slots + slot for repeat in range(config.num_repeats))
    return (num_prefix + config.num_repeats * num_slots + slot,)


def canonical_name(name: str) -> str:
    """A dotted name without its place in the stack: `period.0.mlp.up` -> `layers.mlp.up`."""
    group, _, rest = name.partition(".")
    if group not in GROUPS:
        return name
    return "layers." + rest.partition(".")[2]


def declarations(module: nnx.Module) -> Tree:
    """The declarations of a decoder's parameters, or a layer's, as a nested dict with string keys."""
    return cast(Tree, _strings(nnx.to_pure_dict(nnx.state(module))))


def merge[Module: nnx.Module](decoder: Module, params: Tree) -> Module:
    """A decoder, or a layer, with arrays in the place of its declarations; where there are none they stay."""
    graph, state = nnx.split(decoder)
    flat = nnx.to_flat_state(state)
    values = dict(leaves(params))
    filled = [(path, leaf.replace(values.get(".".join(map(str, path)), leaf.get_value()))) for path, leaf in flat]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _strings(tree: Any) -> Any:
    return {str(key): _strings(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def init(decoder: Decoder, key: jax.Array, declared: Tree | None = None) -> Tree:
    """Initial parameters in the storage dtype, laid as the storage table says.

    Each layer's values depend on the key and on its number, not on how layers are stacked or sharded. Call under `jit`.

    Args:
        decoder: whose layers the names count.
        key: of the run.
        declared: what to make; the decoder's own parameters by default.
    """
    recipe, made = decoder.recipe, {}
    for name, leaf in leaves(declarations(decoder) if declared is None else declared):
        draw = functools.partial(
            initialise,
            leaf,
            name=canonical_name(name),
            layers=layer_numbers(decoder.config, name),
            dtype=recipe.parameters,
        )
        # drawn under auto axes, so that a device draws only its own share
        made[name] = jax.sharding.auto_axes(draw, out_sharding=recipe.rules.storage(leaf.axes))(key)
    return nest(made)
