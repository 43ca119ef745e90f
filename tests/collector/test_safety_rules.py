"""What the operator says about projects: quotas, and what is kept."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costspan.delivery import Delivery
from costspan_collector.errors import QuotaError, RulesError
from costspan_collector.security.quota import Quota
from costspan_collector.security.rules import FILE, Rules
from costspan_collector.settings import MIB
from tests.collector.conftest import Start
from tests.collector.harness import PROTOBUF, spans


def rules(folder: Path, text: str) -> Rules:
    (folder / FILE).write_text(text)
    return Rules(folder)


def test_without_a_file_everything_passes_and_nothing_is_kept(tmp_path: Path) -> None:
    rule = Rules(tmp_path).of("acme")
    assert rule.quota is None
    assert rule.keep is None


def test_what_a_project_does_not_say_the_default_does(tmp_path: Path) -> None:
    known = rules(
        tmp_path,
        """
        [default]
        quota_mb_per_minute = 1
        redact = ["email"]
        [projects.acme]
        content = "keep"
        [projects."team b"]
        content = "keep"
        redact = []
        redact_regex = ['EMP-\\d+']
        """,
    )
    acme, b, other = known.of("acme"), known.of("team b"), known.of("other")
    assert acme.keep
    assert acme.keep("a@b.de EMP-1") == "[email] EMP-1"
    assert b.keep
    assert b.keep("a@b.de EMP-1") == "a@b.de [redacted]"
    assert other.keep is None
    assert acme.quota
    assert acme.quota is not other.quota  # each has its own
    assert known.of("acme").quota is acme.quota


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[default", "projects.toml: "),
        ("[defaults]", "defaults: Extra inputs are not permitted"),
        ("[projects.acme]\nquota = 3", r"projects.acme.quota: Extra inputs are not permitted; docs/security.md"),
        ("[default]\nquota_mb_per_minute = 0", "default.quota_mb_per_minute: Input should be greater than 0"),
        ("[default]\nquota_mb_per_minute = '3'", "default.quota_mb_per_minute: Input should be a valid number"),
        ("[default]\ncontent = 'yes'", "default.content: Input should be 'keep' or 'drop'"),
        ("[projects.a]\nredact = ['emial']", "no redaction rule 'emial'"),
        ("[projects.a]\nredact_regex = ['(']", r"the pattern '\(' cannot be used"),
        ("projects = 3", "projects: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_file_gets_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(RulesError, match=sentence):
        rules(tmp_path, text)


def test_a_change_holds_at_once_and_a_mistake_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = rules(tmp_path, "")
    (tmp_path / FILE).write_text("[default]\ncontent = 'keep'")
    assert known.of("acme").keep
    (tmp_path / FILE).write_text("[default]\ncontent = 'perhaps'")
    assert known.of("acme").keep
    assert "Input should be 'keep' or 'drop'" in caplog.text
    (tmp_path / FILE).unlink()
    assert known.of("acme").keep is None


def refusal(quota: Quota) -> QuotaError | None:
    try:
        quota.check("acme")
    except QuotaError as error:
        return error
    return None


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(0, 5000)), max_size=60), st.integers(1, 10_000))
@example([(0.0, 1026), (8.0, 0)], 1)  # after a whole number of seconds all but 10^-14 bytes are made up for
def test_no_more_passes_than_a_minutes_worth_at_once_and_the_rate_ever_after(steps: list[tuple[float, int]], rate: int) -> None:
    now_s = [0.0]
    quota = Quota(rate, lambda: now_s[0])
    passed, last = 0, 0
    for wait_s, size in steps:
        now_s[0] += wait_s
        if refused := refusal(quota):
            now_s[0] += refused.retry_after_s
            assert not refusal(quota)  # as promised
        quota.charge(size)
        passed, last = passed + size, size
        assert passed - last <= rate + now_s[0] * rate / 60 + 1e-3


def test_a_project_over_its_quota_is_told_when_to_come_back(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE).write_text("[projects.busy]\nquota_mb_per_minute = 0.2")
    running = start()
    body = spans(1000).body
    assert len(body) < 0.2 * MIB < 2 * len(body)
    statuses = [running.post("/v1/traces", body, headers={"costspan-project": "busy"}) for _ in range(4)]
    assert [answer.status_code for answer in statuses] == [200, 200, 429, 429]
    assert 1 <= int(statuses[-1].headers["retry-after"]) <= 60
    assert "'busy' has used up its 0.2 MB a minute" in statuses[-1].text
    assert running.post("/v1/traces", body, headers={"costspan-project": "calm"}).status_code == 200
    (tmp_path / "data" / FILE).write_text("")
    assert running.post("/v1/traces", body, headers={"costspan-project": "busy"}).status_code == 200


def test_the_sdk_waits_as_long_as_it_is_told(start: Start, tmp_path: Path) -> None:
    body = spans(1000).body
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE).write_text(f"[default]\nquota_mb_per_minute = {(len(body) - 100) / MIB}")
    running = start()
    delivery = Delivery(running.url, project="busy", client="app", stream="spans", patience_s=20)
    started_s = time.monotonic()
    assert delivery.send("/v1/traces", body, PROTOBUF, 1000)
    assert delivery.send("/v1/traces", spans(1, seed=1).body, PROTOBUF, 1)
    assert time.monotonic() - started_s >= 1  # its Retry-After
    running.drained()
    assert running.client().query("SELECT count() FROM spans WHERE project = 'busy'").result_rows == [(1001,)]
