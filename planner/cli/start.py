"""Where the `meshwright` command begins: nothing is loaded before Ctrl-C is taken care of."""

from __future__ import annotations

INTERRUPTED = 130


def main() -> int:
    """Run the command line and return the exit code; an interrupt says nothing, whenever it comes.

    Once the command is done an interrupt is ignored, so that it cannot disturb the shutdown.
    """
    try:
        from planner.cli.app import main as run

        code = run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    _ignore_interrupts()
    return code


def _ignore_interrupts() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
