"""Presets of the experiment: every choice that `hf-clsi reproduce` makes, in one place.

The choices of `tiny` were made on the dev split (docs/miniature.md says what was tried); test items play no
part in them. `gpu` keeps the same stations at a larger size; it has not been run on the machine that it is
for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any

from ..training.recipes import BatchSettings, ModelSettings, OptimizerSettings, TrainingPreset


@dataclass(frozen=True)
class SpeechSettings:
    """How text becomes speech.

    Attributes:
        speakers: voice variants of espeak-ng; a story has one speaker, the same in both languages.
        rate_wpm: words per minute.
        reading: "phrases" speaks every phrase as its own utterance, as a slow reader does, with a pause that
            ends on a whole frame; "sentences" speaks whole sentences.
        pause_s: least pause between two phrases.
    """

    speakers: tuple[str, ...] = ("m3",)
    rate_wpm: int = 200
    reading: str = "phrases"
    pause_s: float = 0.08

    def __post_init__(self):
        if self.reading not in ("phrases", "sentences"):
            raise ValueError(f"reading must be 'phrases' or 'sentences', got '{self.reading}'.")
        if not self.speakers:
            raise ValueError("speakers is empty; name at least one voice variant of espeak-ng.")
        if self.pause_s < 0:
            raise ValueError(f"pause_s must not be negative, got {self.pause_s}.")


@dataclass(frozen=True)
class UnitSettings:
    """How speech becomes units.

    Attributes:
        config: arguments of ClsiUnitsConfig.
        num_merges: byte-pair merges on top; 0: the model sees plain units.
        deduplicate: the model sees runs of equal units as one.
        fit_sentences, merge_sentences: distinct training sentences that the codebook and the merges are
            learned from, at most.
    """

    config: dict[str, Any] = field(
        default_factory=lambda: {"num_units": 64, "hop_length": 1280, "normalization": "global"}
    )
    num_merges: int = 1900
    deduplicate: bool = True
    fit_sentences: int = 3000
    merge_sentences: int = 8000


@dataclass(frozen=True)
class Preset:
    """All settings of one experiment.

    Attributes:
        train_stories, dev_stories: how many stories are written for each split.
        items: cloze items per cell (task, hold-out rule and direction); even.
        alignment_pairs: aligned held-out sentences for the hidden-state alignment.
        same_character: see text/cloze.py.
        headline: the reading that the report leads with, chosen on dev.
    """

    name: str
    train_stories: int
    dev_stories: int
    items: int
    alignment_pairs: int
    training: TrainingPreset
    speech: SpeechSettings = SpeechSettings()
    units: UnitSettings = UnitSettings()
    languages: tuple[str, str] = ("en", "fr")
    same_character: bool = True
    headline: dict[str, str] = field(
        default_factory=lambda: {"holdout": "strict", "span": "whole", "normalization": "sum"}
    )

    def __post_init__(self):
        least = {"train_stories": 2, "dev_stories": 1, "items": 2, "alignment_pairs": 2}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} must be at least {number}, got {getattr(self, name)}.")
        if self.items % 2:
            raise ValueError(f"items must be even, since they come in symmetric pairs; got {self.items}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as saved with the results."""
        return asdict(self)


def _llama(hidden: int, layers: int, heads: int, intermediate: int, positions: int, init: float, dtype: str):
    return ModelSettings(
        {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "intermediate_size": intermediate,
            "max_position_embeddings": positions,
            "initializer_range": init,
            "tie_word_embeddings": True,
        },
        dtype,
    )


def tiny() -> Preset:
    """Minutes on two cores: 24 topics, 2 layers of 96."""
    return Preset(
        name="tiny",
        train_stories=5000,
        dev_stories=240,
        items=864,
        alignment_pairs=400,
        training=TrainingPreset(
            budget_tokens=1_800_000,
            model=_llama(96, 2, 4, 256, 512, 0.08, "float32"),
            optimizer=OptimizerSettings(learning_rate=8e-3),
            batch=BatchSettings(tokens_per_step=800, max_length=256, separator="bos"),
        ),
    )


def small() -> Preset:
    """More stories, a wider model, 2.7 times the budget: an estimated half hour on two cores; not tuned."""
    return Preset(
        name="small",
        train_stories=10_000,
        dev_stories=480,
        items=1200,
        alignment_pairs=600,
        training=TrainingPreset(
            budget_tokens=4_800_000,
            model=_llama(128, 2, 4, 384, 512, 0.08, "float32"),
            optimizer=OptimizerSettings(learning_rate=3e-3),
            batch=BatchSettings(tokens_per_step=800, max_length=256, separator="bos"),
        ),
    )


def gpu() -> Preset:
    """For one accelerator: whole sentences at natural prosody, plain units, a 12-layer model in bfloat16."""
    return Preset(
        name="gpu",
        train_stories=60_000,
        dev_stories=960,
        items=1920,
        alignment_pairs=1000,
        training=TrainingPreset(
            budget_tokens=400_000_000,
            model=_llama(512, 12, 8, 1408, 2048, 0.02, "bfloat16"),
            optimizer=OptimizerSettings(learning_rate=1e-3),
            batch=BatchSettings(tokens_per_step=65_536, max_length=2048, separator="bos"),
        ),
        speech=SpeechSettings(rate_wpm=175, reading="sentences"),
        units=UnitSettings(
            config={"num_units": 256, "hop_length": 640, "normalization": "global"},
            num_merges=0,
            fit_sentences=20_000,
        ),
    )


PRESETS = {"tiny": tiny, "small": small, "gpu": gpu}


def preset(name: str, changes: Mapping[str, Any] | None = None) -> Preset:
    """A preset by name, with some settings changed.

    Args:
        changes: dotted names of fields and their new values, for example
            `{"training.budget_tokens": 40_000, "training.model.text_config.hidden_size": 64}`.

    Raises:
        ValueError: no such preset or setting (the message lists those that there are), or a value of another
            type than the setting's.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset '{name}'; choose from {', '.join(PRESETS)}.")
    settings = PRESETS[name]()
    for path, value in (changes or {}).items():
        settings = _changed(settings, path.split("."), value, path)
    return settings


def _changed(settings: Any, path: list[str], value: Any, whole: str) -> Any:
    """A copy of nested dataclasses and dicts with one value replaced."""
    as_dict = isinstance(settings, dict)
    known = list(settings) if as_dict else [entry.name for entry in fields(settings)]
    key = path[0]
    if key not in known:
        close = get_close_matches(key, known, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"unknown setting '{whole}': '{key}' is not one of {', '.join(known)}.{hint}")
    old = settings[key] if as_dict else getattr(settings, key)
    if len(path) == 1:
        value = _of_the_same_type(value, old, whole)
    elif isinstance(old, dict) or is_dataclass(old):
        value = _changed(old, path[1:], value, whole)
    else:
        raise ValueError(f"setting '{whole}': '{key}' is the value {old!r} and has no fields.")
    return {**settings, key: value} if as_dict else replace(settings, **{key: value})


def _of_the_same_type(value: Any, old: Any, name: str) -> Any:
    """The value, as JSON or a caller wrote it, in the type of the one that it replaces."""
    if is_dataclass(old):
        names = ", ".join(f"{name}.{entry.name}" for entry in fields(old))
        raise ValueError(f"setting '{name}' is a group; change its fields: {names}.")
    if isinstance(old, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if type(old) is int and isinstance(value, float) and value.is_integer():  # 4e5
        return int(value)
    if type(value) is not type(old):
        raise ValueError(f"setting '{name}' is {old!r} by default; got {value!r}, which is of another type.")
    return value
