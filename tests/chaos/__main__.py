"""``python -m tests.chaos``: rounds of trouble under load, after each of which what was sent must be what is stored."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.chaos.world import APART, EMBEDDED, World, fill_disk

_DISK_MB = 48


def main() -> int:
    """Run; 0 when every round held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--round", type=int, help="run this one alone, as it was in a run of the same seed")
    parser.add_argument("--seconds", type=float, default=1200.0, help="begin no round after so long")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    rounds = range(given.rounds) if given.round is None else [given.round]
    started = time.monotonic()
    held = 0
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        worlds = Worlds(folder, stack)
        try:
            for number in rounds:
                if time.monotonic() - started > given.seconds:
                    break
                print(f"{number:4d}  {worlds.run(number, given.seed)}", flush=True)
                held += 1
            worlds.check_all()
        except AssertionError as error:
            print(f"FAILED {error}\nagain: python -m tests.chaos --seed {given.seed} --round {held}", flush=True)
            return 1
    print(f"{held} rounds in {time.monotonic() - started:.0f} s: what was sent is what is stored, each once")
    return 0 if held == len(rounds) else 1


class Worlds:
    """The worlds of a run, each begun when a round first needs it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._worlds: dict[str, World] = {}
        self._disk = _can_mount()
        if not self._disk:
            print("NOT CHECKED: a full file system, since mounting a small one needs root", flush=True)

    def run(self, number: int, seed: int) -> str:
        """A round, chosen by its number and the run's seed."""
        rng = random.Random(f"{seed}/{number}")
        kind = rng.choices(("apart", "embedded", "disk"), (13, 5, 2 * self._disk))[0]
        trouble = rng.choice(APART) if kind == "apart" else EMBEDDED[0] if kind == "embedded" else fill_disk
        if kind not in self._worlds:
            self._worlds[kind] = self._begin(kind)
        started = time.monotonic()
        delivered = self._worlds[kind].run(number, rng.randrange(1 << 30), trouble)
        return f"{kind:8} {trouble.__name__:30} {time.monotonic() - started:5.1f} s  {delivered}"

    def check_all(self) -> None:
        """Every round again, now that everything else has happened."""
        for world in self._worlds.values():
            world.check_all()

    def _begin(self, kind: str) -> World:
        folder = self._folder / kind
        folder.mkdir()
        data = self._stack.enter_context(_small_disk(folder / "small")) / "data" if kind == "disk" else None
        world = World(folder, apart=kind != "embedded", data=data)
        self._stack.callback(world.end)
        return world


def _can_mount() -> bool:
    if os.geteuid():
        return False
    with tempfile.TemporaryDirectory() as name:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", name], capture_output=True, check=False)
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", name], check=True)
    return mounted.returncode == 0


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main())
