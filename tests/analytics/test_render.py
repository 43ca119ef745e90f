"""Tables show every name as it is and every number whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from costspan_analytics import render

NAMES = ["[red]", "[/]", "o'brien; DROP TABLE spans", "x" * 300, "emoji 🦊", "<script>"]


def shown(renderable: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_tenant_may_be_called_anything(name: str) -> None:
    row = {"tenant": name, "usd": 1234.5, "waste_usd": 0.25, "postings": 7}
    text = shown(render.cost_table({"by": "tenant", "rows": [row], "posted_usd": 1234.5, "waste_usd": 0.25, "unpriced": []}))
    assert name[:30] in text
    assert "$1,234.50" in text
    assert "$0.250000" in text
    blame = [{"tenant": name, "culprit": "other", "mechanism": "queue", "ms": 1.0}]
    tail = {
        "requests": 1,
        "tail_requests": 1,
        "level": 0.95,
        "quantiles": [],
        "phases": [],
        "blame": blame,
        "model_error": {},
        "slowest": [],
    }
    assert name[:30] in shown(render.tail_tables(tail))


def test_money_is_never_cut_off() -> None:
    row = {
        "unit_kind": "ticket",
        "tenant": "a-rather-long-name",
        "units": 1_000_000,
        "resolved": 999_999,
        "cost_usd": 123_456_789.12,
        "waste_usd": 0.000001,
        "usd_per_resolved": 123.45,
        "value_usd": 2_500_000.0,
    }
    text = shown(render.units_table({"rows": [row], "shared_usd": 0.5}), width=120)
    assert all(number in text for number in ("$123,456,789.12", "$0.000001", "$123.45", "$2,500,000.00"))


def test_small_and_missing_amounts() -> None:
    assert render.usd(None) == "–"
    assert render.usd(0.0000014) == "$0.000001"
    assert render.percent(None) == "–"
    assert "nothing" not in shown(render.verdict(holds=True))


def test_usage_without_a_price_is_never_shown_as_nothing() -> None:
    rows = [{"sku": sku, "usd": 0.0, "waste_usd": 0.0, "postings": 1} for sku in ("tokens.openai.gpt.input", "free")]
    cost = {"by": "sku", "rows": rows, "posted_usd": 0.0, "waste_usd": 0.0, "unpriced": ["tokens.openai.gpt.input"]}
    lines = shown(render.cost_table(cost)).splitlines()
    assert ["no price" in line for line in lines if "tokens.openai" in line or "free" in line][:2] == [True, False]
