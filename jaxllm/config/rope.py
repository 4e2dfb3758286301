"""Rotary position embedding, and how its wavelengths are stretched for contexts longer than those of pretraining."""

from jaxllm.config.base import Choice, Section, require


class Llama3Scaling(Choice, frozen=True, kw_only=True, tag="llama3"):
    """Llama 3.1's stretch of the low rope frequencies (Grattafiori et al. 2024; values of the 3.1 release).

    Attributes:
        factor: how much longer than `original_max_positions` the context is to be.
        low_freq_factor: wavelengths above original_max_positions / this are divided by `factor`.
        high_freq_factor: wavelengths below original_max_positions / this stay as they are.
        original_max_positions: the sequence length of pretraining, in tokens.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        _require_stretch(self.factor)
        require(
            self.high_freq_factor > self.low_freq_factor > 0,
            "high_freq_factor",
            self.high_freq_factor,
            f"it must be above low_freq_factor = {self.low_freq_factor}",
        )
        _require_length(self.original_max_positions)


class LinearScaling(Choice, frozen=True, kw_only=True, tag="linear"):
    """Position interpolation (Chen et al. 2023, section 2.3): all frequencies divided by one factor.

    Attributes:
        factor: how much longer than in pretraining the context is to be.
    """

    factor: float

    def __post_init__(self) -> None:
        _require_stretch(self.factor)


class DynamicScaling(Choice, frozen=True, kw_only=True, tag="dynamic"):
    """Dynamic NTK (bloc97 2023; emozilla 2023): theta grows with the sequence, once it is longer than in pretraining.

    Attributes:
        factor: how fast theta grows.
        original_max_positions: up to how many positions theta stays, in tokens (`max_position_embeddings` of Hugging
            Face's configs).
    """

    factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        _require_stretch(self.factor)
        _require_length(self.original_max_positions)


class YarnScaling(Choice, frozen=True, kw_only=True, tag="yarn"):
    """YaRN (Peng et al. 2023, section 3): low frequencies interpolated, high ones kept, sines and cosines grown.

    Attributes:
        factor: how much longer than `original_max_positions` the context is to be.
        original_max_positions: the sequence length of pretraining, in tokens.
        beta_fast: features that turn more often than this within original_max_positions keep their frequency.
        beta_slow: those that turn less often than this have it divided by `factor`; a ramp lies between.
        attention_factor: multiplies sines and cosines; 0 takes 0.1 ln(factor) + 1, or what the next two say.
        mscale: together with mscale_all_dim, attention_factor is (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim
            ln(factor) + 1) (DeepSeek-V2); 0 means unset.
        mscale_all_dim: see mscale.
        truncate: whether the ramp begins and ends at whole features.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        _require_stretch(self.factor)
        _require_length(self.original_max_positions)
        require(self.beta_slow > 0, "beta_slow", self.beta_slow, "use a positive number, below beta_fast")
        require(
            self.beta_fast > self.beta_slow,
            "beta_fast",
            self.beta_fast,
            f"it must be above beta_slow = {self.beta_slow}",
        )
        for field in ("attention_factor", "mscale", "mscale_all_dim"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "use a positive number, or 0 for unset")


class LongRopeScaling(Choice, frozen=True, kw_only=True, tag="longrope"):
    """LongRoPE (Ding et al. 2024): each frequency divided by a factor of its own, found by search (Phi-3, Phi-4).

    Attributes:
        short_factor: divides each pair's frequency while the longest sequence of a call has at most
            original_max_positions; one number for every two of the dims that turn.
        long_factor: likewise for longer ones.
        original_max_positions: the sequence length of pretraining, in tokens.
        factor: how much longer than that the context is to be (`max_position_embeddings` over
            `original_max_position_embeddings` of Hugging Face's configs); it decides attention_factor only.
        attention_factor: multiplies sines and cosines; 0 takes sqrt(1 + ln(factor) / ln(original_max_positions)).
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_positions: int
    factor: float = 1.0
    attention_factor: float = 0.0

    def __post_init__(self) -> None:
        _require_stretch(self.factor)
        require(self.original_max_positions > 1, "original_max_positions", self.original_max_positions, "use 2 or more")
        for field in ("short_factor", "long_factor"):
            for number in getattr(self, field):
                require(number > 0, field, number, "use positive numbers")
        require(
            self.attention_factor >= 0,
            "attention_factor",
            self.attention_factor,
            "use a positive number, or 0 for unset",
        )


class RopeConfig(Section, frozen=True, kw_only=True):
    """Rotary position embedding (Su et al. 2021), halves rotated against each other as in Llama's published weights.

    Attributes:
        theta: base of the wavelengths: 10,000 for Llama 1 and 2, 500,000 for Llama 3.
        fraction: the share of a head's dims that turn, the first ones (GLM: 0.5; Phi-4-mini: 0.75).
        interleaved: whether dims 2i and 2i + 1 turn against each other (GLM), instead of i and i + half of them.
        scaling: how the wavelengths are stretched for a longer context; none by default, llama3 where a table says no
            type.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: Llama3Scaling | LinearScaling | DynamicScaling | YarnScaling | LongRopeScaling | None = None

    def __post_init__(self) -> None:
        require(self.theta > 1, "theta", self.theta, "use a number above 1, 10000 for Llama 2")
        require(0 < self.fraction <= 1, "fraction", self.fraction, "use a number above 0 and at most 1")

    def num_dims(self, head_dim: int) -> int:
        """How many dims of a head turn."""
        return int(head_dim * self.fraction)

    def check(self, head_dim: int, place: str) -> None:
        """Refuse a head that cannot be turned.

        Args:
            head_dim: its width.
            place: the rope section's dotted name behind `model`, for the sentence.

        Raises:
            ValueError: naming the field.
        """
        dims, scaling = self.num_dims(head_dim), self.scaling
        require(
            self.fraction == 1 or (dims >= 2 and dims % 2 == 0),
            f"{place}.fraction",
            self.fraction,
            f"{dims} of {head_dim} dims of a head would turn; rope needs an even number of 2 or more",
        )
        if isinstance(scaling, DynamicScaling):
            require(dims > 2, f"{place}.fraction", self.fraction, 'scaling "dynamic" needs 4 dims that turn, or more')
        if isinstance(scaling, LongRopeScaling):
            for field in ("short_factor", "long_factor"):
                numbers = getattr(scaling, field)
                require(
                    len(numbers) == dims // 2,
                    f"{place}.scaling.{field}",
                    list(numbers),
                    f"give {dims // 2} numbers, one for every two of the {dims} dims of a head that turn",
                )


def _require_stretch(factor: float) -> None:
    require(factor >= 1, "factor", factor, "use 1 or more")


def _require_length(original_max_positions: int) -> None:
    require(original_max_positions > 0, "original_max_positions", original_max_positions, "use 1 or more")
