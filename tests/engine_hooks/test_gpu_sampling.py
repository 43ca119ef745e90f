"""GPU samples and energy meters, through the real pynvml over a driver library written in Python (``fake_nvml``)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan_analytics.book import device_hours
from costspan_hooks import nvml
from costspan_hooks.heartbeat import Heartbeat
from costspan_hooks.meters import CpuMeter, GpuMeter, find_meter
from costspan_hooks.nvml import Gpu, host_gpus, visible_gpus
from costspan_hooks.records import SampleRecord
from costspan_hooks.sampler import Sampler
from tests.engine_hooks.fake_nvml import FakeDriver, FakeGpu, part

READINGS = (
    "utilization",
    "memory_bytes",
    "memory_total_bytes",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
    "throttle",
    "power_w",
    "energy_j",
)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No driver until a test installs one, nothing said, nothing chosen."""
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvml, "_told", set())
    pynvml._nvmlGetFunctionPointer_cache.clear()
    yield
    pynvml._nvmlGetFunctionPointer_cache.clear()


def two_gpus() -> tuple[FakeGpu, FakeGpu]:
    gpus = FakeGpu("GPU-aaaa1111"), FakeGpu("GPU-bbbb2222")
    FakeDriver(*gpus).install()
    return gpus


def uuids(gpus: list[Gpu]) -> list[str]:
    return [gpu.uuid for gpu in gpus]


def beats(**options: int) -> list[SampleRecord]:
    """What a heartbeat says that is stopped before its first second is over."""
    samples: list[SampleRecord] = []
    heartbeat = Heartbeat("h200", "engine-1", samples.append, **options)
    heartbeat.start()
    heartbeat.stop()
    return samples


# --- what a GPU says -----------------------------------------------------------------------------------------------------


def test_a_sample_says_what_the_driver_says_in_the_stores_units() -> None:
    device, _ = two_gpus()
    sampler = Sampler(visible_gpus(), "h200", "engine-1")
    device.millijoules = 5_612_500
    first, second = sampler.take()
    assert (first.device, first.device_kind, first.client) == ("GPU-aaaa1111", "h200", "engine-1")
    assert [getattr(first, name) for name in READINGS] == [0.73, 40 << 30, 141 << 30, 1980, 3201, 61, "", 612.5, 612.5]
    assert (second.device, second.energy_j) == ("GPU-bbbb2222", 0.0)
    assert (first.start_ns, first.end_ns) == (second.start_ns, second.end_ns)


def test_intervals_have_no_gaps_and_their_energies_add_up_to_the_counters() -> None:
    device, _ = two_gpus()
    sampler = Sampler(visible_gpus()[:1], "h200", "engine-1")
    samples = []
    for used in (700, 0, 1_500):
        assert device.millijoules is not None
        device.millijoules += used
        samples += sampler.take()
    assert [sample.energy_j for sample in samples] == pytest.approx([0.7, 0.0, 1.5])
    assert [sample.start_ns for sample in samples[1:]] == [sample.end_ns for sample in samples[:-1]]


@pytest.mark.parametrize(
    ("silent", "empty"),
    [
        ("utilization", {"utilization"}),
        ("memory", {"memory_bytes", "memory_total_bytes"}),
        ("sm_clock", {"sm_clock_mhz"}),
        ("memory_clock", {"memory_clock_mhz"}),
        ("temperature", {"temperature_c"}),
        ("reasons", {"throttle"}),
        ("milliwatts", {"power_w"}),
        ("millijoules", {"energy_j"}),
    ],
)
def test_what_a_device_does_not_say_is_absent_and_not_worth_a_word(
    silent: str, empty: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    device, _ = two_gpus()
    setattr(device, silent, None)
    (sample, _) = Sampler(visible_gpus(), "h200", "engine-1").take()
    assert {name for name in READINGS if getattr(sample, name) is None} == empty
    assert not caplog.records


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0x0, ""),
        (0x1, ""),  # idle: its clocks rest, nothing holds them down
        (0x4, "sw_power_cap"),
        (0x68, "hw_slowdown,sw_thermal_slowdown,hw_thermal_slowdown"),
        (0x80 | 0x1, "hw_power_brake_slowdown"),
        (0x600, "board_limit,reliability"),
    ],
)
def test_throttle_reasons_have_names(bits: int, names: str) -> None:
    device, _ = two_gpus()
    device.reasons = bits
    assert Sampler(visible_gpus()[:1], "h200", "e").take()[0].throttle == names


def test_a_driver_that_is_older_than_a_function_is_asked_by_the_older_one() -> None:
    FakeDriver(FakeGpu("GPU-aaaa1111"), missing=("nvmlDeviceGetTemperatureV",)).install()
    assert visible_gpus()[0].read().temperature_c == 61


def test_a_gpu_that_is_lost_in_mid_run_goes_on_being_billed_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    device, _ = two_gpus()
    sampler = Sampler(visible_gpus(), "h200", "engine-1")
    before = sampler.take()
    device.lost = True
    after = [sampler.take() for _ in range(3)]
    assert [getattr(after[0][0], name) for name in READINGS] == [None] * len(READINGS)
    assert after[0][1].power_w == 612.5
    assert (after[0][0].start_ns, after[1][0].start_ns) == (before[0].end_ns, after[0][0].end_ns)
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert "GPU-aaaa1111: GPU is lost" in line.message


def test_energy_of_a_silent_interval_is_in_the_next_and_a_reloaded_driver_begins_again() -> None:
    device, _ = two_gpus()
    sampler = Sampler(visible_gpus()[:1], "h200", "engine-1")
    energies = []
    for counter in (None, 5_003_000, 1_000, 2_500):
        device.millijoules = counter
        energies.append(sampler.take()[0].energy_j)
    assert energies == [None, 3.0, None, 1.5]


# --- whose GPUs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (None, ["GPU-aaaa1111", "GPU-bbbb2222"]),
        ("1", ["GPU-bbbb2222"]),
        ("1, 0", ["GPU-bbbb2222", "GPU-aaaa1111"]),
        ("1x,0", ["GPU-bbbb2222", "GPU-aaaa1111"]),  # strtoul
        ("GPU-bbbb2222", ["GPU-bbbb2222"]),
        ("GPU-b,GPU-aaaa", ["GPU-bbbb2222", "GPU-aaaa1111"]),
        ("GPU-", []),  # means neither
        ("0,7,1", ["GPU-aaaa1111"]),
        ("-1,0", []),
        ("0,0", []),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_whose_gpus_follows_cuda_visible_devices(asked: str | None, shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus()
    if asked is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert uuids(visible_gpus()) == shown
    assert uuids(host_gpus()) == ["GPU-aaaa1111", "GPU-bbbb2222"]


@pytest.mark.parametrize(
    ("asked", "shown"),
    [(None, ["MIG-1"]), ("MIG-2", ["MIG-2"]), ("MIG-2,MIG-1", ["MIG-2"]), ("1", ["MIG-1"]), ("0", ["GPU-whole"])],
)
def test_a_divided_gpu_is_its_mig_devices_of_which_cuda_shows_one(
    asked: str | None, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDriver(FakeGpu("GPU-whole"), FakeGpu("GPU-divided", parts=[part("MIG-1"), part("MIG-2")])).install()
    if asked is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert uuids(visible_gpus()) == shown
    assert uuids(host_gpus()) == ["GPU-whole", "MIG-1", "MIG-2"]
    (mig,) = (gpu for gpu in host_gpus() if gpu.uuid == "MIG-2")
    said = asdict(mig.read())
    assert {name: value for name, value in said.items() if value is not None} == {
        "memory_bytes": 1 << 30,
        "memory_total_bytes": 18 << 30,
    }


@pytest.mark.parametrize(("gpus", "devices"), [(None, ["GPU-aaaa1111", "GPU-bbbb2222"]), (1, ["GPU-aaaa1111"])])
def test_an_engine_beats_for_the_gpus_that_it_computes_on(gpus: int | None, devices: list[str]) -> None:
    two_gpus()
    assert [sample.device for sample in (beats() if gpus is None else beats(gpus=gpus))] == devices


def test_engines_without_a_gpu_are_devices_of_their_own() -> None:
    two_gpus()
    (of_cpu,) = beats(gpus=0)
    other = Sampler([], "cpu", "engine-2").take()[0]
    assert (of_cpu.host, of_cpu.device, other.device) == (other.host, "engine-1", "engine-2")
    assert all(getattr(of_cpu, name) is None for name in READINGS)
    assert of_cpu.end_ns > of_cpu.start_ns


def test_the_bill_counts_a_gpu_once_whoever_reports_it_and_every_engine_without_one() -> None:
    two_gpus()
    samplers = [
        Sampler(visible_gpus()[:1], "h200", "engine-1"),
        Sampler(host_gpus(), "h200", "sidecar"),
        Sampler([], "cpu", "engine-2"),
        Sampler([], "cpu", "engine-3"),
    ]
    taken = [sample for sampler in samplers for _ in range(3) for sample in sampler.take()]
    hours: Counter[str] = Counter()
    for sku, _, quantity in device_hours(pl.DataFrame([asdict(sample) for sample in taken], infer_schema_length=None)):
        hours[sku] += round(quantity * 3_600_000_000_000)
    first = [sample for sample in taken if sample.device == "GPU-aaaa1111"]
    union = max(sample.end_ns for sample in first) - min(sample.start_ns for sample in first)
    other = sum(sample.end_ns - sample.start_ns for sample in taken if sample.device == "GPU-bbbb2222")
    alone = sum(sample.end_ns - sample.start_ns for sample in taken if sample.device_kind == "cpu")
    assert hours == {"gpu_hour.h200": union + other, "gpu_hour.cpu": alone}


def test_without_a_driver_nothing_is_said_and_the_heart_beats(caplog: pytest.LogCaptureFixture) -> None:
    (sample,) = beats()
    assert (sample.device, sample.energy_j) == ("engine-1", None)
    assert (host_gpus(), visible_gpus()) == ([], [])
    assert not caplog.records


# --- meters --------------------------------------------------------------------------------------------------------------


def zone(root: Path, name: str, title: str, counter: int, limit: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{title}\n")
    (folder / "energy_uj").write_text(f"{counter}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_a_meter_adds_up_the_engines_gpus_and_says_nothing_when_one_does_not() -> None:
    first, second = two_gpus()
    meter = find_meter()
    assert isinstance(meter, GpuMeter)
    before = meter.joules()
    first.millijoules, second.millijoules = 5_001_000, 5_000_500
    after = meter.joules()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(1.5)
    second.lost = True
    assert meter.joules() is None
    one = find_meter(1)
    assert one is not None
    assert one.joules() == 5_001


def test_without_an_energy_counter_there_is_no_meter(tmp_path: Path) -> None:
    device, _ = two_gpus()
    device.millijoules = None
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    assert find_meter(powercap=tmp_path) is None  # the CPU's energy is not the GPUs'
    assert find_meter(0, tmp_path / "nowhere") is None
    assert isinstance(find_meter(0, tmp_path), CpuMeter)


def test_packages_alone_are_counted(tmp_path: Path) -> None:
    packages = [zone(tmp_path, f"intel-rapl:{socket}", f"package-{socket}", 100) for socket in (0, 1)]
    others = [zone(tmp_path, "intel-rapl:0:0", "core", 100), zone(tmp_path, "intel-rapl:2", "psys", 100)]
    others.append(zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100))
    meter = CpuMeter(tmp_path)
    assert meter.joules() == 0
    for folder in packages + others:
        (folder / "energy_uj").write_text("400100\n")
    assert meter.joules() == pytest.approx(0.8)


@given(st.lists(st.integers(0, 999_999), max_size=30))
def test_a_counter_that_wraps_around_goes_on(tmp_path_factory: pytest.TempPathFactory, used: list[int]) -> None:
    root = tmp_path_factory.mktemp("powercap")
    folder = zone(root, "intel-rapl:0", "package-0", 999_990)
    meter, counter = CpuMeter(root), 999_990
    for each in used:
        counter = (counter + each) % 1_000_000
        (folder / "energy_uj").write_text(str(counter))
        meter.joules()
    assert meter.joules() == pytest.approx(sum(used) / 1e6)


@pytest.mark.parametrize("broken", ["gone", "nonsense"])
def test_a_counter_that_cannot_be_read_is_absent_and_one_that_breaks_is_said_once(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 7)
    meter = CpuMeter(tmp_path)
    if broken == "gone":
        (folder / "energy_uj").unlink()  # as for everybody but root
    else:
        (folder / "energy_uj").write_text("?")
    assert [meter.joules(), meter.joules()] == [None, None]
    assert len(caplog.records) == 1
    assert CpuMeter(tmp_path).joules() is None
    assert find_meter(0, tmp_path) is None
    assert len(caplog.records) == 1
