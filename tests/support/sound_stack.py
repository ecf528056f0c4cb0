"""A real sound stack without a sound card: a private PulseAudio daemon that ALSA, and so PortAudio, leads to.

What is fed into the bus comes out of the virtual microphone; what is played is heard at the speaker's monitor.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from assistant.events import Samples
from tests.support.fakes import eventually

RATE = 48_000
# Without norewinds a null sink hands out what it has rendered ahead up to two seconds late.
MODULES = {
    "spk": f"module-null-sink sink_name=spk rate={RATE} norewinds=1",
    "micbus": f"module-null-sink sink_name=micbus rate={RATE} norewinds=1",
    "mic": "module-remap-source master=micbus.monitor source_name=mic",
}
# The names by which PortAudio shows the devices; `headset` plays to and records from the same virtual card.
ALSA = """
pcm.default { type pulse }
ctl.default { type pulse }
pcm.pulse { type pulse }
pcm.headset { type pulse }
"""


class Hearing:
    """What is heard at the speaker, from its start: mono float32 at `RATE`."""

    def __init__(self, stack: SoundStack) -> None:
        command = ["parec", "--device=spk.monitor", "--latency-msec=10", "--raw", "--format=float32le"]
        self._process = subprocess.Popen(
            [*command, "--channels=1", f"--rate={RATE}"], stdout=subprocess.PIPE, env=stack.environment
        )
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        stack.until(lambda: bool(self._parts))

    def _read(self) -> None:
        assert self._process.stdout is not None
        while part := os.read(self._process.stdout.fileno(), 1 << 16):
            self._parts.append(part)

    @property
    def samples(self) -> Samples:
        """Everything so far."""
        data = b"".join(self._parts)
        return np.frombuffer(data[: len(data) // 4 * 4], np.float32)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class SoundStack:
    """The daemon, and what one does with it."""

    def __init__(self, folder: Path) -> None:
        (folder / "asoundrc").write_text(ALSA)
        self._folder = folder
        self._daemon: subprocess.Popen[bytes] | None = None
        self.environment = {
            **os.environ,
            "PULSE_SERVER": f"unix:{folder}/socket",
            "PULSE_RUNTIME_PATH": str(folder),
            "PULSE_STATE_PATH": str(folder),
            "PULSE_COOKIE": str(folder / "cookie"),
            "ALSA_CONFIG_PATH": str(folder / "asoundrc"),
            "PULSE_SINK": "spk",
            "PULSE_SOURCE": "mic",
        }

    def start(self) -> None:
        """Start the daemon, if it does not run."""
        if self._daemon is not None:
            return
        options = "-n --daemonize=no --exit-idle-time=-1 --disallow-exit=no --use-pid-file=no"
        quiet = "--realtime=no --high-priority=no --log-target=stderr --log-level=error"
        socket = f"module-native-protocol-unix socket={self._folder}/socket auth-anonymous=1"
        loads = [f"--load={module}" for module in (socket, *MODULES.values())]
        self._daemon = subprocess.Popen(
            ["pulseaudio", *options.split(), *quiet.split(), *loads],
            env={**self.environment, "HOME": str(self._folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.until(lambda: "mic" in self.control("list", "short", "sources"))

    def kill(self) -> None:
        """End the daemon as a crash would."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None
            (self._folder / "socket").unlink(missing_ok=True)

    def control(self, *words: str) -> str:
        """A command of pactl; its output."""
        return subprocess.run(["pactl", *words], env=self.environment, capture_output=True, text=True).stdout

    def play(self, path: Path) -> subprocess.Popen[bytes]:
        """Begin to play a recording into the microphone."""
        return subprocess.Popen(["paplay", "--device=micbus", "--latency-msec=1000", str(path)], env=self.environment)

    def say(self, samples: Samples, rate: int = 16_000) -> None:
        """Play samples into the microphone to their end."""
        path = self._folder / "said.wav"
        soundfile.write(path, samples, rate, subtype="FLOAT")
        assert self.play(path).wait() == 0

    @contextlib.contextmanager
    def hearing(self) -> Iterator[Hearing]:
        """Listen at the speaker."""
        heard = Hearing(self)
        try:
            yield heard
        finally:
            heard.close()

    until = staticmethod(eventually)


@pytest.fixture(scope="session")
def daemon() -> Iterator[SoundStack]:
    with tempfile.TemporaryDirectory(prefix="sound") as folder:
        stack = SoundStack(Path(folder))
        stack.start()
        yield stack
        stack.kill()


@pytest.fixture
def sound_stack(daemon: SoundStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundStack]:
    """The running daemon, which this process's PortAudio finds, too."""
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    daemon.start()
    yield daemon
    daemon.start()
    for kind in ("sink", "source"):
        for device in ("spk", "micbus", "mic"):
            daemon.control(f"suspend-{kind}", device, "0")
