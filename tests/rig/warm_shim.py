"""Stands for a program: has the server fork a process for it, and lives and ends as that does.

Started as `python -IS warm_shim.py SOCKET PROGRAM WORDS...`; it imports nothing heavy.
"""

import json
import os
import signal
import socket
import sys

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
address, program, *words = sys.argv[1:]
channel = socket.socket(socket.AF_UNIX)
channel.connect(address)
told = {"program": program, "words": words, "cwd": os.getcwd(), "env": dict(os.environ)}
body = json.dumps(told).encode()
socket.send_fds(channel, [len(body).to_bytes(8, "big")], [0, 1, 2])
channel.sendall(body)
for number in SIGNALS:
    signal.signal(number, lambda got, _: channel.sendall(bytes([got])))
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
said = channel.recv(8)
if not said:
    sys.exit("warm_shim: the server is gone")
code = int.from_bytes(said, "big", signed=True)
if code < 0:  # it was ended by a signal, and so is its stand-in
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
