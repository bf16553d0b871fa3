"""Answers of a model behind an OpenAI-compatible endpoint: vLLM, llama.cpp, a gateway.

The `openai` client does the talking (extra `server`): it sends again, with growing pauses, what
failed on the way or came back as 408, 409, 429 or 5xx, and waits as long as `Retry-After` says.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from anchortune.config import ServerSection
from anchortune.errors import EvaluationError
from anchortune.evaluation.config import GenerationSection
from anchortune.evaluation.engine import OnAnswer, item_seed, joined_system
from anchortune.evaluation.items import Finish, Item

Result = TypeVar("Result")
_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}


def make_client(section: ServerSection) -> Any:
    """An ``openai.OpenAI`` client with the section's key, time-out and retries.

    Nothing but the key named is sent: neither ``OPENAI_API_KEY`` nor what else the environment
    happens to hold for another service.

    Raises:
        EvaluationError: the package is missing, or the key's variable is unset.
    """
    if importlib.util.find_spec("openai") is None:
        raise EvaluationError(
            "a server needs the package openai: pip install 'anchortune[server]'."
        )
    key = "none"
    if section.api_key_env is not None:
        key = os.environ.get(section.api_key_env, "").strip()
        if not key:
            raise EvaluationError(
                f"server.api_key_env names {section.api_key_env}, which is not set here; export it."
            )
    import openai

    unsent: Any = openai.Omit()
    return openai.OpenAI(
        base_url=section.url.rstrip("/"),
        api_key=key,
        default_headers={
            "OpenAI-Organization": unsent,
            "OpenAI-Project": unsent,
        },
        timeout=section.timeout_s,
        max_retries=section.retries,
    )


def explain(error: Exception, section: ServerSection) -> EvaluationError:
    """A failed request as one sentence that says what to mend."""
    import openai

    where = f"server {section.url}"
    key = os.environ.get(section.api_key_env or "", "").strip()

    def _line(said: object) -> str:
        """Its first line; the key, which a server may repeat, as the name of its variable."""
        text = str(said).strip().replace(key, f"${section.api_key_env}" if key else "")
        return text.splitlines()[0][:200] if text else type(said).__name__

    if isinstance(error, openai.APITimeoutError):
        return EvaluationError(
            f"{where} did not answer within {section.timeout_s:g} s, {section.retries} retries "
            "included; raise server.timeout_s or lower server.concurrency."
        )
    if isinstance(error, openai.APIConnectionError):
        cause = _line(error.__cause__ or error)
        return EvaluationError(f"{where} cannot be reached ({cause}); is it running?")
    if isinstance(error, openai.APIStatusError):
        reason = _line(error.message).removeprefix(f"Error code: {error.status_code} - ")
        said = f"HTTP {error.status_code}: {reason}"
        if error.status_code in (401, 403):
            sent = f"${section.api_key_env}" if section.api_key_env else "no key"
            return EvaluationError(f"{where} refuses {sent} ({said}); set server.api_key_env.")
        if error.status_code in (404, 405):
            return EvaluationError(
                f"{where} has no model '{section.model}' or is no OpenAI endpoint ({said}); "
                "server.url goes up to and with /v1."
            )
        if error.status_code in (429, 500, 502, 503, 504):
            return EvaluationError(
                f"{where} failed {section.retries + 1} times ({said}); what was answered is kept, "
                "run it again to go on, or lower server.concurrency."
            )
        return EvaluationError(f"{where} refused a request ({said}).")
    return EvaluationError(f"{where} answered what is no chat completion ({_line(error)}).")


def in_parallel(
    jobs: Sequence[Callable[[], Result]],
    concurrency: int,
    on_result: Callable[[int, Result], None],
) -> None:
    """Runs jobs in threads; ``on_result`` is told each result in this thread, as they come.

    After an error nothing new is started; what is under way is told still, then it is raised.
    """
    pool = concurrent.futures.ThreadPoolExecutor(concurrency)
    places = {pool.submit(job): index for index, job in enumerate(jobs)}
    failed: BaseException | None = None
    try:
        for future in concurrent.futures.as_completed(places):
            if future.cancelled():
                continue
            error = future.exception()
            if error is None:
                on_result(places[future], future.result())
            elif failed is None:
                failed = error
                for other in places:
                    other.cancel()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failed is not None:
        raise failed


class ServerEngine:
    """A model behind a server.

    Args:
        section: where it is.
        generation: greedy or sampled; a seed of its own goes with each prompt.
        system: a system prompt put before every prompt, and before an item's own.
    """

    name = "server"

    def __init__(
        self, section: ServerSection, generation: GenerationSection, *, system: str | None = None
    ) -> None:
        self._section, self._generation, self._system = section, generation, system
        self._client = make_client(section)
        self._length_key = "max_tokens"

    def identity(self) -> dict[str, Any]:
        """The endpoint and the model's name there; what weights it has, only the server knows."""
        found: dict[str, Any] = {"server": self._section.url, "model": self._section.model}
        return found if self._system is None else {**found, "system": self._system}

    def facts(self) -> dict[str, Any]:
        """How it is asked."""
        return {"engine": self.name, "concurrency": self._section.concurrency}

    def probe(self) -> None:
        """Asks for one token, so that a wrong URL, model or key shows before any long work.

        Raises:
            EvaluationError: saying which of them it is.
        """
        import openai

        once = self._client.with_options(max_retries=min(1, self._section.retries))
        hello = Item(set="probe", prompt="Hello")
        try:
            try:
                self._ask(once, hello, 1)
            except openai.BadRequestError as error:
                if "max_completion_tokens" not in str(error):
                    raise
                self._length_key = "max_completion_tokens"  # OpenAI's newer models want this one
                self._ask(once, hello, 1)
        except openai.NotFoundError as error:
            raise self._unknown_model(error) from None
        except EvaluationError:
            raise
        except (openai.OpenAIError, ValueError) as error:
            raise explain(error, self._section) from None

    def _unknown_model(self, error: Exception) -> EvaluationError:
        """The 404 explained, with the models that the server says it has."""
        import openai

        told = explain(error, self._section)
        try:
            known = [model.id for model in self._client.with_options(max_retries=0).models.list()]
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            return told
        return EvaluationError(f"{told} It has: {', '.join(known[:8])}.") if known else told

    def answer(self, items: Sequence[Item], *, max_new_tokens: int, on_answer: OnAnswer) -> None:
        """Answers every item, ``concurrency`` at a time.

        Raises:
            EvaluationError: a request failed for good; the answers that came stay.
        """
        import openai

        def job(item: Item) -> Callable[[], tuple[str, Finish, int | None, dict[str, Any]]]:
            def work() -> tuple[str, Finish, int | None, dict[str, Any]]:
                try:
                    return self._ask(self._client, item, max_new_tokens)
                except openai.BadRequestError as error:
                    told = str(explain(error, self._section)).removesuffix(".")
                    raise EvaluationError(
                        f"{told}: prompt {item.id} of set '{item.set}'."
                    ) from None

            return work

        try:
            in_parallel(
                [job(item) for item in items],
                self._section.concurrency,
                lambda index, found: on_answer(index, *found),
            )
        except (openai.OpenAIError, ValueError) as error:
            raise explain(error, self._section) from None

    def _ask(
        self, client: Any, item: Item, max_new_tokens: int
    ) -> tuple[str, Finish, int | None, dict[str, Any]]:
        """One answer: text, finish, tokens, notes."""
        import openai

        options: dict[str, Any] = {self._length_key: max_new_tokens}
        if self._generation.temperature:
            options["seed"] = item_seed(self._generation.seed, item) % 2**31
            options["top_p"] = self._generation.top_p
        try:
            reply = client.chat.completions.create(
                model=self._section.model,
                messages=self._messages(item),
                temperature=self._generation.temperature,
                **options,
            )
        except openai.BadRequestError as error:
            if "content_filter" not in str(error) and error.code != "content_filter":
                raise
            return "", "unknown", 0, {"withheld": "content_filter"}
        choices = getattr(reply, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise EvaluationError(
                f"server {self._section.url} answered what is no chat completion; server.url goes "
                "up to and with /v1."
            )
        finish = str(choices[0].finish_reason)
        notes = {"withheld": finish} if finish == "content_filter" else {}
        tokens = reply.usage.completion_tokens if reply.usage is not None else None
        text = (choices[0].message.content or "").strip()
        return text, _FINISHES.get(finish, "unknown"), tokens, notes

    def _messages(self, item: Item) -> list[dict[str, str]]:
        system = joined_system(self._system, item.system)
        head = [] if system is None else [{"role": "system", "content": system}]
        return [*head, {"role": "user", "content": item.prompt}]
