"""The settings of a speech language model over units: its vocabulary, its rates and the decoder inside."""

import copy
from dataclasses import fields
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

SEPARATORS = ("none", "bos", "eos")
NUM_SPECIAL_TOKENS = 3  # bos, eos, pad: the last three ids, in this order

# Where `pipeline("speech-continuation", ..., trust_remote_code=True)` finds its class, beside the checkpoint.
CUSTOM_PIPELINES = {
    "speech-continuation": {
        "impl": "pipeline_clsi.SpeechContinuationPipeline",
        "pt": ["AutoModelForCausalLM"],
        "type": "audio",
    }
}

# The decoder built when no `text_config` is given: a Llama body of about 25 million parameters.
DEFAULT_DECODER = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}

# Complete settings of the sizes with a name, for `ClsiConfig.from_size`. "360m" and "1b" are the paper's
# (arXiv 2512.01865): the bodies of Qwen2-0.5B and Llama-3.2-1B, as their published configs give them, over
# the first codebook of Mimi. "tiny" is the miniature of `hf-clsi reproduce`.
MIMI = {"num_units": 2048, "sampling_rate": 24_000, "frame_rate": 12.5, "audio_tokenizer_id": "kyutai/mimi"}
SIZES = {
    "tiny": {
        "num_units": 64,
        "num_merges": 1900,
        "deduplicate": True,
        "separator": "bos",
        "sampling_rate": 16_000,
        "frame_rate": 12.5,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "initializer_range": 0.08,
            "tie_word_embeddings": True,
        },
    },
    "360m": {
        **MIMI,
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131_072,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    },
    "1b": {
        **MIMI,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
    },
}


class ClsiConfig(PreTrainedConfig):
    r"""
    Configuration of [`ClsiModel`] and [`ClsiForCausalLM`].

    Vocabulary: token id = unit id for `0..num_units - 1`, then `num_merges` byte-pair merges of units, then
    bos, eos and pad. `vocab_size`, `bos_token_id`, `eos_token_id` and `pad_token_id` follow from these two
    numbers; they are properties here, and they are written into (a copy of) the decoder's config, so that
    `generate` finds them.

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The decoder, of any causal-LM type of transformers; a dict without `model_type` is a Llama. Its
            `vocab_size` may be left out of a dict; where it is given it must be `num_units + num_merges + 3`.
            None gives a Llama of about 25 M parameters. The caller's object is copied, never changed.
        num_units (`int`, *optional*, defaults to 2048):
            Size of the audio tokenizer's (first) codebook, at most 65,536 since units are stored as uint16.
        num_merges (`int`, *optional*, defaults to 0):
            Number of tokens added by byte-pair merges of units (acoustic BPE); the merges are in
            tokenizer.json.
        deduplicate (`bool`, *optional*, defaults to `False`):
            Whether the model was trained on units whose runs were collapsed (5 5 5 8 -> 5 8).
        separator (`str`, *optional*, defaults to `"none"`):
            The token between the sentences of a document: `"none"`, `"bos"` or `"eos"`.
        sampling_rate (`int`, *optional*, defaults to 24000):
            Sampling rate of the audio tokenizer, in Hz.
        frame_rate (`float`, *optional*, defaults to 12.5):
            Units per second of speech, before collapsing and merging, in Hz. `sampling_rate / frame_rate`
            samples make one unit, and must be whole.
        audio_tokenizer_id (`str`, *optional*):
            Where the audio tokenizer is found: a Hub id or a path relative to the checkpoint
            ("./audio_tokenizer").
        languages (`list[str]`, *optional*):
            The languages that the model was trained on, as codes ("en", "fr").
        initialized_from (`str`, *optional*):
            The text model whose body this one started from (`hf_clsi.training.initialize`): a name for people
            and cards. Nothing is ever loaded from it.
        tie_word_embeddings (`bool`, *optional*):
            Whether input and output embeddings are one matrix. None takes the decoder's own setting where one
            was given, else True. The decoder's flag is kept equal to this one.

    Raises:
        ValueError: a value outside its range, a decoder whose vocabulary contradicts the units, or a decoder
            that is not decoder-only.

    Example:

    >>> from hf_clsi import ClsiConfig
    >>> decoder = {"model_type": "qwen2", "hidden_size": 64}
    >>> config = ClsiConfig(num_units=500, num_merges=12, text_config=decoder)
    >>> config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id
    (515, 512, 513, 514)
    >>> config.text_config.vocab_size
    515
    """

    model_type = "clsi"
    # Not the `sub_configs_defaults` of newer versions: this is read by all from 5.17 on.
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    num_units: int = 2048
    num_merges: int = 0
    deduplicate: bool = False
    separator: str = "none"
    sampling_rate: int = 24_000
    frame_rate: float = 12.5
    audio_tokenizer_id: str | None = None
    languages: list[str] | None = None
    initialized_from: str | None = None
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        self._check_fields()
        for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
            given = kwargs.pop(name, None)
            if given is not None and given != getattr(self, name):
                raise ValueError(
                    f"{name}={given} contradicts num_units={self.num_units} and "
                    f"num_merges={self.num_merges}, which give {name}={getattr(self, name)}. Leave {name} "
                    "out: it is derived."
                )
        decoder = copy.deepcopy(self.text_config)
        if decoder is None:
            decoder = dict(DEFAULT_DECODER)
        is_dict = isinstance(decoder, dict)
        settings = decoder if is_dict else vars(decoder)
        if self.tie_word_embeddings is None:
            # LlamaConfig and its like always carry a flag, a dict only if the caller wrote it there.
            self.tie_word_embeddings = bool(settings.get("tie_word_embeddings", True))
        # A config object always has a vocabulary (its class's default if nothing else): checked as given.
        self._check_vocabulary(settings.get("vocab_size"))
        derived = {
            "vocab_size": self.vocab_size,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        if is_dict:
            kind = decoder.get("model_type", "llama")
            if kind not in CONFIG_MAPPING:
                raise ValueError(
                    f"text_config has model_type={kind!r}, which transformers does not know. Give that of a "
                    "decoder-only (causal-LM) type, such as 'llama' or 'qwen2'."
                )
            decoder = CONFIG_MAPPING[kind](**{**decoder, **derived})
        else:
            for name, value in derived.items():
                setattr(decoder, name, value)
        self.text_config = decoder
        # Every save must name the classes for trust_remote_code, whichever of them is being saved: the
        # library itself would only enter the one at hand. The files lie beside each checkpoint, hence no
        # repository prefix.
        kwargs["auto_map"] = {
            **(kwargs.get("auto_map") or {}),
            "AutoConfig": "configuration_clsi.ClsiConfig",
            "AutoModel": "modeling_clsi.ClsiModel",
            "AutoModelForCausalLM": "modeling_clsi.ClsiForCausalLM",
        }
        # A config that names a custom pipeline makes `transformers.pipeline` demand trust_remote_code. Where
        # this class is hf_clsi's own, the task is registered (auto.py) and nothing needs to be trusted.
        kwargs.pop("custom_pipelines", None)
        if not __name__.startswith("hf_clsi."):
            kwargs["custom_pipelines"] = copy.deepcopy(CUSTOM_PIPELINES)
        super().__post_init__(**kwargs)
        self.validate()
        self._is_complete = True

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> "ClsiConfig":
        """The config of a size with a name, built offline.

        Args:
            size: "360m" (359.7 M parameters) or "1b" (977.3 M), the paper's two; or "tiny" (0.4 M), the
                miniature's.
            **changes: fields of the config that differ (`num_units=500`); `text_config` is a dict of the
                decoder's settings that differ.

        Raises:
            ValueError: no such size, or settings that the config refuses.

        Example:

        >>> config = ClsiConfig.from_size("360m", languages=["en", "de"], text_config={"use_cache": False})
        >>> config.text_config.model_type, config.text_config.hidden_size, config.vocab_size
        ('qwen2', 896, 2051)
        """
        if size not in SIZES:
            raise ValueError(f"There is no size {size!r}; choose from {', '.join(SIZES)}.")
        settings = copy.deepcopy(SIZES[size])
        decoder = {**settings.pop("text_config"), **copy.deepcopy(changes.pop("text_config", {}))}
        return cls(**{**settings, **changes, "text_config": decoder})

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # `from_pretrained(..., tie_word_embeddings=False)` sets the attribute after construction. (During it,
        # the decoder may still be the caller's own object.)
        if name == "tie_word_embeddings" and self.__dict__.get("_is_complete"):
            self.text_config.tie_word_embeddings = value

    def to_dict(self) -> dict[str, Any]:
        """The config as a dict.

        The decoder's part leaves out what is said outside (the number type), where it was on the machine that
        made it, and what every config of transformers says unless it is told otherwise.
        """
        output = super().to_dict()
        anyones = PreTrainedConfig().to_dict()
        defaults = {f.name: f.default for f in fields(PreTrainedConfig)}
        own = {f.name for f in fields(self.text_config) if f.default != defaults.get(f.name, fields)}
        output["text_config"] = {
            name: value
            for name, value in output["text_config"].items()
            if name not in ("dtype", "_name_or_path", "transformers_version")
            and (name in own or name not in anyones or value != anyones[name])
        }
        output["custom_pipelines"] = copy.deepcopy(CUSTOM_PIPELINES)
        output.pop("_is_complete", None)
        return output

    def validate(self) -> None:
        """Check the whole config, the decoder's too; called on construction, on save and by the models.

        Raises:
            ValueError: a value outside its range, or a decoder that contradicts the vocabulary of units.
        """
        super().validate()
        self._check_fields()
        self._check_vocabulary(self.text_config.vocab_size)
        if self.text_config.is_encoder_decoder:
            raise ValueError(
                f"text_config of type {self.text_config.model_type!r} is an encoder-decoder; give a "
                "decoder-only (causal-LM) type such as 'llama' or 'qwen2'."
            )

    def _check_fields(self) -> None:
        if not isinstance(self.num_units, int) or not 1 <= self.num_units <= 65_536:
            raise ValueError(
                f"num_units must be an integer in 1..65536 (units are uint16), got {self.num_units!r}."
            )
        if not isinstance(self.num_merges, int) or self.num_merges < 0:
            raise ValueError(f"num_merges must be an integer of at least 0, got {self.num_merges!r}.")
        if self.separator not in SEPARATORS:
            raise ValueError(f"separator must be one of {', '.join(SEPARATORS)}; got {self.separator!r}.")
        if not self.sampling_rate > 0 or not self.frame_rate > 0:
            raise ValueError(
                "sampling_rate and frame_rate must be positive (Hz), "
                f"got {self.sampling_rate} and {self.frame_rate}."
            )
        samples = self.sampling_rate / self.frame_rate
        if abs(samples - round(samples)) > 1e-6 or round(samples) < 1:
            raise ValueError(
                f"sampling_rate={self.sampling_rate} Hz at frame_rate={self.frame_rate} Hz makes {samples:g} "
                "samples a unit; it must be a whole number. Take both from the audio tokenizer's config."
            )

    def _check_vocabulary(self, vocab_size: int | None) -> None:
        if vocab_size is not None and vocab_size != self.vocab_size:
            raise ValueError(
                f"text_config has vocab_size={vocab_size}, but {self.num_units} units + {self.num_merges} "
                f"merges + {NUM_SPECIAL_TOKENS} special tokens make {self.vocab_size}. Give text_config as a "
                f"dict without vocab_size, or with vocab_size={self.vocab_size}."
            )

    @property
    def vocab_size(self) -> int:
        """Number of tokens: units, merges, bos, eos, pad."""
        return self.num_units + self.num_merges + NUM_SPECIAL_TOKENS

    @property
    def bos_token_id(self) -> int:
        """Id of the token that opens a document."""
        return self.num_units + self.num_merges

    @property
    def eos_token_id(self) -> int:
        """Id of the token that closes a document."""
        return self.num_units + self.num_merges + 1

    @property
    def pad_token_id(self) -> int:
        """Id of the token that fills up a batch."""
        return self.num_units + self.num_merges + 2

    @property
    def separator_token_id(self) -> int | None:
        """Id of the token between sentences; None where nothing stands there."""
        return {"none": None, "bos": self.bos_token_id, "eos": self.eos_token_id}[self.separator]

    @property
    def context_length(self) -> int | None:
        """Tokens that the decoder can attend to; None where its type knows no such limit."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def hop_length(self) -> int:
        """Samples of audio in one unit (before collapsing and merging)."""
        return round(self.sampling_rate / self.frame_rate)


__all__ = ["ClsiConfig"]
