"""The second law: requests, plus named waste, plus idle, equal the bill.

Postings come from the engine's ledger and the apps' spans. The bill comes from heartbeats and invoices, which know neither.
Both are priced from the same effective-dated book, and each difference is a line of its own. Money is Decimal throughout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cached_property

import polars as pl

from costspan.semconv import SKU_COST_USD, SKU_GPU_HOUR, UNKNOWN, Kind, Tokens, Waste
from costspan_analytics.errors import AnalyticsError
from costspan_analytics.model_calls import MILLION, ModelCalls, token_sku, usage
from costspan_analytics.parts import REQUEST, Part, load_parts
from costspan_analytics.store import Store, Window
from costspan_analytics.timeline import Timeline
from costspan_analytics.tries import Tries

NS_PER_HOUR = Decimal(3_600_000_000_000)
SCALE = Decimal("1e-12")
EXACT = Context(prec=76)
"""Digits enough for the product of any two amounts that the store can hold."""
LARGEST = Decimal(10) ** 15
"""US dollars; one posting above it is no money but a mistake of whoever reported the quantity."""
CURRENCY = "USD"
BASE_MODEL = "(base model)"
"""The adapter shown for requests that were computed with none."""
UNPRICED = "unpriced"
"""The category of usage that the price book has no rate for: shown with its quantity, never as $0 of something."""


@dataclass(frozen=True, slots=True)
class Price:
    """A row of the price book: what one of ``sku`` costs from ``from_ns`` on."""

    sku: str
    unit: str
    rate: Decimal
    from_ns: int
    source: str
    version: str


@dataclass(frozen=True, slots=True)
class Posting:
    """A row of the cost ledger; ``amount`` is ``quantity`` times the price's rate."""

    at_ns: int
    sku: str
    category: str
    tenant: str
    feature: str
    unit: str
    trace_id: str
    source_id: str
    quantity: Decimal
    price: Price | None
    tokens: int = 0
    culprit: str = ""
    adapter: str = ""
    kind: str = ""
    unit_kind: str = ""

    @property
    def amount(self) -> Decimal:
        """US dollars; zero while there is no price.

        Raises:
            AnalyticsError: It is more than :data:`LARGEST`.
        """
        if self.price is None:
            return Decimal(0)
        amount = EXACT.multiply(self.quantity, self.price.rate)
        if abs(amount) > LARGEST:
            raise AnalyticsError(
                f"{self.source_id} reports {self.quantity:.3g} of {self.sku}, which is {amount:.3g} {CURRENCY}: correct the "
                "app, and leave that time out with --since or --until."
            )
        return amount.quantize(SCALE)


@dataclass(frozen=True, slots=True)
class BillLine:
    """One thing that is billed, beside what was posted for it."""

    sku: str
    source: str
    quantity: Decimal
    bill: Decimal
    posted: Decimal

    @property
    def unexplained(self) -> Decimal:
        """What the bill has and the ledger has not."""
        return self.bill - self.posted


_DOLLAR = Price(SKU_COST_USD, CURRENCY, Decimal(1), 0, "the app", "")
"""What a dollar costs that an app says it spent."""


class PriceBook:
    """Effective-dated prices; the last row that is in force at a moment holds."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self._prices: dict[str, list[Price]] = defaultdict(list)
        for row in rows.iter_rows(named=True):
            _check_currency(f"The price of {row['sku']}", row["currency"])
            price = Price(row["sku"], row["unit"], Decimal(row["rate"]), row["from_ns"], row["source"], row["version"])
            self._prices[price.sku].append(price)

    def at(self, sku: str, at_ns: int) -> Price | None:
        """What one of ``sku`` cost at a moment, or None where nobody said."""
        in_force = [price for price in self._prices.get(sku, []) if price.from_ns <= at_ns]
        return in_force[-1] if in_force else None

    @property
    def changes(self) -> list[int]:
        """The moments at which a price begins to hold."""
        return sorted({price.from_ns for prices in self._prices.values() for price in prices})


def _check_currency(what: str, currency: str) -> None:
    if currency != CURRENCY:
        raise AnalyticsError(f"{what} is in {currency}: enter it in {CURRENCY}, the ledger adds one currency.")


@dataclass(frozen=True)
class Book:
    """The postings and the bill of a window."""

    postings: list[Posting]
    billed: dict[str, tuple[str, Decimal, Decimal]]  # sku: where the bill comes from, quantity, amount

    @classmethod
    def load(cls, store: Store, timeline: Timeline) -> Book:
        """Post everything in the store's window."""
        prices = PriceBook(store.frame("prices"))
        calls = ModelCalls.load(store, timeline.attempts)
        tries = Tries.load(store, calls)
        postings = [
            *_requests(load_parts(store, timeline, tries), prices, calls, _unit_kinds(timeline)),
            *_engines(store, prices),
            *bought(calls, prices, tries),
            *_usages(store, prices, tries),
        ]
        return cls(postings, _bill(store, prices))

    @cached_property
    def lines(self) -> list[BillLine]:
        """Bill and ledger side by side, by what is billed."""
        posted: dict[str, Decimal] = defaultdict(Decimal)
        for posting in self.postings:
            posted[posting.sku] += posting.amount
        return [
            BillLine(sku, *self.billed.get(sku, ("no bill", Decimal(0), Decimal(0))), posted[sku])
            for sku in sorted({*self.billed, *posted})
        ]

    @cached_property
    def unpriced(self) -> list[str]:
        """What was used at a time that has no price."""
        return sorted({posting.sku for posting in self.postings if posting.price is None and posting.quantity})

    @property
    def bill(self) -> Decimal:
        """Everything billed."""
        return sum((line.bill for line in self.lines), Decimal(0))

    @property
    def posted(self) -> Decimal:
        """Everything posted."""
        return sum((line.posted for line in self.lines), Decimal(0))

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The postings as a frame; ``amount`` is Decimal(38, 12)."""
        names = (
            "sku",
            "category",
            "tenant",
            "feature",
            "unit",
            "adapter",
            "kind",
            "unit_kind",
            "trace_id",
            "source_id",
            "culprit",
        )
        money = pl.Decimal(38, 12)
        frame = pl.DataFrame(
            {name: [getattr(posting, name) for posting in self.postings] for name in ("at_ns", "tokens", *names)}
            | {
                "quantity": [posting.quantity.quantize(SCALE, context=EXACT) for posting in self.postings],
                "amount": [posting.amount for posting in self.postings],
            },
            schema_overrides={
                "at_ns": pl.Int64,
                "tokens": pl.Int64,
                "quantity": money,
                "amount": money,
                **dict.fromkeys(names, pl.String),
            },
        )
        said = pl.when(pl.col("unit_kind") != "").then("unit_kind")
        least, most = (each.over("tenant", "unit") for each in (said.min(), said.max()))
        # Whoever is told the unit alone means the one of that name, where there is one.
        return frame.with_columns(unit_kind=pl.coalesce(said, pl.when(least == most).then(most), pl.lit("")))


def _unit_kinds(timeline: Timeline) -> dict[str, str]:
    """What kind of unit each call was made for. An engine is told the unit, and not what it is."""
    return dict(timeline.calls.select("span_id", "unit_kind").iter_rows())


def _requests(parts: Iterable[Part], prices: PriceBook, calls: ModelCalls, unit_kinds: Mapping[str, str]) -> Iterator[Posting]:
    for part in parts:
        attempt = part.attempt
        told = attempt["tenant"] != UNKNOWN  # else the client sent no baggage, and its span may know
        who = attempt if told else calls.who(attempt["engine"], attempt["request_id"]) or attempt
        yield _device_time(
            prices,
            attempt["device_kind"],
            attempt["removed_ns"],
            part.cost_ns,
            category=part.category,
            source_id=attempt["request_id"],
            who=(who["tenant"], who["feature"], who["unit"], who["trace_id"]),
            tokens=part.tokens,
            culprit=part.culprit,
            adapter=attempt["adapter"] or BASE_MODEL,
            kind=Kind.GENERATION,
            unit_kind=unit_kinds.get(attempt["parent_span_id"]) or who.get("unit_kind", ""),
        )


def _engines(store: Store, prices: PriceBook) -> Iterator[Posting]:
    for row in store.frame("engine_time", changes=prices.changes).iter_rows(named=True):
        for category in (Waste.IDLE, Waste.HOST_GAP, Waste.COLD_START, Waste.PADDING):
            yield _device_time(
                prices, row["device_kind"], row["at_ns"], row[category.value], category=category, source_id=row["engine"]
            )


def _device_time(
    prices: PriceBook,
    device_kind: str,
    at_ns: int,
    spent_ns: int,
    *,
    category: str,
    source_id: str,
    who: tuple[str, str, str, str] = ("", "", "", ""),
    tokens: int = 0,
    culprit: str = "",
    adapter: str = "",
    kind: str = "",
    unit_kind: str = "",
) -> Posting:
    sku = f"{SKU_GPU_HOUR}.{device_kind}"
    price = prices.at(sku, at_ns)
    # Rounded before it is priced: whoever multiplies the quantity that is shown by the rate gets the amount that is shown.
    hours = (spent_ns / NS_PER_HOUR).quantize(SCALE)
    return Posting(at_ns, sku, str(category), *who, source_id, hours, price, tokens, culprit, adapter, str(kind), unit_kind)


def bought(calls: ModelCalls, prices: PriceBook, tries: Tries) -> Iterator[Posting]:
    """What model calls cost whose tokens a provider charges for; a model is priced as it answered, else as it was asked for."""
    for call in calls.bought:
        lost = tries.fate((call["trace_id"], call["span_id"]))
        for kind, millions in usage(call):
            names = [token_sku(call["provider"], model, kind) for model in (call["model"], call["asked_model"]) if model]
            found = next((price for name in names if (price := prices.at(name, call["start_ns"]))), None)
            yield Posting(
                call["start_ns"],
                found.sku if found else next(iter(names), token_sku(call["provider"], UNKNOWN, kind)),
                str(lost or REQUEST) if found else UNPRICED,
                call["tenant"],
                call["feature"],
                call["unit"],
                call["trace_id"],
                call["span_id"],
                millions,
                found,
                tokens=int(millions * MILLION) if lost and kind == Tokens.OUTPUT else 0,
                kind=Kind.GENERATION.value,
                unit_kind=call["unit_kind"],
            )


def _usages(store: Store, prices: PriceBook, tries: Tries) -> Iterator[Posting]:
    for row in store.frame("usages").iter_rows(named=True):
        dollars = row["sku"].startswith(f"{SKU_COST_USD}.")
        price = _DOLLAR if dollars else prices.at(row["sku"], row["start_ns"])
        lost = tries.fate((row["trace_id"], row["span_id"]))
        yield Posting(
            row["start_ns"],
            row["sku"],
            str(lost or REQUEST) if price else UNPRICED,
            row["tenant"],
            row["feature"],
            row["unit"],
            row["trace_id"],
            row["span_id"],
            Decimal(row["quantity"]),
            price,
            kind=row["kind"],
            unit_kind=row["unit_kind"],
        )


def device_hours(heartbeats: pl.DataFrame) -> Iterator[tuple[str, int, Decimal]]:
    """(sku, when, hours) of each heartbeat; time that several processes report of one device counts once."""
    reached: dict[tuple[str, str], int] = {}
    for row in heartbeats.sort("start_ns").iter_rows(named=True):
        device = (row["host"], row["device"])
        start = max(row["start_ns"], reached.get(device, 0))
        reached[device] = max(row["end_ns"], reached.get(device, 0))
        yield f"{SKU_GPU_HOUR}.{row['device_kind']}", row["start_ns"], max(0, row["end_ns"] - start) / NS_PER_HOUR


def _bill(store: Store, prices: PriceBook) -> dict[str, tuple[str, Decimal, Decimal]]:
    """Device hours by heartbeat, and invoices; device hours that a vendor has invoiced are billed by the invoice alone."""
    invoices = store.frame("invoices").to_dicts()
    lines: list[tuple[str, str, Decimal, Decimal]] = []  # sku, where it comes from, quantity, amount
    invoiced: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in invoices:
        _check_currency(f"Invoice {row['invoice_id']} of {row['vendor']}", row["currency"])
        invoiced[row["sku"]].append((row["start_ns"], row["end_ns"]))
        share = _share_inside(row["start_ns"], row["end_ns"], store.window)
        quantity, amount = Decimal(row["quantity"]) * share, Decimal(row["amount"]) * share
        lines.append((row["sku"], f"invoice of {row['vendor']}", quantity, amount))
    for sku, at_ns, hours in device_hours(store.frame("heartbeats")):
        if not any(start <= at_ns < end for start, end in invoiced[sku]):
            price = prices.at(sku, at_ns)
            lines.append((sku, "heartbeat", hours, hours * (price.rate if price else 0)))
    return _by_sku(lines)


def _share_inside(start_ns: int, end_ns: int, window: Window) -> Decimal:
    """How much of an invoice's period lies in the window; one without a length is due at once."""
    if end_ns <= start_ns:
        return Decimal(1)
    return Decimal(min(end_ns, window.until) - max(start_ns, window.since)) / (end_ns - start_ns)


def _by_sku(lines: Iterable[tuple[str, str, Decimal, Decimal]]) -> dict[str, tuple[str, Decimal, Decimal]]:
    bill: dict[str, tuple[str, Decimal, Decimal]] = {}
    for sku, source, quantity, amount in lines:
        sources, so_far, sum_so_far = bill.get(sku, ("", Decimal(0), Decimal(0)))
        named = sources if source in sources.split(", ") else ", ".join(filter(None, (sources, source)))
        bill[sku] = (named, so_far + quantity, sum_so_far + amount)
    return bill
