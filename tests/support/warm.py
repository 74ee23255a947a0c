"""Starts Ray's workers from a process that has imported verl: a run of ten processes takes a third of the time.

    python -m support.warm SOCKET            the server: prints a line when it is ready
    python -I support/warm.py SOCKET FILE …  what Ray starts instead of Python (runtime_env's py_executable)

The server has a worker's environment: Ray reads the job and how its processes are let in once, when it is imported.
The second hands its arguments, environment and standard streams to the first, which forks; it ends when the fork does.
"""

from __future__ import annotations

import array
import json
import os
import runpy
import signal
import socket
import sys

IMPORTED = (
    "verl.trainer.main_ppo",
    "verl.trainer.ppo.v1",
    "verl.workers.engine_workers",
    "verl.experimental.agent_loop.agent_loop",
    "verl.experimental.reward_loop",
    "support.rollout",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.generation.utils",
    "datasets",
    "peft",
)


def serve(path: str) -> None:
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                become_worker(connection)
            connection.close()


def become_worker(connection: socket.socket) -> None:
    """Run the file that was asked for as the main program; the open connection says that this process lives."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    file = connection.makefile("rb")
    _, streams, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(12))
    for number, stream in enumerate(array.array("i", streams[0][2])):
        os.dup2(stream, number)
        os.close(stream)
    asked = json.loads(file.readline())
    os.set_inheritable(connection.fileno(), False)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["arguments"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def ask(path: str, arguments: list[str]) -> None:
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    if not os.path.exists(path):  # a worker from before the server
        os.execv(sys.executable, [sys.executable, *arguments])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        connection.sendmsg([b"."], rights)
        connection.sendall(json.dumps(asked).encode() + b"\n")
        connection.recv(1)  # nothing comes: it ends


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        ask(sys.argv[1], [a for a in sys.argv[2:] if a != "-u"])
