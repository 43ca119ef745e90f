"""What installing costspan installs, and what importing it imports: both lists are pinned, neither grows by accident."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

INSTALLED = {
    # OpenTelemetry
    "opentelemetry-api",
    "opentelemetry-exporter-http-transport",
    "opentelemetry-exporter-otlp-common",
    "opentelemetry-exporter-otlp-proto-common",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-proto",
    "opentelemetry-sdk",
    "opentelemetry-semantic-conventions",
    # what it brings
    "certifi",
    "charset-normalizer",
    "googleapis-common-protos",
    "idna",
    "protobuf",
    "requests",
    "typing-extensions",
    "urllib3",
}

FOREIGN = {"opentelemetry", "typing_extensions"}

BY_ITSELF = """
import sys
before = set(sys.modules)
import costspan
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(*sorted(name for name in set(sys.modules) - before if name.startswith("opentelemetry")))
print(*sorted(name for name in set(sys.modules) - before if name.startswith("costspan.")))
"""

HEAVY = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "opentelemetry.metrics", "opentelemetry.semconv")


def test_the_base_install_is_opentelemetry_and_what_it_brings() -> None:
    found: set[str] = set()
    ahead = ["costspan"]
    while ahead:
        for line in requires(ahead.pop()) or ():
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found.add(name)
                ahead.append(name)
    assert found == INSTALLED


def test_importing_costspan_imports_little() -> None:
    finished = subprocess.run([sys.executable, "-c", BY_ITSELF], capture_output=True, text=True, check=True, timeout=60)
    roots, opentelemetry, ours = (set(line.split()) for line in finished.stdout.splitlines())
    assert {root for root in roots if root not in sys.stdlib_module_names} == {"costspan"} | FOREIGN & roots
    assert roots & {"asyncio", "ssl", "http", "socket", "multiprocessing", "sqlite3", "xml"} == set()
    assert [name for name in opentelemetry if name.startswith(HEAVY)] == []
    later = {"costspan._outbox", "costspan._courier", "costspan.tracing", "costspan.delivery", "costspan.channel"}
    assert later & ours == set()
