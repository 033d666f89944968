"""Token ids of units become hidden states, logits and a loss, through a decoder of transformers."""

from inspect import signature
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, can_return_tuple

from .configuration_clsi import ClsiConfig
from .generation_clsi import ClsiGenerationMixin, check_token_ids, suppressed_tokens

# Decoders whose packed documents were shown to equal the separate ones (tests/test_modeling_clsi.py). Not
# every type can be trusted: OPT and Falcon make a mask of their own and let documents leak.
ISOLATING_DECODERS = frozenset(
    (
        "gemma2",
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "stablelm",
    )
)

# Shapes: B rows of a batch, T tokens of a row, P tokens already in the cache, H hidden size, V vocabulary.


class ClsiPreTrainedModel(PreTrainedModel):
    """What ClsiModel and ClsiForCausalLM share: the config, and what the library may do with the decoder.

    `_no_split_modules`, tensor-parallel plans and the like are collected from the decoder by `post_init`.
    """

    config: ClsiConfig
    config_class = ClsiConfig
    base_model_prefix = "model"
    input_modalities = "audio"  # as units
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: ClsiConfig, *args, **kwargs):
        config.validate()  # attributes may have been changed since the config was built
        super().__init__(config, *args, **kwargs)

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As `PreTrainedModel.save_pretrained`, but for two things.

        Equal weights give equal shards: the library writes a new model in the order of its layers, and one
        that was loaded in the order of its names; here it is always that of the names. What the folder
        held before is really replaced: the library leaves a file of all weights beside new shards (or the
        index of old shards beside a new file), and the next `from_pretrained` reads the old weights.
        """
        is_plain = not (getattr(self, "hf_quantizer", None) or getattr(self, "_hf_peft_config_loaded", False))
        if kwargs.get("state_dict") is None and is_plain:
            weights = self.state_dict()
            kwargs["state_dict"] = {name: weights[name] for name in sorted(weights, key=_natural_order)}
        super().save_pretrained(save_directory, **kwargs)
        whole, index = (Path(save_directory, name) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
        if kwargs.get("is_main_process", True) and whole.is_file() and index.is_file():
            # The library has removed old shards, so what shards there are were written now.
            is_sharded = any(Path(save_directory).glob("model-*-of-*.safetensors"))
            (whole if is_sharded else index).unlink()


class ClsiModel(ClsiPreTrainedModel):
    """The decoder without a head: token ids [B, T] -> hidden states [B, T, H].

    **Packed documents.** When several documents share a row, `position_ids` restart at each of them, and no
    `attention_mask` is given, attention stays inside each document, on every attention backend (sdpa and
    eager need no special kernel). The library builds that mask only where there is no key-value cache, but
    makes a cache by default, in train mode too, and then lets documents leak into each other without a word.
    Hence these rules:

    - `position_ids` without `attention_mask` and without `past_key_values`: no cache is made unless
      `use_cache=True` is passed. (`generate` passes a cache or a mask, so it is not concerned.)
    - positions that restart *together with* a cache or a 2D `attention_mask` (positions of padding do not
      count) raise ValueError, since documents would not be isolated. A 4D mask is the caller's own affair,
      and is used as it is.
    - positions that restart in a decoder that is not in `ISOLATING_DECODERS` raise ValueError likewise.
    - flash attention knows packed documents from `cu_seq_lens_q` and its companions, or from the positions of
      a single row; in several rows without them, the library lets documents leak, so that raises ValueError.
    """

    # A causal-LM checkpoint loads quietly without its head.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^lm_head\."]

    def __init__(self, config: ClsiConfig):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        if "past_key_values" not in signature(self.language_model.forward).parameters:
            raise ValueError(
                f"Decoders of type {config.text_config.model_type!r} have no key-value cache "
                "(past_key_values), by which documents are kept apart and prompts shared. Take one with "
                "attention, such as 'llama' or 'qwen2'."
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def _must_check_restarts(
        self, attention_mask, position_ids, past_key_values, use_cache, has_borders: bool
    ) -> bool:
        """Whether restarting positions would leak here, if there are any.

        To find out reads a number back from the device, so it is left out of single decoding steps, of
        compiled graphs and of the ordinary packed forward (positions alone), which the library isolates.
        """
        if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] == 1:
            return False
        if torch.compiler.is_compiling():
            return False
        if attention_mask is None:
            cached = past_key_values is not None or bool(use_cache)
            if cached or self.config.text_config.model_type not in ISOLATING_DECODERS:
                return True
            flash = "flash" in (self.config.text_config._attn_implementation or "")
            return flash and position_ids.shape[0] > 1 and not has_borders
        return isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Compute the hidden states of a batch.

        Args:
            input_ids: token ids [B, T].
            attention_mask: 1 for tokens, 0 for padding [B, P + T]; or a ready 4D mask. Leave it out for
                packed rows.
            position_ids: position of each token in its document [B, T]; restarts mark documents (see the
                class).
            past_key_values: cache of the P tokens before these.
            inputs_embeds: embeddings [B, T, H] instead of `input_ids`.
            use_cache: whether to return a cache; None follows the rule above, else the decoder's config.
            **kwargs: passed on to the decoder (`output_hidden_states`, `output_attentions`, ...).

        Returns:
            `last_hidden_state` [B, T, H], and on request `past_key_values`, `hidden_states`, `attentions`.

        Raises:
            ValueError: positions restart where documents could not be kept apart; a document longer than the
                decoder's `max_position_embeddings`; ids outside the vocabulary (on the CPU; an accelerator
                only says so of a prompt, in `generate`).
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is not None:
            _check_length(inputs.shape[1], position_ids is None and past_key_values is None, self.config)
        if (
            position_ids is not None
            and past_key_values is None
            and attention_mask is None
            and use_cache is None
        ):
            use_cache = False
        has_borders = kwargs.get("cu_seq_lens_q") is not None
        if self._must_check_restarts(attention_mask, position_ids, past_key_values, use_cache, has_borders):
            cached = past_key_values is not None or bool(use_cache)
            _refuse_restarts(attention_mask, position_ids, self.config.text_config.model_type, cached)
        try:
            return self.language_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        except IndexError:
            # What an embedding of the CPU says of an id outside its table ("index out of range in self").
            if input_ids is not None:
                check_token_ids(input_ids, self.config)
            raise


class ClsiForCausalLM(ClsiPreTrainedModel, ClsiGenerationMixin):
    """The speech language model: token ids [B, T] -> logits [B, T, V] of the next token, and a loss.

    Packed documents are isolated as in [`ClsiModel`]; when `labels` are given without `past_key_values`, no
    cache is made at all, whatever the decoder's config says (the plain Trainer switches off only the outer
    config's flag).

    Example:

    >>> import torch
    >>> from hf_clsi import ClsiConfig, ClsiForCausalLM
    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> model = ClsiForCausalLM(ClsiConfig(num_units=100, text_config=sizes))
    >>> prompt = torch.tensor([[model.config.bos_token_id, 17, 4, 4, 99]])
    >>> continuation = model.generate(prompt, max_new_tokens=25)
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }

    def __init__(self, config: ClsiConfig):
        super().__init__(config)
        self.model = ClsiModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.vocab_size, bias=False)
        # Decoders differ in where they keep their embeddings (Llama: embed_tokens, GPT-2: wte, ...).
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.generation_config.suppress_tokens = suppressed_tokens(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`.

        A checkpoint whose generation_config.json is absent, or says nothing of `suppress_tokens`, generates
        units only, as a new model does; an empty list there lets every token out.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info=True
        if model.generation_config.suppress_tokens is None:
            model.generation_config.suppress_tokens = suppressed_tokens(model.config)
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss when `labels` are given.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: as in
                [`ClsiModel.forward`].
            labels: ids to predict [B, T], -100 where there is nothing to predict; they are shifted inside, so
                position t is scored against `labels[:, t + 1]`. In packed rows each document's first label
                should be -100, since nothing in its own document predicts it.
            logits_to_keep: compute logits only of the last n positions (0: all), of the positions in a 1D
                tensor, of each row's in a 2D tensor [B, n], or where a mask [B, T] is true (then V of each).
            **kwargs: `num_items_in_batch` divides the summed loss (gradient accumulation); the rest goes to
                the decoder (`output_hidden_states`, ...).

        Returns:
            `logits` [B, T, V]; `loss`, a scalar: mean over the predicted tokens, or their sum divided by
            `num_items_in_batch`; and on request `past_key_values`, `hidden_states`, `attentions`.

        Raises:
            ValueError: as [`ClsiModel.forward`]; labels outside the vocabulary (on the CPU).
        """
        if labels is not None and past_key_values is None and use_cache is None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(logits_to_keep, torch.Tensor) and logits_to_keep.ndim == 2:
            if logits_to_keep.dtype == torch.bool:
                hidden = hidden[logits_to_keep]  # [number of True, H]
            else:
                hidden = hidden.take_along_dim(logits_to_keep[..., None], dim=1)
        else:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            hidden = hidden[:, keep]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            try:
                loss = self.loss_function(
                    logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
                )
            except IndexError:  # what the CPU says of a label outside the vocabulary
                check_token_ids(labels.where(labels != -100, 0), self.config)
                raise
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# At every step of `generate`, the library asks which arguments the forward of a remote-code class takes.
# Written down, the answer is there; to work it out took over 1% of a step of the smallest model.
ClsiForCausalLM.forward.__signature__ = signature(ClsiForCausalLM.forward)


def _natural_order(name: str) -> list[tuple[int, int | str]]:
    """Sorts layers.2 before layers.10, as the library sorts the weights of a model that was loaded."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def _check_length(tokens: int, is_one_document: bool, config: ClsiConfig) -> None:
    """Raise ValueError for rows without tokens, or of one document longer than the decoder's context."""
    if tokens == 0:
        raise ValueError("The rows have no tokens. A document begins with BOS, so it has at least one.")
    if not is_one_document:
        return
    context = config.context_length
    if context is not None and tokens > context:
        raise ValueError(
            f"A document of {tokens:,} tokens is longer than the model's context of {context:,} "
            "(max_position_embeddings). Cut it, or pass position_ids that restart at each document of a "
            "packed row."
        )


def _refuse_restarts(
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor, decoder: str, cached: bool
) -> None:
    """Raise ValueError if `position_ids` [B, T] restart between tokens that the 2D `attention_mask` shows."""
    restarts = position_ids.diff(dim=1) != 1
    if attention_mask is not None:
        real = attention_mask[:, -position_ids.shape[1] :].bool()
        restarts = restarts & real[:, 1:] & real[:, :-1]
    if not restarts.any():
        return
    if decoder not in ISOLATING_DECODERS:
        raise ValueError(
            f"position_ids restart within a row (packed documents), but decoders of type {decoder!r} are not "
            f"known to keep documents apart. Use one of {', '.join(sorted(ISOLATING_DECODERS))}, pass a 4D "
            "attention_mask, or give one document a row."
        )
    if attention_mask is None and not cached:
        raise ValueError(
            f"position_ids restart in {position_ids.shape[0]} rows of packed documents, as flash attention "
            "cannot see: the documents would attend to each other. Pass one row with cu_seq_lens_q "
            "(InterleavingDataCollator(return_flash_attn_kwargs=True) makes it), or take sdpa."
        )
    raise ValueError(
        "position_ids restart within a row (packed documents) together with a key-value cache or a 2D "
        "attention_mask: the documents would attend to each other. Pass position_ids alone (no "
        "attention_mask, no past_key_values, use_cache left out or False), or a 4D attention_mask."
    )


__all__ = ["ClsiForCausalLM", "ClsiModel", "ClsiPreTrainedModel"]
