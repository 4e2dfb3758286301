"""`jaxllm generate`: its arguments, and what it prints. A part of the command line (see cli)."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxllm.arguments import DONE, overrides

if TYPE_CHECKING:
    from jaxllm.data.tokenizer import Tokenizer
    from jaxllm.pretrained import Model


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `generate` to the command line's commands."""
    generate = add("generate", _generate, "Text that goes on from a prompt.")
    generate.add_argument("path", metavar="PATH", help="a run's directory, or its URL; or a Hugging Face model's")
    generate.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="what to go on from; several are one batch"
    )
    generate.add_argument(
        "--ids", action="append", default=[], type=_ids, metavar="1,80,147", help="a prompt as token ids, taken as is"
    )
    generate.add_argument("--max-tokens", type=int, default=128, metavar="N", help="of a text at most (128)")
    generate.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (0.7)")
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="only of the K likeliest tokens")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="only of the likeliest, P in all")
    generate.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    generate.epilog = "devices are set as --mesh.tensor 4, --mesh.fsdp 2; by default tensor, as far as it divides"


def _ids(text: str) -> list[int]:
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token ids, such as 1,80,147") from None


def _generate(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if any(not prompt for prompt in arguments.prompt):
        raise ValueError("--prompt: it is empty; give it some text")
    if not arguments.prompt and not arguments.ids:
        raise ValueError('give a prompt, as in: jaxllm generate runs/quickstart --prompt "def "')
    if arguments.prompt and arguments.ids:
        raise ValueError("--prompt and --ids: give one or the other")
    if arguments.max_tokens < 1:
        raise ValueError(f"--max-tokens = {arguments.max_tokens}: use 1 or more")
    from jaxllm.generate.draw import Sampling

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    import jax

    from jaxllm.generate.engine import Generator
    from jaxllm.pretrained import load_pretrained

    model, tokenizer = load_pretrained(arguments.path, _mesh(rest))
    prompts = arguments.ids or _encode(arguments, model, tokenizer)
    with jax.set_mesh(model.mesh):
        generator = Generator(model.decoder, model.params, min(_sizes(model, tokenizer)))
        began = time.monotonic()
        drawn = generator.stream(prompts, arguments.max_tokens, sampling, model.stop)
        _say_length(model, max(map(len, prompts)) + arguments.max_tokens)
        shown = arguments.prompt or [_text(tokenizer, ids) for ids in prompts]
        _print(drawn, prompts, shown, tokenizer, model, began)
    return DONE


def _mesh(rest: Sequence[str]) -> dict[str, int] | None:
    """Sizes by axis; None where none is given."""
    sizes = {}
    for name, value in overrides(rest).items():
        section, _, axis = name.partition(".")
        if section != "mesh":
            raise ValueError(f"--{name} is no argument of this command; only --mesh.AXIS is set here")
        try:
            sizes[axis] = int(value)
        except ValueError:
            raise ValueError(f"--{name} = {value!r}: use a number of devices") from None
    return sizes or None


def _encode(arguments: argparse.Namespace, model: "Model", tokenizer: "Tokenizer | None") -> list[list[int]]:
    if tokenizer is None:
        raise ValueError(f"{arguments.path}: it has no tokenizer; give token ids, as in --ids 1,80,147")
    return [[*model.start, *map(int, tokenizer.encode(text))] for text in arguments.prompt]


def _sizes(model: "Model", tokenizer: "Tokenizer | None") -> list[int]:
    """What ids are below: rows of the embedding, and tokens that have a meaning."""
    return [model.config.vocab_size, *([] if tokenizer is None else [tokenizer.vocab_size])]


def _say_length(model: "Model", length: int) -> None:
    if 0 < model.context_length < length:
        print(
            f"jaxllm: prompt and text come to {length:,} tokens, and the model has learned from "
            f"{model.context_length:,} at a time; what is beyond may be worse",
            file=sys.stderr,
        )


def _text(tokenizer: "Tokenizer | None", ids: Sequence[int]) -> str:
    from jaxllm.generate.text import certain

    return ",".join(map(str, ids)) if tokenizer is None else certain(tokenizer.decode(ids))


def _print(
    drawn: Iterator[list[int | None]],
    prompts: Sequence[Sequence[int]],
    shown: Sequence[str],
    tokenizer: "Tokenizer | None",
    model: "Model",
    began: float,
) -> None:
    """The texts one below the other, each as it comes once those above have ended; the speed at the end."""
    from jaxllm.generate.text import IdStream, TextStream

    streams: list[Any] = [TextStream(tokenizer, prompt) if tokenizer else IdStream() for prompt in prompts]
    waiting, ended, turn, count, first = [*shown], [False] * len(prompts), 0, 0, 0.0
    for tokens in drawn:
        first = first or time.monotonic()
        for row, token in enumerate(tokens):
            if token is None:
                continue
            count += 1
            ended[row] = token in model.stop
            if not ended[row] or tokenizer is None:
                waiting[row] += streams[row].add(token)
            if ended[row]:
                waiting[row] += streams[row].end()
        while turn < len(waiting):
            _write(waiting[turn])
            waiting[turn] = ""
            if not ended[turn] or turn + 1 == len(waiting):
                break
            _write("\n\n")
            turn += 1
    for row in range(turn, len(waiting)):
        _write(("\n\n" if row > turn else "") + waiting[row] + ("" if ended[row] else streams[row].end()))
    _write("\n")
    _say_speed(count, len(prompts), began, first)


def _write(text: str) -> None:
    """To the terminal, whose cursor no text moves but by line breaks and tabs."""
    if sys.stdout.isatty():
        text = "".join(one for one in text if one.isprintable() or one in " \n\t")
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _say_speed(count: int, num_texts: int, began: float, first: float) -> None:
    seconds, behind = time.monotonic() - first, count - num_texts
    speed = f", then {behind / seconds:,.0f} tokens/s" if behind > 0 and seconds > 0 else ""
    what = f"{count:,} tokens" if num_texts == 1 else f"{count:,} tokens of {num_texts} texts"
    print(f"{what}; the first in {first - began:.1f} s, compilation included{speed}", file=sys.stderr)
