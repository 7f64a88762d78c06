"""An allowance is never exceeded: in time, by several processes, and when one of them is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm.pacing import Allowance, allowance
from crm.settings import CrmSettings
from warehouse.buckets import Demand, FileBuckets, LimitError, RedisBuckets
from warehouse.errors import SettingsError


class Clock:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def most_within(times: list[float], seconds: float) -> int:
    """The most that happened within any half-open interval."""
    return max(sum(start <= one < start + seconds - 1e-6 for one in times) for start in times)


@given(
    calls=st.sampled_from([0.5, 1, 1.5, 2, 5, 37, 100]),
    seconds=st.sampled_from([1.0, 2.0, 10.0]),
    pauses=st.lists(
        st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.01, 0.3, 1.0, 9.9, 60.0]), min_size=1, max_size=80
    ),
)
def test_no_interval_has_more_calls_than_allowed(
    tmp_path_factory: pytest.TempPathFactory, calls: float, seconds: float, pauses: list[float]
) -> None:
    clock = Clock()
    settings = CrmSettings(home=tmp_path_factory.mktemp("limits"))
    shared = [
        _on(clock, allowance(settings, "x", calls=calls, seconds=seconds, sleep=clock.sleep)) for _ in "ab"
    ]
    times: list[float] = []
    for index, pause in enumerate(pauses):
        clock.sleep(pause)
        # two connectors take turns, as two processes would
        shared[index % 2].take()
        times.append(clock.now)
    assert most_within(times, seconds) <= max(1, calls)
    # and nearly as much as is allowed is given
    begin = times[0]
    assert times[-1] - begin <= sum(pauses) + len(pauses) * seconds / min(calls, max(1, calls * 0.5 - 0.0))


def _on(clock: Callable[[], float], one: Allowance) -> Allowance:
    buckets = one._buckets
    assert isinstance(buckets, FileBuckets)
    buckets._clock = clock
    return one


def test_dear_calls_take_more(tmp_path: Path) -> None:
    clock = Clock()
    pace = Allowance(FileBuckets(tmp_path, clock=clock), "tokens", per_second=10, burst=20, sleep=clock.sleep)
    pace.take(20)
    assert clock.now == 100.0
    pace.take(5)
    assert clock.now == pytest.approx(100.5)
    # dearer than all that can be saved up: it waits for the rest
    pace.take(40)
    assert clock.now == pytest.approx(104.5)


@pytest.mark.parametrize("content", [b"torn", b"\xff" * 16, b"x" * 17])
def test_a_file_that_cannot_be_read_is_an_empty_bucket(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bucket").write_bytes(content)
    assert FileBuckets(tmp_path).reserve([Demand("a", 2, 100, 1)]) == pytest.approx(0.5)


def test_a_machine_that_was_started_anew_counts_from_zero(tmp_path: Path) -> None:
    clock = Clock()
    buckets = FileBuckets(tmp_path, clock=clock)
    assert buckets.reserve([Demand("a", 1, 5, 7)]) == 2
    clock.now = 0.0
    assert buckets.reserve([Demand("a", 1, 5, 1)]) == 3
    clock.now = 1.0
    assert buckets.reserve([Demand("a", 1, 5, 0)]) == 2


def test_a_folder_that_cannot_be_written_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "limits").write_text("")
    with pytest.raises(LimitError, match="cannot be written"):
        allowance(CrmSettings(home=tmp_path), "x", calls=10, seconds=1).take()


_TAKER = """
import sys, time
from pathlib import Path
from warehouse.buckets import Demand, FileBuckets
buckets = FileBuckets(Path(sys.argv[1]))
demand = [Demand("shared", 1000.0, 50, 1)]
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    wait = buckets.reserve(demand)
    print(time.monotonic() + wait, flush=True)
"""


@pytest.mark.slow
def test_processes_share_it_and_one_of_them_is_killed(tmp_path: Path) -> None:
    def start(number: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _TAKER, str(tmp_path), str(number)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    doomed = start(1_000_000)
    others = [start(1_500) for _ in range(3)]
    for process in [doomed, *others]:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    assert doomed.stdout is not None
    times = [float(doomed.stdout.readline()) for _ in range(500)]
    doomed.kill()
    # the last line may be torn
    times += [
        float(line) for line in doomed.communicate()[0].splitlines(keepends=True) if line.endswith("\n")
    ]
    for process in others:
        times += [float(line) for line in process.communicate()[0].splitlines()]
        assert process.returncode == 0
    times.sort()
    assert len(times) >= 5_000
    # no take comes before its turn: 50 at once, a thousandth of a second for each that follows
    first = min(began, times[0])
    early = [(index, at) for index, at in enumerate(times) if at - first < (index - 50) / 1000 - 1e-6]
    assert early == []
    # those that the killed one took and did not tell of are at most a few
    assert (
        FileBuckets(tmp_path).reserve([Demand("shared", 1000, 50, 0)]) >= times[-1] - time.monotonic() - 0.001
    )


@pytest.mark.service
def test_over_redis_processes_of_several_machines_share_it(redis_url: str, tmp_path: Path) -> None:
    waits: list[float] = []
    for home in ("a", "b"):
        settings = CrmSettings.model_validate({"home": tmp_path / home, "redis_url": redis_url})
        pace = allowance(settings, "shared", calls=20, seconds=10, sleep=waits.append)
        assert isinstance(pace._buckets, RedisBuckets)
        for _ in range(3):
            pace.take()
    # two at once, the others 1 / 1.8 seconds apart
    assert len(waits) == 4
    assert waits[-1] == pytest.approx(4 / 1.8, abs=0.5)


def test_a_wrong_url_of_redis_is_a_settings_error(tmp_path: Path) -> None:
    settings = CrmSettings.model_validate({"home": tmp_path, "redis_url": "http://x"})
    with pytest.raises(SettingsError, match="MAILHOUSE_REDIS_URL"):
        allowance(settings, "x", calls=10, seconds=1)
