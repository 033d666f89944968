"""Sentences -> translations by a Marian model of transformers (OPUS-MT and its kind), each alone.

The model sees no context, so a pronoun or a form of address may change in the middle of a story. Sentences of
like length make a batch. Greedy or beam search, no sampling: the same stories give the same translations.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tqdm import tqdm

from .translation import LANGUAGES, Translation, Translator, check_languages, check_story, language_code


@dataclass
class MarianTranslator(Translator):
    """Translates by a Marian model, which is loaded at the first translation.

    Args:
        model: id on the Hub or local folder. revision: of the Hub.
        device: torch device; None takes a GPU where there is one. dtype: of the weights; float32 is what a
            CPU should have.
        batch_size: sentences at once. num_beams: 1 is greedy search.
        max_new_tokens: a sentence that needs as many or more counts as truncated.
        target_code: of a model with several target languages, as in its vocabulary (">>fra<<").

    Raises ValueError: settings that make no sense.
    """

    model: str = "Helsinki-NLP/opus-mt-tc-big-en-fr"
    revision: str | None = None
    device: str | None = None
    dtype: str = "float32"
    batch_size: int = 32
    num_beams: int = 4
    max_new_tokens: int = 256
    target_code: str | None = None

    def __post_init__(self):
        if min(self.batch_size, self.num_beams) < 1 or self.max_new_tokens < 2:
            raise ValueError(
                f"batch_size={self.batch_size} and num_beams={self.num_beams} must be at least 1, "
                f"max_new_tokens={self.max_new_tokens} at least 2."
            )
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype='{self.dtype}' must be 'float32', 'float16' or 'bfloat16'.")
        self.name = f"marian:{self.model}"
        self._loaded = None

    def settings(self) -> dict[str, Any]:
        return {"engine": "marian", **{each.name: getattr(self, each.name) for each in fields(self)}}

    def translate(
        self,
        stories: Sequence[Sequence[str]],
        source_language: str,
        target_language: str,
        progress: bool = False,
    ) -> list[Translation]:
        """See `Translator.translate`. Sentences that are alike are translated once.

        Reasons: "truncated" (the translation reaches `max_new_tokens`), "too_long" (the sentence is longer
        than the model can read), "empty_sentence", "empty_story", "not_text".

        Raises:
            ValueError: the model translates other languages, or needs another `target_code`.
            RuntimeError: the model cannot be loaded.
            ImportError: sentencepiece is not installed.
        """
        check_languages(source_language, target_language)
        faults = [check_story(story) for story in stories]
        whole = [story for story, fault in zip(stories, faults, strict=True) if fault is None]
        texts = {" ".join(sentence.split()) for story in whole for sentence in story}
        if not texts:
            return faults
        tokenizer, model = self._load()
        self._check_direction(tokenizer, source_language, target_language)
        translated = self._translate_texts(sorted(texts), tokenizer, model, progress)
        return [
            fault or _join([translated[" ".join(sentence.split())] for sentence in story])
            for story, fault in zip(stories, faults, strict=True)
        ]

    def _load(self) -> tuple[Any, Any]:
        """The tokenizer and the model, in evaluation mode on its device."""
        if self._loaded is not None:
            return self._loaded
        try:
            import sentencepiece  # noqa: F401 -- without it, transformers' own error names another class
        except ImportError as error:
            raise ImportError(
                "Marian models cut text with the package sentencepiece, which is not installed: "
                "pip install sentencepiece"
            ) from error
        import torch
        from transformers import AutoConfig, AutoTokenizer, MarianMTModel

        try:
            model_type = AutoConfig.from_pretrained(self.model, revision=self.revision).model_type
            if model_type != "marian":
                raise ValueError(
                    f"'{self.model}' is a model of type '{model_type}'; this engine runs Marian models such "
                    "as 'Helsinki-NLP/opus-mt-tc-big-en-fr'."
                )
            with warnings.catch_warnings():
                # sacremoses would only prepare a normalizer that MarianTokenizer never calls.
                warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
                tokenizer = AutoTokenizer.from_pretrained(self.model, revision=self.revision)
            dtype = getattr(torch, self.dtype)
            with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
                model = MarianMTModel.from_pretrained(self.model, revision=self.revision, dtype=dtype)
        except OSError as error:
            raise RuntimeError(f"the translation model '{self.model}' cannot be loaded: {error}") from error
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded = tokenizer, model.eval().to(device)
        return self._loaded

    def _check_direction(self, tokenizer: Any, source_language: str, target_language: str) -> None:
        """Raises ValueError if the model is known to translate something else; warns if nothing is known."""
        codes = list(getattr(tokenizer, "supported_language_codes", None) or [])
        source, target = _languages_of(self.model, tokenizer)
        choice = f"the target languages of '{self.model}' are {codes or 'not marked by codes'}"
        if self.target_code and self.target_code not in codes:
            raise ValueError(f"{choice}, got target_code='{self.target_code}'; give one of these or None.")
        if self.target_code:
            target = language_code(self.target_code.strip("<>"))
        elif len(codes) > 1 and target is None:
            raise ValueError(f"{choice}; give one of these as target_code.")
        elif len(codes) > 1:
            warnings.warn(f"{choice}; target_code chooses among them, and was not given.", stacklevel=3)
        known = (source, target)
        for side, has, wanted in zip(("from", "to"), known, (source_language, target_language), strict=True):
            if has is not None and has != language_code(wanted):
                raise ValueError(
                    f"'{self.model}' translates {side} '{has}', not {side} '{wanted}'; choose a model for "
                    f"{source_language} -> {target_language}."
                )
        if None in known:
            warnings.warn(
                f"'{self.model}' does not say which languages it translates; whether it goes from "
                f"'{source_language}' to '{target_language}' was not checked.",
                stacklevel=3,
            )

    def _translate_texts(
        self, texts: list[str], tokenizer: Any, model: Any, progress: bool
    ) -> dict[str, Translation]:
        """Different sentences -> each with the translation of a story of that one sentence."""
        import torch

        prefix = f"{self.target_code} " if self.target_code else ""
        ids = {text: tokenizer(prefix + text, truncation=False, verbose=False)["input_ids"] for text in texts}
        longest = min(model.config.max_position_embeddings, tokenizer.model_max_length)
        # The decoder's positions are limited too, and one holds its start token.
        max_new_tokens = min(self.max_new_tokens, model.config.max_position_embeddings - 1)
        results = {}
        for text in texts:
            if len(ids[text]) > longest:
                found = f"'{text[:40]}...' has {len(ids[text])} tokens, the model reads {longest}"
                results[text] = Translation(None, "too_long", found)
        rest = sorted((text for text in texts if text not in results), key=lambda text: len(ids[text]))
        with tqdm(total=len(rest), desc="translating", unit="sentence", disable=not progress) as bar:
            for start in range(0, len(rest), self.batch_size):
                batch = rest[start : start + self.batch_size]
                inputs = tokenizer.pad({"input_ids": [ids[text] for text in batch]}, return_tensors="pt")
                with torch.inference_mode():
                    outputs = model.generate(  # [B, 1 + new tokens], the first one starts the decoder
                        input_ids=inputs["input_ids"].to(model.device),
                        attention_mask=inputs["attention_mask"].to(model.device),
                        max_length=None,
                        max_new_tokens=max_new_tokens,
                        num_beams=self.num_beams,
                        do_sample=False,
                    )
                for text, tokens in zip(batch, outputs[:, 1:].tolist(), strict=True):
                    results[text] = _finish(text, tokens, tokenizer, max_new_tokens)
                bar.update(len(batch))
        return results


def _finish(text: str, tokens: list[int], tokenizer: Any, max_new_tokens: int) -> Translation:
    """The tokens generated for one sentence, padded -> its translation.

    Many Marian checkpoints force an end token at the last position, so reaching it means truncation.
    """
    end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
    if end + 1 >= max_new_tokens:
        return Translation(None, "truncated", f"'{text[:40]}' needs {max_new_tokens} tokens or more")
    # Its default is the source side's pieces, also where text comes from the target side.
    sentence = tokenizer.decode(tokens[:end], skip_special_tokens=True, use_source_tokenizer=False)
    sentence = " ".join(sentence.split())
    if not sentence:
        return Translation(None, "empty_sentence", f"'{text[:40]}' became nothing")
    return Translation((sentence,))


def _join(sentences: list[Translation]) -> Translation:
    """The sentences of a story -> the story, or the first fault in it."""
    for sentence in sentences:
        if sentence.sentences is None:
            return sentence
    return Translation(tuple(sentence.sentences[0] for sentence in sentences))


def _languages_of(model: str, tokenizer: Any) -> tuple[str | None, str | None]:
    """Source and target as the tokenizer was saved with them, or as OPUS-MT names tell; None if not known."""
    sides = [getattr(tokenizer, side, None) for side in ("source_lang", "target_lang")]
    named = re.search(r"opus-mt-(?:tc-)?(?:tiny-|base-|big-)?([a-z]{2,3})-([a-z]{2,3})/?$", model)
    if not any(sides) and named:
        sides = list(named.groups())
    return tuple(_known_language(side) for side in sides)


def _known_language(side: str | None) -> str | None:
    code = language_code(side) if side else None
    return code if code in LANGUAGES else None
