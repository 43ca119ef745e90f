from __future__ import annotations

from collections import Counter
from decimal import Decimal
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan_demo import prompt
from costspan_demo.corpus import passages
from costspan_demo.errors import DemoError
from costspan_demo.stack import KV_BLOCKS
from costspan_demo.tickets import PATIENT_S, Ticket
from costspan_demo.traces import azure_rows, servegen_windows
from costspan_demo.workload import ANSWER_FACTOR, DEFAULT_REQUESTS, PROMPT_FACTOR, TENANT_OF_CLIENT, build, tenant_sequence

SEEDS = st.integers(0, 2**32)


def test_slices_hold_what_their_notice_says() -> None:
    rows, windows = azure_rows(), servegen_windows()
    assert len(rows) == 600
    assert rows[0].at_s == 0
    assert all(before.at_s < after.at_s for before, after in pairwise(rows))
    assert 100 < rows[-1].at_s < 102
    assert Counter(window.client for window in windows) == dict.fromkeys(TENANT_OF_CLIENT, 6)
    assert {window.family for window in windows} == {"Gamma", "Weibull"}


@given(seed=SEEDS)
@settings(max_examples=15)
def test_same_seed_same_workload(seed: int) -> None:
    assert build(seed) == build(seed)


def test_another_seed_another_workload() -> None:
    assert build(1).tickets != build(2).tickets


@given(seed=SEEDS)
@settings(max_examples=25)
def test_quotas_hold_for_every_seed(seed: int) -> None:
    workload = build(seed)
    tickets = workload.tickets
    stopped = [ticket for ticket in tickets if ticket.stop_after_tokens is not None]
    left = [ticket for ticket in tickets if ticket.leaves_after_s is not None]
    impatient = [ticket for ticket in tickets if len(ticket.timeouts_s) > 1]
    # Every impatient client makes a second call at least, and so does every answer that fails the check.
    assert len(tickets) + len(impatient) + round(0.06 * DEFAULT_REQUESTS) >= 340
    assert len(stopped) + len(left) >= 40
    assert all(4 <= (ticket.stop_after_tokens or 0) <= ticket.output_tokens // 2 for ticket in stopped)
    assert impatient
    assert {ticket.tenant for ticket in impatient} == {"ember"}
    assert not {ticket.number for ticket in stopped} & {ticket.number for ticket in impatient + left}
    assert {ticket.tenant for ticket in tickets} == set(TENANT_OF_CLIENT.values())
    assert 95 < workload.duration_s < 110
    assert sum(ticket.rejected_answers for ticket in tickets) == round(0.06 * DEFAULT_REQUESTS)


@given(seed=SEEDS)
@settings(max_examples=15)
def test_tickets_are_numbered_in_the_order_of_arrival(seed: int) -> None:
    tickets = build(seed).tickets
    assert [ticket.number for ticket in tickets] == list(range(1, len(tickets) + 1))
    assert list(tickets) == sorted(tickets, key=lambda ticket: ticket.at_s)


def test_trouble_is_dated_and_tells_what_it_did() -> None:
    workload = build(7)
    assert [trouble.name for trouble in workload.troubles] == [
        "very long prompts",
        "users who leave",
        "users who press stop",
        "time-outs that retry",
        "cache too small for two",
    ]
    for trouble in workload.troubles:
        assert 0 <= trouble.start_s <= trouble.end_s <= workload.duration_s
        assert trouble.tickets > 0
        assert trouble.tenants


def test_the_cache_is_large_enough_for_one_and_full_with_two() -> None:
    tickets = build(7).tickets
    prefixes: dict[str, dict[int, int]] = {}
    for ticket in tickets:
        prefixes.setdefault(ticket.tenant, {})[ticket.handbook] = ticket.handbook_tokens
    needed = {tenant: sum(prefixes[tenant].values()) for tenant in ("acme", "cobalt")}
    assert all(tokens < KV_BLOCKS * 16 * 0.6 for tokens in needed.values())
    assert sum(needed.values()) >= KV_BLOCKS * 16
    assert max(ticket.prompt_tokens + ticket.output_tokens for ticket in tickets) < KV_BLOCKS * 16


def test_lengths_are_the_traces_scaled() -> None:
    rows, workload = azure_rows(), build(7)
    plain = [ticket for ticket in workload.tickets if ticket.feature != "digest"]
    for ticket, row in zip(plain, rows, strict=False):
        assert ticket.output_tokens == max(8, round(row.generated_tokens * ANSWER_FACTOR))
        assert ticket.prompt_tokens - ticket.handbook_tokens == max(64, round(row.context_tokens * PROMPT_FACTOR))


@given(seed=SEEDS, count=st.integers(1, 600))
@settings(max_examples=25)
def test_tenant_sequence_has_the_length_asked_for(seed: int, count: int) -> None:
    assert len(tenant_sequence(servegen_windows(), count, Random(seed))) == count


def test_shares_of_tenants_are_the_rates_of_clients() -> None:
    windows = servegen_windows()
    total = sum(window.rate for window in windows)
    drawn = Counter(tenant_sequence(windows, 100_000, Random(1)))
    for client, tenant in TENANT_OF_CLIENT.items():
        share = sum(window.rate for window in windows if window.client == client) / total
        assert drawn[tenant] / 100_000 == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("requests", [0, -3, 601])
def test_more_than_the_slice_holds_is_refused_in_a_sentence(requests: int) -> None:
    with pytest.raises(DemoError, match="not between 1 and 600"):
        build(7, requests)


def test_a_handful_of_requests_is_a_workload_too() -> None:
    workload = build(7, 5)
    assert 5 < len(workload.tickets) <= 8


@given(seed=SEEDS)
@settings(max_examples=5)
def test_prompts_have_exactly_the_length_asked_for(seed: int) -> None:
    for ticket in build(seed, 60).tickets:
        text = prompt.build(ticket, passages()[:2])
        assert text.isascii()
        assert len(text) == ticket.prompt_tokens
        assert text.endswith("?\nAnswer:")


def test_prompts_share_their_handbook_and_nothing_more() -> None:
    def text(number: int, tenant: str) -> str:
        return prompt.build(
            Ticket(number, 0.0, tenant, "chat", 3, 2, handbook_tokens=512, prompt_tokens=900, output_tokens=9), passages()[:2]
        )

    one, two, other = text(1, "acme"), text(2, "acme"), text(1, "cobalt")
    assert one[:512] == two[:512]
    assert one[512:544] != two[512:544]
    assert one[:16] != other[:16]


def test_tickets_are_patient_unless_told_otherwise() -> None:
    ticket = Ticket(1, 0.0, "acme", "chat", 0, 0, 0, 100, 10)
    assert ticket.stays
    assert ticket.timeouts_s == (PATIENT_S,)
    assert ticket.review_minutes == Decimal(0)
