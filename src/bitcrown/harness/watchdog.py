"""The parent's watch over one worker: deadline, memory, signals, and the messages that come back.

The worker runs in a session of its own. It writes JSON lines to a pipe (see ``worker``); a line
that is not complete when the worker dies never counts. Whatever it prints goes to a second pipe of
which only the end is kept.

One loop waits for all of it, and ends with exactly one answer. In order, the first that holds:

    a complete final message     that answer (``timeout`` if it is seen after the limit)
    a stop signal                ``timeout``, or what ``Signals`` say instead
    the worker is dead           ``unknown``: what is left in its pipes has been read before
    the deadline                 ``timeout``
    too much memory              ``unknown``

The deadline lies ``safety_margin`` before the time limit, and moves: what has to happen between the
two (killing, the results file, the end of this process) takes the longer the more loaded the
machine is, which ``load`` measures while the worker runs.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitcrown.harness.answer import Answer, answer_of, crashed, parse_message
from bitcrown.harness.curve import BoundCurve
from bitcrown.harness.leftovers import drop_note, note_run
from bitcrown.harness.load import Load
from bitcrown.harness.processes import (
    TOKEN,
    Guard,
    group_members,
    kill_token,
    resident_bytes,
    signal_group,
)
from bitcrown.verdict import Reason, Status

_POLL_SECONDS = 0.05
"""Longest sleep: how late a deadline or too much memory may be noticed."""
_GROUP_SECONDS = 0.5
"""Between two looks at the memory of the whole group, which reads all of /proc."""
_TAIL_SECONDS = 0.15
"""For the record and the end of the interpreter."""
_MOST_PATIENCE = 5.0
"""Longest wait for a killed worker to be gone."""
_MAX_MESSAGE = 256 << 20
_KEPT_OUTPUT = 8192
_TIME_IS_OVER = Answer(Status.TIMEOUT, Reason.DEADLINE)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STATUS_OF_NUMBER = {-number.value: number.name for number in signal.Signals}


def safety_margin(timeout: float, needed: float = 0.0) -> float:
    """Seconds kept back at the end, at most half of the limit.

    margin = min(max(0.3, min(0.015 timeout, 1.5)) + needed, timeout / 2)

    An idle machine needs 0.3 s; long limits can afford more. ``needed`` is what a loaded machine
    takes beyond that (see ``load``).
    """
    return min(max(0.3, min(0.015 * timeout, 1.5)) + needed, timeout / 2)


class Signals:
    """Turns signals into bytes on a descriptor, and remembers which stop signal came. Install
    before anything else.

    ``answer``: of a run that a signal stops. A harness that stops one means that its time is over;
    a user means that it is not (``INTERRUPTED``).
    """

    def __init__(self, answer: Answer = _TIME_IS_OVER) -> None:
        self.stopped_by, self.answer = "", answer
        self.reader, writer = os.pipe()
        for descriptor in (self.reader, writer):
            os.set_blocking(descriptor, False)
        # A signal that comes just before ``select`` would be noticed only after the sleep; its byte
        # on this descriptor ends the sleep at once. SIGCHLD needs a handler to give one.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped_by = self.stopped_by or signal.Signals(number).name

    def drain(self) -> None:
        try:
            while os.read(self.reader, 4096):
                pass
        except BlockingIOError:
            return


@dataclass
class Watched:
    """What the watch saw: the answer, the peak of resident memory in bytes, and the end of the
    worker's output.

    ``progress`` is the latest phase with the last facts about it (boxes done and left ...);
    ``phases`` and ``counters`` are what is known from such messages, for workers that cannot tell
    any more: seconds between messages, and the counters as the last one had them.
    """

    answer: Answer
    peak_bytes: int = 0
    output: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)
    reached: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    lost: str = ""
    """Why the results file does not hold the answer, if it does not."""
    began: float = field(default_factory=time.monotonic)
    phase_began: float = field(default_factory=time.monotonic)
    curve: BoundCurve = field(default_factory=BoundCurve)

    def enter(self, name: str, facts: Any) -> None:
        """A phase begins; the time since the last one goes to that one (the first is the start of
        the worker)."""
        now = time.monotonic()
        previous = self.progress.get("phase", "spawn")
        self.phases[previous] = round(self.phases.get(previous, 0.0) + now - self.phase_began, 4)
        self.phase_began = now
        if isinstance(facts, dict) and isinstance(facts.get("counters"), dict):
            self.counters = facts["counters"]
            facts = {key: value for key, value in facts.items() if key != "counters"}
        if facts:
            self.reached[name] = facts
            self.curve.add(now - self.began, facts)
        self.progress = {"phase": name, "facts": self.reached.get(name, {})}


class Watchdog:
    """Runs ``command`` (the message descriptor's number is appended) until it answers, dies or must
    be ended.

    ``end`` is the ``time.monotonic()`` reading at which ``timeout`` seconds are over; the worker is
    ended earlier by ``safety_margin``, which follows the ``load``. ``memory`` is bytes for all
    processes of the worker together. ``look`` is called with what was seen, many times a second.
    """

    def __init__(
        self,
        command: Sequence[str],
        end: float,
        timeout: float,
        memory: int,
        signals: Signals,
        load: Load,
        look: Callable[[Watched], None] | None = None,
    ) -> None:
        self.look = look or (lambda seen: None)
        self.command, self.end, self.timeout, self.memory = tuple(command), end, timeout, memory
        self.signals, self.load = signals, load
        self.token = os.urandom(16).hex()
        self.seen = Watched(crashed(""))
        self._messages, self._output = bytearray(), bytearray()
        self._next_group_look = 0.0
        self._guard: Guard | None = None
        self._note: Path | None = None
        self._worker: subprocess.Popen[bytes] | None = None

    @property
    def deadline(self) -> float:
        """When the worker is ended if nothing changes."""
        return self.end - safety_margin(self.timeout, self.load.needed())

    def run(
        self, environment: dict[str, str], meanwhile: Callable[[], object] = lambda: None
    ) -> Watched:
        """Start the worker and wait. The worker's group has been killed when this returns, but not
        yet reaped.

        ``meanwhile`` is called once while the worker begins: work that would be in the way at the
        end.
        """
        if time.monotonic() >= self.deadline:
            detail = "the machine is so loaded that no time was left to start a worker"
            self.seen.answer = Answer(Status.TIMEOUT, Reason.DEADLINE, detail)
            self.seen.facts.update(self.load.facts())
            return self.seen
        # Before the worker exists, so that nothing that happens to this process leaves it running:
        # the guard acts when we die, the note when guard and parent died together.
        self._note = note_run(self.token)
        self._guard = Guard(self.token)
        reader, writer = os.pipe()
        try:
            self._worker = worker = subprocess.Popen(
                [*self.command, str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                start_new_session=True,
                env=environment | {TOKEN: self.token},
            )
        except OSError as error:
            os.close(writer)
            os.close(reader)
            self.seen.answer = crashed(f"the worker could not be started: {error}")
            return self.seen
        # The worker's copy must be the only one: then the end of the pipe is the worker's end.
        os.close(writer)
        self._guard.watch(worker.pid)
        meanwhile()
        assert worker.stdout is not None
        self.seen.answer = self._watch(worker, reader, worker.stdout.fileno())
        # Kill, but do not wait for the death: the results file comes first (``clean_up`` waits).
        signal_group(worker.pid)
        self.seen.facts.update(self.load.facts())
        self.seen.enter(self.seen.progress.get("phase", ""), self.seen.progress.get("facts", {}))
        os.close(reader)
        self.seen.output = self._output.decode("utf-8", errors="replace")
        return self.seen

    def clean_up(self) -> None:
        """Kill what left the group, wait for the worker to be gone while there is time, dismiss the
        guard."""
        if self._worker is not None:
            # A process that made a session of its own has left the group, but not its environment.
            kill_token(self.token)
            # A worker that returns gigabytes to the kernel takes a while. Half of what a loaded
            # machine needs at the end is taken to be used by now, the other half lies ahead.
            left = self.end - _TAIL_SECONDS - self.load.needed() / 2 - time.monotonic()
            try:
                self._worker.wait(timeout=min(_MOST_PATIENCE, max(0.0, left)))
            except subprocess.TimeoutExpired:
                self.seen.facts["slow_to_die"] = True
            if self._worker.stdout is not None:
                self._worker.stdout.close()
        # The kernel's own peak (KiB, of reaped children) sees what came and went between two looks.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        self.seen.peak_bytes = max(self.seen.peak_bytes, peak)
        if self._guard is not None:
            self._guard.release()
        drop_note(self._note)

    def _watch(self, worker: subprocess.Popen[bytes], reader: int, output: int) -> Answer:
        with selectors.DefaultSelector() as selector:
            selector.register(self.signals.reader, selectors.EVENT_READ)
            for descriptor, taken in ((reader, self._messages), (output, self._output)):
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, taken)
            while True:
                # Asked before the pipes are read: if it is dead by now, all that it ever wrote is
                # there to be read, so that no answer after the reading means that there is none.
                ended = worker.poll() is not None
                for key in self._ready(selector, 0.0 if ended else self._pause()):
                    if not self._read(key.fd, key.data):
                        selector.unregister(key.fd)
                if ended:
                    self._read_rest(reader, output)
                answer = self._answer()
                self.look(self.seen)
                if answer is not None:
                    # A message may have waited in the pipe while this process did not run.
                    return answer if time.monotonic() < self.end else _too_late(answer)
                if self.signals.stopped_by:
                    return replace(
                        self.signals.answer, detail=f"stopped by {self.signals.stopped_by}"
                    )
                if ended:
                    return crashed(_how_it_ended(worker.returncode))
                if time.monotonic() >= self.deadline:
                    return Answer(Status.TIMEOUT, Reason.DEADLINE, "stopped by the watchdog")
                if self._is_over_memory(worker.pid):
                    return Answer(Status.UNKNOWN, Reason.MEMORY, f"limit {self.memory >> 20} MiB")

    def _ready(
        self, selector: selectors.DefaultSelector, pause: float
    ) -> list[selectors.SelectorKey]:
        """What can be read within ``pause`` seconds; a sleep that nothing ended shows how late this
        process wakes."""
        # If something is ready at once nothing was slept, so nothing is learned about lateness.
        before = time.monotonic()
        ready = selector.select(pause)
        if not ready and pause:
            self.load.slept(pause, time.monotonic() - before)
        self.load.look()
        return [key for key, _ in ready]

    def _pause(self) -> float:
        return max(0.0, min(_POLL_SECONDS, self.deadline - time.monotonic()))

    def _read(self, descriptor: int, taken: bytearray | None) -> bool:
        """Append what is there to ``taken`` (None for signals); False once the other end is
        closed."""
        if taken is None:
            self.signals.drain()
            return True
        try:
            chunk = os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return True
        taken += chunk
        del self._output[:-_KEPT_OUTPUT]
        return bool(chunk)

    def _read_rest(self, reader: int, output: int) -> None:
        """What a dead worker left in its pipes; a grandchild may hold them open, so stop where a
        read would wait."""
        self._read(output, self._output)
        size = -1
        while size < len(self._messages) <= _MAX_MESSAGE:
            size = len(self._messages)
            self._read(reader, self._messages)

    def _answer(self) -> Answer | None:
        """The answer, once a complete final message has come."""
        while (end := self._messages.find(b"\n")) >= 0:
            message = parse_message(bytes(self._messages[:end]))
            del self._messages[: end + 1]
            if message is None:
                self.seen.facts["garbled_messages"] = self.seen.facts.get("garbled_messages", 0) + 1
            elif message["kind"] == "phase":
                self.seen.enter(str(message.get("name", "")), message.get("facts", {}))
            elif message["kind"] == "final":
                return answer_of(message)
        if len(self._messages) > _MAX_MESSAGE:
            return crashed(f"the worker sent a message of more than {_MAX_MESSAGE >> 20} MiB")
        return None

    def _is_over_memory(self, group: int) -> bool:
        """Whether resident memory, of the worker or of its group, exceeds the limit.

        Pages that forks share count once for each of them: the sum errs on the safe side.
        """
        used = resident_bytes(group)
        now = time.monotonic()
        if now >= self._next_group_look:
            self._next_group_look = now + _GROUP_SECONDS
            used = max(used, sum(resident_bytes(pid) for pid in group_members(group)))
        self.seen.peak_bytes = max(self.seen.peak_bytes, used)
        return used > self.memory


def _too_late(answer: Answer) -> Answer:
    """An answer that is seen after the time limit counts for nobody; what the worker found out
    stays in the record."""
    detail = f"the answer {answer.status} came after the time limit"
    return Answer(
        Status.TIMEOUT, Reason.DEADLINE, detail, phases=answer.phases, counters=answer.counters
    )


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"the worker was ended by {_STATUS_OF_NUMBER.get(code, f'signal {-code}')}"
    return f"the worker ended with exit code {code} and no answer"
