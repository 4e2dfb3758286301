"""Optimizers, learning-rate schedules and what happens to gradients before them."""

from jaxllm.config.base import Choice, Section, require


def _betas(beta1: float, beta2: float) -> None:
    require(0 <= beta1 < 1, "beta1", beta1, "use a number from 0 to 1, 1 excluded")
    require(0 <= beta2 < 1, "beta2", beta2, "use a number from 0 to 1, 1 excluded")


class AdamW(Choice, frozen=True, kw_only=True, tag="adamw"):
    """AdamW (Loshchilov and Hutter 2019), with LLaMA's values (Touvron et al. 2023, section 2.3).

    Attributes:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: per unit of learning rate, on parameters of the role matrix only.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        _betas(self.beta1, self.beta2)
        require(self.epsilon > 0, "epsilon", self.epsilon, "use a small positive number such as 1e-8")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "use 0 or more")


class Muon(Choice, frozen=True, kw_only=True, tag="muon"):
    """Muon for the role matrix (Jordan et al. 2024), AdamW for every other role.

    Attributes:
        momentum: decay of the momentum, Nesterov's.
        newton_schulz_steps: iterations of the orthogonalisation.
        update_rms: root mean square that an orthogonalised update is scaled to, so that one learning rate serves
            both optimizers (0.2: Liu et al. 2025, Moonlight).
        beta1: AdamW's, as are the next two.
        beta2: decay of AdamW's second moment.
        epsilon: added to the root of AdamW's second moment.
        weight_decay: per unit of learning rate, on parameters of the role matrix only.
    """

    momentum: float = 0.95
    newton_schulz_steps: int = 5
    update_rms: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        _betas(self.beta1, self.beta2)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "use a number from 0 to 1, 1 excluded")
        require(self.newton_schulz_steps >= 1, "newton_schulz_steps", self.newton_schulz_steps, "use 1 or more")
        require(self.update_rms > 0, "update_rms", self.update_rms, "use a positive number such as 0.2")
        require(self.epsilon > 0, "epsilon", self.epsilon, "use a small positive number such as 1e-8")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "use 0 or more")


OptimizerConfig = AdamW | Muon


class Constant(Choice, frozen=True, kw_only=True, tag="constant"):
    """Linear warm-up, then a constant rate.

    Attributes:
        warmup_steps: optimizer steps from 0 to the peak rate.
    """

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "use 0 or more")


class Cosine(Choice, frozen=True, kw_only=True, tag="cosine"):
    """Linear warm-up, then half a cosine down to a fraction of the peak at the last step (LLaMA's: 2,000, 10 %).

    Attributes:
        warmup_steps: optimizer steps from 0 to the peak rate.
        final_fraction: rate at the last step, as a fraction of the peak.
    """

    warmup_steps: int = 2000
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "use 0 or more")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "use a fraction from 0 to 1")


class WSD(Choice, frozen=True, kw_only=True, tag="wsd"):
    """Warm-up, stable, decay (Hu et al. 2024): linear up, constant, linear down over the last steps.

    Attributes:
        warmup_steps: optimizer steps from 0 to the peak rate.
        decay_fraction: share of all steps, at the end, over which the rate falls.
        final_fraction: rate at the last step, as a fraction of the peak.
    """

    warmup_steps: int = 2000
    decay_fraction: float = 0.2
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "use 0 or more")
        require(0 <= self.decay_fraction <= 1, "decay_fraction", self.decay_fraction, "use a fraction from 0 to 1")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "use a fraction from 0 to 1")


ScheduleConfig = Cosine | WSD | Constant


class LossScaleConfig(Section, frozen=True, kw_only=True):
    """Dynamic loss scale for float16 compute (Micikevicius et al. 2018); unused with other dtypes.

    Attributes:
        initial: scale at the first step.
        growth_interval: clean steps after which the scale doubles.
        minimum: the scale never halves below it.
    """

    initial: float = 65536.0
    growth_interval: int = 2000
    minimum: float = 1.0

    def __post_init__(self) -> None:
        require(self.initial > 0, "initial", self.initial, "use a positive number such as 65536")
        require(self.growth_interval >= 1, "growth_interval", self.growth_interval, "use 1 or more")
        require(0 < self.minimum <= self.initial, "minimum", self.minimum, f"use at most initial = {self.initial}")


class QKClipConfig(Section, frozen=True, kw_only=True):
    """QK-clip (Kimi Team 2025, Kimi K2, section 2.1): heads whose logits grow too large get smaller weights.

    After the update of every `interval` steps, the queries' weights of each head whose largest attention logit in the
    step's batch was above `threshold` are scaled so that it would have been the threshold; see jaxllm/train/qk_clip.

    Attributes:
        threshold: the largest attention logit that is left alone (Kimi K2: 100).
        interval: steps between clips (Kimi K2: 1). Each takes a forward pass, since flash kernels do not tell logits;
            between two of them logits may pass the threshold.
    """

    threshold: float = 100.0
    interval: int = 10

    def __post_init__(self) -> None:
        require(self.threshold > 0, "threshold", self.threshold, "use a positive number such as 100")
        require(self.interval >= 1, "interval", self.interval, "use 1 or more")


class OptimConfig(Section, frozen=True, kw_only=True):
    """From gradients to an update. The defaults are LLaMA's recipe (Touvron et al. 2023).

    Attributes:
        learning_rate: peak of the schedule.
        schedule: the rate over optimizer steps, of which the data phases give the number.
        optimizer: the update rule.
        clip_norm: gradients of a larger global norm are scaled down to it; 0 means never.
        update_clip: of each parameter, layer by layer, the root mean square of an update (learning rate and weight
            decay included) is at most this times the parameter's own, or times 1e-3 where that is less (Shazeer and
            Stern 2018, sections 6 and 8; see jaxllm/train/optim); 0 means no limit. Such as 0.1.
        qk_clip: holds attention logits down by the weights of queries and keys; none by default.
        embedding_gradient_scale: the embedding's gradient is multiplied by it (GLM-130B: 0.1; Zeng et al. 2022).
        balancing_rate: by how much experts' balancing biases are moved after a step, against the sign of the load's
            error (Wang et al. 2024 and DeepSeek-V3: 1e-3); 0 keeps them where they are.
        loss_scale: for float16 compute.
    """

    learning_rate: float = 3e-4
    schedule: ScheduleConfig = Cosine()
    optimizer: OptimizerConfig = AdamW()
    clip_norm: float = 1.0
    update_clip: float = 0.0
    qk_clip: QKClipConfig | None = None
    embedding_gradient_scale: float = 1.0
    balancing_rate: float = 1e-3
    loss_scale: LossScaleConfig = LossScaleConfig()

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "use a positive number such as 3e-4")
        require(self.clip_norm >= 0, "clip_norm", self.clip_norm, "use a positive number, or 0 for no clipping")
        require(self.balancing_rate >= 0, "balancing_rate", self.balancing_rate, "use 1e-3, or 0 to keep biases")
        require(self.update_clip >= 0, "update_clip", self.update_clip, "use a fraction such as 0.1, or 0 for none")
        require(
            0 < self.embedding_gradient_scale <= 1,
            "embedding_gradient_scale",
            self.embedding_gradient_scale,
            "use a fraction from 0 to 1, 0 excluded",
        )
