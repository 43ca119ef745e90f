"""However a process ends, what it has observed arrives, and it ends as it would have without us."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import signal
import socket
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from costspan import semconv
from tests.instrument.program import ended, running
from tests.receiver import Answer, Receiver

SETUP = """
import signal, sys, threading, time, costspan

@costspan.observe
def done():
    pass

@costspan.observe
def left():
    print("ready", flush=True)
    sys.stdin.read()

"""


def outcomes(receiver: Receiver) -> dict[str, str]:
    spans = ended(receiver)
    names = Counter(span.name for span in spans)
    assert max(names.values()) == 1, names
    return {span.name: span.outcome for span in spans}


@pytest.fixture
def nobody() -> Iterator[str]:
    """The endpoint of a collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_sigterm_ends_what_is_open_and_then_the_process_as_before(receiver: Receiver) -> None:
    with running(SETUP + "costspan.init(); done(); left()", receiver) as program:
        assert program.hear() == "ready"
        program.kill()
        assert program.end() == -signal.SIGTERM
    assert program.error == ""
    assert outcomes(receiver) == {"done": "ok", "left": "cancelled"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_apps_own_handler_is_its_own(receiver: Receiver, when: str) -> None:
    own = "def stop(number, frame): sys.exit(3)\nsignal.signal(signal.SIGTERM, stop)\n"
    init = "costspan.init()\n"
    check = "assert signal.getsignal(signal.SIGTERM) is stop\n"
    code = SETUP + (own + init if when == "before" else init + own) + check + "done(); left()"
    with running(code, receiver) as program:
        assert program.hear() == "ready"
        program.kill()
        assert program.end() == 3
    assert program.error == ""
    assert outcomes(receiver) == {"done": "ok", "left": "cancelled"}  # SystemExit went through it


def test_a_handler_that_calls_the_one_before_it_goes_on(receiver: Receiver) -> None:
    code = """
    costspan.init()
    before = signal.getsignal(signal.SIGTERM)
    def stop(number, frame):
        before(number, frame)
        done()
        print("goes on", flush=True)
    signal.signal(signal.SIGTERM, stop)
    done()
    left()
    """
    with running(SETUP + textwrap.dedent(code), receiver) as program:
        assert program.hear() == "ready"
        program.kill()
        assert program.hear() == "goes on"
        assert program.end() == 0
    assert sorted((span.name, span.outcome) for span in ended(receiver)) == [("done", "ok"), ("done", "ok"), ("left", "ok")]


def test_shutdown_gives_the_signal_back(receiver: Receiver) -> None:
    code = """
    costspan.init()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    costspan.shutdown()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    """
    with running(SETUP + textwrap.dedent(code), receiver) as program:
        assert program.end() == 0, program.error


def test_init_in_another_thread_works_and_handles_no_signal(receiver: Receiver) -> None:
    code = """
    starter = threading.Thread(target=costspan.init)
    starter.start()
    starter.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    done()
    """
    with running(SETUP + textwrap.dedent(code), receiver) as program:
        assert program.end() == 0, program.error
    assert outcomes(receiver) == {"done": "ok"}


def test_a_collector_that_never_answers_does_not_keep_a_process_alive(receiver: Receiver, nobody: str) -> None:
    code = "from costspan import _ending; _ending.ON_SIGNAL_S = 0.3\ncostspan.init(); done(); left()"
    with running(SETUP + code, receiver, {"COSTSPAN_ENDPOINT": nobody}) as program:
        assert program.hear() == "ready"
        for _ in range(3):
            program.kill()
        assert program.end() == -signal.SIGTERM
    code = "costspan.init(); done(); costspan.shutdown(0.1); costspan.init(); done(); costspan.shutdown(0)"
    with running(SETUP + code, receiver, {"COSTSPAN_ENDPOINT": nobody}) as program:
        assert program.end() == 0


def test_a_collector_that_never_was_there_is_not_waited_for(receiver: Receiver) -> None:
    receiver.close()
    code = "from costspan import _ending; _ending.AT_EXIT_S = _ending.ON_SIGNAL_S = 3600\ncostspan.init(); done()\n"
    with running(SETUP + code, receiver) as program:
        assert program.end() == 0
    assert "at least 1 spans did not reach the collector" in program.error
    with running(SETUP + code + "left()", receiver) as program:
        assert program.hear() == "ready"
        program.kill()
        assert program.end() == -signal.SIGTERM


@pytest.mark.parametrize("moment", range(3))
def test_a_signal_may_come_in_the_middle_of_anything(receiver: Receiver, moment: int) -> None:
    code = """
    costspan.init()
    count = 0
    while True:
        with costspan.unit("ticket", str(count)), costspan.generation(model="m", provider="p") as call:
            call.usage(output_tokens=count)
            costspan.cost(usd=1)
        count += 1
        if count == 100:
            print("ready", flush=True)
    """
    with running(SETUP + textwrap.dedent(code), receiver) as program:
        assert program.hear() == "ready"
        while len(receiver.accepted) < moment:
            time.sleep(0.001)
        program.kill()
        assert program.end() == -signal.SIGTERM
    units = [span for span in ended(receiver) if span.name == "unit ticket"]
    numbers = sorted(int(str(span.attributes[semconv.UNIT])) for span in units)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 100
    assert Counter(span.outcome for span in units)["cancelled"] <= 1
    last = receiver.accepted[-1].headers
    assert int(last[semconv.HEADER_TOTAL]) == len(ended(receiver))


DROPPED = """
import gc, costspan
gc.set_threshold(31)
costspan.init()

@costspan.observe
def items():
    yield 1
    yield 2

for number in range(4000):
    with costspan.unit("ticket", str(number)):
        dropped = [items()]
        next(dropped[0])
        dropped.append(dropped)
"""


def test_the_garbage_collector_may_close_a_generator_in_the_middle_of_anything(receiver: Receiver) -> None:
    with running(DROPPED, receiver) as program:
        assert program.end() == 0, program.error
    assert program.error == ""
    assert len(ended(receiver)) == 8000


THREADS = """
costspan.init()

@costspan.observe
def long():
    go.wait()

@costspan.observe
def forever():
    while True:
        time.sleep(0.01)

go = threading.Event()
threading.Thread(target=long).start()
threading.Thread(target=forever, daemon=True).start()
threading.Timer(0.2, go.set).start()
iterator = costspan.observe(name="items")(lambda: (yield from range(3)))()
next(iterator)
done()
"""


def test_threads_that_still_run_and_generators_that_still_could(receiver: Receiver) -> None:
    with running(SETUP + THREADS, receiver) as program:
        assert program.end() == 0, program.error
    assert outcomes(receiver) == {"done": "ok", "long": "ok", "forever": "cancelled", "items": "cancelled"}


WORKERS = """
import multiprocessing, os, threading, costspan

@costspan.observe
def work(number):
    return number

@costspan.observe
def wait(started):
    started.set()
    threading.Event().wait()

def main(method):
    context = multiprocessing.get_context(method)
    costspan.init()
    work(0)
    process = context.Process(target=work, args=(1,))
    process.start()
    process.join()
    assert process.exitcode == 0
    started = context.Event()
    process = context.Process(target=wait, args=(started,))
    process.start()
    started.wait()
    process.terminate()
    process.join()
    assert process.exitcode == -15
    with context.Pool(1) as pool:
        pool.map(work, [2])

if __name__ == "__main__":
    main("METHOD")
elif METHOD != "fork":
    costspan.init()
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_of_multiprocessing(receiver: Receiver, method: str, tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(WORKERS.replace('"METHOD"', repr(method)).replace("METHOD", repr(method)))
    with running(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", receiver) as program:
        assert program.end() == 0, program.error
    spans = ended(receiver)
    assert sorted((span.name, span.outcome) for span in spans) == [
        ("wait", "cancelled"),
        ("work", "ok"),
        ("work", "ok"),
        ("work", "ok"),
    ]
    assert len({span.resource[semconv.SERVICE_INSTANCE] for span in spans}) == 4


FORKS = """
import os, signal, threading, costspan
signal.alarm(50)  # a deadlock must end

@costspan.observe
def work():
    costspan.cost(usd=1)

def busy():
    while not enough.is_set():
        work()

costspan.init()
enough = threading.Event()
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()

@costspan.observe
def parent():
    for number in range(6):
        child = os.fork()
        if not child:
            with costspan.observe(name="child")(costspan.flush)() and costspan.unit("ticket", str(number)):
                work()
            if number % 2:
                raise SystemExit  # ends in order, through what the parent has open
            assert costspan.flush(20)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

parent()
enough.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_children_of_a_busy_parent_neither_hang_nor_say_what_is_its_to_say(receiver: Receiver) -> None:
    with running(FORKS, receiver, flags=("-W", "ignore")) as program:
        assert program.end() == 0, program.error
    spans = ended(receiver)
    assert [span.outcome for span in spans if span.name == "parent"] == ["ok"]
    units = {span.attributes[semconv.UNIT] for span in spans if span.name == "unit ticket"}
    assert units == {str(number) for number in range(6)}
    assert len({span.resource[semconv.SERVICE_INSTANCE] for span in spans}) == 7
    assert len({span.span_id for span in spans}) == len(spans)


def test_the_collector_hears_of_what_it_refused_last(receiver: Receiver) -> None:
    receiver.script = [Answer(400, "no")]
    with running(SETUP + "costspan.init(); done()", receiver) as program:
        assert program.end() == 0
    assert [request.status for request in receiver.requests] == [400, 200]
    headers = receiver.accepted[0].headers
    keys = (semconv.HEADER_SEQUENCE, semconv.HEADER_ITEMS, semconv.HEADER_TOTAL)
    assert [headers[key] for key in keys] == ["2", "0", "1"]


SHOP = """
import asyncio, costspan
from costspan.integrations.asgi import CostspanMiddleware
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

costspan.init(service="shop")

async def answer(request):
    @costspan.observe(name="words")
    async def words():
        yield "first"
        await asyncio.sleep(0.3)
        yield "last"
    return StreamingResponse(words())

app = Starlette(routes=[Route("/", answer)])
app.add_middleware(CostspanMiddleware)
"""


def test_a_server_that_is_told_to_stop_says_all_of_its_last_request(receiver: Receiver, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    (tmp_path / "shop.py").write_text(SHOP)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    serve = f"import uvicorn; uvicorn.run('shop:app', app_dir={str(tmp_path)!r}, port={port}, log_level='critical')"
    with running(serve, receiver) as program:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with suppress(ConnectionRefusedError):
                connection.request("GET", "/")
                break
            connection.close()
            time.sleep(0.01)
        response = connection.getresponse()
        assert response.read1() == b"first"
        program.kill()
        assert response.read() == b"last"
        connection.close()
        assert program.end() == -signal.SIGTERM, program.error
    assert outcomes(receiver) == {"GET /": "ok", "words": "ok"}
