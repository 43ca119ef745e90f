"""What the simulator's tests share: small deployments, and a run of one replica."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from costspan_engine.settings import EngineConfig
from costspan_engine.simulate.executor import SimulatedExecutor, StepTimes, VirtualClock
from costspan_engine.simulate.replay import Replica
from costspan_engine.simulate.tally import Served
from costspan_engine.simulate.traffic import Arrival
from costspan_hooks.cost_model import Coefficients, Regime, Roofline
from costspan_hooks.devices import Device
from costspan_hooks.observer import EngineObserver, ModelShape

SHAPE = ModelShape(parameters=1_000_000, bytes_per_parameter=2, kv_bytes_per_token=1000, flops_per_pair=3000)
# Some dozens of decoding sequences are enough to cross from memory to arithmetic.
ROOFLINE = Roofline(SHAPE, Device(flops_per_s=1e12, bytes_per_s=5e10))
HOST_NS = 1234


def times(fitted: Mapping[Regime, Coefficients] | None = None, host_ns: int = HOST_NS) -> StepTimes:
    return StepTimes(ROOFLINE, fitted, host_ns=host_ns)


def run(
    arrivals: Iterable[Arrival],
    config: EngineConfig,
    *,
    stepwise: bool = False,
    observer: EngineObserver | None = None,
    step_times: StepTimes | None = None,
) -> tuple[list[Served], Replica]:
    """Serve them on one replica."""
    served: list[Served] = []
    executor = SimulatedExecutor(step_times or times(), VirtualClock())
    replica = Replica(executor, config, max_context=10_000, serve=served.append, observer=observer, stepwise=stepwise)
    replica.run(arrivals)
    return served, replica
