"""How the field counts the FLOPs of a training token, and the utilisation that comes of it: the one counter.

    D d_model   V vocabulary   L blocks   N query heads   H width of a head   T tokens of a sequence
    n(...)      parameters of a kind; n(all) those that a token meets

Every convention is three numbers: n(blocks) and n(ends), the parameters that it takes for matrix products inside and
outside the blocks, at 2 FLOPs forward and 4 backward each, and the FLOPs of attention's two products, which at 4 T N H
forward are 12 T N H in training for the full square of T x T pairs. Half of the square is what a causal mask leaves.
The published formulas differ in little more than which parameters they take and which square; the table is `_row`'s.

Model FLOPs are what the mathematics asks for; hardware FLOPs add what rematerialisation computes again. Their shares
of the peak are MFU and HFU (Chowdhery et al. 2022, appendix B). What a fused attention kernel recomputes inside is in
neither, except where a convention says so.

Where only adapters are trained (LoRA, Hu et al. 2021), the gradients of all other weights are never computed: 4 FLOPs
a parameter and token for these instead of 6, and 6 for the adapters' own.

Sources: the codes' own, as of August 2026, named at each convention; the book, chapter 4.
"""

import operator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, NamedTuple

from jaxllm.config import ModelConfig
from jaxllm.roofline.transformer import ParameterCount, parameters, vocabulary

Remat = Literal["none", "dots", "block", "offload"]


class Convention(StrEnum):
    """A way of counting. Numbers compare only under one.

    Attributes:
        PALM: Chowdhery et al. 2022, appendix B: every parameter and the full square.
        TORCHTITAN: looking a row up is no matrix product, so the embedding counts only where it is the head too.
        CAUSAL: the matrix products that have to be done and no others, as MaxText counts since 2025.
        SCALING_BOOK: the book, chapter 4, where attention's square is left out.
        NANOCHAT: matrices only, and the full square within a window.
        NANOGPT: PaLM's, without learned positions.
        LLM_C: every parameter and half the square, of D instead of N H.
        MEGATRON_GPT: 72 L D^2 (1 + T / 6 D + V / 12 L D) of Korthikanti et al. 2022: that of a GPT with as many
            key-value heads as query heads and a feed-forward layer of two D x 4 D matrices, whatever the model has.
        MEGATRON_2024: Megatron-LM until 2024: matrices as they are, the full square. With a GPT's shape MEGATRON_GPT.
        MEGATRON: Megatron-LM since 2025: the same with half the square.
        OLMO_CORE: as NANOCHAT; norms inside its attention and head modules, a few in a million, are left out here.
        LINGUA: half the square, forward once and backward two and a half times, since its fused kernel computes the
            scores again. Its code subtracts the embedding also where it is the head; here the head's product stays.
        LITGPT: every parameter and the full square, of D instead of N H.
        PICOTRON: the same.
        NANOTRON: matrices as they are, the full square; its HFU is its MFU.
        GPT_NEOX: Megatron-DeepSpeed's 72 L D^2 (1 + T / 6 D + V / 16 L D): the head counts three quarters.
        LLM_FOUNDRY: as LITGPT; with rematerialisation everything counts 4/3 in its HFU, as in GPT-NeoX's.
    """

    PALM = "palm"
    TORCHTITAN = "torchtitan"
    CAUSAL = "causal"
    SCALING_BOOK = "scaling_book"
    NANOCHAT = "nanochat"
    NANOGPT = "nanogpt"
    LLM_C = "llm_c"
    MEGATRON_GPT = "megatron_gpt"
    MEGATRON_2024 = "megatron_2024"
    MEGATRON = "megatron"
    OLMO_CORE = "olmo_core"
    LINGUA = "lingua"
    LITGPT = "litgpt"
    PICOTRON = "picotron"
    NANOTRON = "nanotron"
    GPT_NEOX = "gpt_neox"
    LLM_FOUNDRY = "llm_foundry"

    @property
    def formula(self) -> str:
        """The count in one line, for people."""
        return _FORMULAS[self]


MAIN = (Convention.PALM, Convention.TORCHTITAN, Convention.CAUSAL, Convention.SCALING_BOOK)
"""Those that are printed without being asked for; between them lie nearly all others."""

_MATRICES = "6 x matrix products only"
_EVERY = "6 x active parameters"
_FORMULAS = {
    Convention.PALM: f"{_EVERY} + full-square attention",
    Convention.TORCHTITAN: "6 x all but an untied embedding + full-square attention",
    Convention.CAUSAL: f"{_MATRICES} + causal attention (half the square)",
    Convention.SCALING_BOOK: f"{_EVERY}, attention's square left out",
    Convention.NANOCHAT: f"{_MATRICES} + full-square attention within windows",
    Convention.NANOGPT: "6 x all but learned positions + full-square attention",
    Convention.LLM_C: f"{_EVERY} + 6 L D T (half the square)",
    Convention.MEGATRON_GPT: "6 x (12 L D^2 + V D) of a GPT + 12 L D T",
    Convention.MEGATRON_2024: f"{_MATRICES} + full-square attention",
    Convention.MEGATRON: f"{_MATRICES} + half-square attention",
    Convention.OLMO_CORE: f"{_MATRICES} + full-square attention within windows",
    Convention.LINGUA: "6 x all but an untied embedding + 7 L D T (half the square, its scores computed twice)",
    Convention.LITGPT: f"{_EVERY} + 12 L D T",
    Convention.PICOTRON: f"{_EVERY} + 12 L D T",
    Convention.NANOTRON: f"{_MATRICES} + full-square attention",
    Convention.GPT_NEOX: "6 x (12 L D^2 + 3/4 V D) of a GPT + 12 L D T",
    Convention.LLM_FOUNDRY: f"{_EVERY} + 12 L D T",
}


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the conventions read of a model: published ones need not be a `ModelConfig`.

    Attributes:
        parameters: by part, those that a token meets.
        d_model: D.
        vocab_size: V.
        widths: N H of each block.
        windows: tokens that each block's queries see at most, 0 for all; empty where none has a window.
        positions: values of learned positions, counted in no part.
        tied: whether the head is the embedding transposed.
    """

    parameters: ParameterCount
    d_model: int
    vocab_size: int
    widths: tuple[int, ...]
    windows: tuple[int, ...] = ()
    positions: int = 0
    tied: bool = False

    @staticmethod
    def of(model: ModelConfig) -> "Counted":
        """Counts of a config.

        Raises:
            ValueError: the vocabulary is not known yet.
        """
        count, windows = parameters(model), tuple(block.attention.window for block in model.blocks)
        return Counted(
            parameters=replace(count, positions=0),
            d_model=model.d_model,
            vocab_size=vocabulary(model),
            widths=tuple(block.attention.num_heads * model.head_dim(block.attention) for block in model.blocks),
            windows=windows if any(windows) else (),
            positions=count.positions,
            tied=model.tie_embeddings,
        )


class _Row(NamedTuple):
    """A convention's count of one model.

    Attributes:
        blocks: parameters whose products rematerialisation repeats.
        ends: the other parameters.
        attention: training FLOPs a token of attention's two products.
        passes: how many times the forward pass's these are.
    """

    blocks: float
    ends: float
    attention: float
    passes: float = 3


def _row(convention: Convention, model: Counted, length: int) -> _Row:
    """The table."""
    count, head = model.parameters, model.vocab_size * model.d_model
    num_blocks, matrices = len(model.widths), count.attention + count.mlp - count.idle
    every = count.active + model.positions
    read = every if model.tied else every - count.embedding
    square = seen = 12 * length * sum(model.widths)
    if model.windows:
        reach = [min(window or length, length) for window in model.windows]
        seen = 12 * sum(map(operator.mul, model.widths, reach))
    narrow = 12 * length * num_blocks * model.d_model
    gpt = 12 * num_blocks * model.d_model**2
    match convention:
        case Convention.PALM:
            return _Row(matrices, every - matrices, square)
        case Convention.NANOGPT:
            return _Row(matrices, count.active - matrices, square)
        case Convention.TORCHTITAN:
            return _Row(matrices, read - matrices, square)
        case Convention.CAUSAL | Convention.MEGATRON:
            return _Row(matrices, head, seen / 2)
        case Convention.SCALING_BOOK:
            return _Row(matrices, every - matrices, 0)
        case Convention.NANOCHAT | Convention.OLMO_CORE:
            return _Row(matrices, head, seen)
        case Convention.MEGATRON_2024 | Convention.NANOTRON:
            return _Row(matrices, head, square)
        case Convention.MEGATRON_GPT:
            return _Row(gpt, head, narrow)
        case Convention.GPT_NEOX:
            return _Row(gpt + 0.75 * head, 0, narrow)
        case Convention.LLM_C:
            return _Row(matrices, every - matrices, narrow / 2)
        case Convention.LINGUA:
            return _Row(matrices, read - matrices, 7 / 12 * narrow, passes=3.5)
        case Convention.LITGPT | Convention.PICOTRON:
            return _Row(matrices, every - matrices, narrow)
        case Convention.LLM_FOUNDRY:
            return _Row(every, 0, narrow)


def _known(convention: Convention | str) -> Convention:
    if convention not in Convention:
        raise ValueError(f"convention = {str(convention)!r}: use one of {', '.join(Convention)}")
    return Convention(convention)


def formula(convention: Convention | str, adapters: bool = False) -> str:
    """A convention's name and count in one line, for people; with adapters, only these are trained."""
    count = Convention(convention).formula
    return f"{convention}: " + (count.replace("6 x", "4 x", 1) + " + 6 x adapters" if adapters else count)


def flops_per_token(
    model: ModelConfig | Counted, sequence_length: int, convention: Convention | str, adapters: int = 0
) -> float:
    """Model FLOPs of training (forward and backward) on one token of a sequence.

    Args:
        model: the decoder, with its vocabulary known.
        sequence_length: T, in tokens.
        convention: what counts; a member of `Convention` or its name.
        adapters: parameters of adapters, where these alone are trained; 0 where the model is.

    Raises:
        ValueError: no such convention, or the vocabulary is not known yet.
    """
    counted = model if isinstance(model, Counted) else Counted.of(model)
    row = _row(_known(convention), counted, sequence_length)
    return float((4 if adapters else 6) * (row.blocks + row.ends) + row.attention + 6 * adapters)


def recomputed_flops_per_token(
    model: ModelConfig | Counted, sequence_length: int, convention: Convention | str, remat: Remat
) -> float:
    """FLOPs a token that rematerialisation adds: hardware FLOPs are these and `flops_per_token`'s.

    As a policy computes again: `none` nothing; `dots` keeps the products with weights, so attention's two are done
    once more (the book, chapter 4: 4 T N H a block); `block` and `offload` the whole block, one forward pass of it.
    nanotron counts no FLOPs of the hardware: there is nothing to add.

    Args:
        model: as in `flops_per_token`, as are the next two.
        sequence_length: T.
        convention: what counts.
        remat: `train.remat`.

    Raises:
        ValueError: as `flops_per_token`.
    """
    counted = model if isinstance(model, Counted) else Counted.of(model)
    convention = _known(convention)
    row = _row(convention, counted, sequence_length)
    if remat == "none" or convention is Convention.NANOTRON:
        return 0.0
    return row.attention / row.passes + (0 if remat == "dots" else 2 * row.blocks)


def hardware_flops_per_token(
    model: ModelConfig | Counted,
    sequence_length: int,
    convention: Convention | str,
    remat: Remat,
    adapters: int = 0,
) -> float:
    """Hardware FLOPs of training on one token: the model's and those of rematerialisation; arguments as above.

    Raises:
        ValueError: as `flops_per_token`.
    """
    again = recomputed_flops_per_token(model, sequence_length, convention, remat)
    return flops_per_token(model, sequence_length, convention, adapters) + again


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops_per_second: float) -> float:
    """Model FLOPs utilisation: the share of the peak that the model's own FLOPs make up (PaLM, appendix B).

    With hardware FLOPs a token it is HFU.

    Args:
        tokens_per_second: of one device, or of all of them together.
        flops_per_token: of `flops_per_token`, under the convention that is printed beside the result.
        peak_flops_per_second: of as many devices as the tokens were counted on, at the compute dtype.

    Returns:
        A fraction: 0.39 is 39 %.
    """
    return tokens_per_second * flops_per_token / peak_flops_per_second
