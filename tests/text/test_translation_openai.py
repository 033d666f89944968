"""OpenAITranslator against a local server that misbehaves: what is asked, asked again, dropped, stored."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hf_clsi.text.translation import Translation, load_translator
from hf_clsi.text.translation_openai import (
    FAULT_PROMPT,
    PROMPT,
    PROMPT_VERSION,
    OpenAITranslator,
    Usage,
    first_message,
    read_answer,
)

KEY = "sk-very-secret-0123456789"
CATS = ["The cat sleeps.", "It dreams."]
CHATS = ("Le chat dort.", "Il rêve.")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    # Each proxy costs every client another reading of all certificates; the servers are on this machine.
    for name in [
        name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def translator_of(tmp_path):
    """Function from a server to a translator that is quick to come back; its cache is in a new folder."""

    def build(server, **changes):
        quick = {"backoff_s": 0.001, "timeout_s": 5.0, "retries": 3, "cache": str(tmp_path / "cache")}
        return OpenAITranslator("gpt-test", base_url=server.url, **{**quick, **changes})

    return build


def answer(sentences, finish_reason="stop", **message):
    """The behaviour that answers with a list of sentences, or with any text."""
    content = sentences if isinstance(sentences, str) else json.dumps({"sentences": list(sentences)})
    return {
        "body": {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-test-2026",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish_reason,
                    "message": {"role": "assistant", "content": content, **message},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    }


def story_of(request):
    """The numbered sentences of the first message, without their numbers."""
    return re.findall(r"^\d+\. (.*)$", request.json["messages"][0]["content"], flags=re.MULTILINE)


def shout(request):
    """A server that "translates" into capitals."""
    return answer([sentence.upper() for sentence in story_of(request)])


# -- what is asked -------------------------------------------------------------------------------------------


def test_story_becomes_as_many_sentences(misbehaving_server, translator_of):
    server = misbehaving_server([answer(CHATS)])
    assert translator_of(server).translate([CATS], "en", "fr") == [Translation(CHATS)]
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.json == {
        "model": "gpt-test",
        "messages": [{"role": "user", "content": first_message(CATS, "en", "fr")}],
        "temperature": 0.0,
        "seed": 0,
    }


def test_prompt():
    assert first_message(["The cat\n sleeps.", "It {dreams}."], "en", "fr") == (
        "Translate a short story from English into French. The translation will be read aloud: write simple, "
        "natural French as it is spoken, and keep names, tense and forms of address the same throughout.\n\n"
        "The story is given as numbered sentences. Translate each sentence in the light of the whole story, "
        "one sentence for one sentence: never merge, split, leave out, add or explain any.\n\n"
        'Answer with one JSON object and nothing else: {"sentences": [...]}, a list of exactly 2 strings, '
        "the translations in the order of the sentences, without their numbers.\n\n"
        "1. The cat sleeps.\n2. It {dreams}."
    )


def test_prompt_changes_only_with_its_version():
    """If this fails, raise PROMPT_VERSION and put the new digest here."""
    digest = hashlib.sha256((PROMPT + FAULT_PROMPT).encode()).hexdigest()
    assert (PROMPT_VERSION, digest[:16]) == (1, "227937c4ea8ea6ab")


def test_settings_that_a_server_does_not_take_are_left_out_and_others_put_in(
    misbehaving_server, translator_of
):
    server = misbehaving_server([answer(CHATS)])
    options = {"max_tokens": 500, "chat_template_kwargs": {"enable_thinking": False}}
    translator_of(server, temperature=None, seed=None, options=options).translate([CATS], "en", "fr")
    assert {key: value for key, value in server.requests[0].json.items() if key != "messages"} == {
        "model": "gpt-test",
        **options,
    }


def test_no_story_asks_nothing(misbehaving_server, translator_of):
    server = misbehaving_server([answer(CHATS)])
    assert translator_of(server).translate([], "en", "fr") == []
    assert translator_of(server).translate([[], ["a", ""]], "en", "fr") == [
        Translation(None, "empty_story", "the story has no sentence"),
        Translation(None, "empty_sentence", "sentence 2 of the story itself is empty"),
    ]
    assert server.requests == []


def test_equal_stories_are_asked_for_once(misbehaving_server, translator_of):
    server = misbehaving_server([shout])
    stories = [["a"], ["b"], ["a"], ["a"]]
    results = translator_of(server).translate(stories, "en", "fr")
    assert [result.sentences for result in results] == [("A",), ("B",), ("A",), ("A",)]
    assert len(server.requests) == 2


def test_order_is_kept_and_concurrency_never_exceeded(misbehaving_server, translator_of):
    all_at_work = threading.Barrier(3, timeout=30)

    def later_stories_are_quicker(request):
        if request.number < 3:
            all_at_work.wait()
        number = int(story_of(request)[0].split()[1])
        return {**shout(request), "sleep_s": 0.06 if number % 4 == 0 else 0.01}

    server = misbehaving_server([later_stories_are_quicker])
    stories = [[f"story {number}", "end"] for number in range(24)]
    results = translator_of(server, concurrency=3).translate(stories, "en", "fr")
    assert [result.sentences for result in results] == [(f"STORY {number}", "END") for number in range(24)]
    assert max(request.in_flight for request in server.requests) == 3


def test_progress_counts_stories(misbehaving_server, translator_of, capsys):
    server = misbehaving_server([shout])
    translator = translator_of(server)
    translator.translate([["a"]], "en", "fr")
    assert capsys.readouterr().err == ""
    translator.translate([["a"], ["b"], ["b"], []], "en", "fr", progress=True)
    assert re.search(r"translating en -> fr: 100%.* 4/4 ", capsys.readouterr().err)


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        '{"sentences": ["Le chat dort.", "Il rêve."]}',
        '\n {"sentences": ["Le chat  dort.", "Il\\nrêve. "]}\n',
        '```json\n{"sentences": ["Le chat dort.", "Il rêve."]}\n```',
        '```\n{"sentences": ["Le chat dort.", "Il rêve."]}```',
        '{"sentences": ["1. Le chat dort.", "2) Il rêve."]}',
    ],
)
def test_answer_that_can_be_used(content):
    assert read_answer(content, CATS) == CHATS


def test_numbers_that_belong_to_the_story_stay():
    story = ["1. The cat sleeps.", "2. It dreams."]
    content = json.dumps({"sentences": ["1. Le chat dort.", "2. Il rêve."]})
    assert read_answer(content, story) == ("1. Le chat dort.", "2. Il rêve.")
    content = json.dumps({"sentences": ["1. Le chat dort.", "Il rêve."]})  # not the model's numbering
    assert read_answer(content, CATS) == ("1. Le chat dort.", "Il rêve.")


@pytest.mark.parametrize(
    ("content", "reason", "fault"),
    [
        ("Voici la traduction.", "malformed_answer", "it is not JSON"),
        ('Voici : {"sentences": ["a", "b"]}', "malformed_answer", "it is not JSON"),
        ('{"sentences": ["Le chat dort.", "Il', "malformed_answer", "it is not JSON"),
        ("[" * 100_000, "malformed_answer", "it is not JSON"),
        ("", "malformed_answer", "it is not JSON"),
        ('["Le chat dort.", "Il rêve."]', "malformed_answer", 'not an object with the list "sentences"'),
        ('{"phrases": ["a", "b"]}', "malformed_answer", 'not an object with the list "sentences"'),
        ('{"sentences": "Le chat dort. Il rêve."}', "malformed_answer", "not an object with the list"),
        ('{"sentences": ["a", 2]}', "malformed_answer", "something other than strings of text"),
        ('{"sentences": ["a", "\\ud83d"]}', "malformed_answer", "something other than strings of text"),
        ('{"sentences": ["a"]}', "wrong_sentence_count", "has 1 entries where the story has 2 sentences"),
        ('{"sentences": ["a", "b", "c"]}', "wrong_sentence_count", "has 3 entries where"),
        ('{"sentences": ["a", " "]}', "empty_sentence", "sentence 2 is empty"),
        ('{"sentences": ["1. a", "2. "]}', "empty_sentence", "sentence 2 is empty"),
    ],
)
def test_answer_that_cannot_be_used_is_told_to_the_model_and_dropped_in_the_end(
    misbehaving_server, translator_of, content, reason, fault
):
    server = misbehaving_server([answer(content)])
    (result,) = translator_of(server).translate([CATS], "en", "fr")
    assert (result.sentences, result.reason) == (None, reason)
    assert fault in result.message and result.message.endswith("(asked 3 times)")
    first, second, third = (request.json["messages"] for request in server.requests)
    assert len(first) == 1
    assert second == third and len(second) == 3  # the conversation does not grow
    assert second[:2] == [first[0], {"role": "assistant", "content": content or "(empty)"}]
    assert fault in second[2]["content"] and "exactly 2 non-empty strings" in second[2]["content"]


def test_right_at_the_second_attempt(misbehaving_server, translator_of):
    server = misbehaving_server([answer("no JSON"), answer(CHATS)])
    translator = translator_of(server)
    assert translator.translate([CATS], "en", "fr") == [Translation(CHATS)]
    assert translator.usage == Usage(requests=2, prompt_tokens=200, completion_tokens=20)


def test_a_bad_story_is_dropped_and_the_others_are_not_touched(misbehaving_server, translator_of):
    def merges_two_sentences_of_one_story(request):
        good = shout(request)
        return answer(["MERGED"]) if "bad" in story_of(request) else good

    server = misbehaving_server([merges_two_sentences_of_one_story])
    stories = [[f"story {number}", "good"] for number in range(6)]
    stories[2] = ["story 2", "bad"]
    results = translator_of(server, attempts=2).translate(stories, "en", "fr")
    assert [result.reason for result in results] == [None, None, "wrong_sentence_count", None, None, None]
    assert results[5].sentences == ("STORY 5", "GOOD")
    assert len(server.requests) == 7


@pytest.mark.parametrize(
    ("behaviour", "reason", "message"),
    [
        (answer("", finish_reason="content_filter"), "refused", "the content filter stopped the answer"),
        (answer("", refusal="I can't help with that."), "refused", "I can't help with that."),
        (answer('{"sentences": ["Le', finish_reason="length"), "truncated", "cut after 18 characters"),
        (
            {"status": 400, "body": {"error": {"message": "filtered", "code": "content_filter"}}},
            "refused",
            "status 400: filtered",
        ),
        (
            {"status": 400, "body": {"error": {"message": "no", "code": "context_length_exceeded"}}},
            "too_long",
            "status 400: no",
        ),
        (  # vLLM
            {"status": 400, "body": {"error": {"message": "maximum context length is 4096", "code": 400}}},
            "too_long",
            "maximum context length is 4096",
        ),
    ],
    ids=["content-filter", "refusal", "length", "azure-filter", "openai-length", "vllm-length"],
)
def test_fault_that_asking_again_does_not_mend(misbehaving_server, translator_of, behaviour, reason, message):
    server = misbehaving_server([behaviour])
    (result,) = translator_of(server).translate([CATS], "en", "fr")
    assert (result.sentences, result.reason) == (None, reason)
    assert message in result.message
    assert len(server.requests) == 1


# -- the service ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 429, "headers": {"Retry-After": "0.1"}}, id="429"),
        pytest.param({"status": 500}, id="500"),
        pytest.param({**answer(CHATS), "sleep_s": 30}, id="time-out"),
        pytest.param({**answer(CHATS), "cut_after": 100}, id="cut"),
        pytest.param({"body": "{", "headers": {"Content-Type": "application/json"}}, id="half-a-body"),
        pytest.param({"body": {"choices": []}}, id="no-choice"),
        pytest.param({"body": {"choices": [{"index": 0}]}}, id="no-message"),
        pytest.param(
            {"body": {"choices": [{"index": 0, "message": {"role": "assistant", "content": {"a": 1}}}]}},
            id="no-text",
        ),
    ],
)
def test_fault_of_the_service_is_no_attempt(misbehaving_server, translator_of, fault):
    server = misbehaving_server([fault, answer(CHATS)])
    translator = translator_of(server, attempts=1, timeout_s=1.0)
    assert translator.translate([CATS], "en", "fr") == [Translation(CHATS)]
    assert len(server.requests) == 2


def test_service_that_stays_broken_is_an_error_within_bounds(misbehaving_server, translator_of):
    server = misbehaving_server([{"status": 503, "body": {"error": {"message": "no workers"}}}])
    with pytest.raises(RuntimeError, match="failed after 4 tries: status 503: no workers"):
        translator_of(server, concurrency=2).translate([[str(number)] for number in range(50)], "en", "fr")
    assert 4 <= len(server.requests) <= 8  # at most four tries for each of the two under way


def test_wrong_key_is_an_error_at_once_that_does_not_show_it(misbehaving_server, translator_of):
    refusal = {"status": 401, "body": {"error": {"message": f"Incorrect API key provided: {KEY}."}}}
    server = misbehaving_server([refusal])
    translator = translator_of(server, concurrency=2)
    with pytest.raises(RuntimeError, match="status 401: Incorrect API key provided") as raised:
        translator.translate([[str(number)] for number in range(50)], "en", "fr")
    assert KEY not in str(raised.value)
    assert "OPENAI_API_KEY" in str(raised.value)
    assert len(server.requests) <= 2


def test_the_first_fault_is_reported_not_those_that_it_stopped(misbehaving_server, translator_of):
    def wrong_key_while_another_waits(request):
        if story_of(request) == ["first"]:
            return {"status": 500}
        return {"status": 401, "sleep_s": 0.2}

    server = misbehaving_server([wrong_key_while_another_waits])
    translator = translator_of(server, backoff_s=30.0, concurrency=2)
    with pytest.raises(RuntimeError, match="status 401"):
        translator.translate([["first"], ["second"]], "en", "fr")


# -- the cache -----------------------------------------------------------------------------------------------


def test_second_run_asks_for_nothing(misbehaving_server, translator_of):
    server = misbehaving_server([shout])
    stories = [[f"story {number}"] for number in range(5)]
    first = translator_of(server)
    results = first.translate(stories, "en", "fr")
    second = translator_of(server, concurrency=1, attempts=1, timeout_s=1.0)
    assert second.translate(stories, "en", "fr") == results
    assert len(server.requests) == 5
    assert first.usage == Usage(requests=5, prompt_tokens=500, completion_tokens=50)
    assert second.usage == Usage(cached_stories=5)


def test_the_same_model_elsewhere_is_not_paid_again(misbehaving_server, translator_of):
    server, elsewhere = misbehaving_server([shout]), misbehaving_server([shout])
    translator_of(server).translate([CATS], "en", "fr")
    translator_of(elsewhere).translate([CATS], "en", "fr")
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.5}, {"seed": 1}, {"options": {"top_p": 0.9}}],
    ids=["temperature", "seed", "options"],
)
def test_what_shapes_the_answer_is_part_of_the_key(misbehaving_server, translator_of, changes):
    server = misbehaving_server([shout])
    translator_of(server).translate([CATS], "en", "fr")
    translator_of(server, **changes).translate([CATS], "en", "fr")
    assert len(server.requests) == 2


def test_model_and_languages_and_every_sentence_are_part_of_the_key(misbehaving_server, translator_of):
    server = misbehaving_server([shout])
    translator = translator_of(server)
    translator.translate([CATS], "en", "fr")
    translator.translate([CATS], "en", "de")
    translator.translate([[*CATS[:-1], "It snores."]], "en", "fr")
    translator.model = "gpt-other"
    translator.translate([CATS], "en", "fr")
    assert len(server.requests) == 4


def test_dropped_stories_are_asked_for_again(misbehaving_server, translator_of):
    server = misbehaving_server([answer("no JSON"), answer(CHATS)])
    (dropped,) = translator_of(server, attempts=1).translate([CATS], "en", "fr")
    assert dropped.reason == "malformed_answer"
    assert translator_of(server).translate([CATS], "en", "fr") == [Translation(CHATS)]


def test_after_an_error_midway_only_the_missing_are_asked_for(misbehaving_server, translator_of):
    def breaks_at_the_seventh(request):
        return {"status": 403} if story_of(request) == ["story 6"] else shout(request)

    stories = [[f"story {number}"] for number in range(10)]
    broken = misbehaving_server([breaks_at_the_seventh])
    with pytest.raises(RuntimeError, match="status 403"):
        translator_of(broken, concurrency=1).translate(stories, "en", "fr")
    assert len(broken.requests) == 7
    mended = misbehaving_server([shout])
    results = translator_of(mended).translate(stories, "en", "fr")
    assert [result.sentences for result in results] == [(f"STORY {number}",) for number in range(10)]
    assert sorted(story_of(request)[0] for request in mended.requests) == [
        "story 6",
        "story 7",
        "story 8",
        "story 9",
    ]


# Imports the package's text folder only, as `import hf_clsi` takes seconds.
KILLED = """
import sys, types
package = types.ModuleType("hf_clsi"); package.__path__ = [sys.argv[1]]; sys.modules["hf_clsi"] = package
from hf_clsi.text.translation_openai import OpenAITranslator
translator = OpenAITranslator("gpt-test", base_url=sys.argv[2], cache=sys.argv[3], concurrency=2)
translator.translate([[f"story {number}"] for number in range(10)], "en", "fr")
"""


def test_killed_process_loses_only_what_was_under_way(misbehaving_server, translator_of, tmp_path):
    stalling = misbehaving_server(
        [lambda request: shout(request) if request.number < 5 else {**shout(request), "sleep_s": 30}]
    )
    package = Path(sys.modules[OpenAITranslator.__module__].__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(package), stalling.url, str(tmp_path / "cache")]
    )
    try:
        # Both threads wait for an answer, so each has stored all that it had before.
        while len(stalling.requests) < 7:
            assert child.poll() is None
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    assert len(stalling.requests) == 7
    mended = misbehaving_server([shout])
    results = translator_of(mended).translate([[f"story {number}"] for number in range(10)], "en", "fr")
    assert [result.sentences for result in results] == [(f"STORY {number}",) for number in range(10)]
    assert len(mended.requests) == 5


def test_without_a_cache_everything_is_asked_again(misbehaving_server, translator_of, tmp_path):
    server = misbehaving_server([shout])
    for _ in range(2):
        translator_of(server, cache=False).translate([CATS], "en", "fr")
    assert len(server.requests) == 2
    assert not (tmp_path / "cache").exists()


def test_default_cache_is_in_the_hugging_face_home(misbehaving_server, translator_of):
    server = misbehaving_server([shout])
    for _ in range(2):
        translator_of(server, cache=None).translate([["default place"]], "en", "fr")
    assert len(server.requests) == 1
    assert (Path(os.environ["HF_HOME"]) / "hf_clsi" / "translations" / "translations.sqlite").exists()


def test_cache_that_cannot_be_written_costs_nothing(misbehaving_server, translator_of, tmp_path):
    (tmp_path / "file").write_text("")
    server = misbehaving_server([shout])
    with pytest.raises(RuntimeError, match="cannot be used"):
        translator_of(server, cache=str(tmp_path / "file")).translate([CATS], "en", "fr")
    assert server.requests == []


def test_key_is_in_neither_settings_nor_repr_nor_cache(misbehaving_server, translator_of, tmp_path):
    server = misbehaving_server([shout])
    translator = translator_of(server)
    translator.translate([CATS], "en", "fr")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(translator.settings()) + repr(translator)
    assert KEY.encode() not in (tmp_path / "cache" / "translations.sqlite").read_bytes()


# -- settings ------------------------------------------------------------------------------------------------


def test_settings_record_the_prompt_and_refuse_another():
    settings = OpenAITranslator("gpt-4o").settings()
    assert settings["prompt_version"] == PROMPT_VERSION
    with pytest.raises(ValueError, match=r"written for prompt version 999, this is 1; drop prompt_version"):
        load_translator({**settings, "prompt_version": 999})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "the name of the model is missing"),
        ({"attempts": 0}, "attempts=0 and concurrency=8 must be at least 1"),
        ({"concurrency": 0}, "concurrency=0 must be at least 1"),
        ({"cache": True}, "cache=True names no folder"),
        ({"options": {"stream": True, "model": "x"}}, r"options may not set \['model', 'stream'\]"),
        ({"base_url": "https://sk-1@host/v1"}, "carries credentials"),
    ],
)
def test_settings_without_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        OpenAITranslator(**{"model": "gpt-4o", **changes})


def test_options_of_the_caller_are_copied():
    options = {"stop": ["x"]}
    translator = OpenAITranslator("gpt-4o", options=options)
    options["stop"].append("y")
    assert translator.options == {"stop": ["x"]}
