"""How long a training run takes and what it needs at least, from the number of parameters and tokens.

    P parameters that a token meets   C operations a second of a device   MFU its share that training reaches

Training does 6 P operations a token, attention's own products left out, so the MFU here is the one of the book's
convention; `transformer` has the others.

Sources: the book, chapters 4 to 6; formulas F43 and F44.
"""

ADAM_BYTES = 10
"""Bytes a parameter in bfloat16, with Adam's moments in float32 and no float32 copy of it (the book, chapter 5)."""


def training_seconds(num_parameters: float, tokens: float, *, devices: float, peak: float, utilisation: float) -> float:
    """How long training takes at a share of the peak: 6 P tokens / (devices C MFU). The book, chapters 4 and 6 (F43).

    Args:
        num_parameters: P.
        tokens: of the whole run.
        devices: that run it.
        peak: C.
        utilisation: MFU, a fraction.
    """
    return 6 * num_parameters * tokens / (devices * peak * utilisation)


def model_utilisation(num_parameters: float, tokens_per_second: float, *, devices: float, peak: float) -> float:
    """The MFU of so many tokens a second on all devices: 6 P tokens/s / (devices C). The book, chapter 4 (F43)."""
    return 6 * num_parameters * tokens_per_second / (devices * peak)


def most_parameters(hbm: float, *, bytes_per_parameter: float = ADAM_BYTES) -> float:
    """Parameters whose training state fits one device, as pure data parallelism needs it. The book, chapter 5 (F44)."""
    return hbm / bytes_per_parameter


def state_bytes(num_parameters: float, *, bytes_per_parameter: float = ADAM_BYTES) -> float:
    """Bytes of parameters and moments, all devices together. `memory.state_bytes` counts what jaxllm keeps (F44)."""
    return num_parameters * bytes_per_parameter
