"""A text model becomes a speech language model: its body as it is, its vocabulary replaced by units.

This is TWIST (Hassid et al. 2023, arXiv 2305.13009): of a text model, speech keeps everything but the words.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..configuration_clsi import ClsiConfig
from ..modeling_clsi import ClsiForCausalLM
from ..processing_clsi import HUB_ID

logger = logging.getLogger(__name__)

EMBEDDINGS = ("random", "mean")

# Rows of the text embeddings that are looked at in float64 at a time: 128 MiB at a hidden size of 2048.
CHUNK_ROWS = 8192

# Shapes: N text tokens, V unit tokens (units, merges, specials), H hidden size.


def initialize_from_text_model(
    text_model: str | Path | PreTrainedModel,
    *,
    embeddings: str = "random",
    noise_scale: float = 0.1,
    seed: int = 0,
    dtype: str | torch.dtype | None = "auto",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **config_fields: Any,
) -> ClsiForCausalLM:
    """A speech language model whose body is a text model's and whose vocabulary is new.

    **Kept, bit for bit:** every tensor of the text model's body (layers, norms, GPT-2's position embeddings)
    and every setting of its config that does not speak of its words (rope, context length, norm epsilon).
    **New:** the input embeddings [V, H] and, where they are not tied, the output embeddings [V, H]. A bias of
    the text model's head has one number a word and goes with them. The result stands alone: it saves and
    loads as any [`ClsiForCausalLM`], and nothing is ever read from the text model again. The text model's
    generation config (temperature, token ids) is not inherited; what its head does to logits after the
    product with the output embeddings (Gemma 2's soft cap, Granite's scale) is not either.

    How the new rows start, all alike, bos, eos and pad included:

    - `"random"`: normal, of mean 0 and a standard deviation that is the root mean square of all elements of
      the text embeddings, so that the body meets vectors as long as those that it is used to.
    - `"mean"`: the mean of the text embeddings, plus normal noise of `noise_scale` times their standard
      deviation in each dimension (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
      Models"). The smaller the scale, the closer are the first predictions to uniform, and the less does the
      body see which unit it reads.

    Input embeddings take these numbers from the text model's input embeddings, untied output embeddings from
    its output embeddings. The draws are made on the CPU in float32 by a generator of their own and then
    rounded to the model's number type: a seed gives the same weights on every device, and global random
    state stays as it is.

    The paper (arXiv 2512.01865, models) keeps the weights of Qwen2-0.5B and Llama-3.2-1B and replaces their
    embeddings; how it starts the new ones is not known, nor has an experiment of ours chosen the defaults.

    Args:
        text_model: a causal LM: Hub id, folder, or a model already loaded. A loaded model is not changed and
            shares no memory with the result. A checkpoint's body is in memory only once.
        embeddings: "random" or "mean", as above.
        noise_scale: for "mean": noise, in standard deviations of the text embeddings; 0 gives equal rows.
        seed: of the new rows.
        dtype: number type of the result. "auto" (or None) is the text model's own, which keeps the body bit
            for bit; any other ("float32", torch.bfloat16) is a cast of everything.
        revision, token, cache_dir, local_files_only: how a Hub id is read, as in `from_pretrained`.
        **config_fields: fields of [`ClsiConfig`] (`num_units=500`, `languages=["en", "fr"]`), without
            `text_config`, which is the text model's. `tie_word_embeddings` left out keeps the text model's
            way. `initialized_from` left out is the Hub id, or the folder's name without its path.

    Returns:
        The model, on the CPU, in eval mode, every parameter trainable.

    Raises:
        ValueError: a text model that cannot serve as a body (an encoder-decoder, an encoder, one with images
            or sound beside its text, a quantized or adapted one, one whose code is not part of transformers,
            one without embeddings or without a head), or settings that `ClsiConfig` refuses.
        RuntimeError: weights that the checkpoint lacks, or a body that does not fit its config.
        OSError: no such checkpoint (from transformers).

    Example:

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> text_model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes))  # or "Qwen/Qwen2-0.5B"
    >>> model = initialize_from_text_model(text_model, num_units=100, languages=["en", "fr"])
    >>> model.get_input_embeddings().weight.shape
    torch.Size([103, 32])
    """
    if embeddings not in EMBEDDINGS:
        raise ValueError(f"embeddings must be one of {', '.join(EMBEDDINGS)}; got {embeddings!r}.")
    if not 0 <= noise_scale < float("inf"):
        raise ValueError(f"noise_scale must be a number of at least 0, got {noise_scale!r}.")
    _check_config_fields(config_fields)
    number_type = _number_type(dtype)
    is_ours = not isinstance(text_model, PreTrainedModel)
    if is_ours:
        name = _public_name(text_model)
        text_model = _load(
            text_model,
            name,
            dtype="auto" if number_type is None else number_type,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    else:
        name = _public_name(text_model.name_or_path) or f"a {text_model.config.model_type} without a name"
        _check_model(text_model, name)
    config = _config(text_model, name, config_fields)
    body, text_embeddings = _body(text_model)
    if not is_ours:
        body = {key: _copy(tensor, number_type) for key, tensor in body.items()}
    number_type = number_type or text_model.dtype
    num_kept = sum(tensor.numel() for tensor in body.values())

    generator = torch.Generator().manual_seed(seed)

    def new_rows(rows: torch.Tensor) -> torch.Tensor:
        return _draw(rows, config.vocab_size, embeddings, noise_scale, generator).to(number_type)

    new = {f"model.language_model.{text_embeddings}": new_rows(text_model.get_input_embeddings().weight)}
    if not config.tie_word_embeddings:
        new["lm_head.weight"] = new_rows(text_model.get_output_embeddings().weight)

    weights = {f"model.language_model.{key}": tensor for key, tensor in body.items()} | new
    model, info = ClsiForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, dtype=number_type, output_loading_info=True
    )
    _check_loaded(model, weights, info, name)
    model.name_or_path = model.config.name_or_path = ""  # the library wrote "None"
    num_new = sum(tensor.numel() for tensor in new.values())
    logger.info(
        "Started from %s: %s parameters kept, %s new (%d tokens, %s embeddings, embeddings=%r).",
        config.initialized_from,
        f"{num_kept:,}",
        f"{num_new:,}",
        config.vocab_size,
        "tied" if config.tie_word_embeddings else "untied",
        embeddings,
    )
    return model


def _check_config_fields(config_fields: dict[str, Any]) -> None:
    own = [field.name for field in fields(ClsiConfig) if field.name in ClsiConfig.__annotations__]
    own.remove("text_config")
    if "text_config" in config_fields:
        raise ValueError(
            "text_config is the text model's own config. To change one of its settings, load it with that "
            "setting (AutoModelForCausalLM.from_pretrained(..., attention_dropout=0.1)) and pass the model."
        )
    unknown = sorted(set(config_fields) - set(own))
    if unknown:
        raise ValueError(
            f"initialize_from_text_model does not know {', '.join(unknown)}. Beside its own arguments it "
            f"takes the fields of ClsiConfig: {', '.join(own)}."
        )


def _number_type(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The type asked for; None for "auto"."""
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be 'auto' or a floating-point type such as 'bfloat16', got {dtype!r}.")
    return found


def _public_name(source: str | Path) -> str:
    """What may be published of where a model came from: a Hub id, or a folder's name, never its path."""
    source = str(source)
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]", source)
    if cached:  # the folder of huggingface_hub's cache, whose own name is a commit
        return cached[1].replace("--", "/")
    is_hub_id = HUB_ID.fullmatch(source) and not os.path.isdir(source)
    return source if is_hub_id or not source else os.path.basename(os.path.abspath(source))


def _load(source: str | Path, name: str, dtype: str | torch.dtype, **hub: Any) -> PreTrainedModel:
    """The text model in memory; what its config can tell is refused before weights are fetched."""
    if not isinstance(source, (str, Path)):
        raise ValueError(
            f"text_model must be a Hub id, a folder or a transformers model, got {type(source).__name__}. Of "
            "a peft model, pass what merge_and_unload() returns."
        )
    settings, _ = PreTrainedConfig.get_config_dict(source, **hub)
    if settings.get("auto_map") and settings.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"{name!r} is of type {settings.get('model_type')!r}, which brings code of its own: the result "
            "could not be loaded without it. Start from a text model of a type that transformers knows."
        )
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub)
    _check_config(config, name)
    with torch.device("meta"):
        _check_model(AutoModelForCausalLM.from_config(config, trust_remote_code=False), name, is_empty=True)
    text_model, info = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, trust_remote_code=False, output_loading_info=True, **hub
    )
    # (Unexpected weights are none of ours: the library reports them, and a misnamed one is missing as well.)
    absent = sorted(info["missing_keys"]) + sorted(str(entry) for entry in info["mismatched_keys"])
    if absent:
        raise RuntimeError(
            f"The checkpoint {name!r} lacks weights of a {type(text_model).__name__}, or has them in another "
            f"shape: {_some(absent)}. It is damaged, or it is no causal LM."
        )
    _check_model(text_model, name)
    return text_model


def _check_config(config: PreTrainedConfig, name: str) -> None:
    kind = config.model_type
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{name!r} is quantized, and a quantized body can be neither copied nor trained as it is. Start "
            "from the checkpoint that it was made from, in float32 or bfloat16."
        )
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name!r} is an encoder-decoder ({kind}). Start from a decoder-only text model, such as a Qwen2 "
            "or a Llama."
        )


def _check_model(model: PreTrainedModel, name: str, is_empty: bool = False) -> None:
    """Refuse a text model that cannot serve as a body; `is_empty`: it has no weights yet."""
    config, kind = model.config, model.config.model_type
    _check_config(config, name)
    if config.get_text_config() is not config:
        raise ValueError(
            f"{name!r} is more than a text model ({kind} holds a {config.get_text_config().model_type} "
            "inside). Start from a checkpoint of text alone, or load the part that is a causal LM of its own "
            "and pass that model."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{name!r} carries adapters. Merge them first (PeftModel.from_pretrained(...)."
            "merge_and_unload()), and pass the model that this returns."
        )
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(getattr(embeddings, "weight", None), torch.Tensor):
        raise ValueError(
            f"{name!r} ({type(model).__name__}) has no input embeddings that units could replace."
        )
    if not isinstance(getattr(head, "weight", None), torch.Tensor):
        raise ValueError(
            f"{name!r} ({type(model).__name__}) has no head that predicts tokens. Load it with "
            "AutoModelForCausalLM."
        )
    if embeddings.weight.shape[1] != config.hidden_size:
        raise ValueError(
            f"{name!r} has embeddings of {embeddings.weight.shape[1]} dimensions in a body of "
            f"{config.hidden_size}, joined by a projection that a ClsiForCausalLM has no place for. Start "
            "from a text model whose embeddings are as wide as its body."
        )
    places = {id(tensor) for tensor in (*model.base_model.parameters(), *head.parameters())}
    homeless = [key for key, tensor in model.named_parameters() if id(tensor) not in places]
    if homeless:
        raise ValueError(
            f"{name!r} ({type(model).__name__}) has weights between its body and its head, which a "
            f"ClsiForCausalLM has no place for: {_some(homeless)}. Start from a text model such as a Qwen2 "
            "or a Llama."
        )
    built = MODEL_MAPPING.get(type(config), None)
    if kind not in CONFIG_MAPPING or built is not type(model.base_model):
        raise ValueError(
            f"{name!r} has a body of class {type(model.base_model).__name__}, but from a config of type "
            f"{kind!r} transformers builds {getattr(built, '__name__', 'none')}: the result could not be "
            "loaded. Start from a text model of a type that transformers knows."
        )
    if any(getattr(module, "is_causal", None) is False for module in model.modules()):
        raise ValueError(
            f"{name!r} ({kind}) is an encoder: its tokens see those after them. Start from a decoder-only "
            "text model, such as a Qwen2 or a Llama."
        )
    if not is_empty and any(tensor.is_meta for tensor in model.parameters()):
        raise ValueError(
            f"{name!r} is not wholly in memory (weights on the meta device or offloaded). Load it without "
            "device_map."
        )


def _config(text_model: PreTrainedModel, name: str, config_fields: dict[str, Any]) -> ClsiConfig:
    """The text model's config, without what belongs to its words or tells where it was, around the units."""
    decoder = {
        key: value
        for key, value in text_model.config.to_dict().items()
        if not key.endswith("token_id")
        and key
        not in (
            "vocab_size",
            "_name_or_path",
            "architectures",
            "auto_map",
            "custom_pipelines",
            "dtype",
            "quantization_config",  # None, see _check_config
            "task_specific_params",
            "tie_word_embeddings",
            "tokenizer_class",
            "transformers_version",
        )
    }
    chosen = dict(config_fields)
    if chosen.get("tie_word_embeddings") is None:
        # By the tensors: a checkpoint whose flag says tied, with two matrices in it, is loaded untied.
        tied = text_model.get_output_embeddings().weight is text_model.get_input_embeddings().weight
        chosen["tie_word_embeddings"] = tied
    if chosen.get("initialized_from") is None:
        chosen["initialized_from"] = name
    return ClsiConfig(**chosen, text_config=decoder)


def _body(text_model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], str]:
    """The state of the base model but for the input embeddings, and their key; nothing is copied."""
    base, embeddings = text_model.base_model, text_model.get_input_embeddings()
    module_name = next(key for key, module in base.named_modules() if module is embeddings)
    state = base.state_dict()
    del state[f"{module_name}.weight"]
    return state, f"{module_name}.weight"


def _copy(tensor: torch.Tensor, number_type: torch.dtype | None) -> torch.Tensor:
    """On the CPU, in memory of its own; None keeps the number type, whole numbers keep theirs anyway."""
    target = number_type if number_type is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(device="cpu", dtype=target, copy=True)


def _statistics(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (population) standard deviation [H] in float64 of the rows [N, H]."""
    chunks = rows.detach().split(CHUNK_ROWS)
    mean = sum(chunk.to("cpu", torch.float64).sum(0) for chunk in chunks) / len(rows)
    squares = sum((chunk.to("cpu", torch.float64) - mean).square().sum(0) for chunk in chunks)
    return mean, (squares / len(rows)).sqrt()


def _draw(
    rows: torch.Tensor, num_rows: int, embeddings: str, noise_scale: float, generator: torch.Generator
) -> torch.Tensor:
    """New rows [num_rows, H] in float32, in the way of the text rows [N, H]."""
    mean, deviation = _statistics(rows)
    if not torch.isfinite(deviation).all():
        raise ValueError("The text model's embeddings hold values that are not finite; it is damaged.")
    noise = torch.randn(num_rows, rows.shape[1], generator=generator)
    if embeddings == "mean":
        return noise.mul_((noise_scale * deviation).float()).add_(mean.float())
    root_mean_square = (mean.square() + deviation.square()).mean().sqrt()
    return noise.mul_(root_mean_square.item())


def _check_loaded(
    model: ClsiForCausalLM, weights: dict[str, torch.Tensor], info: dict[str, Any], name: str
) -> None:
    """Raise RuntimeError unless the model holds just these weights, in their number type."""
    state = model.state_dict()
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "without a place": sorted(info["unexpected_keys"]),
        "of another shape": sorted(str(entry) for entry in info["mismatched_keys"]),
        "of another number type": sorted(
            key for key, tensor in weights.items() if key in state and state[key].dtype != tensor.dtype
        ),
    }
    if any(wrong.values()):
        found = "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names)
        raise RuntimeError(
            f"The body of {name!r} does not fit the decoder that its config describes. {found}. Was the "
            "model changed after it was loaded? (To make one number type of several, pass dtype.)"
        )


def _some(names: list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
