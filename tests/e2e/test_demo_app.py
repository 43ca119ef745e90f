"""The support assistant against the bundled engine in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal

import pytest

from costspan_demo.app import Assistant, End, Reply
from costspan_demo.engine_client import EngineClient
from costspan_demo.processes import Child, Children, free_ports
from costspan_demo.tickets import Ticket
from costspan_demo.vendors import Meter


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    arguments = ["engine", "serve", "--preset", "tiny", "--port", str(port), "--threads", "1"]
    with Children() as children:
        children.start(Child("engine", arguments, f"{url}/health", tmp_path_factory.mktemp("logs"))).wait_ready(60)
        yield url


def ticket(**changes: object) -> Ticket:
    fields = {"number": 1, "at_s": 0.0, "tenant": "acme", "feature": "chat", "topic": 5, "handbook": 0, "handbook_tokens": 32}
    return Ticket(**{**fields, "prompt_tokens": 200, "output_tokens": 12, **changes})  # type: ignore[arg-type]  # test data


def answer(url: str, *tickets: Ticket) -> tuple[list[Reply], tuple[Meter, ...]]:
    async def all_of_them() -> tuple[list[Reply], tuple[Meter, ...]]:
        async with EngineClient(url, "tiny") as client:
            assistant = Assistant(client)
            replies = await asyncio.gather(*map(assistant.answer, tickets))
            assistant.close()
            return replies, assistant.meters

    return asyncio.run(all_of_them())


def test_an_answer_has_the_length_asked_for(engine: str) -> None:
    async def complete() -> str:
        async with EngineClient(engine, "tiny") as client:
            return (await client.complete("How do I export?", max_tokens=17, timeout_s=30)).text

    assert len(asyncio.run(complete())) == 17


def test_a_ticket_is_answered_and_every_vendor_counts(engine: str) -> None:
    [reply], (search, rerank, reviewers) = answer(engine, ticket(review_minutes=Decimal("0.4")))
    assert reply == Reply(End.ANSWERED, calls=1)
    assert [search.quantity, rerank.quantity, reviewers.quantity] == [Decimal(1), Decimal(1), Decimal("0.4")]


def test_stop_ends_the_call_and_nobody_reviews(engine: str) -> None:
    [reply], (_, _, reviewers) = answer(
        engine, ticket(output_tokens=400, stop_after_tokens=3, review_minutes=Decimal(1), rejected_answers=1)
    )
    assert reply == Reply(End.STOPPED, calls=1)
    assert reply.aborted == 1
    assert reviewers.quantity == 0


def test_closing_the_page_before_the_answer_begins_is_an_abort(engine: str) -> None:
    [reply], _ = answer(engine, ticket(prompt_tokens=4000, leaves_after_s=0.001))
    assert reply == Reply(End.STOPPED, calls=1)


def test_a_time_out_is_tried_again_within_its_ticket(engine: str) -> None:
    [reply], _ = answer(engine, ticket(output_tokens=64, timeouts_s=(0.02, 30.0)))
    assert reply == Reply(End.ANSWERED, calls=2, timeouts=1)
    assert (reply.aborted, reply.retried) == (1, 1)


def test_patience_ends_after_the_last_time_out(engine: str) -> None:
    [reply], _ = answer(engine, ticket(output_tokens=400, timeouts_s=(0.02, 0.02)))
    assert reply == Reply(End.GAVE_UP, calls=2, timeouts=2)
    assert (reply.aborted, reply.retried) == (2, 1)


def test_an_answer_that_fails_the_check_is_asked_again(engine: str) -> None:
    [reply], _ = answer(engine, ticket(rejected_answers=2))
    assert reply == Reply(End.ANSWERED, calls=3, refused=2)


def test_a_refused_request_fails_its_ticket_alone(engine: str) -> None:
    too_long, fine = ticket(prompt_tokens=20_000), ticket(number=2)
    replies, _ = answer(engine, too_long, fine)
    assert [reply.end for reply in replies] == [End.FAILED, End.ANSWERED]


def test_without_a_server_a_ticket_fails() -> None:
    [reply], _ = answer(f"http://127.0.0.1:{free_ports(1)[0]}", ticket())
    assert reply == Reply(End.FAILED, calls=1)
