"""Alarms: a line on standard error, and a command of the operator's that is given the alarm as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

TIMEOUT: Final = 30.0
"""Seconds that a command may take before it is killed."""


class AlarmCommand:
    """Runs a command for each alarm, without keeping anybody waiting.

    Parameters
    ----------
    command
        For the shell; None: there is none.
    tell
        Told when it fails.
    timeout
        Seconds that it may take.
    """

    def __init__(self, command: str | None, tell: Callable[[str], None], *, timeout: float = TIMEOUT) -> None:
        self._command = command
        self._tell = tell
        self._timeout = timeout
        self._threads: list[threading.Thread] = []

    def run(self, alarm: Mapping[str, Any]) -> None:
        """Run it, in the background."""
        if self._command is None:
            return
        text = json.dumps(alarm, default=str)
        thread = threading.Thread(target=self._run, args=(self._command, text), name="iceburg-alarm", daemon=True)
        self._threads = [running for running in self._threads if running.is_alive()] + [thread]
        thread.start()

    def wait(self) -> None:
        """Wait for those that are running: not for longer than one may take."""
        for thread in self._threads:
            thread.join(self._timeout + 1)

    def _run(self, command: str, text: str) -> None:
        try:
            process = subprocess.Popen(  # noqa: S602 - the operator's own command line
                command,
                shell=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self._tell(f"the alarm command could not be started: {error}")
            return
        try:
            _, said = process.communicate(text, timeout=self._timeout)
        except subprocess.TimeoutExpired:
            # With whatever it has started.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self._tell(f"the alarm command was ended: it took more than {self._timeout:g} s")
            return
        if process.returncode:
            last = (said.strip().splitlines() or [""])[-1][:200]
            self._tell(f"the alarm command ended with status {process.returncode}: {last}".rstrip(": "))
