"""Where scenarios are played: submits, waits, and compares what was told with what was asked and what callers got."""

from __future__ import annotations

import random
from collections.abc import Callable

from costspan.semconv import Outcome
from costspan_hooks.conformance.driver import Driver
from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.conformance.witness import WAIT_S, Told, Witness

_ENDLESS = 256
"""An answer long enough for its client to leave in the middle."""


class Skipped(Exception):  # noqa: N818 - it is no error: the engine cannot do this, and the report says why
    """A scenario cannot be played; the message says why."""


class Stage:
    """One engine, its driver and what it tells.

    Args:
        driver: Leads the engine.
        told: What the engine tells.
        found: Where breaches go.
    """

    def __init__(self, driver: Driver, told: Witness, found: Findings) -> None:
        self.told = told
        self.abilities = able = driver.abilities
        self._driver = driver
        self._found = found
        self._asked: dict[str, tuple[str, int]] = {}
        self._random = random.Random(0)  # noqa: S311 - token ids, not secrets
        self.short = min(8, able.max_batched_tokens, able.max_context // 4)
        self.medium = min(64, able.max_batched_tokens if not able.chunked_prefill else 64, able.max_context // 2)
        self.long = min(3 * able.max_batched_tokens + 1, able.max_context // 2, (able.kv_tokens or 2 * able.max_context) // 2)

    def prompt(self, tokens: int) -> list[int]:
        """A prompt that begins like no other."""
        return [self._random.randint(1, 99) for _ in range(tokens)]

    def endless(self, prompt: int) -> int:
        """The longest answer that makes sense after so long a prompt."""
        return min(_ENDLESS, self.abilities.max_context - prompt)

    # --- what a scenario does ----------------------------------------------------------------------------------------

    def submit(self, tenant: str, prompt: int | list[int], max_tokens: int) -> str:
        """Hand in a request; one of so many tokens begins like no other."""
        tokens = self.prompt(prompt) if isinstance(prompt, int) else prompt
        name = self._driver.submit(tenant, tokens, max_tokens)
        self._asked[name] = tenant, len(tokens)
        return name

    def leave(self, name: str) -> None:
        """Let a request's client leave."""
        self._driver.cancel(name)

    def run(self, tenant: str, prompt: int | list[int], max_tokens: int) -> Told:
        """A request from its arrival to its end, as long as it was asked to be."""
        told = self.finished(self.submit(tenant, prompt, max_tokens))
        made = told.removal.output_tokens if told.removal else 0
        self.expect(made == max_tokens, f"asked for {max_tokens} tokens, and {made} were made", told)
        return told

    def finished(self, name: str) -> Told:
        """Wait for an answer that nobody cut short."""
        told = self._over(name, exact=True)
        outcome = told.removal.outcome if told.removal else None
        self.expect(outcome is Outcome.OK, f"was let finish, and ended {outcome}", told)
        return told

    def left(self, name: str) -> Told:
        """Wait until a request whose client left is gone."""
        told = self._over(name, exact=False)
        outcome = told.removal.outcome if told.removal else None
        self.expect(outcome in {Outcome.CANCELLED, Outcome.ABANDONED}, f"was cancelled, and ended {outcome}", told)
        return told

    def stop(self) -> None:
        """End the engine."""
        self._driver.stop()

    def clear(self) -> None:
        """Wait until nobody is left of a scenario that ended early."""
        left = [name for name in self._asked if not self._gone(name)]
        if self.abilities.cancels:
            for name in left:
                self._driver.cancel(name)
        self.told.wait(lambda: all(map(self._gone, left)))

    # --- what it asks ------------------------------------------------------------------------------------------------

    def needs(self, holds: bool, why: str) -> None:
        """Skip the scenario unless ``holds``.

        Raises:
            Skipped: With the reason.
        """
        if not holds:
            raise Skipped(why)

    def expect(self, holds: bool, told: str, of: Told | None = None) -> None:
        """Something that must have been told."""
        who = f"{of.request.request_id} of tenant {of.request.tenant}" if of else "the kit"
        self._found.unless(holds, Rule.SHOWN, f"{who} {told}")

    def count(self, tenant: str, condition: Callable[[Told], bool]) -> int:
        """How many of a tenant's requests are so."""
        return sum(condition(told) for told in self.told.of(tenant))

    def any(self, tenant: str, condition: Callable[[Told], bool]) -> bool:
        """Whether one of a tenant's requests is so."""
        return self.count(tenant, condition) > 0

    def steps(self, tenant: str) -> range:
        """From the first to the last step of a tenant."""
        steps = [step for told in self.told.of(tenant) for step in told.steps]
        return range(min(steps, default=0), max(steps, default=-1) + 1)

    def _gone(self, name: str) -> bool:
        told = self.told.requests.get(name)
        return told is not None and told.removal is not None

    def _over(self, name: str, *, exact: bool) -> Told:
        """Wait for the caller's end and the engine's, and compare them."""
        got = self._driver.wait(name, WAIT_S)
        self.needs(self.told.wait(lambda: self._gone(name)), f"{name} was over for its caller, and its removal was not told")
        told = self.told.requests[name]
        tenant, prompt = self._asked[name]
        same = (told.request.tenant, told.request.prompt_tokens) == (tenant, prompt)
        said = f"{name} of {tenant} with {prompt} tokens was told as {told.request.tenant} with {told.request.prompt_tokens}"
        self._found.unless(same, Rule.AS_ASKED, said)
        made = told.removal.output_tokens if told.removal else 0
        said = f"{name}'s caller got {got} tokens, and {made} were told"
        self._found.unless(got == made if exact else got <= made, Rule.AS_ASKED, said)
        return told
