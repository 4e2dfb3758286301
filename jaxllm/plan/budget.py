"""What a training budget buys: how large a model, on how many tokens, to what loss.

A fit of many runs gives the loss of a model with N parameters after D tokens (Hoffmann et al. 2022, section 3.3)

    L(N, D) = E + A / N^alpha + B / D^beta

in nats a token, of their data and tokenizer: losses compare with each other, not with another corpus'. With training
at 6 N D FLOPs, a budget of C FLOPs is best spent (their equation 4) on

    N = G (C / 6)^(beta / (alpha + beta))    D = C / 6 N    G = (alpha A / beta B)^(1 / (alpha + beta))

The rule of thumb beside it is 20 tokens a parameter, which all three of their ways of fitting come near.

A model that is used costs 2 N FLOPs a token more for as long as it lives. LLaMA (Touvron et al. 2023, section 1) asks
for the loss first and trains a smaller model for longer; how much smaller follows from minimising 6 N D + 2 N R, with R
tokens served, among all N and D of one loss (Sardana et al. 2024): where D falls as fast as the sum rises,

    alpha A N^-alpha / beta B D^-beta = 1 + R / 3 D
"""

import math
from dataclasses import dataclass

from jaxllm.config.base import require
from jaxllm.roofline.hardware import Chip
from jaxllm.roofline.training import training_seconds

DAY = 86_400.0
"""Seconds."""

TOKENS_PER_PARAMETER = 20.0
"""Of the rule of thumb (Hoffmann et al. 2022, table 3)."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A model's size and how long it is trained.

    Attributes:
        parameters: N.
        tokens: D.
    """

    parameters: float
    tokens: float

    @property
    def training_flops(self) -> float:
        """6 N D."""
        return 6 * self.parameters * self.tokens

    def lifetime_flops(self, served_tokens: float) -> float:
        """6 N D + 2 N R: of training and of so many tokens read and written in use."""
        return self.training_flops + 2 * self.parameters * served_tokens


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """A fit of L(N, D) = E + A / N^alpha + B / D^beta.

    Attributes:
        name: what jaxllm calls it.
        source: of the constants.
        irreducible: E, the loss of an endless model on endless data.
        parameter_scale: A.
        token_scale: B.
        parameter_exponent: alpha.
        token_exponent: beta.
    """

    name: str
    source: str
    irreducible: float
    parameter_scale: float
    token_scale: float
    parameter_exponent: float
    token_exponent: float

    def loss(self, choice: Choice) -> float:
        """Nats a token, on the data of the fit."""
        return (
            self.irreducible
            + self.parameter_scale * choice.parameters**-self.parameter_exponent
            + self.token_scale * choice.tokens**-self.token_exponent
        )

    def optimal(self, flops: float) -> Choice:
        """The least loss that so many FLOPs of training reach."""
        total = self.parameter_exponent + self.token_exponent
        ratio = self.parameter_exponent * self.parameter_scale / (self.token_exponent * self.token_scale)
        parameters = ratio ** (1 / total) * (flops / 6) ** (self.token_exponent / total)
        return Choice(parameters=parameters, tokens=flops / (6 * parameters))

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Tokens after which a model has a loss; infinite where it never has."""
        left = loss - self.irreducible - self.parameter_scale * parameters**-self.parameter_exponent
        return (self.token_scale / left) ** (1 / self.token_exponent) if left > 0 else math.inf

    def cheapest(self, loss: float, served_tokens: float = 0.0) -> Choice:
        """The model that costs the fewest FLOPs over its life, of all that reach a loss.

        With nothing served this is `optimal` the other way round.

        Args:
            loss: to reach, in nats a token.
            served_tokens: R, read and written in use.

        Raises:
            ValueError: no model reaches the loss.
        """
        fix = f"no model reaches it; give more than {self.irreducible}, the loss of an endless one by {self.name}'s fit"
        require(loss > self.irreducible, "loss", loss, fix)
        smallest = (self.parameter_scale / (loss - self.irreducible)) ** (1 / self.parameter_exponent)
        # Between the smallest model, which needs endless tokens, and one that needs next to none, the left side of the
        # condition falls and the right side rises: they cross once.
        low, high = math.log(smallest), math.log(smallest) + 60
        for _ in range(100):
            middle = (low + high) / 2
            if self._too_small(loss, math.exp(middle), served_tokens):
                low = middle
            else:
                high = middle
        parameters = math.exp(high)
        return Choice(parameters=parameters, tokens=self.tokens_for(loss, parameters))

    def _too_small(self, loss: float, parameters: float, served_tokens: float) -> bool:
        """Whether, at one loss, a larger model costs less."""
        tokens = self.tokens_for(loss, parameters)
        if math.isinf(tokens):
            return True
        by_parameters = self.parameter_exponent * self.parameter_scale * parameters**-self.parameter_exponent
        by_tokens = self.token_exponent * self.token_scale * tokens**-self.token_exponent
        return by_parameters > by_tokens * (1 + served_tokens / (3 * tokens))


HOFFMANN = ScalingLaw(
    name="hoffmann",
    source="Hoffmann et al. 2022, appendix D.3, equation 10",
    irreducible=1.69,
    parameter_scale=406.4,
    token_scale=410.7,
    parameter_exponent=0.34,
    token_exponent=0.28,
)
"""As printed. Their exponents are rounded, and so give Gopher's 5.76e23 FLOPs 32 billion parameters where the paper's
own arithmetic has 40 billion."""

BESIROGLU = ScalingLaw(
    name="besiroglu",
    source="Besiroglu et al. 2024, table 1: the same runs fitted again",
    irreducible=1.8172,
    parameter_scale=482.01,
    token_scale=2085.43,
    parameter_exponent=0.3478,
    token_exponent=0.3658,
)
"""Hoffmann et al.'s third fit had stopped too early; this one agrees with their first two, and with 20 tokens a
parameter at their scale."""

LAWS = (BESIROGLU, HOFFMANN)

FITTED_FLOPS = (6e18, 3e21)
"""Budgets of the runs behind both fits (Hoffmann et al. 2022, section 3.2); what lies outside is extrapolated."""


def rule_of_thumb(flops: float, tokens_per_parameter: float = TOKENS_PER_PARAMETER) -> Choice:
    """The model whose training on 20 tokens a parameter takes a budget: N = sqrt(C / 6 x 20)."""
    parameters = math.sqrt(flops / (6 * tokens_per_parameter))
    return Choice(parameters=parameters, tokens=tokens_per_parameter * parameters)


def training_dtype(chip: Chip) -> str:
    """What matrix products are computed in: bfloat16, or float16 on GPUs that came before it."""
    return "bfloat16" if "bfloat16" in chip.flops_per_second else "float16"


def peak_flops(chip: Chip, num_chips: int) -> float:
    """FLOP/s that chips offer together, in `training_dtype`."""
    return num_chips * chip.flops_per_second[training_dtype(chip)]


def training_flops(chip: Chip, num_chips: int, days: float, mfu: float) -> float:
    """What chips do in so many days.

    Args:
        chip: of one kind.
        num_chips: of them.
        days: without a break.
        mfu: a fraction of the peak, counted as 6 N a token (the convention scaling_book).
    """
    return peak_flops(chip, num_chips) * mfu * days * DAY


def training_days(choice: Choice, chip: Chip, num_chips: int, mfu: float) -> float:
    """How long a training takes; the inverse of `training_flops`."""
    peak = chip.flops_per_second[training_dtype(chip)]
    seconds = training_seconds(choice.parameters, choice.tokens, devices=num_chips, peak=peak, utilisation=mfu)
    return seconds / DAY


def days_at_speed(tokens: float, num_chips: int, tokens_per_second: float) -> float:
    """How long so many tokens take at a measured speed of each chip."""
    return tokens / (num_chips * tokens_per_second * DAY)


def least_flops(batch_tokens: float) -> float:
    """The budget whose rule-of-thumb model sees one batch and no more: C = 6 D^2 / 20."""
    return 6 * batch_tokens**2 / TOKENS_PER_PARAMETER
