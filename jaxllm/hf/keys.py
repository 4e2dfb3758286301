"""The keys of a `config.json`: each is taken once, known to say nothing of what is computed, or refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.config.errors import nearest, show

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
        "max_sequence_length",
        "n_special",
        "predict_special_tokens",
        "output_past",
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
        "use_mrope",
        "apply_residual_connection_post_layernorm",
        "attention_bias",
        "mlp_bias",
        "quantization_config",
        "per_layer_config",
        "tie_last_hidden_states",
        "rope_interleaved",
        "use_mrope",
        "attention_bias",
        "mlp_bias",
        "lm_head_bias",
        "apply_residual_connection_post_layernorm",
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
    """

    def __init__(self, tree: Mapping[str, Any], place: str, defaults: Mapping[str, Any], prefix: str = "") -> None:
        self._left, self._defaults, self._place, self._prefix = dict(tree), defaults, place, prefix

    def take(self, key: str) -> Any:
        """A key's value, or the default's; of the default's kind, where that is no None.

        Raises:
            ValueError: it is neither there nor has a default, or is of another kind.
        """
        if key not in self._left:
            if key not in self._defaults:
                raise ValueError(f"{self._place}: {self._prefix}{key} is missing; copy the file again")
            return self._defaults[key]
        value, default = self._left.pop(key), self._defaults.get(key)
        return self._checked(key, value, type(default)) if isinstance(default, bool | str) else value

    def whole(self, key: str) -> Any:
        """A whole number, 0 or more; None where the key may say nothing, and does.

        Raises:
            ValueError: as `take`, or it is none.
        """
        value = self.take(key)
        return None if value is None and key in self._defaults else self._checked(key, value, int)

    def count(self, key: str) -> int:
        """A whole number, 1 or more.

        Raises:
            ValueError: as `take`, or it is none.
        """
        value = self._checked(key, self.take(key), int)
        if value == 0:
            raise self.refuse(key, value, "use 1 or more")
        return value

    def number(self, key: str) -> float:
        """A number.

        Raises:
            ValueError: as `take`, or it is none.
        """
        return self._checked(key, self.take(key), float)

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
        return None if tree is None else Keys(tree, self._place, {}, f"{self._prefix}{key}.")

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
        return f"{self._place}: {self._prefix}{key} = {show(value)}"

    def _checked(self, key: str, value: object, kind: type) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = {
            float: whole or isinstance(value, float),
            int: whole and value >= 0,  # type: ignore[operator]
        }.get(kind, isinstance(value, kind))
        if not fits:
            raise self.refuse(key, value, f"use {_KINDS[kind]}")
        return float(value) if kind is float else value  # type: ignore[arg-type]


_KINDS = {
    bool: "true or false",
    int: "a whole number, 0 or more",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a table",
}
