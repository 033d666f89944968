"""Names, folders and settings become audio tokenizers, and audio tokenizers become labels that rows carry."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from ..configuration_clsi_units import ClsiUnitsConfig

TOKENIZER_FOLDER = "audio_tokenizer"  # inside a dataset or a model


def embedded_config(num_units: int, frame_rate_hz: float, duration_penalty: float = 0.0) -> ClsiUnitsConfig:
    """Settings of an embedded tokenizer that is still to be fitted.

    Raises:
        ValueError: a frame rate (units a second) that does not divide the sampling rate.
    """
    rate = ClsiUnitsConfig.sampling_rate
    if not frame_rate_hz > 0 or rate % frame_rate_hz:
        raise ValueError(f"frame_rate_hz must divide {rate} Hz into whole samples, got {frame_rate_hz}")
    return ClsiUnitsConfig(
        hop_length=int(rate / frame_rate_hz), num_units=num_units, duration_penalty=duration_penalty
    )


def resolve_audio_tokenizer(name_or_path: str | os.PathLike) -> str:
    """Where the audio tokenizer is: the argument itself, or what the model in that folder carries or names.

    A model's folder (`runs/x/models/interleave-ft`) or a dataset's has it in `audio_tokenizer/`; a model may
    also name one on the Hub in its processor_config.json.
    """
    place = Path(name_or_path)
    if (place / TOKENIZER_FOLDER / "config.json").is_file():
        return str(place / TOKENIZER_FOLDER)
    if (place / "processor_config.json").is_file():
        processor = json.loads((place / "processor_config.json").read_text(encoding="utf-8"))
        reference = processor.get("audio_tokenizer_id")
        if reference:
            return str(place / reference) if reference.startswith("./") else reference
    return str(name_or_path)


def tokenizer_label(tokenizer: PreTrainedModel, name: str | None) -> str:
    """What rows say of their tokenizer: the embedded one has no name of its own but a digest."""
    if tokenizer.config.model_type == "clsi_units":
        penalty = tokenizer.config.duration_penalty  # it changes units, but is no part of the codebook
        with_penalty = f", duration penalty {penalty:g}" if penalty else ""
        return f"hf_clsi embedded, sha256 {tokenizer.codebook_digest()}{with_penalty}"
    # Without the folders above it, which are this machine's business.
    return Path(name).resolve().name if Path(str(name)).is_dir() else str(name)


def save_tokenizer(tokenizer: PreTrainedModel, folder: Path) -> None:
    """Save into `folder`, whole or not at all; what was there is replaced."""
    temporary = folder.with_name(f".{folder.name}.partial")
    for path in (temporary, folder):
        shutil.rmtree(path, ignore_errors=True)
    tokenizer.save_pretrained(temporary)
    os.replace(temporary, folder)
