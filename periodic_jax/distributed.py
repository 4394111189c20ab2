"""Several processes, on one machine or many, that train one grid together on JAX's own distributed runtime.

Each process trains its own configurations, and no step needs what another process holds. They agree on what all must do
alike, such as where a chunk ends, through the key-value store of JAX's coordination service, and never through the
devices. A process that does not answer is named, and the others end.
"""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, NoReturn, TypeVar

from typing_extensions import override

from periodic_jax.arrival import arriving, check_place, listens, on_abort
from periodic_jax.errors import ConfigError, RunStopped

T = TypeVar("T")
POLL = 1.0  # seconds between looks for processes that have given up
DONE = "done"  # what a process says of a wait of which it needs no more
FAREWELL = 5.0  # seconds for which process 0, whose end ends the others, waits for them at the end


class PeerLost(RunStopped):
    """Another process has ended, or does not answer."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message, status)


class Team:
    """The processes that train a grid together; this class is a process by itself.

    Attributes:
        index: number of this process.
        count: of processes.
        hosts: JAX's own index of each.
        advice: how to go on when a process is lost.
    """

    index, count, hosts, advice = 0, 1, [0], ""

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes what is written once."""
        return self.index == 0

    def exchange(self, value: Any) -> list[Any]:
        """What every process gave, in their order: numbers, words, None, lists and dicts of them.

        Raises:
            PeerLost: a process did not answer.
        """
        return [value]

    def together(self, action: Callable[[], T], kind: type[Exception] = ConfigError) -> T:
        """Do something in every process; an error of this kind in one is raised in all."""
        return action()

    def once(self, action: Callable[[], T], kind: type[Exception] = ConfigError) -> T:
        """Do something in process 0; all have its result, or its error of this kind."""
        return action()

    def in_turn(self, action: Callable[[], T]) -> T:
        """Do something in process 0, and when it is done in the others."""
        return action()

    def wait_for(self, under_way: "Future[None]") -> None:
        """Wait for what all processes do in a thread of theirs, and for which each waits for the others.

        Raises:
            PeerLost: a process does not do its part.
        """
        under_way.result()

    def check_same(self, about: dict[str, Any]) -> None:
        """Refuse to work with processes that differ.

        Args:
            about: what must be the same in all, by the name under which the user knows it.

        Raises:
            ConfigError: a name, the process and what it has there.

        Example:
            >>> Team().check_same({"jax": "0.10.2"})
        """
        told = self.exchange(about)
        for name, expected in told[0].items():
            for index, there in enumerate(told):
                if there.get(name) != expected:
                    value = f"{_short(there.get(name))} in process {index}"
                    raise ConfigError(name, value, f"{_short(expected)}, as in process 0")


ALONE = Team()


class Distributed(Team):
    """This process among those of ``jax.distributed``.

    Args:
        index, count: see `Team`.
        client: of JAX's coordination service.
        patience: seconds to wait for another process; longer, where the others took longer since they last met.
    """

    def __init__(self, index: int, count: int, client: Any, patience: float) -> None:
        self.index, self.count = index, count
        self._client, self._patience = client, patience
        self._meetings, self._waits, self._met = 0, 0, time.monotonic()
        self.asking_since: float | None = None
        self.over = False  # whether all that was to be done together is done

    @override
    def exchange(self, value: Any) -> list[Any]:
        place, begun = f"periodic_jax/{self._meetings}/", time.monotonic()
        limit, self.asking_since = max(self._patience, begun - self._met), begun
        self._client.key_value_set(f"{place}{self.index}", json.dumps(value))
        while True:
            told = {int(key.rpartition("/")[2]): words for key, words in self._client.key_value_dir_get(place)}
            missing = [index for index in range(self.count) if index not in told]
            if not missing:
                break
            try:
                self._client.blocking_key_value_get(f"{place}{missing[0]}", int(1000 * POLL))
            except Exception:  # JAX's for no answer yet
                waited = time.monotonic() - begun
                for index, reason in sorted(self._gone().items()):
                    raise PeerLost(f"process {index} of {self.count} has ended ({reason})") from None
                if waited > limit:
                    raise PeerLost(
                        f"process {missing[0]} of {self.count} has not answered for {waited:.0f} s"
                    ) from None
        if self.first and self._meetings > 1:  # all have read what was told two meetings ago
            self._client.key_value_delete(f"periodic_jax/{self._meetings - 2}/")
        self._meetings, self._met, self.asking_since = self._meetings + 1, time.monotonic(), None
        return [json.loads(told[index]) for index in range(self.count)]

    @override
    def together(self, action: Callable[[], T], kind: type[Exception] = ConfigError) -> T:
        result, error = None, None
        try:
            result = action()
        except kind as raised:
            error = [str(argument) for argument in raised.args]
        for told in self.exchange(error):
            if told is not None:
                raise kind(*told)
        return result  # pyright: ignore[reportReturnType]

    @override
    def once(self, action: Callable[[], T], kind: type[Exception] = ConfigError) -> T:
        result, error = None, None
        try:
            result = action() if self.first else None
        except kind as raised:
            error = [str(argument) for argument in raised.args]
        result, error = self.exchange([result, error])[0]
        if error is not None:
            raise kind(*error)
        return result  # pyright: ignore[reportReturnType]

    @override
    def in_turn(self, action: Callable[[], T]) -> T:
        mine: list[T] = []
        self.once(lambda: mine.append(action()))
        return mine[0] if self.first else action()

    @override
    def wait_for(self, under_way: "Future[None]") -> None:
        begun, place = time.monotonic(), f"periodic_jax/waiting/{self._waits}/"
        self._waits += 1
        heard: dict[int, tuple[str, float]] = dict.fromkeys(range(self.count), ("", begun))
        beats = itertools.count()
        while not wait([under_way], POLL).done:
            self.asking_since = time.monotonic()
            self._client.key_value_set(f"{place}{self.index}", str(next(beats)), allow_overwrite=True)
            # Who lives comes to wait here too, and says so again and again, until it is done or waits for us at the
            # next meeting.
            here = [*self._client.key_value_dir_get(place)]
            here += [(key, DONE) for key, _ in self._client.key_value_dir_get(f"periodic_jax/{self._meetings}/")]
            now, self.asking_since = time.monotonic(), None
            for key, said in here:
                index = int(key.rpartition("/")[2])
                if said == DONE or heard[index][0] != said:
                    heard[index] = (said, now)
            for index, reason in sorted(self._gone().items()):
                raise PeerLost(f"process {index} of {self.count} has ended ({reason})")
            silent, index = max((now - at, -index) for index, (_, at) in heard.items())
            if silent > self._patience:
                raise PeerLost(f"process {-index} of {self.count} has not answered for {silent:.0f} s")
        self.asking_since = time.monotonic()
        self._client.key_value_set(f"{place}{self.index}", DONE, allow_overwrite=True)
        self.asking_since = None
        under_way.result()

    def part(self, reason: str) -> None:
        """Tell the others that this process ends, and why. Process 0, whose service they need, ends after them."""
        with contextlib.suppress(Exception):
            reason = " ".join(reason.split())[:300]
            self._client.key_value_set(f"periodic_jax/gone/{self.index}", json.dumps(reason))
            until = time.monotonic() + FAREWELL
            while self.first and len(self._gone()) < self.count and time.monotonic() < until:
                time.sleep(POLL / 5)
            if self.first:
                time.sleep(POLL / 2)  # for them to close their connections

    def _gone(self) -> dict[int, str]:
        told = self._client.key_value_dir_get("periodic_jax/gone/")
        return {int(key.rpartition("/")[2]): json.loads(words) for key, words in told}


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, count: int | None = None, index: int | None = None, patience: float = 300.0
) -> Iterator[Team]:
    """Join the other processes, within a ``with`` block, before JAX's first computation.

    Args:
        coordinator: ``HOST:PORT`` of process 0. None: from Slurm, Open MPI, Kubernetes or Cloud TPU, as are the next
            two.
        count: number of processes.
        index: of this process, from 0.
        patience: seconds after which a process that does not answer counts as lost.

    Yields:
        The processes.

    Raises:
        ConfigError: they cannot be joined, or there are not so many.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of errors JAX tells in Python too
    import jax

    if index is not None and count is not None and not 0 <= index < count:
        raise ConfigError("--process-id", index, f"a whole number from 0, below --num-processes {count}")
    try:
        if coordinator is not None:
            check_place(coordinator, first=index == 0)
        # Its handler of SIGTERM would take the place of ours. And who is lost is found out by asking, see `exchange`:
        # JAX would abort this process.
        jax.config.update("jax_enable_preemption_service", False)
        jax.config.update("jax_enable_recoverability", True)
        with arriving(patience):
            jax.distributed.initialize(
                coordinator, count, index, initialization_timeout=int(patience), shutdown_timeout_seconds=int(patience),
                heartbeat_timeout_seconds=max(int(patience), 10),
            )  # fmt: skip
    except (ValueError, TypeError, LookupError) as error:
        wanted = "HOST:PORT of process 0, with --num-processes and --process-id, where no cluster tells them"
        raise ConfigError("--coordinator", coordinator or "none given", f"{wanted} ({_line(error)})") from None
    except RuntimeError as error:
        raise ConfigError("--coordinator", coordinator, f"a process 0 that answers there ({_line(error)})") from None
    from jax._src.distributed import global_state  # JAX has no public name for its key-value store

    team = Distributed(global_state.process_id, global_state.num_processes, global_state.client, patience)
    if not team.first:
        _name_the_first_if_it_dies(str(global_state.coordinator_address), team, patience)
    try:
        team.hosts = team.exchange(jax.process_index())
        yield team
        team.exchange("done")
    except BaseException as error:
        team.part(str(error) or type(error).__name__)
        raise
    team.over = True
    team.part("done")
    jax.distributed.shutdown()


def _name_the_first_if_it_dies(coordinator: str, team: Distributed, patience: float) -> None:
    """Say so in one line when process 0, which holds the service, is gone or hangs: then JAX aborts this process.

    JAX calls abort() in a thread of its own and lets no Python code hear of it (its callback fails with std::bad_cast,
    jaxlib 0.10.2), hence a handler in C's terms.
    """

    def aborted() -> None:
        if team.over:
            os._exit(0)
        fault = None
        if team.asking_since and time.monotonic() - team.asking_since > patience / 2:
            fault = f"has not answered for {time.monotonic() - team.asking_since:.0f} s"
        if not listens(coordinator):
            fault = "has ended"
        if fault:  # otherwise something else is wrong, and JAX says what
            os.write(2, f"\nperiodic-jax: process 0 of {team.count} {fault}; {team.advice}\n".encode())
            os._exit(1)

    on_abort(aborted)


def leave(status: int) -> NoReturn:
    """End this process at once: threads that wait for lost processes must not hold it."""
    with contextlib.suppress(OSError):  # nobody may read them any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
