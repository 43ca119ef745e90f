"""What kept text loses, and that no rule can stall the collector."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan_collector.errors import RulesError
from costspan_collector.security.redaction import NAMES, Redaction

EVERYTHING = Redaction(NAMES)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("write to ann.o'neil+x@mail.example.co.uk, please", "write to ann.o'[email], please"),
        ("pay with 4111 1111 1111 1111 12/27", "pay with [card] 12/27"),
        ("order 12345678 4111-1111-1111-1111 at 10", "order 12345678 [card] at 10"),
        ("378282246310005 and 6011000990139424", "[card] and [card]"),
        ("4111 1111 1111 1112 is no card", "4111 1111 1111 1112 is no card"),
        ("id 1790000000000000001", "id 1790000000000000001"),
        ("from 192.168.0.17:8080", "from [ipv4]:8080"),
        ("version 1.2.3, ratio 300.1.1.1", "version 1.2.3, ratio 300.1.1.1"),
        ("call +49 (30) 1234-5678 now", "call [phone] now"),
        ("call (415) 555-2671 or 415-555-2671", "call [phone] or [phone]"),
        ("key sk-proj-abcdefghijklmnop1234 leaked", "key [secret] leaked"),
        ("Authorization: Bearer abcdefghijklmnop==", "Authorization: [secret]"),
        ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nrest", "[secret]\nrest"),
        ("costspan_0123456789ab_" + "0f" * 32, "[secret]"),
        ("der Prozeß kostet 12 €, 日本", "der Prozeß kostet 12 €, 日本"),
    ],
)
def test_what_the_rules_find(text: str, kept: str) -> None:
    assert EVERYTHING(text) == kept


def test_only_the_rules_that_are_named_apply() -> None:
    assert Redaction(["email"])("a@b.de 10.0.0.1") == "[email] 10.0.0.1"


def test_own_patterns() -> None:
    assert Redaction([], [r"EMP-\d{4}", "Projekt \\w+"])("EMP-1234 für Projekt Ürsula") == "[redacted] für Projekt Ürsula"
    assert Redaction([], [r"EMP-\d{4}"])("EMP-1234, EMP-99") == "[redacted], EMP-99"


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(RulesError, match=r"no redaction rule 'emial': the rules are secret, email, card"):
        Redaction(["emial"])


@pytest.mark.parametrize("pattern", ["(", r"(?=look)", r"(a)\1", "a*", ""])
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str) -> None:
    with pytest.raises(RulesError, match="the pattern"):
        Redaction([], [pattern])


def test_a_pattern_that_would_stall_a_backtracking_engine_does_not() -> None:
    text = "a" * 200_000 + "!"
    assert Redaction([], [r"(a+)+$", r"(a|aa)+$"])(text) == text


@given(st.text(max_size=200))
def test_redacting_again_changes_nothing(text: str) -> None:
    once = EVERYTHING(text)
    assert EVERYTHING(once) == once


@given(st.integers(10**11, 10**18 - 1), st.sampled_from(["", "{} ", "{}-"]))
def test_every_number_with_a_right_check_digit_goes(body: int, form: str) -> None:
    def luhn(digits: str) -> int:
        return sum(sum(divmod(int(d) * (1 + at % 2), 10)) for at, d in enumerate(reversed(digits)))

    card = next(f"{body}{check}" for check in range(10) if luhn(f"{body}{check}") % 10 == 0)
    grouped = card if not form else "".join(form.format(card[at : at + 4]) for at in range(0, len(card), 4)).rstrip(" -")
    assert Redaction(["card"])(f"it is {grouped}.") == "it is [card]."
