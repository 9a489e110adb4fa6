"""A Python that has imported a framework; what asks for a process gets a fork of it.

Run as `warm_server.py SOCKET KIND TOOLS`: imports, goes into the background, and ends when the last
process that holds a lease on it has closed it. A fork runs what it is told as a new interpreter
would: the script, module or text is `__main__`, with arguments, folder, variables and streams of
the one that asked (warm_shim.py).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TORCH = (
    *("torch.distributed.fsdp", "torch.distributed.pipelining", "torch.distributed.run"),
    *("torch.distributed.tensor.parallel", "torch.profiler", "torch.utils.checkpoint"),
    *("torch.testing._internal.distributed.fake_pg", "torch.distributed._tools.fsdp2_mem_tracker"),
)
KINDS = {
    "torch": TORCH,
    "deepspeed": (
        *("torch.distributed.run", "torch._dynamo", "deepspeed.moe.layer", "deepspeed.pipe"),
        *("deepspeed.module_inject.auto_ep_layer", "deepspeed.comm.mori"),
    ),
    "accelerate": (
        *("torch.distributed.run", "accelerate.commands.launch", "transformers.trainer"),
        *("transformers.models.llama.modeling_llama", "deepspeed"),
    ),
    "megatron": ("megatron_harness",),
    "planner": (
        *("planner.cli.app", "planner.workflow", "planner.sweep", "planner.place.solve"),
        *("planner.emit", "planner.report", "planner.importing", "planner.validate"),
    ),
}


def load(kind: str) -> None:
    """Import what a kind of process needs."""
    for name in KINDS[kind]:
        importlib.import_module(name)
    if kind == "megatron":
        sys.modules["megatron_harness"].load()
        importlib.import_module("megatron.core.parallel_state")
    if kind == "deepspeed":
        # its shared-memory collectives are compiled at the first start, by each machine anew and by
        # two ranks under one lock that outlives them; as where it has none, gloo does their work
        sys.modules["deepspeed"].ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass
class Client:
    """A connection: a lease until it asks for a process, then that process."""

    channel: socket.socket
    streams: list[int] = field(default_factory=list)
    body: bytes = b""
    wanted: int = 0
    pid: int = 0
    watch: int = -1

    def read(self) -> bool:
        """Take in what has come; return whether the other side is still there."""
        try:
            if not self.wanted:
                head, self.streams, *_ = socket.recv_fds(self.channel, 8, 3)
                self.wanted = int.from_bytes(head, "big")
                return bool(head)
            some = self.channel.recv(1 << 16 if not self.pid else 1)
        except OSError:
            return False
        if self.pid and some:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, some[0])
        elif some:
            self.body += some
        return bool(some)

    def complete(self) -> bool:
        """Return whether it has just said all of what it wants."""
        return self.wanted > 0 and not self.pid and len(self.body) == self.wanted

    def close(self, loop: selectors.BaseSelector) -> None:
        """End what it started, if it still runs, and forget it."""
        loop.unregister(self.channel)
        self.channel.close()
        if self.watch >= 0:
            loop.unregister(self.watch)
            os.close(self.watch)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                os.waitpid(self.pid, 0)


def serve(listener: socket.socket) -> Client | None:
    """Fork for whoever asks. Returns in each fork with its client, and at the end without one."""
    loop = selectors.DefaultSelector()
    loop.register(listener, selectors.EVENT_READ, None)
    clients: list[Client] = []
    leased = False
    while clients or not leased:
        for key, _ in loop.select():
            client: Client | None = key.data
            if client is None:
                client = Client(listener.accept()[0])
                clients.append(client)
                leased = True
                loop.register(client.channel, selectors.EVENT_READ, client)
            elif key.fd == client.watch:
                _, status = os.waitpid(client.pid, 0)
                code = os.waitstatus_to_exitcode(status)
                with contextlib.suppress(OSError):
                    client.channel.sendall(code.to_bytes(8, "big", signed=True))
                loop.unregister(client.watch)
                os.close(client.watch)
                client.watch = -1
            elif client not in clients:
                continue
            elif not client.read():
                client.close(loop)
                clients.remove(client)
            elif client.complete() and forked(client, loop):
                loop.close()
                for other in clients:
                    other.channel.close()
                return client
    return None


def forked(client: Client, loop: selectors.BaseSelector) -> bool:
    """Fork for a client; return whether this is the fork."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the fork is what it will be
    if (pid := os.fork()) == 0:
        return True
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    for stream in client.streams:
        os.close(stream)
    client.pid, client.watch = pid, os.pidfd_open(pid)
    loop.register(client.watch, selectors.EVENT_READ, client)
    return False


def become(client: Client, tools: Path) -> tuple[str, list[str]]:
    """Take on the streams, folder and variables of a client; return its program and words."""
    os.setpgid(0, 0)
    for number, stream in enumerate(client.streams):
        os.dup2(stream, number)
        os.close(stream)
    told: dict[str, Any] = json.loads(client.body)
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ.update(told["env"])
    sys.executable = str(tools / "python")
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return told["program"], told["words"]


def open_streams(*, unbuffered: bool) -> None:
    """Give Python its three streams anew."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    out, err = (io.FileIO(number, "w", closefd=False) for number in (1, 2))
    held: Any = out if unbuffered else io.BufferedWriter(out)
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(held, "utf-8", write_through=unbuffered)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(  # type: ignore[misc]
        err, "utf-8", errors="backslashreplace", write_through=True
    )


def go(program: str, words: list[str]) -> None:
    """Run what an interpreter, or a program of its environment, would run."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    if program == "python":
        while words and words[0] in ("-u", "-W", "-I", "-E", "-s"):
            unbuffered |= words[0] == "-u"
            words = words[2 if words[0] == "-W" else 1 :]
    else:
        words = [str(Path(sys.prefix) / "bin" / program), *words]
    open_streams(unbuffered=unbuffered)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def ended(program: str, words: list[str]) -> int:
    """Run it, with all that it left to be done at its end; return its exit code.

    Modules are not taken down, which for these takes longer than what is run.
    """
    code: Any = 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        go(program, words)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code if isinstance(code, int) else int(code is not None)


def into_background() -> None:
    """Let whoever started this go on."""
    if os.fork():
        os._exit(0)
    os.setsid()


def main(address: str, kind: str, tools: str) -> None:
    """Import, serve, and in a fork run."""
    warnings.simplefilter("ignore")
    load(kind)
    gc.collect()
    gc.freeze()  # a fork need not look at, and so copy, what all share
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    into_background()
    client = serve(listener)
    listener.close()
    if client is None:
        os.unlink(address)
        print(f"{sum(os.times()[:4]):.1f} s of processor, forks included", flush=True)
        os._exit(0)
    del sys.path[0]  # this script's
    program, words = become(client, Path(tools))
    os._exit(ended(program, words))


if __name__ == "__main__":
    main(*sys.argv[1:])
