"""The command `controlnet`: a table of subcommands, errors in one line, exit codes.

0 done, 2 bad usage or invalid workflow, 3 a missing or unfit file, 4 out of memory, 130 interrupted by Ctrl-C,
143 ended by SIGTERM, 1 anything else. A subcommand is a module with `add_arguments(parser)` and `run(args) -> int`.
Only the one that is called is imported, so that `controlnet --help` needs no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from ..controlnet_core.errors import DISK_FULL, CoreError, DamagedFileError, Interrupted, OutOfMemory, WriteError
from .stop_signals import stop_signals
from .terminal import printable

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "run": (".commands.run", "run a workflow .json, or the picture that it once made"),
        "sweep": (".commands.sweep", "run a workflow for several values of one or two inputs, as a labelled grid"),
        "tune": (".commands.tune", "find the strength at which the picture follows its hint as well as asked"),
        "validate": (".commands.validate", "say what keeps a workflow from running, without running it"),
        "inspect": (".commands.inspect", "say what a model, workflow or picture file is"),
        "verify": (".commands.verify", "try real model files and write a report for an issue"),
        "nodes": (".commands.nodes", "list the nodes, or describe one"),
        "preprocess": (".commands.preprocess", "make hints from pictures, folders and frames"),
        "train": (".commands.train", "train a ControlNet on a folder of pictures, hints and captions"),
        "train-demo": (".commands.train_demo", "make the built-in demo model again, stage by stage"),
        "cache": (".commands.cache", "list or remove the packed weights that --keep-packed wrote"),
        "doctor": (".commands.doctor", "check versions, device, folders and built-in files"),
    }
)
BROKEN_PIPE = 141
"""128 + SIGPIPE, as shells report it. It is no success, since the work may not be finished."""
MAX_MESSAGE = 2000
"""Characters of a message. The longest lists of choices have half as many."""
_EPILOG = (
    "exit codes: 0 done, 1 an unexpected failure, 2 bad usage or workflow, 3 missing or unfit file, 4 out of memory, "
    "130 interrupted by Ctrl-C, 143 ended by SIGTERM"
)


class _Parser(argparse.ArgumentParser):
    """Reports bad usage in one line, like all other errors, and takes files before and after options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        """Parse options first, then what remains as the positional arguments; `--` ends the options.

        argparse alone fills all positional arguments at the first of them, so that `preprocess canny --output out
        photo.jpg` would end with "unrecognized arguments: photo.jpg".
        """
        positionals = [action for action in self._actions if not action.option_strings]
        if any(action.nargs == argparse.PARSER for action in positionals):
            return super().parse_known_args(args, namespace)
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        options = [action for action in self._actions if action.option_strings]
        with self._only(options):
            namespace, rest = super().parse_known_args(words[:end], namespace)
        with self._only(positionals):
            return super().parse_known_args(rest + words[end:], namespace)

    @contextlib.contextmanager
    def _only(self, actions: list[argparse.Action]) -> Iterator[None]:
        """Within the block the parser has only these of its actions."""
        kept, strings = self._actions, self._option_string_actions
        self._actions = actions
        self._option_string_actions = {text: action for action in actions for text in action.option_strings}
        try:
            yield
        finally:
            self._actions, self._option_string_actions = kept, strings

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


class _ShowVersion(argparse.Action):
    """argparse's own action wants the text for every command, and reading it takes half of the time of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(_version())
        parser.exit()


class UsageError(CoreError):
    """The command line is wrong."""

    exit_code = 2


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser. Only `command` gets its arguments, because those of the others cost imports."""
    description = "ControlNet workflows without the node editor: the same files, the same pictures."
    parser = _Parser(prog="controlnet", description=description, epilog=_EPILOG)
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show program's version number and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, (module, summary) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary, epilog=_EPILOG)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == command:
            importlib.import_module(module, __package__).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Raises nothing but the SystemExit of --help."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    received: list[int] = []

    def on_signal(number: int) -> None:
        # The first one ends the command; further ones are ignored while files are cleaned up.
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    with stop_signals(on_signal):
        try:
            return _dispatch(arguments)
        except BrokenPipeError:
            # The reader of our output is gone. Without this Python would complain when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except (Exception, KeyboardInterrupt) as error:
            return _report(_for_user(error, received), arguments)


def _for_user(error: BaseException, received: Sequence[int]) -> CoreError:
    """Return any error of a command as one whose message is for the user. received: numbers of stop signals."""
    if isinstance(error, Interrupted) or (isinstance(error, CoreError) and not received):
        return error
    # A signal can come out as another error than KeyboardInterrupt: during an import, or while torch reads a file,
    # which is then said to be damaged.
    if received or isinstance(error, KeyboardInterrupt):
        stopped = Interrupted("interrupted; what was saved before stays")
        # Shells report a process that a signal ended in this way.
        stopped.exit_code = 128 + received[0] if received else stopped.exit_code
        return stopped
    if isinstance(error, MemoryError):
        return OutOfMemory("out of memory: use a smaller picture or batch")
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = error.filename or "a file"
        return WriteError(f"{where} could not be written ({error.strerror}): make room, or choose another folder")
    # A file or folder of the user that cannot be read or written.
    if isinstance(error, OSError) and error.filename:
        reason = error.strerror or type(error).__name__
        return DamagedFileError(f"{error.filename} cannot be used ({reason}): check its name and permissions")
    return CoreError(f"unexpected {type(error).__name__}: {error} (--debug shows where)")


def _dispatch(arguments: list[str]) -> int:
    # Find the subcommand before parsing, because the parser needs the options of this one only.
    command = next((word for word in arguments if word in COMMANDS), None)
    parser = build_parser(command)
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    module = importlib.import_module(COMMANDS[args.command][0], __package__)
    return module.run(args)


def _report(error: CoreError, arguments: list[str]) -> int:
    """Print one line on stderr, with --json also an object on stdout, and with --debug the traceback."""
    # The arguments may have failed to parse, so look for the words themselves.
    if "--debug" in arguments:
        traceback.print_exc()
    message = " ".join(str(error).split())
    # A long message quotes something from a file. Its beginning and its end say what is wrong.
    if len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE // 2]} ... {message[-MAX_MESSAGE // 2 :]}"
    print(f"error: {printable(message)}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"ok": False, "error": message, "exit_code": error.exit_code}))
    return error.exit_code


def _version() -> str:
    from .versions import installed_version

    return f"controlnet {installed_version('comfyui-controlnet-core') or '(not installed, run from its folder)'}"
