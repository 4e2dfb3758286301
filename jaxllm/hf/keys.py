"""The keys of a `config.json`: each is taken once, known to say nothing of what is computed, or refused.

A mistake is told in the file's own words: by the key as it stands there, also where it is our config that finds it.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxllm.config.base import FieldError
from jaxllm.config.errors import nearest, show

MAX_NUMBER = 2**31 - 1
"""The largest whole number that a key may have: more than any size of an array that is computed with."""

HARMLESS = frozenset(
    [
        "architectures",
        "model_type",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "auto_map",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "attn_implementation",
        "_attn_implementation_autoset",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
        "sep_token_id",
        "cls_token_id",
        "decoder_start_token_id",
        "tokenizer_class",
        "prefix",
        "bad_words_ids",
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "num_return_sequences",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "output_scores",
        "return_dict_in_generate",
        "cache_implementation",
        "attention_dropout",
        "hidden_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "embedding_dropout",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "chunk_size_feed_forward",
        "pretraining_tp",
        "max_sequence_length",
        "n_special",
        "predict_special_tokens",
        "output_past",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "gradient_checkpointing",
    ]
)
"""Keys that may say anything: of generation, of training (there is no dropout here), of other tasks, of how others
compute."""

FALSE = frozenset(
    [
        "is_encoder_decoder",
        "is_decoder",
        "add_cross_attention",
        "cross_attention_hidden_size",
        "tie_encoder_decoder",
        "pruned_heads",
        "use_bidirectional_attention",
        "attn_logit_softcapping",
        "use_mrope",
        "apply_residual_connection_post_layernorm",
        "attention_bias",
        "mlp_bias",
        "clip_qkv",
        "quantization_config",
        "per_layer_config",
        "tie_last_hidden_states",
        "rope_interleaved",
        "lm_head_bias",
    ]
)
"""Keys that must say no, where they are there: what they ask for jaxllm does not do."""


class Keys:
    """A tree of keys that is taken apart.

    Args:
        tree: keys and values.
        place: how errors call the file.
        defaults: what absent keys say.
        prefix: of the keys' names in errors.
        aliases: other names that keys may have, and the names that they are taken by.

    Raises:
        ValueError: two names of one key say different things.
    """

    def __init__(
        self,
        tree: Mapping[str, Any],
        place: str,
        defaults: Mapping[str, Any],
        prefix: str = "",
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._given: dict[str, Any] = {}
        self._defaults, self._place, self._prefix, self._inner = defaults, place, prefix, False
        self._spelt: dict[str, str] = {}
        for key, value in tree.items():
            known = (aliases or {}).get(key, key)
            if self._given.setdefault(known, value) != value:
                fix = f"another name of this key says {show(self._given[known])}"
                raise ValueError(f"{place}: {prefix}{key} = {show(value)}: {fix}")
            self._spelt.setdefault(known, key)
        self._left = dict(self._given)

    def take(self, key: str) -> Any:
        """A key's value, or the default's; of the default's kind, where that is no None.

        Raises:
            ValueError: it is neither there nor has a default, or is of another kind.
        """
        if key not in self._left:
            if key not in self._defaults:
                raise self.missing(key)
            return self._defaults[key]
        value, default = self._left.pop(key), self._defaults.get(key)
        return self._checked(key, value, type(default)) if isinstance(default, bool | str) else value

    def whole(self, key: str) -> int:
        """A whole number, 0 or more.

        Raises:
            ValueError: as `take`, or it is none.
        """
        return self._checked(key, self.take(key), int)

    def whole_if_any(self, key: str) -> int | None:
        """A whole number, 0 or more; None where the key says none, or is not there and has no other default.

        Raises:
            ValueError: it is no such number.
        """
        value = self._left.pop(key, self._defaults.get(key))
        return None if value is None else self._checked(key, value, int)

    def count(self, key: str) -> int:
        """A whole number, 1 or more.

        Raises:
            ValueError: as `take`, or it is none.
        """
        return self._positive(key, self.take(key))

    def count_if_any(self, key: str) -> int | None:
        """A whole number, 1 or more; None where the key says none, or is not there and has no other default.

        Raises:
            ValueError: it is no such number.
        """
        value = self._left.pop(key, self._defaults.get(key))
        return None if value is None else self._positive(key, value)

    def _positive(self, key: str, value: object) -> int:
        number = self._checked(key, value, int)
        if number == 0:
            raise self.refuse(key, value, "use 1 or more")
        return number

    def number(self, key: str) -> float:
        """A number.

        Raises:
            ValueError: as `take`, or it is none.
        """
        return self._checked(key, self.take(key), float)

    def number_if_any(self, key: str) -> float | None:
        """A number; None where the key says none, or is not there and has no other default.

        Raises:
            ValueError: it is none.
        """
        value = self._left.pop(key, self._defaults.get(key))
        return None if value is None else self._checked(key, value, float)

    def optional(self, key: str, kind: type) -> Any:
        """A value of a kind, or None where there is none.

        Raises:
            ValueError: it is of another kind.
        """
        value = self._left.pop(key, None)
        return None if value is None else self._checked(key, value, kind)

    def listed(self, key: str, kind: type, length: int = 0) -> list[Any] | None:
        """A list of values of a kind, the first `length` of them where a length is given; None where there is none.

        Raises:
            ValueError: it is none, or has fewer.
        """
        values = self.optional(key, list)
        if values is None:
            return None
        if len(values) < length:
            raise ValueError(f"{self._named(key, values)}: give {length} values, one a layer")
        return [self._checked(key, value, kind) for value in values[: length or None]]

    def below(self, key: str) -> "Keys | None":
        """The keys under a key; None where there are none."""
        tree = self.optional(key, dict)
        if tree is None:
            return None
        below = Keys(tree, self._place, {}, f"{self._prefix}{key}.")
        below._inner = True
        return below

    @contextlib.contextmanager
    def naming(self, fields: Mapping[str, str]) -> Iterator[None]:
        """Inside it, what our config refuses is refused by the keys that it was read from.

        Args:
            fields: our names of fields, and the keys'.

        Raises:
            ValueError: naming the key as it stands in the file, with the value that it has there.
            FieldError: of a field that has no key, or, in a table, one that is not there: for the whole file to name.
        """
        try:
            yield
        except FieldError as error:
            key = fields.get(error.field.rpartition(".")[2])
            if key is None or (self._inner and key not in self._given):
                raise
            place, value = self._find(key)
            fix = re.sub(r"[\w.]*?(\w+_\w+)", lambda word: fields.get(word[1], word[0]), error.fix)
            raise ValueError(f"{self._place}: {place} = {show(value)}: {fix}") from None

    def _find(self, key: str) -> tuple[str, Any]:
        """Where a key stands, here or in a table below, and what it says."""
        if key not in self._given:
            tables = [(below, tree) for below, tree in self._given.items() if isinstance(tree, dict)]
            for below, tree in tables:
                if key in tree:
                    return f"{self._prefix}{below}.{key}", tree[key]
        return self._prefix + self._spelt.get(key, key), self._given.get(key, self._defaults.get(key))

    def missing(self, key: str) -> ValueError:
        """The error of a key that is not there."""
        return ValueError(f"{self._place}: {self._prefix}{key} is missing; copy the file again")

    def refuse(self, key: str, value: object, fix: str) -> ValueError:
        """The error of a key's value."""
        return ValueError(f"{self._named(key, value)}: {fix}")

    def close(self, harmless: frozenset[str] = frozenset(), used: Sequence[str] = ()) -> None:
        """Refuse what was not taken.

        Args:
            harmless: keys that may say anything.
            used: names of those that were taken, to suggest.

        Raises:
            ValueError: naming the first key.
        """
        for key, value in self._left.items():
            if key in harmless or (key in FALSE and not value):
                continue
            near = nearest(key, [name for name in used if name != key])
            meant = f"did you mean {near}?" if near else "jaxllm does not know what it changes; take it out if nothing"
            if key in FALSE:
                meant = "jaxllm does not compute such models"
            raise ValueError(f"{self._named(key, value)}: {meant}")

    def _named(self, key: str, value: object) -> str:
        return f"{self._place}: {self._prefix}{self._spelt.get(key, key)} = {show(value)}"

    def _checked(self, key: str, value: object, kind: type) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = {
            float: (whole or isinstance(value, float)) and math.isfinite(value),  # type: ignore[arg-type]
            int: whole and 0 <= value <= MAX_NUMBER,  # type: ignore[operator]
        }
        if not (fits[kind] if kind in fits else isinstance(value, kind)):
            raise self.refuse(key, value, f"use {_KINDS[kind]}")
        return float(value) if kind is float else value  # type: ignore[arg-type]


_KINDS = {
    bool: "true or false",
    int: f"a whole number from 0 to {MAX_NUMBER}",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a table",
}
