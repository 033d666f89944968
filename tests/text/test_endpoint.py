"""Endpoint: what is asked again, what is final, and that the key stays where it is."""

import logging
import os
import pickle
import sys
import threading
import time

import pytest

from hf_clsi.text.endpoint import BadResponse, Endpoint, EndpointError, retry_after_s

KEY = "sk-very-secret-0123456789"
ANSWER = {
    "body": {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Bonjour."}}
        ],
    }
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    # Each proxy costs every client another reading of all certificates; the servers are on this machine.
    for name in [
        name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def chat(client):
    """What the translator does, in short."""
    response = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello."}])
    if not getattr(response, "choices", None):
        raise BadResponse(f"no choices in {response!r}")
    return response.choices[0].message.content


def endpoint_of(server, **changes):
    return Endpoint(**{"base_url": server.url, "backoff_s": 0.001, "timeout_s": 5.0, "retries": 3, **changes})


def status(code, message="broken", **headers):
    return {"status": code, "body": {"error": {"message": message}}, "headers": headers}


# -- faults that pass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_status_that_passes_is_asked_again(misbehaving_server, code):
    server = misbehaving_server([status(code), status(code), ANSWER])
    assert endpoint_of(server).request(chat) == "Bonjour."
    assert [request.path for request in server.requests] == ["/v1/chat/completions"] * 3


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({**ANSWER, "cut_after": -1}, id="connection-closed-before-the-answer"),
        pytest.param({**ANSWER, "cut_after": 0}, id="cut-after-the-headers"),
        pytest.param({**ANSWER, "cut_after": 40}, id="cut-in-the-body"),
        # The four that openai itself takes for an answer, or lets out as a ValueError.
        pytest.param({**ANSWER, "cut_after": 40, "declare_length": False}, id="cut-unnoticed-by-http"),
        pytest.param(
            {"body": '{"choices": [', "headers": {"Content-Type": "application/json"}}, id="half-json"
        ),
        pytest.param(
            {"body": b'{"a": "\xff"}', "headers": {"Content-Type": "application/json"}}, id="no-utf8"
        ),
        pytest.param({"body": "<html>", "headers": {"Content-Type": "text/html"}}, id="html-with-status-200"),
        pytest.param({"body": {"error": {"message": "overloaded"}}}, id="error-with-status-200"),
        pytest.param({"body": ""}, id="empty-body"),
    ],
)
def test_broken_answer_is_asked_again(misbehaving_server, fault):
    server = misbehaving_server([fault, ANSWER])
    assert endpoint_of(server).request(chat) == "Bonjour."
    assert len(server.requests) == 2


def test_time_out_is_asked_again(misbehaving_server):
    server = misbehaving_server([{**ANSWER, "sleep_s": 30}, ANSWER])
    assert endpoint_of(server, timeout_s=1.0).request(chat) == "Bonjour."
    assert len(server.requests) == 2


def test_retry_after_is_waited_for(misbehaving_server):
    server = misbehaving_server([status(429, **{"Retry-After": "0.3"}), ANSWER])
    assert endpoint_of(server).request(chat) == "Bonjour."
    first, second = server.requests
    assert 0.3 <= second.at_s - first.at_s < 30  # the machine may be busy; the back-off is 1 ms


def test_waits_grow_and_stay_below_the_limit(misbehaving_server, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server = misbehaving_server([status(500)])
    with pytest.raises(EndpointError):
        endpoint_of(server, retries=6, backoff_s=1.0, max_wait_s=8.0).request(chat)
    waits = [wait for wait in waits if wait >= 0.5]  # the server's threads may sleep too
    assert len(waits) == 6
    for wait, longest in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert longest / 2 <= wait <= longest


# -- faults that stay ----------------------------------------------------------------------------------------


def test_error_without_end_is_given_up_with_what_the_server_said(misbehaving_server):
    server = misbehaving_server([status(500, "the GPU is gone")])
    with pytest.raises(RuntimeError, match=r"failed after 4 tries: status 500: the GPU is gone\.$") as raised:
        endpoint_of(server).request(chat)
    assert len(server.requests) == 4
    assert raised.value.status == 500


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (400, "Check the model's name, and whether the server knows every setting that is sent."),
        (401, "Check the key in OPENAI_API_KEY."),
        (403, r"Check what the account may use \(the key in OPENAI_API_KEY\)."),
        (404, r"Check the base URL \(most end in /v1\) and the model's name."),
        (422, ""),
    ],
)
def test_final_status_is_not_asked_again_and_says_what_to_check(misbehaving_server, code, advice):
    server = misbehaving_server([status(code, "no")])
    with pytest.raises(EndpointError, match=rf"the request failed: status {code}: no\. ?{advice}$") as raised:
        endpoint_of(server).request(chat)
    assert len(server.requests) == 1
    assert raised.value.status == code


def test_empty_account_is_final_though_its_status_is_429(misbehaving_server):
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    server = misbehaving_server([{"status": 429, "body": body}])
    with pytest.raises(EndpointError, match="You exceeded your current quota") as raised:
        endpoint_of(server).request(chat)
    assert len(server.requests) == 1
    assert raised.value.code == "insufficient_quota"


def test_server_that_asks_for_more_patience_than_allowed(misbehaving_server):
    server = misbehaving_server([status(429, "come back tomorrow", **{"Retry-After": "86400"})])
    with pytest.raises(EndpointError, match=r"wait 86400 s, more than max_wait_s=120: .*come back tomorrow"):
        endpoint_of(server).request(chat)
    assert len(server.requests) == 1


def test_nobody_listens(misbehaving_server):
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9/v1: .*after 2 tries: connection failed"):
        Endpoint("http://127.0.0.1:9/v1", retries=1, backoff_s=0.001).request(chat)


def test_error_of_the_caller_is_neither_asked_again_nor_hidden(misbehaving_server):
    server = misbehaving_server([ANSWER])

    def wrong(client):
        chat(client)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        endpoint_of(server).request(wrong)
    assert len(server.requests) == 1


def test_long_message_is_trimmed(misbehaving_server):
    server = misbehaving_server([status(400, "x" * 10_000)])
    with pytest.raises(EndpointError) as raised:
        endpoint_of(server).request(chat)
    assert len(str(raised.value)) < 1000


def test_stop_ends_the_waiting(misbehaving_server):
    stop = threading.Event()

    def long_wait_that_is_soon_stopped(request):
        threading.Timer(0.2, stop.set).start()
        return status(429, **{"Retry-After": "60"})

    server = misbehaving_server([long_wait_that_is_soon_stopped, ANSWER])
    started_s = time.monotonic()
    with pytest.raises(EndpointError, match="stopped"):
        endpoint_of(server).request(chat, stop)
    assert time.monotonic() - started_s < 30
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after_s(headers, now_s=10.0) == seconds


# -- the key and the address ---------------------------------------------------------------------------------


def test_key_and_address_come_from_the_environment(misbehaving_server, monkeypatch):
    server = misbehaving_server([ANSWER])
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    Endpoint().request(chat)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_key_of_another_variable(misbehaving_server, monkeypatch):
    monkeypatch.setenv("MISTRAL_API_KEY", "another")
    server = misbehaving_server([ANSWER])
    endpoint_of(server, api_key_variable="MISTRAL_API_KEY").request(chat)
    assert server.requests[0].headers["authorization"] == "Bearer another"


def test_local_server_needs_no_key_and_is_not_given_that_of_openai(misbehaving_server):
    server = misbehaving_server([ANSWER])
    endpoint_of(server, api_key_variable="UNSET_VARIABLE").request(chat)
    assert server.requests[0].headers["authorization"] == "Bearer no-key"


def test_refused_without_a_key_says_that_none_was_sent(misbehaving_server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server = misbehaving_server([status(401, "who are you")])
    with pytest.raises(EndpointError, match="Check OPENAI_API_KEY, which is not set: no key was sent"):
        endpoint_of(server).request(chat)


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RuntimeError, match="OPENAI_API_KEY is not set"):
        Endpoint().request(chat)


def test_key_is_in_no_error_log_setting_or_pickle(misbehaving_server, caplog):
    caplog.set_level(logging.DEBUG)
    server = misbehaving_server([status(500, f"bad key {KEY}"), status(401, f"Incorrect API key: {KEY}.")])
    endpoint = endpoint_of(server)
    with pytest.raises(EndpointError, match=r"Incorrect API key: \*\*\*") as raised:
        endpoint.request(chat)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"  # it was in play
    assert raised.value.__cause__ is None and raised.value.__context__ is None
    assert KEY not in caplog.text
    assert KEY not in repr(endpoint) + repr(endpoint.settings())
    assert KEY.encode() not in pickle.dumps(endpoint)


def test_settings_make_the_endpoint_again(misbehaving_server):
    server = misbehaving_server([ANSWER])
    endpoint = endpoint_of(server)
    endpoint.request(chat)
    assert Endpoint(**endpoint.settings()) == endpoint == pickle.loads(pickle.dumps(endpoint))
    assert pickle.loads(pickle.dumps(endpoint)).request(chat) == "Bonjour."


def test_child_process_makes_its_own_connection(misbehaving_server, monkeypatch):
    server = misbehaving_server([ANSWER])
    endpoint = endpoint_of(server)
    client = endpoint.client()
    assert endpoint.client() is client
    monkeypatch.setattr(os, "getpid", lambda: -1)  # what a forked process would see
    assert endpoint.client() is not client


@pytest.mark.parametrize(
    "url",
    ["https://user:pass@example.com/v1", "https://example.com/v1?key=sk-1", "https://sk-1@example.com/v1"],
)
def test_address_that_carries_a_secret_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match=r"example\.com carries credentials") as raised:
        Endpoint(url)
    assert "sk-1" not in str(raised.value) and "pass@" not in str(raised.value)


def test_credentials_in_the_environments_address_are_not_repeated(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:hunter2@127.0.0.1:9/v1")
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9/v1: the request failed") as raised:
        Endpoint(retries=0).request(chat)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk-é", "Bearer sk-1"])
def test_key_that_cannot_be_sent_is_refused_without_repeating_it(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EndpointError, match="the key in OPENAI_API_KEY holds blanks or") as raised:
        Endpoint("http://127.0.0.1:9/v1").request(chat)
    assert "sk-" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [{"base_url": "localhost:8000"}, {"base_url": ""}, {"timeout_s": 0}, {"retries": -1}, {"backoff_s": -1}],
)
def test_settings_without_sense(changes):
    with pytest.raises(ValueError, match="must be"):
        Endpoint(**changes)


def test_missing_package_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match="pip install openai"):
        Endpoint("http://127.0.0.1:9/v1").request(chat)
