"""Stories in one language -> the same stories in another: as many sentences, or a reason why not.

    translator = load_translator("openai:gpt-4o")
    for translation in translator.translate([["The cat sleeps.", "It dreams."]], "en", "fr"):
        print(translation.sentences or translation.reason)

| engine | file | sees the story as context | needs |
|---|---|---|---|
| `openai:MODEL` | translation_openai.py | yes | an OpenAI-compatible endpoint, `pip install openai` |
| `marian:MODEL` | translation_marian.py | no, each sentence alone | `pip install sentencepiece` |
| `package.module:Class` | yours: a subclass of `Translator` | | |
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENGINES = {
    "openai": "hf_clsi.text.translation_openai:OpenAITranslator",
    "marian": "hf_clsi.text.translation_marian:MarianTranslator",
}

# Code (ISO 639-1) -> English name, as prompts say it, and ISO 639-3 code, as translation models are labelled.
LANGUAGES = {
    "af": ("Afrikaans", "afr"), "ar": ("Arabic", "ara"), "bg": ("Bulgarian", "bul"), "bn": ("Bengali", "ben"),
    "ca": ("Catalan", "cat"), "cs": ("Czech", "ces"), "cy": ("Welsh", "cym"), "da": ("Danish", "dan"),
    "de": ("German", "deu"), "el": ("Greek", "ell"), "en": ("English", "eng"), "eo": ("Esperanto", "epo"),
    "es": ("Spanish", "spa"), "et": ("Estonian", "est"), "eu": ("Basque", "eus"), "fa": ("Persian", "fas"),
    "fi": ("Finnish", "fin"), "fr": ("French", "fra"), "ga": ("Irish", "gle"), "gl": ("Galician", "glg"),
    "he": ("Hebrew", "heb"), "hi": ("Hindi", "hin"), "hr": ("Croatian", "hrv"), "hu": ("Hungarian", "hun"),
    "hy": ("Armenian", "hye"), "id": ("Indonesian", "ind"), "is": ("Icelandic", "isl"),
    "it": ("Italian", "ita"), "ja": ("Japanese", "jpn"), "ka": ("Georgian", "kat"), "ko": ("Korean", "kor"),
    "lt": ("Lithuanian", "lit"), "lv": ("Latvian", "lav"), "mk": ("Macedonian", "mkd"),
    "ml": ("Malayalam", "mal"), "mr": ("Marathi", "mar"), "ms": ("Malay", "msa"),
    "nb": ("Norwegian Bokmål", "nob"), "nl": ("Dutch", "nld"), "no": ("Norwegian", "nor"),
    "pa": ("Punjabi", "pan"), "pl": ("Polish", "pol"), "pt": ("Portuguese", "por"),
    "ro": ("Romanian", "ron"), "ru": ("Russian", "rus"), "sk": ("Slovak", "slk"), "sl": ("Slovenian", "slv"),
    "sq": ("Albanian", "sqi"), "sr": ("Serbian", "srp"), "sv": ("Swedish", "swe"), "sw": ("Swahili", "swa"),
    "ta": ("Tamil", "tam"), "te": ("Telugu", "tel"), "th": ("Thai", "tha"), "tr": ("Turkish", "tur"),
    "uk": ("Ukrainian", "ukr"), "ur": ("Urdu", "urd"), "vi": ("Vietnamese", "vie"), "zh": ("Chinese", "zho"),
}  # fmt: skip
_TWO_LETTERS = {three: two for two, (_, three) in LANGUAGES.items()}


def language_code(tag: str) -> str:
    """The language of a tag, without its variety; two letters where the table has them.

    >>> language_code("fr-be"), language_code("fra"), language_code("tlh")
    ('fr', 'fr', 'tlh')
    """
    language = tag.replace("_", "-").split("-")[0].lower()
    return _TWO_LETTERS.get(language, language)


def language_name(tag: str) -> str:
    """What a prompt calls a language: its English name, with the tag where that says more.

    >>> language_name("fr"), language_name("fr-be"), language_name("tlh")
    ('French', 'French (fr-be)', 'tlh')
    """
    name, three = LANGUAGES.get(language_code(tag), (None, None))
    if name is None:
        return tag
    return name if tag.lower() in (language_code(tag), three) else f"{name} ({tag})"


@dataclass(frozen=True)
class Translation:
    """One translated story, or why there is none.

    sentences: as many as the story has, none empty; None if the story is to be dropped. reason: then a short
    word that many share ("wrong_sentence_count", "malformed_answer", "empty_sentence", "refused",
    "truncated", "too_long", ...). message: what was found.
    """

    sentences: tuple[str, ...] | None
    reason: str | None = None
    message: str = ""

    def __post_init__(self):
        if (self.sentences is None) == (self.reason is None):
            raise ValueError(
                "a translation has either sentences or the reason why there are none, got "
                f"sentences={self.sentences!r} and reason={self.reason!r}."
            )


class Translator(ABC):
    """What can translate. Subclasses are rebuilt from `settings()` in other processes, by `load_translator`.

    name: short name for the rows ("openai:gpt-4o").
    """

    name: str

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """{"engine": ..., further keyword arguments}, JSON values, no secret: what `load_translator` takes.

        The engine of a class outside this package is its "package.module:Class".
        """

    @abstractmethod
    def translate(
        self,
        stories: Sequence[Sequence[str]],
        source_language: str,
        target_language: str,
        progress: bool = False,
    ) -> list[Translation]:
        """Stories (lists of sentences) -> as many translations, in the same order.

        Languages are codes such as "fr" or "fr-be". progress: show a bar.

        A fault of a story (it was refused, came back with the wrong number of sentences, ...) gives
        `Translation(None, reason, message)` and leaves the others alone.

        Raises:
            ValueError: arguments that no translation can serve.
            RuntimeError: a fault of the service; no story can be blamed.
        """


def load_translator(settings: str | Mapping[str, Any]) -> Translator:
    """A translator by name ("openai:gpt-4o", "package.module:Class") or by its settings, JSON values.

    >>> load_translator({"engine": "openai", "model": "gpt-4o", "concurrency": 2}).name
    'openai:gpt-4o'

    Raises:
        ValueError: unknown engine, a class that is no `Translator`, or settings that it does not take.
        ImportError: the module of a class cannot be imported.
    """
    if isinstance(settings, str):
        engine, _, model = settings.partition(":")
        settings = {"engine": engine, "model": model} if engine in ENGINES else {"engine": settings}
    arguments = dict(settings)
    engine = arguments.pop("engine", "")
    path = ENGINES.get(engine, engine)
    module_name, colon, class_name = path.partition(":")
    if not (module_name and colon and class_name):
        raise ValueError(
            f"unknown translation engine {engine!r}; give one of {sorted(ENGINES)} with a model "
            "('openai:gpt-4o'), or 'package.module:Class'."
        )
    if engine in ENGINES and not arguments.get("model"):
        raise ValueError(f"translation engine '{engine}' needs a model, as in '{engine}:NAME'.")
    translator_class = getattr(importlib.import_module(module_name), class_name, None)
    if not (isinstance(translator_class, type) and issubclass(translator_class, Translator)):
        raise ValueError(f"{path} is no subclass of hf_clsi.text.translation.Translator.")
    try:
        return translator_class(**arguments)
    except TypeError as error:
        raise ValueError(f"translation engine '{engine}' does not take these settings: {error}") from error


def check_languages(source_language: str, target_language: str) -> None:
    """Raises ValueError unless two different languages are named."""
    if not source_language or not target_language or source_language == target_language:
        raise ValueError(
            f"translation goes from one language to another, got '{source_language}' and '{target_language}'."
        )


def check_story(story: Sequence[str]) -> Translation | None:
    """Why a story cannot be translated at all; None if it can. ValueError if it is no list of strings."""
    if isinstance(story, str) or not all(isinstance(sentence, str) for sentence in story):
        raise ValueError(f"a story is a list of sentences, got {story!r:.100}.")
    if not story:
        return Translation(None, "empty_story", "the story has no sentence")
    for number, sentence in enumerate(story, start=1):
        if not sentence.strip():
            return Translation(None, "empty_sentence", f"sentence {number} of the story itself is empty")
        if not is_text(sentence):
            return Translation(None, "not_text", f"sentence {number} of the story holds half a character")
    return None


def is_text(sentence: str) -> bool:
    """Whether it can be written as UTF-8; JSON may carry half of a surrogate pair."""
    try:
        sentence.encode()
    except UnicodeEncodeError:
        return False
    return True
