"""Hosts as network namespaces of one machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.campaigns.running import ROOT, VARIABLES, kill


def run_ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True)


class Hosts:
    """Network namespaces with one address each, on a bridge."""

    def __init__(self, count: int) -> None:
        self.prefix = f"rlhf{os.getpid()}"
        self.switch = f"{self.prefix}s"
        self.names = [f"{self.prefix}h{number}" for number in range(count)]
        for name in (self.switch, *self.names):
            run_ip("netns", "add", name)
        run_ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        run_ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, name in enumerate(self.names):
            run_ip(
                *("-n", name, "link", "add", "eth0", "type", "veth"),
                *("peer", "name", f"port{number}", "netns", self.switch),
            )
            run_ip("-n", self.switch, "link", "set", f"port{number}", "master", "bridge", "up")
            run_ip("-n", name, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                run_ip("-n", name, "link", "set", device, "up")

    def address(self, number: int) -> str:
        """Of a host."""
        return f"10.77.0.{number + 1}"

    def start(self, number: int, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """A program on a host."""
        with log.open("ab") as stream:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[number], *command],
                stdout=stream,
                stderr=stream,
                env=os.environ | VARIABLES | {"GLOO_SOCKET_IFNAME": "eth0"},
                start_new_session=True,
                cwd=ROOT,
            )

    def cut(self, number: int) -> None:
        """Take a host off the network."""
        run_ip("-n", self.switch, "link", "set", f"port{number}", "down")

    def connect(self, number: int) -> None:
        """Put it back."""
        run_ip("-n", self.switch, "link", "set", f"port{number}", "up")

    def processes(self, number: int) -> list[psutil.Process]:
        """All processes on a host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.names[number]], check=True, capture_output=True, text=True
        )
        return [psutil.Process(int(pid)) for pid in listed.stdout.split() if psutil.pid_exists(int(pid))]

    def close(self) -> None:
        """End what still runs and remove the namespaces."""
        for number, name in enumerate(self.names):
            kill(self.processes(number))
            run_ip("netns", "delete", name)
        run_ip("netns", "delete", self.switch)


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Hosts that are removed at the end."""
    network = Hosts(count)
    try:
        yield network
    finally:
        network.close()


def missing() -> str:
    """Why the campaign cannot run here, or the empty string."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if shutil.which("ip") is None:
        return "the program ip (iproute2) is missing"
    probe = f"rlhf{os.getpid()}p"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "network namespaces are not allowed here"
    run_ip("netns", "delete", probe)
    return ""
