"""A speech language model becomes a plain checkpoint of its decoder, which engines made for text can serve.

Weights and token ids stay the same; names change, and the tokenizer reads and writes units as text: unit 17
is `<|u17|>`. What an engine returns becomes units again by `text_to_units`, and audio by
`ClsiProcessor.decode` of these units. docs/serving.md shows it with transformers and with vLLM.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import shlex
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils.peft_utils import find_adapter_config_file

from ..configuration_clsi import ClsiConfig
from ..modeling_clsi import ClsiForCausalLM
from ..processing_clsi import (
    BOS_TOKEN,
    EOS_TOKEN,
    FIRST_UNIT_CHARACTER,
    MAX_UNITS,
    PAD_TOKEN,
    ClsiProcessor,
    build_unit_tokenizer,
)
from ..units.merges import UnitMerges

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of logits in float32, absolute
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What some causal-LM classes (gemma2, granite, cohere) do to the logits behind the output embeddings, and the
# value by which they do nothing, as our model does.
HEAD_SETTINGS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}
# Named as the model's unknown token, but in no vocabulary: then the tokenizers library raises on text that is
# no unit. Without a name, it would drop such text without a word.
MISSING_TOKEN = "<|unk|>"
REPEATED_UNIT = r"(<\|u[0-9]+\|>)(?=\1)"  # a unit that the same unit follows
TEXT = re.compile(r"(?:<\|u(?:0|[1-9][0-9]{0,4})\|>|<\|bos\|>|<\|eos\|>|<\|pad\|>)*")
UNIT = re.compile(r"<\|u([0-9]+)\|>")
# All that an export may hold. --overwrite replaces a folder that holds nothing else.
EXPORTED = re.compile(
    r"(generation_)?config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|"
    r"tokenizer(_config)?\.json|special_tokens_map\.json|README\.md"
)


def units_to_text(units: Sequence[int] | np.ndarray) -> str:
    """Units [n] -> the text that an exported model reads.

    Raises:
        ValueError: not one-dimensional, not integers, or outside 0..65,535.

    Example:
        >>> units_to_text([17, 4])
        '<|u17|><|u4|>'
    """
    array = np.asarray(units)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"Units must be a one-dimensional sequence of integers, got {array.dtype} {array.shape}."
        )
    if array.size and not (array.min() >= 0 and array.max() < MAX_UNITS):
        raise ValueError(f"Units must lie in 0..{MAX_UNITS - 1} (uint16), got {array.min()}..{array.max()}.")
    return "".join(f"<|u{unit}|>" for unit in array.tolist())


def text_to_units(text: str) -> np.ndarray:
    """Text that an exported model wrote -> units [n] uint16; `<|bos|>`, `<|eos|>` and `<|pad|>` are left out.

    Raises:
        ValueError: anything else in the text, white space included, or a unit above 65,535.

    Example:
        >>> text_to_units("<|u17|><|u4|><|eos|>")
        array([17,  4], dtype=uint16)
    """
    end = TEXT.match(text).end()
    if end != len(text):
        raise ValueError(
            f"Expected nothing but <|u0|>, <|u1|>, ... and {BOS_TOKEN}, {EOS_TOKEN}, {PAD_TOKEN}; got "
            f"{text[end : end + 20]!r} at character {end}."
        )
    units = [int(unit) for unit in UNIT.findall(text)]
    if max(units, default=0) >= MAX_UNITS:
        raise ValueError(f"Units must lie in 0..{MAX_UNITS - 1} (uint16), got {max(units)}.")
    return np.array(units, dtype=np.uint16)


def build_text_tokenizer(
    unit_tokenizer: PreTrainedTokenizerFast,
    num_units: int,
    deduplicate: bool = False,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of an exported model: `<|u17|><|u4|>` -> the ids of the model's own tokenizer.

    Args:
        unit_tokenizer: units, merges, bos, eos and pad, as [`build_unit_tokenizer`] makes it.
        num_units: how many of its first tokens are units.
        deduplicate: collapse runs of equal units first, as the model was trained.
        model_max_length: tokens that the model takes.

    Returns:
        A tokenizer that says BOS first (`add_special_tokens=False`: does not) and pads on the left. Text that
        is no unit raises an error of the tokenizers library ("... [UNK] ..."), unless transformers loads the
        tokenizer as another class, as it does in a folder of model type qwen2; see docs/serving.md.

    Example:
        >>> tokenizer = build_text_tokenizer(build_unit_tokenizer(4, [(0, 1)]), 4, deduplicate=True)
        >>> tokenizer("<|u3|><|u3|><|u0|><|u1|>").input_ids
        [5, 3, 4]
        >>> tokenizer.decode([5, 3, 4], skip_special_tokens=True)
        '<|u3|><|u0|><|u1|>'
    """
    names = [f"<|u{unit}|>" for unit in range(num_units)]
    characters = [chr(FIRST_UNIT_CHARACTER + unit) for unit in range(num_units)]
    model = json.loads(unit_tokenizer.backend_tokenizer.to_str())["model"]
    steps = [normalizers.Replace(Regex(REPEATED_UNIT), "")] if deduplicate else []
    if len(model["vocab"]) == num_units:
        vocabulary = {name: unit for unit, name in enumerate(names)}
        backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=MISSING_TOKEN))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\|u[0-9]+\|>"), "isolated")
        backend.decoder = decoders.Fuse()
        if not deduplicate:
            # Added tokens are found before anything else is done to the text, and kept by every class of
            # transformers, even by those that throw away the normalizer and the model of a tokenizer.json.
            backend.add_tokens([AddedToken(name, normalized=False) for name in names])
    else:
        # The merges stay as they are, over the unit tokenizer's alphabet of one character a unit.
        merges = [tuple(pair) for pair in model["merges"]]
        backend = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, unk_token=MISSING_TOKEN))
        pairs = list(zip(names, characters, strict=True))
        steps += [normalizers.Replace(name, character) for name, character in pairs]
        # Fused first: one search of the whole text for each unit instead of one of every token.
        backend.decoder = decoders.Sequence(
            [decoders.Fuse(), *(decoders.Replace(character, name) for name, character in pairs)]
        )
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.add_special_tokens([BOS_TOKEN, EOS_TOKEN, PAD_TOKEN])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A {BOS_TOKEN} $B",
        special_tokens=[(BOS_TOKEN, backend.token_to_id(BOS_TOKEN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        # Never the outcome of encoding. Some classes of transformers add an unknown token of their own if
        # none is named, behind the last row of the embeddings.
        unk_token=PAD_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    )


def export_model(
    model: str | Path | ClsiForCausalLM,
    output_dir: str | Path,
    *,
    tokenizer: ClsiProcessor | PreTrainedTokenizerFast | UnitMerges | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    as_llama: bool = False,
    verify: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a model as a plain checkpoint of its decoder (Qwen2ForCausalLM, LlamaForCausalLM, ...).

    Plain transformers loads the folder (AutoModelForCausalLM, AutoTokenizer) without hf_clsi and without
    remote code. It holds config.json, safetensors, generation_config.json, the tokenizer of
    [`build_text_tokenizer`] and a README.md, and no path of this machine. It is written beside `output_dir`
    and moved there when it is complete.

    Args:
        model: a folder or a Hub id of a model, or of a peft adapter of one, which is merged; or a loaded
            model. It is left as it is; its weights are not copied, unless `dtype` changes them.
        output_dir: a folder that does not exist yet, or is empty.
        tokenizer: of a loaded model that has merges: its processor, unit tokenizer or UnitMerges.
        dtype: "float32", "bfloat16" or "float16"; None keeps the model's.
        max_shard_size: bytes, or "5GB"; None is the default of transformers.
        as_llama: write a Qwen2 decoder as the LlamaForCausalLM that computes the same, with biases in its
            attention. transformers ignores most of a tokenizer.json in a folder of type qwen2, so a Qwen2
            with merges or deduplicated units can be exported only in this way.
        verify: load the folder again and compare it with the model, in float32 on the CPU: every weight,
            and the logits of random tokens, left-padded rows among them.
        overwrite: replace an earlier export in `output_dir`.

    Returns:
        `output_dir`.

    Raises:
        ValueError: not such a model, a tokenizer that is missing or of another model, an `output_dir` that
            is not to be replaced, a decoder that has no plain class or that cannot be written `as_llama`.
        RuntimeError: what was written is not what the model is. Nothing is left in `output_dir` then.
    """
    folder = Path(output_dir)
    _check_output(folder, model, overwrite)
    dtype = _as_dtype(dtype)
    model, tokenizer, source = _load(model, tokenizer)
    config = model.config
    unit_tokenizer = _as_unit_tokenizer(tokenizer, config)
    plain_config = _plain_config(config, as_llama)

    partial = folder.resolve().parent / f".{folder.resolve().name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        _write_tokenizer(partial, unit_tokenizer, config, plain_config)
        _check_tokenizer(partial, unit_tokenizer, config, plain_config)
        state = _state_dict(model, dtype)
        plain = _plain_model(plain_config, state, model)
        shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        plain.save_pretrained(partial, **shards)
        _add_old_names(partial / "config.json")
        (partial / "README.md").write_text(_readme(source, config, plain), encoding="utf-8")
        # safetensors writes for this user alone, but the engine may run as another.
        for path in partial.glob("*.safetensors"):
            path.chmod((partial / "config.json").stat().st_mode)
        if verify:
            difference = _verify(partial, config, state, plain)
            logger.info("verified: every weight is the same, logits differ by at most %.2g", difference)
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def vllm_command(folder: str | Path) -> str:
    """The command by which vLLM serves an exported folder."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    length = min(config.get("max_position_embeddings") or 2048, 2048)
    words = ["vllm", "serve", str(folder), "--served-model-name", folder.resolve().name]
    return shlex.join([*words, "--max-model-len", str(length), "--dtype", config["dtype"]])


def _check_output(folder: Path, model: str | Path | ClsiForCausalLM, overwrite: bool) -> None:
    """Raise ValueError unless the folder may be written."""
    origin = model if isinstance(model, (str, Path)) else getattr(model, "name_or_path", None)
    if origin and Path(origin).is_dir() and Path(origin).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} holds the model itself. Give another output folder.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Give a folder.")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if names and not overwrite:
        raise ValueError(f"{folder} is not empty. Give another output folder, or overwrite it (--overwrite).")
    foreign = [name for name in names if not EXPORTED.fullmatch(name)]
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[0]}, which no export has written, so it is not overwritten. Give "
            "another output folder."
        )


def _as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    known = DTYPES.get(dtype, dtype)
    if known is not None and known not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    return known


def _load(model: str | Path | ClsiForCausalLM, tokenizer) -> tuple[ClsiForCausalLM, object, str]:
    """-> the model, its tokenizer (None where there is none), and its name for people."""
    if not isinstance(model, (str, Path)):
        if not isinstance(model, ClsiForCausalLM):
            raise ValueError(
                f"Expected a ClsiForCausalLM, a folder or a Hub id, got {type(model).__name__}. Merge an "
                "adapter first: model.merge_and_unload()."
            )
        return model, tokenizer, _name(model.name_or_path) or "a model in memory"
    name = str(model)
    if find_adapter_config_file(name) is not None:
        from peft import AutoPeftModelForCausalLM

        adapted = AutoPeftModelForCausalLM.from_pretrained(name)
        base = adapted.peft_config["default"].base_model_name_or_path
        loaded = adapted.merge_and_unload()
        places = (name, base)
    else:
        found = AutoConfig.from_pretrained(name)
        if not isinstance(found, ClsiConfig):
            raise ValueError(
                f"{name} is a model of type {found.model_type!r}, not of units ('clsi'): there is nothing to "
                "export."
            )
        loaded = ClsiForCausalLM.from_pretrained(name)
        places = (name,)
    if not isinstance(loaded, ClsiForCausalLM):
        raise ValueError(
            f"The adapter {name} belongs to a {type(loaded).__name__}, not to a ClsiForCausalLM."
        )
    if tokenizer is None and loaded.config.num_merges:
        tokenizer = _load_tokenizer(places)
    return loaded, tokenizer, _name(name)


def _load_tokenizer(places: Sequence[str]) -> PreTrainedTokenizerFast:
    for place in places:
        try:
            return PreTrainedTokenizerFast.from_pretrained(place)
        except (OSError, ValueError) as error:
            last = error
    raise ValueError(
        f"The model has merges of units, and no tokenizer was found in {' or '.join(places)}. Save its "
        "processor there, or pass it: export_model(..., tokenizer=processor)."
    ) from last


def _name(origin: str) -> str:
    """A Hub id as it is; of a path, on whatever machine, only the last part."""
    path = Path(origin)
    if path.is_dir():
        return path.resolve().name
    return path.name if path.is_absolute() or len(path.parts) > 2 else origin


def _as_unit_tokenizer(tokenizer, config: ClsiConfig) -> PreTrainedTokenizerFast:
    """Whatever knows the merges -> the unit tokenizer of the model, checked."""
    if tokenizer is None:
        if config.num_merges:
            raise ValueError(
                f"The model has {config.num_merges} merges of units, which its config does not hold. Pass "
                "its processor, tokenizer or UnitMerges as `tokenizer`."
            )
        return build_unit_tokenizer(config.num_units)
    if isinstance(tokenizer, (ClsiProcessor, UnitMerges)):
        if tokenizer.deduplicate != config.deduplicate:
            raise ValueError(
                f"The model has deduplicate={config.deduplicate}, but its {type(tokenizer).__name__} has "
                f"{tokenizer.deduplicate}: they do not belong together."
            )
        is_processor = isinstance(tokenizer, ClsiProcessor)
        tokenizer = tokenizer.tokenizer if is_processor else tokenizer.to_fast_tokenizer()
    strings = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    units = [chr(FIRST_UNIT_CHARACTER + unit) for unit in range(config.num_units)]
    specials = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    if (
        len(strings) != config.vocab_size
        or strings[: config.num_units] != units
        or any(len(string) == 1 for string in strings[config.num_units :])
        or specials != [config.bos_token_id, config.eos_token_id, config.pad_token_id]
    ):
        raise ValueError(
            f"The tokenizer ({len(strings)} tokens) is not the unit tokenizer of this model, which has "
            f"{config.vocab_size}: {config.num_units} units, {config.num_merges} merges, bos, eos and pad."
        )
    return tokenizer


def _plain_config(config: ClsiConfig, as_llama: bool) -> PreTrainedConfig:
    """The decoder's config as that of a model of its own."""
    plain = copy.deepcopy(config.text_config)
    if as_llama:
        plain = _llama_config(plain)
    if type(plain) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"transformers has no causal-LM class for decoders of type {plain.model_type!r}.")
    for name, neutral in HEAD_SETTINGS.items():
        if hasattr(plain, name):
            setattr(plain, name, neutral)
    plain.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(plain)].__name__]
    return plain


def _llama_config(qwen2: PreTrainedConfig) -> LlamaConfig:
    """The Llama that a Qwen2 is: its queries, keys and values have biases, its output projection has none."""
    if qwen2.model_type != "qwen2":
        raise ValueError(f"as_llama is for decoders of type 'qwen2', and this one is a {qwen2.model_type!r}.")
    if any(kind != "full_attention" for kind in qwen2.layer_types):
        raise ValueError("This Qwen2 has sliding windows, which a Llama does not have: leave out as_llama.")
    names = """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
        hidden_act max_position_embeddings initializer_range rms_norm_eps use_cache tie_word_embeddings
        rope_parameters attention_dropout bos_token_id eos_token_id pad_token_id
    """
    settings = {name: getattr(qwen2, name) for name in names.split()}
    if getattr(qwen2, "head_dim", None) is not None:  # no field of Qwen2Config, but its layers look for it
        settings["head_dim"] = qwen2.head_dim
    return LlamaConfig(**settings, attention_bias=True)


def _write_tokenizer(
    folder: Path, unit_tokenizer: PreTrainedTokenizerFast, config: ClsiConfig, plain_config: PreTrainedConfig
) -> None:
    length = getattr(plain_config, "max_position_embeddings", None)
    build_text_tokenizer(unit_tokenizer, config.num_units, config.deduplicate, length).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 knows no TokenizersBackend
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_tokenizer(
    folder: Path, unit_tokenizer: PreTrainedTokenizerFast, config: ClsiConfig, plain_config: PreTrainedConfig
) -> None:
    """Raise unless AutoTokenizer loads what was written, and it gives the model's own ids and units."""
    plain_config.save_pretrained(folder)  # it decides about the class
    generator = np.random.default_rng(0)
    tokens = generator.integers(config.bos_token_id, size=200).tolist()
    text = "".join(unit_tokenizer.convert_ids_to_tokens(tokens))  # units and merges spelled in units
    units = np.array([ord(character) - FIRST_UNIT_CHARACTER for character in text])
    repeated = units.repeat(generator.integers(1, 4, size=len(units)))
    units = repeated[np.diff(repeated, prepend=-1) != 0] if config.deduplicate else repeated
    text = "".join(chr(FIRST_UNIT_CHARACTER + unit) for unit in units)
    alone = {"add_special_tokens": False, "verbose": False}  # it may be longer than the model's context
    expected = unit_tokenizer(text, **alone)["input_ids"]
    loaded = AutoTokenizer.from_pretrained(folder)
    found = loaded(units_to_text(repeated), **alone)["input_ids"]
    if found == expected and loaded.decode(expected) == units_to_text(units):
        if not _refuses(loaded, "text"):
            logger.warning(
                "transformers %s reads the tokenizer of a folder of type %r as a %s, which drops without a "
                "word what is no unit. Make prompts by units_to_text%s.",
                transformers.__version__,
                plain_config.model_type,
                type(loaded).__name__,
                ", or export with as_llama=True (--as-llama)" if plain_config.model_type == "qwen2" else "",
            )
        return
    what = " and ".join(["deduplicated"] * config.deduplicate + ["merged"] * (config.num_merges > 0))
    if plain_config.model_type == "qwen2" and what:
        raise ValueError(
            f"transformers {transformers.__version__} reads the tokenizer of a folder of type 'qwen2' as a "
            f"{type(loaded).__name__}, which cannot say that units are {what}. Export this model with "
            "as_llama=True (--as-llama): the Llama that computes the same."
        )
    raise RuntimeError(
        f"transformers {transformers.__version__} reads the tokenizer of a folder of type "
        f"{plain_config.model_type!r} as a {type(loaded).__name__}, which gives other tokens than the model."
    )


def _refuses(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    try:
        tokenizer(text)
    except Exception:  # the tokenizers library raises nothing more specific
        return True
    return False


def _state_dict(model: ClsiForCausalLM, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The model's weights on the CPU, in `dtype`; those that are so already are not copied."""
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(
                f"The weight {name} is not in memory. Load the model without offloading to disk."
            )
        state[name] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
    return state


def _plain_model(
    plain_config: PreTrainedConfig, state: dict[str, torch.Tensor], model: ClsiForCausalLM
) -> nn.Module:
    """The plain model around the weights of `state`; good for saving only, its other buffers being empty."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(plain_config)]
    with torch.device("meta"):
        plain = model_class(plain_config)
    output = next(name for name, module in plain.named_modules() if module is plain.get_output_embeddings())
    prefixes = {"model.language_model.": f"{plain.base_model_prefix}.", "lm_head.": f"{output}."}
    renamed = {}
    for name, tensor in state.items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        renamed[prefixes[prefix] + name.removeprefix(prefix)] = tensor
    expected = plain.state_dict()
    # Biases that our model does not have: of the output embeddings (phi), of a Qwen2 written as a Llama.
    for name in expected.keys() - renamed.keys():
        if name.endswith((f"{output}.bias", "self_attn.o_proj.bias")):
            renamed[name] = torch.zeros(expected[name].shape, dtype=state["lm_head.weight"].dtype)
    wrong = sorted(expected.keys() ^ renamed.keys())
    if wrong:
        raise ValueError(
            f"The weights are not those of a {model_class.__name__}: {len(wrong)} are missing or too many, "
            f"{wrong[0]} for example. Merge adapters first: model.merge_and_unload()."
        )
    plain.load_state_dict(renamed, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(plain.generation_config, name) is None:
            setattr(plain.generation_config, name, getattr(plain_config, name))
    return plain


def _add_old_names(path: Path) -> None:
    """Say rotary settings in the words of transformers 4, too: it would take its defaults, without a word."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rotary = config.get("rope_parameters") or {}
    if "rope_theta" not in rotary:  # none, or one for every kind of layer
        return
    config["rope_theta"] = rotary["rope_theta"]
    if "partial_rotary_factor" in rotary:
        config["partial_rotary_factor"] = rotary["partial_rotary_factor"]
    if rotary.get("rope_type", "default") != "default":
        config["rope_scaling"] = {name: value for name, value in rotary.items() if name != "rope_theta"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _verify(folder: Path, config: ClsiConfig, state: dict[str, torch.Tensor], plain: nn.Module) -> float:
    """Compare what was written with our class around the same weights -> the largest difference of logits.

    Both are built anew, in float32 and with the same attention: the model at hand may be in training mode, on
    another device, or have had its rotary frequencies rounded by `model.to(torch.bfloat16)`.
    """
    alike = {"dtype": torch.float32, "attn_implementation": "eager"}
    written = AutoModelForCausalLM.from_pretrained(folder, **alike).eval()
    found = written.state_dict()
    for name, tensor in plain.state_dict().items():
        if name not in found or not torch.equal(found[name], tensor.to(found[name].dtype)):
            raise RuntimeError(f"The weight {name} was not read back as it was written.")
    ours = ClsiForCausalLM.from_pretrained(
        None, config=copy.deepcopy(config), state_dict=dict(state), **alike
    )
    ours.eval()
    length = min(32, getattr(config.text_config, "max_position_embeddings", 32))
    ids = torch.randint(config.vocab_size, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, length // 4, length // 2)):
        ids[row, :padding], mask[row, :padding] = config.pad_token_id, 0
    with torch.no_grad():
        logits = [each(input_ids=ids, attention_mask=mask).logits[mask.bool()] for each in (ours, written)]
    difference = (logits[0] - logits[1]).abs().max().item()
    if not difference <= TOLERANCE:  # not a number, too
        raise RuntimeError(
            f"The logits of the exported {type(written).__name__} differ from the model's by "
            f"{difference:.3g}, and at most {TOLERANCE:g} is allowed: a {written.config.model_type!r} does "
            "something that is not in its layers. Nothing was exported."
        )
    return difference


def _move(partial: Path, folder: Path) -> None:
    """Put the finished folder in its place, and away what was there."""
    if not folder.exists():
        partial.rename(folder)
        return
    old = partial.with_suffix(".old")
    folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _readme(source: str, config: ClsiConfig, plain: nn.Module) -> str:
    merged = config.num_merges > 0
    merges = f"\n| `{config.num_units}` .. `{config.bos_token_id - 1}` | merges of units |" * merged
    steps = ["collapses runs of equal units"] * config.deduplicate + ["merges units"] * merged
    does = f" The tokenizer {' and '.join(steps)}, as the model was trained." if steps else ""
    suppressed = plain.generation_config.suppress_tokens
    bias = json.dumps({str(token): -100 for token in suppressed or ()})
    keep = f"""
`generation_config.json` keeps the tokens {", ".join(map(str, suppressed or ()))} from being generated
(`suppress_tokens`). An engine that does not read this needs requests with `"logit_bias": {bias}`.
"""
    keep = keep if suppressed else ""
    languages = f" Languages: {', '.join(config.languages)}." if config.languages else ""
    audio = config.audio_tokenizer_id or "./"
    whose = f"the one that comes with `{source}`" if audio.startswith("./") else f"`{_name(audio)}`"
    return f"""---
library_name: transformers
tags:
- speech
---

# {source}, for engines that serve text

The weights of the speech language model `{source}` as a plain `{type(plain).__name__}`, written by
`hf-clsi export`. It continues speech, given as units of an audio tokenizer; it knows no text.{languages}

Unit 17 is written `<|u17|>`. The audio tokenizer gives {config.frame_rate:g} units a second.{does}

| token id | |
|---|---|
| `0` .. `{config.num_units - 1}` | units: `<|u0|>` .. `<|u{config.num_units - 1}|>` |{merges}
| `{config.bos_token_id}` | `{BOS_TOKEN}`, which begins a document; the tokenizer adds it |
| `{config.eos_token_id}` | `{EOS_TOKEN}`, which ends a document |
| `{config.pad_token_id}` | `{PAD_TOKEN}` |
{keep}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (each.from_pretrained(".") for each in (AutoModelForCausalLM, AutoTokenizer))
prompt = tokenizer("<|u0|><|u1|>", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))
```

To turn audio into units and units into audio takes the audio tokenizer ({whose}), which is not here.
"""


__all__ = ["build_text_tokenizer", "export_model", "text_to_units", "units_to_text", "vllm_command"]
