"""The command `controlnet`: a table of subcommands, errors as one line, exit codes.

0 done, 2 bad usage or invalid workflow, 3 a missing or unfit file, 4 out of memory, 130 interrupted,
1 anything else. A subcommand is a module with `add_arguments(parser)` and `run(args) -> int`; only
the one that is called gets imported, so that `controlnet --help` needs no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import NoReturn

from ..controlnet_core.errors import CoreError, Interrupted, OutOfMemory
from .terminal import printable

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "run": (".commands.run", "run a workflow .json, or the picture that it once made"),
        "validate": (".commands.validate", "say what keeps a workflow from running, without running it"),
        "inspect": (".commands.inspect", "say what a model, workflow or picture file is"),
        "nodes": (".commands.nodes", "list the nodes, or describe one"),
        "preprocess": (".commands.preprocess", "make hints from pictures, folders and frames"),
        "train": (".commands.train", "train a ControlNet on a folder of pictures, hints and captions"),
        "train-demo": (".commands.train_demo", "make the built-in demo model again, stage by stage"),
        "doctor": (".commands.doctor", "check versions, device, folders and built-in files"),
    }
)
BROKEN_PIPE = 141
"""128 + SIGPIPE, as shells count it: the work may not have been finished, so it is no success."""
LONGEST = 2000
"""Characters of a message; the longest lists of choices have half as many."""
_EPILOG = (
    "exit codes: 0 done, 1 an unforeseen failure, 2 bad usage or workflow, 3 missing or unfit file, 4 out of memory, "
    "130 interrupted"
)


class _Parser(argparse.ArgumentParser):
    """Bad usage in one line, in the style of all other errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


class UsageError(CoreError):
    """The command line itself is wrong."""

    exit_code = 2


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; only the arguments of `command` are filled in, since those of others cost imports."""
    parser = _Parser(prog="controlnet", description=_description(), epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, (module, summary) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary, epilog=_EPILOG)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == command:
            importlib.import_module(module, __package__).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing is raised but SystemExit of --help."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _one_interrupt() as pressed:
        try:
            return _dispatch(arguments)
        except KeyboardInterrupt:
            return _report(Interrupted("interrupted; what was saved before stays"), arguments)
        except BrokenPipeError:
            # whoever read our output has gone; keep Python from complaining when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except CoreError as error:
            return _report(error, arguments)
        except MemoryError:
            return _report(OutOfMemory("out of memory: use a smaller picture or batch"), arguments)
        except Exception as error:
            if pressed:  # Ctrl-C inside an import can come out as another error
                return _report(Interrupted("interrupted"), arguments)
            return _report(CoreError(f"unexpected {type(error).__name__}: {error} (--debug shows where)"), arguments)


def _dispatch(arguments: list[str]) -> int:
    command = next((word for word in arguments if word in COMMANDS), None)
    parser = build_parser(command)
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    module = importlib.import_module(COMMANDS[args.command][0], __package__)
    return module.run(args)


def _report(error: CoreError, arguments: list[str]) -> int:
    """One line on stderr, with --json an object on stdout too; the traceback only with --debug."""
    if "--debug" in arguments:
        traceback.print_exc()
    message = " ".join(str(error).split())
    if len(message) > LONGEST:  # it quotes something long that came from a file: its ends say what is wrong
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    print(f"error: {printable(message)}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"ok": False, "error": message, "exit_code": error.exit_code}))
    return error.exit_code


@contextlib.contextmanager
def _one_interrupt() -> Iterator[list[int]]:
    """The first Ctrl-C stops the work, further ones do not disturb the cleaning up."""
    pressed: list[int] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if not pressed:
            pressed.append(number)
            raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not in the main thread, where Python delivers no signals anyway
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _description() -> str:
    return "ControlNet workflows without the node editor: the same files, the same pictures."


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"controlnet {version('comfyui-controlnet-core')}"
    except PackageNotFoundError:
        return "controlnet (not installed, run from its folder)"
