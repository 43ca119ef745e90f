"""What a step says of those who are in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from costspan.semconv import Bound
from costspan_hooks.conformance import lives
from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.lives import Life, State
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.observer import Batching, Step


class Crowd:
    """Everybody who is in the engine, and what its steps did for them.

    Args:
        found: Where breaches go.
    """

    def __init__(self, found: Findings) -> None:
        self.inside: dict[str, Life] = {}
        self.rules: Batching | None = None
        self.last_step = -1
        self._found = found

    def batch(self) -> list[Life]:
        """Those who were admitted."""
        return [life for life in self.inside.values() if life.state is not State.WAITING]

    def step(self, step: Step) -> None:
        """Take a step in."""
        batch = self.batch()
        decoding = {life.info.request_id: life for life in batch if life.state is State.DECODE}
        self._check_step(step, decoding)
        self._check_blocks(step, batch)
        self._compute(step)
        for life in decoding.values():
            life.context, life.made, life.last_step = life.context + 1, life.made + 1, step.index
        for burst in step.bursts:
            lives.guess(self._found, decoding.get(burst.request_id), burst, step.index)
        self._check_once(step, Rule.BURST, (burst.request_id for burst in step.bursts))
        if self.rules:
            self._check_limits(step, self.rules, batch, len(decoding))
        self.last_step = step.index

    def _compute(self, step: Step) -> None:
        for chunk in step.chunks:
            if life := self.inside.get(chunk.request_id):
                lives.compute(self._found, life, chunk, step.index)
            else:
                self._found.add(Rule.ENQUEUED_FIRST, f"step {step.index} has a piece of {chunk.request_id}, who is not inside")
        self._check_once(step, Rule.CHUNK, (chunk.request_id for chunk in step.chunks))

    def _check_step(self, step: Step, decoding: dict[str, Life]) -> None:
        found, index = self._found, step.index
        found.unless(index == self.last_step + 1, Rule.STEP_INDEX, f"step {index} came after step {self.last_step}")
        found.unless(bool(step.chunks or decoding), Rule.SOMEBODY, f"step {index} has nobody in it")
        counted = step.decoding in {-1, len(decoding)}
        found.unless(
            counted, Rule.DECODING, f"in step {index} {step.decoding} decoded, and {len(decoding)} were past their prompts"
        )
        found.unless(step.padding >= 0, Rule.STEP_NUMBERS, f"step {index} has padding {step.padding}")
        even = step.expert_skew >= 1 - 1e-9 if step.experts else step.expert_skew == 0
        found.unless(even, Rule.STEP_NUMBERS, f"step {index} has {len(step.experts)} experts and skew {step.expert_skew}")
        waits = any(life.state is State.WAITING for life in self.inside.values())
        told = f"step {index} says that {step.bound} kept somebody out, and nobody waited"
        found.unless(waits or step.bound is Bound.NONE, Rule.BOUND, told)

    def _check_blocks(self, step: Step, batch: list[Life]) -> None:
        held = {tenant: blocks for tenant, blocks in step.blocks.items() if blocks}
        tenants = {life.info.tenant for life in batch}
        strangers, without = sorted(held.keys() - tenants), sorted(tenants - held.keys())
        self._found.unless(
            not strangers, Rule.BLOCKS, f"step {step.index} has blocks of {', '.join(strangers)}, not in the batch"
        )
        told = f"step {step.index} has no blocks of {', '.join(without)}, in the batch"
        self._found.unless(not (held and without), Rule.BLOCKS, told)
        self._found.unless(min(held.values(), default=0) >= 0, Rule.BLOCKS, f"step {step.index} has fewer than no blocks")
        for life in batch:
            life.held |= life.info.tenant in held

    def _check_once(self, step: Step, rule: Rule, names: Iterable[str]) -> None:
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        self._found.unless(not twice, rule, f"step {step.index} has {', '.join(twice)} more than once")

    def _check_limits(self, step: Step, rules: Batching, batch: list[Life], decoding: int) -> None:
        drafted = sum(burst.drafted for burst in step.bursts)
        tokens = sum(chunk.tokens for chunk in step.chunks) + decoding + drafted
        of_tenant = Counter(life.info.tenant for life in batch)
        limits = {
            f"{len(batch)} sequences in the batch of max_num_seqs": (len(batch), rules.max_num_seqs),
            f"{tokens} tokens of max_batched_tokens": (tokens, rules.max_batched_tokens),
            "blocks of one tenant of kv_blocks": (max(step.blocks.values(), default=0), rules.kv_blocks),
            "drafts of one request of draft_tokens": (max((b.drafted for b in step.bursts), default=0), rules.draft_tokens),
        }
        if rules.tenant_max_seqs:
            limits["sequences of one tenant of tenant_max_seqs"] = (max(of_tenant.values(), default=0), rules.tenant_max_seqs)
        for what, (count, limit) in limits.items():
            self._found.unless(count <= limit, Rule.LIMITS, f"step {step.index} has {what}: {count} of {limit}")
