"""Stories -> translations by a chat model behind an OpenAI-compatible endpoint, one request a story.

The paper translated with GPT-4 and does not give its prompt; the prompt below is ours. A story goes out as
numbered sentences and must come back as a JSON list of as many. What came back right is stored at once
(translation_cache.py) and never asked, or paid, for again.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .endpoint import BadResponse, Endpoint, EndpointError
from .translation import Translation, Translator, check_languages, check_story, is_text, language_name
from .translation_cache import TranslationCache, default_cache_folder

# Raise the version with every change of the two texts: it is recorded in what is built, and stored
# translations of another version are not used.
PROMPT_VERSION = 1
PROMPT = """\
Translate a short story from {source} into {target}. The translation will be read aloud: write simple, \
natural {target} as it is spoken, and keep names, tense and forms of address the same throughout.

The story is given as numbered sentences. Translate each sentence in the light of the whole story, one \
sentence for one sentence: never merge, split, leave out, add or explain any.

Answer with one JSON object and nothing else: {{"sentences": [...]}}, a list of exactly {count} strings, the \
translations in the order of the sentences, without their numbers.

{story}"""
FAULT_PROMPT = """\
That answer cannot be used: {fault}. Answer again with one JSON object and nothing else: \
{{"sentences": [...]}}, a list of exactly {count} non-empty strings, one for each numbered sentence."""

_ENDPOINT_FIELDS = tuple(each.name for each in fields(Endpoint))


@dataclass
class Usage:
    """What was paid for: answers, and tokens as the server counts them; and stories found in the cache."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_stories: int = 0


class _AnswerFault(Exception):
    """An answer that cannot be used, with the reason for which the story is dropped if none better comes."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass
class OpenAITranslator(Translator):
    """Translates by a chat model. Base URL and key come from the environment (endpoint.py).

    Args:
        model: the server's name of the model.
        temperature, seed: sent with every request; None leaves them out, for servers that refuse them.
        options: further parameters of the request ({"max_tokens": 2000, "response_format": {"type":
            "json_object"}}).
        attempts: how often one story is asked for, the fault being told, until an answer can be used.
        concurrency: requests under way at once.
        cache: folder of the stored translations; None: `HF_HOME/hf_clsi/translations`; False: none, and then
            what was paid for is lost when the service fails midway.
        prompt_version: of the settings' writer; refused if it is not `PROMPT_VERSION`.
        base_url, api_key_variable, timeout_s, retries, backoff_s, max_wait_s: see `Endpoint`.

    A translation is stored under the digest of all that shapes it: the first message (story, languages,
    prompt), model, temperature, seed and options, wherever the model runs.

    usage: requests and tokens so far, of answers that could be used and of those that could not.

    Raises ValueError: settings that make no sense.
    """

    model: str
    base_url: str | None = None
    api_key_variable: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    seed: int | None = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 3
    concurrency: int = 8
    cache: str | Path | bool | None = None
    timeout_s: float = 120.0
    retries: int = 6
    backoff_s: float = 1.0
    max_wait_s: float = 120.0
    prompt_version: int = PROMPT_VERSION
    usage: Usage = field(default_factory=Usage, init=False, compare=False)

    def __post_init__(self):
        if not self.model:
            raise ValueError("the name of the model is missing; give one that the server knows.")
        if self.attempts < 1 or self.concurrency < 1:
            raise ValueError(
                f"attempts={self.attempts} and concurrency={self.concurrency} must be at least 1."
            )
        if self.prompt_version != PROMPT_VERSION:
            raise ValueError(
                f"the settings were written for prompt version {self.prompt_version}, this is "
                f"{PROMPT_VERSION}; drop prompt_version from them to translate anew, or use the hf_clsi that "
                "wrote them."
            )
        if self.cache is True:
            raise ValueError("cache=True names no folder; give one, None for the default, or False for none.")
        if reserved := {"model", "messages", "temperature", "seed", "n", "stream"} & set(self.options):
            raise ValueError(
                f"options may not set {sorted(reserved)}; use the arguments where there are any."
            )
        self.options = json.loads(json.dumps(dict(self.options)))  # JSON values only; not the caller's own
        self.cache = str(self.cache) if isinstance(self.cache, Path) else self.cache
        self.name = f"openai:{self.model}"
        self._endpoint = Endpoint(**{name: getattr(self, name) for name in _ENDPOINT_FIELDS})
        self._counting = threading.Lock()

    def settings(self) -> dict[str, Any]:
        names = [each.name for each in fields(self) if each.init]
        return {"engine": "openai", **{name: getattr(self, name) for name in names}}

    def translate(
        self,
        stories: Sequence[Sequence[str]],
        source_language: str,
        target_language: str,
        progress: bool = False,
    ) -> list[Translation]:
        """See `Translator.translate`. Stories that are alike are asked for once.

        Reasons: "wrong_sentence_count", "malformed_answer", "empty_sentence" (after `attempts` answers);
        "refused", "truncated", "too_long" (at once); "empty_story", "empty_sentence", "not_text" (unasked).
        None of these is stored: a rerun asks again.

        Raises RuntimeError if the service or the cache fails; what had arrived until then is stored.
        """
        check_languages(source_language, target_language)
        results: list[Translation | None] = [check_story(story) for story in stories]
        asked: dict[str, list[int]] = {}  # key -> the stories that are alike
        for index, fault in enumerate(results):
            if fault is None:
                message = first_message(stories[index], source_language, target_language)
                asked.setdefault(self._key(message), []).append(index)
        cache = None
        if asked and self.cache is not False:
            cache = TranslationCache(self.cache or default_cache_folder())
        stored = cache.get(list(asked)) if cache else {}
        self.usage.cached_stories += sum(len(asked[key]) for key in stored)

        stop = threading.Event()
        faults: list[BaseException] = []  # in the order in which they happened

        def ask(key: str) -> Translation:
            try:
                story = stories[asked[key][0]]
                translation, cost = self._ask(story, source_language, target_language, stop)
                if cache and translation.sentences:
                    translation = Translation(cache.put(key, translation.sentences, **cost))
                return translation
            except BaseException as error:
                faults.append(error)
                stop.set()
                raise

        bar = tqdm(
            total=len(stories),
            desc=f"translating {source_language} -> {target_language}",
            unit="story",
            disable=not progress,
        )
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="translate")
        with bar:
            bar.update(len(stories) - sum(len(each) for key, each in asked.items() if key not in stored))
            try:
                pending = {pool.submit(ask, key): key for key in asked if key not in stored}
                for future in as_completed(pending):
                    if future.exception() is not None:
                        raise faults[0]  # the others were stopped because of it
                    translation, places = future.result(), asked[pending[future]]
                    for index in places:
                        results[index] = translation
                    bar.update(len(places))
            finally:
                # After a fault or Ctrl-C nothing new is asked; what is under way is waited for and stored.
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        for key, sentences in stored.items():
            for index in asked[key]:
                results[index] = Translation(sentences)
        return results

    def _key(self, message: str) -> str:
        shaping = {
            "prompt_version": PROMPT_VERSION,
            "message": message,
            "model": self.model,
            "temperature": self.temperature,
            "seed": self.seed,
            "options": self.options,
        }
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    def _ask(
        self, story: Sequence[str], source_language: str, target_language: str, stop: threading.Event
    ) -> tuple[Translation, dict[str, Any]]:
        """One story -> its translation, and who answered and what all answers cost together."""
        first = {"role": "user", "content": first_message(story, source_language, target_language)}
        messages = [first]
        cost = {"model": "", "prompt_tokens": 0, "completion_tokens": 0}
        for _ in range(self.attempts):
            try:
                response = self._endpoint.request(partial(self._chat, messages=messages), stop)
            except EndpointError as error:
                reason = _reason_of(error)
                if reason is None:
                    raise
                return Translation(None, reason, str(error)), cost
            self._count(response, cost)
            choice = response.choices[0]
            content = choice.message.content or ""
            if choice.finish_reason == "content_filter" or getattr(choice.message, "refusal", None):
                said = getattr(choice.message, "refusal", None) or "the content filter stopped the answer"
                return Translation(None, "refused", " ".join(said.split())[:200]), cost
            if choice.finish_reason == "length":
                message = f"the answer was cut after {len(content)} characters; raise its limit in `options`"
                return Translation(None, "truncated", message), cost
            try:
                return Translation(read_answer(content, story)), cost
            except _AnswerFault as error:
                fault = error
            told = FAULT_PROMPT.format(fault=fault, count=len(story))
            # Only the last answer is shown: earlier ones would cost, and teach the same fault.
            messages = [
                first,
                {"role": "assistant", "content": content if content.strip() else "(empty)"},
                {"role": "user", "content": told},
            ]
        return Translation(None, fault.reason, f"{fault} (asked {self.attempts} times)"), cost

    def _chat(self, client: Any, messages: list[dict[str, str]]) -> Any:
        sampling = {"temperature": self.temperature, "seed": self.seed}
        known = {name: value for name, value in sampling.items() if value is not None}
        # extra_body: servers other than OpenAI's have parameters that the package does not know.
        response = client.chat.completions.create(
            model=self.model, messages=messages, extra_body=self.options or None, **known
        )
        choices = getattr(response, "choices", None)  # the package does not check what it is sent
        if not choices or getattr(choices[0], "message", None) is None:
            dump = getattr(response, "model_dump_json", None)
            shown = dump(exclude_unset=True) if dump else str(response)
            raise BadResponse(f"the answer holds no message: {shown:.300}")
        if not isinstance(choices[0].message.content, str | None):
            raise BadResponse(f"the message is no text: {choices[0].message.content!r:.300}")
        return response

    def _count(self, response: Any, cost: dict[str, Any]) -> None:
        cost["model"] = str(getattr(response, "model", None) or self.model)
        counts = getattr(response, "usage", None)
        tokens = {name: getattr(counts, name, None) or 0 for name in ("prompt_tokens", "completion_tokens")}
        with self._counting:
            self.usage.requests += 1
            for name, number in tokens.items():
                cost[name] += number
                setattr(self.usage, name, getattr(self.usage, name) + number)


def _reason_of(error: EndpointError) -> str | None:
    """Why a story is dropped for which the server gave an error, since some judge it before the model does.

    None if the error is not about the story. Length has no common code: OpenAI's context_length_exceeded is
    400 in vLLM and exceed_context_size_error in llama.cpp.
    """
    if error.status not in (400, 413, 422):
        return None
    if error.code in ("content_filter", "content_policy_violation"):
        return "refused"
    return "too_long" if re.search(r"context[ _](length|size|window)", f"{error.code} {error}") else None


def first_message(story: Sequence[str], source_language: str, target_language: str) -> str:
    """The prompt with the story in it, one numbered sentence a line."""
    lines = (f"{number}. {' '.join(sentence.split())}" for number, sentence in enumerate(story, start=1))
    return PROMPT.format(
        source=language_name(source_language),
        target=language_name(target_language),
        count=len(story),
        story="\n".join(lines),
    )


def read_answer(content: str, story: Sequence[str]) -> tuple[str, ...]:
    """The model's answer -> the sentences, one for each of the story's, with single spaces.

    A ```json fence around the object is taken off, and so are numbers that the model put back in front of
    every sentence.

    Raises `_AnswerFault` with its reason and what the model is told.
    """
    content = content.strip()
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", content, flags=re.DOTALL | re.IGNORECASE)
    try:
        answer = json.loads(fenced[1] if fenced else content)
    except (ValueError, RecursionError) as error:
        raise _AnswerFault("malformed_answer", f"it is not JSON ({error})") from None
    sentences = answer.get("sentences") if isinstance(answer, dict) else None
    if not isinstance(sentences, list):
        raise _AnswerFault("malformed_answer", 'it is not an object with the list "sentences"')
    if not all(isinstance(sentence, str) and is_text(sentence) for sentence in sentences):
        raise _AnswerFault("malformed_answer", '"sentences" holds something other than strings of text')
    if len(sentences) != len(story):
        raise _AnswerFault(
            "wrong_sentence_count",
            f'"sentences" has {len(sentences)} entries where the story has {len(story)} sentences',
        )
    sentences = [" ".join(sentence.split()) for sentence in sentences]
    if not any(map(_number_of, story)) and [_number_of(each) for each in sentences] == [
        *range(1, len(story) + 1)
    ]:
        sentences = [_NUMBER.sub("", sentence) for sentence in sentences]
    for number, sentence in enumerate(sentences, start=1):
        if not sentence:
            raise _AnswerFault("empty_sentence", f"sentence {number} is empty")
    return tuple(sentences)


_NUMBER = re.compile(r"^(\d+)[.)](?:\s+|$)")


def _number_of(sentence: str) -> int | None:
    """7 for "7. Then it rained." """
    match = _NUMBER.match(sentence)
    return int(match[1]) if match else None
