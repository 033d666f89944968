"""A call to an OpenAI-compatible server -> its result, asked again while the fault may pass.

    endpoint = Endpoint(base_url="http://localhost:8000/v1")
    answer = endpoint.request(lambda client: client.chat.completions.create(model=..., messages=...))

Translation (text/translation_openai.py) and speech both call through here. The `openai` package sends the
requests; the retrying is ours, since its own (3.54, tried against a misbehaving server) does not ask again
when a body of status 200 is no JSON, is cut where no length was declared, or holds an error; asks again when
the account is empty; gives up at once on a Retry-After of more than two minutes; and cannot be told how long
to back off.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from openai import OpenAI

Result = TypeVar("Result")

OPENAI_URL = "https://api.openai.com/v1"
RETRIED_STATUS = {408, 409, 425, 429}  # and everything from 500 on
# 429 also says that the account is empty; waiting does not fill it.
EMPTY_ACCOUNT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_MESSAGE_LENGTH = 500


class EndpointError(RuntimeError):
    """The service failed for good. status: of the last answer, None without one. code: the server's word."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.code = code


class BadResponse(Exception):
    """To be raised inside a call whose answer came with status 200 but is not what the API promises.

    It is treated like a fault of the server: the call is made again.
    """


@dataclass(frozen=True)
class _Fault:
    """What went wrong in one try. passing: whether it is worth asking again."""

    message: str
    passing: bool
    status: int | None = None
    code: str | None = None
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. May be shared by threads; after a fork or pickling it connects anew.

    base_url: ends in /v1 as a rule; None reads OPENAI_BASE_URL when the first request is made, and falls back
    to OpenAI itself. api_key_variable: the environment variable that holds the key; where it is unset, a
    server other than OpenAI's gets a placeholder. The key is never kept in a setting, shown or logged.
    timeout_s: of silence, after which a try counts as failed. retries: tries after the first. The n-th retry
    waits backoff_s * 2^(n-1) s, at most max_wait_s, less up to half of it at random, so that many clients
    do not come back at once; never less than the server's Retry-After.

    Raises ValueError: a setting that makes no sense, or a base URL that carries a key.
    """

    base_url: str | None = None
    api_key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    retries: int = 6
    backoff_s: float = 1.0
    max_wait_s: float = 120.0

    def __post_init__(self):
        if self.base_url is not None:
            parts = urlsplit(self.base_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(
                    f"base_url={self.base_url!r} must be a URL such as 'http://localhost:8000/v1'."
                )
            if parts.username or parts.password or parts.query:
                raise ValueError(
                    f"the base URL for {parts.hostname} carries credentials or a query; it is written into "
                    f"the settings of what is built. Put the key into {self.api_key_variable} instead."
                )
        if not self.timeout_s > 0 or self.retries < 0 or self.backoff_s < 0 or self.max_wait_s < 0:
            raise ValueError(
                f"timeout_s={self.timeout_s} must be positive, retries={self.retries}, "
                f"backoff_s={self.backoff_s} and max_wait_s={self.max_wait_s} not negative."
            )

    def settings(self) -> dict[str, Any]:
        """Keyword arguments that make this endpoint again, JSON values, without the key."""
        return asdict(self)

    @property
    def url(self) -> str:
        """Where the requests go now."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL

    def client(self) -> OpenAI:
        """The connected `openai.OpenAI`, one a process, without retries of its own.

        Raises:
            ImportError: the package openai is not installed.
            EndpointError: OpenAI itself is asked and there is no key.
        """
        with _CONNECTING:
            # One a process, since a fork must not share connections; beside the fields, which are frozen.
            pid, client = self.__dict__.get("_connection", (None, None))
            if pid != os.getpid():
                client = self._connect()
                self.__dict__["_connection"] = (os.getpid(), client)
        return client

    def __getstate__(self) -> dict[str, Any]:
        return self.settings()

    def request(self, call: Callable[[OpenAI], Result], stop: threading.Event | None = None) -> Result:
        """What `call(client)` returns, tried again after faults that may pass.

        Those are 408, 409, 425, 429 and 5xx, time-outs, connections that are refused or cut, bodies that are
        not JSON, and `BadResponse` raised by `call`. Other statuses are final at once.

        stop: when it is set, waiting ends and no further try is made.

        Raises:
            EndpointError (a RuntimeError): with status, the server's message and what to check.
        """
        client = self.client()
        for retry in range(self.retries + 1):
            if stop is not None and stop.is_set():
                raise EndpointError(f"{self._place}: stopped before the request was answered")
            result, fault = self._try(call, client)
            if fault is None:
                return result
            if not fault.passing:
                break
            if fault.retry_after_s > self.max_wait_s:
                raise self._error(
                    f"the server asks to wait {fault.retry_after_s:.0f} s, more than max_wait_s="
                    f"{self.max_wait_s:g}: {fault.message}",
                    fault,
                )
            if retry < self.retries:
                self._wait(retry, fault, stop)
        tries = f" after {retry + 1} tries" if retry else ""
        raise self._error(f"the request failed{tries}: {fault.message}", fault)

    @property
    def _place(self) -> str:
        """The address for messages; OPENAI_BASE_URL may carry credentials."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    def _connect(self) -> OpenAI:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ImportError(
                "an OpenAI-compatible endpoint is called through the package openai, which is not installed: "
                "pip install openai"
            ) from error
        url, key = self.url, self._key()
        if not key and urlsplit(url).hostname == urlsplit(OPENAI_URL).hostname:
            raise EndpointError(
                f"{self._place} needs a key, and {self.api_key_variable} is not set. Set it, or give the "
                "base_url (or OPENAI_BASE_URL) of another server."
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            # The transport would refuse it too, and quote it.
            raise EndpointError(
                f"the key in {self.api_key_variable} holds blanks or characters that cannot be sent; set it "
                "anew."
            )
        return OpenAI(base_url=url, api_key=key or "no-key", timeout=self.timeout_s, max_retries=0)

    def _key(self) -> str:
        return os.environ.get(self.api_key_variable, "").strip()

    def _try(self, call: Callable[[OpenAI], Result], client: OpenAI) -> tuple[Result | None, _Fault | None]:
        """The result, or what went wrong: nothing is raised here, so that no exception drags the request's
        headers along as its cause."""
        import openai

        try:
            return call(client), None
        except openai.APIStatusError as error:
            return None, self._status_fault(error)
        except openai.APITimeoutError:
            return None, _Fault(f"no answer within {self.timeout_s:g} s", passing=True)
        except openai.APIConnectionError as error:
            return None, _Fault(self._clean(f"connection failed: {error.__cause__ or error}"), passing=True)
        except BadResponse as error:
            return None, _Fault(self._clean(str(error)), passing=True, status=200)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return None, _Fault(f"the body of the answer is not JSON: {error}", passing=True, status=200)

    def _status_fault(self, error: Any) -> _Fault:
        """An answer with status 4xx or 5xx -> what it says."""
        status, body = error.status_code, error.body
        message = body.get("message") if isinstance(body, dict) else None
        message = self._clean(str(message or error.response.text or error.message))
        variable = self.api_key_variable
        key = f"the key in {variable}" if self._key() else f"{variable}, which is not set: no key was sent"
        check = {
            400: " Check the model's name, and whether the server knows every setting that is sent.",
            401: f" Check {key}.",
            403: f" Check what the account may use ({key}).",
            404: " Check the base URL (most end in /v1) and the model's name.",
        }.get(status, "")
        return _Fault(
            f"status {status}: {message}{'' if message.endswith('.') else '.'}{check}",
            passing=(status in RETRIED_STATUS or status >= 500) and error.code not in EMPTY_ACCOUNT,
            status=status,
            code=error.code,
            retry_after_s=retry_after_s(error.response.headers),
        )

    def _clean(self, message: str) -> str:
        """One short line; servers like to quote the key that they refuse."""
        message = " ".join(message.split())
        if key := self._key():
            message = message.replace(key, "***")
        return message if len(message) <= _MESSAGE_LENGTH else message[:_MESSAGE_LENGTH] + "..."

    def _error(self, message: str, fault: _Fault) -> EndpointError:
        return EndpointError(f"{self._place}: {message}", fault.status, fault.code)

    def _wait(self, retry: int, fault: _Fault, stop: threading.Event | None) -> None:
        backoff_s = min(self.backoff_s * 2.0 ** min(retry, 60), self.max_wait_s)
        # Differs from process to process on purpose, so it is no part of any seed.
        jitter_s = backoff_s / 2 * random.SystemRandom().random()
        wait_s = max(backoff_s - jitter_s, fault.retry_after_s + jitter_s if fault.retry_after_s else 0)
        if stop is None:
            time.sleep(wait_s)
        else:
            stop.wait(wait_s)


_CONNECTING = threading.Lock()


def retry_after_s(headers: Any, now_s: float | None = None) -> float:
    """How long a server asks to wait, in seconds: 0 if it does not, or asks for nothing sensible.

    Reads `retry-after-ms`, and `retry-after` in seconds or as a date.

    >>> retry_after_s({"retry-after": "1.5"})
    1.5
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit_s
        except ValueError:
            try:
                moment = email.utils.parsedate_to_datetime(value)
            except ValueError:
                continue
            seconds = moment.timestamp() - (time.time() if now_s is None else now_s)
        if seconds == seconds:  # not NaN
            return max(seconds, 0.0)
    return 0.0
