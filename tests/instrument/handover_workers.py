"""What other processes of the tests of handing over run; imported there by name."""

from __future__ import annotations

import os
import sys

import costspan


@costspan.observe(name="elsewhere")
def work(number: int = 0) -> int:
    costspan.cost(pages=1)
    return number


def begin(endpoint: str) -> None:
    """What an app's initializer does."""
    costspan.init(project="tests", endpoint=endpoint, service="child")


def main(endpoint: str) -> None:
    begin(endpoint)
    with costspan.incoming(os.environ):
        work()


if __name__ == "__main__":
    main(sys.argv[1])
