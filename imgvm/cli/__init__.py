# SPDX-License-Identifier: MIT
"""The `imgvm` command. Verbs live in files of their own and load what they need when they run."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from imgvm.errors import STATUS_ERROR, STATUS_SIGNAL, ConfigError, ConsentError, ImgvmError, cut
from imgvm.log import log, one_line

VERBS = (
    "pack", "run", "validate", "inspect", "extract", "unpack", "export", "import", "push", "pull", "config",
    "check", "verify", "sign", "convert", "snapshot", "reset", "overlay", "resize", "schema", "doctor", "cpu",
)  # fmt: skip
MAX_SHOWN = 8000  # of a message: it may quote a path, and a guest's or image's words
GDB_ADDRESS = "127.0.0.1:1234"  # of a plain --gdb
# What an option means that stands alone.
_ALONE = {"--gdb": f"--gdb={GDB_ADDRESS}", "--stats": "--stats=table"}
# Options before the verb that take a value, which is then not the verb.
_VALUED = ("-C", "--directory")


class _Ended(BaseException):
    """A signal asks us to end: everything is put away on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _ending_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise _Ended(number)

    # nohup and the like have them ignored: that stays.
    numbers = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process status. No exception but SystemExit leaves it."""
    args = with_run(list(sys.argv[1:] if argv is None else argv))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name is printed as it is, whatever its bytes
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        with _ending_signals():
            while True:
                try:
                    return _invoke(args)
                except ConsentError as error:  # before anything was done
                    if not _agrees(error):
                        raise
                    end = args.index("--") if "--" in args else len(args)
                    args = [*args[:end], "--allow", error.grant, *args[end:]]
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"{one_line(str(problem))}\n")
        return error.status
    except ImgvmError as error:
        log.error(cut(error.message, MAX_SHOWN), error.hint and cut(error.hint, MAX_SHOWN))
        return error.status
    except _Ended as ended:
        return STATUS_SIGNAL + ended.number
    except KeyboardInterrupt:
        return STATUS_SIGNAL + 2
    except BrokenPipeError:
        # The reader of our data is gone, as `| head` goes; the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_SIGNAL + 13
    except MemoryError:
        log.error("out of memory", "give the machine less with --set machine.memory=...")
        return STATUS_ERROR
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        log.error(f"{name}{error.strerror or error}")
        return STATUS_ERROR
    except Exception as error:
        if os.environ.get("IMGVM_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}"
        log.error(f"a fault of imgvm itself: {what}", "IMGVM_TRACEBACK=1 shows where")
        return STATUS_ERROR


def _invoke(args: list[str]) -> int:
    from imgvm.cli import quick

    options = quick.run_options(args)
    if options is None:
        from imgvm.cli import app

        return app.invoke(args)
    from imgvm.cli import on_terminal

    status = on_terminal.command(**options)
    sys.stdout.flush()
    return status


def _agrees(error: ConsentError) -> bool:
    """Asks on a terminal; without one the answer is no."""
    if not (os.isatty(0) and os.isatty(2)):
        return False
    sys.stderr.write(f"imgvm: {one_line(error.message)}\nAllow it ({error.grant})? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def with_run(args: list[str]) -> list[str]:
    """`imgvm [options] FILE ...` is `imgvm [options] run FILE ...`; adds --gdb's and --stats' own values."""
    args = [_ALONE.get(word, word) for word in args]
    index = _verb_index(args)
    if index < len(args) and args[index] not in VERBS and _names_a_file(args[index]):
        return [*args[:index], "run", *args[index:]]
    return args


def verb_of(args: Sequence[str]) -> str | None:
    """The word at the verb's place."""
    index = _verb_index(args)
    return args[index] if index < len(args) else None


def _verb_index(args: Sequence[str]) -> int:
    index = 0
    while index < len(args) and args[index].startswith("-"):
        index += 2 if args[index] in _VALUED else 1
    return index


def _names_a_file(word: str) -> bool:
    return os.sep in word or "." in word or os.path.lexists(word)
