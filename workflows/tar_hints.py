"""Hints of the pictures in a tar, into a tar: the form in which large data sets are stored (webdataset).

The member a/b.jpg becomes a/b.png. The hints are collected in a hidden file beside the output, which gets the output's
name when it is complete. A run that was killed goes on after the last complete hint.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from ..controlnet_core.errors import CoreError, MissingFileError, ValueRangeError, reading, writing
from ..controlnet_core.limits import LimitError, check_end, check_member
from ..controlnet_core.picture_files import PICTURE_ENDINGS
from .destinations import check_replacement
from .hint_files import Job, hint_note, left_out_of
from .hint_making import Outcome, Settings, make_all
from .locks import try_lock
from .shards import Shard

_GROUP = 64
"""Pictures that are unpacked at a time."""


def tar_target(source: Path, output: Path, shard: Shard) -> Path:
    """Return the tar for the hints of a tar, or of a part of it."""
    part = "" if shard.count == 1 else f"-{shard.number}of{shard.count}"
    return output / f"{source.stem}{part}.tar"


def make_tar(source: Path, target: Path, settings: Settings, shard: Shard, *, overwrite: bool) -> Outcome:
    """Make the hints of a part of the pictures in a tar, unless all are there already.

    Raises ValueRangeError for a target that must not be replaced, DamagedFileError for a source that is no tar,
    MissingFileError for one without pictures, WriteError.
    """
    found, left_out = picture_names(source)
    names = shard.of(found)
    notes = [left_out_of(source, left_out)] if left_out else []
    note = _first_note(target) if target.exists() else None
    check_replacement("hints", target, [source], lambda path: note is not None, overwrite=overwrite)
    part = target.with_name(f".{target.name}.part")
    with writing(part):
        target.parent.mkdir(parents=True, exist_ok=True)
    with try_lock(target.with_name(f".{target.name}.lock")) as is_ours:
        if not is_ours:
            raise ValueRangeError(f"{target} is being made by another process: wait for it, or choose another --output")
        # Also a complete file, since pictures that failed are tried again.
        if note == settings.note and not overwrite and target.stat().st_mtime >= source.stat().st_mtime:
            if {_hint_name(name) for name in names} == set(_members(target)):
                return Outcome(kept=len(names), notes=notes)
            target.replace(part)
        made = _resume(part, "" if overwrite else settings.note)
        outcome = Outcome(kept=len(made), notes=notes)
        with writing(part), part.open("r+b") as file, tarfile.open(source, "r:") as archive:
            file.seek(0, 2)
            # Not closed if an error comes: closing writes the end of the archive, after which nothing can be added.
            hints = tarfile.open(fileobj=file, mode="w")  # noqa: SIM115
            for name, data in _hints(
                archive, source, [n for n in names if _hint_name(n) not in made], settings, outcome
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                hints.addfile(info, io.BytesIO(data))
                file.flush()
            hints.close()
        with writing(target):
            # An empty tar would not be known as ours again.
            if outcome.made + outcome.kept:
                part.replace(target)
            else:
                part.unlink()
    return outcome


def picture_names(source: Path) -> tuple[list[str], list[str]]:
    """Return the names of the pictures in a tar, in its order, and those of other members.

    Hidden members and folders are in neither list, as where a folder is read.
    """
    with reading(source), tarfile.open(source, "r:") as archive:  # a compressed one may hold gigabytes
        members = [(PurePosixPath(member.name), member.isfile()) for member in archive if not member.isdir()]
        check_end(archive, source)
    shown = [(path, is_file) for path, is_file in members if not path.name.startswith(".")]
    names = [str(path) for path, is_file in shown if is_file and path.suffix.lower() in PICTURE_ENDINGS]
    left_out = [str(path) for path, is_file in shown if not is_file or path.suffix.lower() not in PICTURE_ENDINGS]
    if not names:
        raise MissingFileError(f"{source} holds no file of type {', '.join(sorted(PICTURE_ENDINGS))}", source)
    seen: dict[str, str] = {}
    for name in names:
        # Hints keep these names, and some programs would unpack them outside of the folder they are given.
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ValueRangeError(f"{source}: {name} leads out of the tar: pack the pictures with plain names")
        if _hint_name(name) in seen:
            other = seen[_hint_name(name)]
            raise ValueRangeError(f"{source}: {other} and {name} would both become {_hint_name(name)}: rename one")
        seen[_hint_name(name)] = name
    return names, left_out


def _hint_name(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".png"))


def _first_note(path: Path) -> str | None:
    """Return the settings of the first hint in a tar, None if it holds no hints."""
    with contextlib.suppress(tarfile.TarError, OSError), tarfile.open(path) as archive:
        first = next(iter(archive), None)
        data = None if first is None else archive.extractfile(first)
        return None if data is None else hint_note(io.BytesIO(data.read()))
    return None


def _resume(part: Path, note: str) -> set[str]:
    """Return the names of the complete hints of an earlier attempt, and cut off what comes after them.

    note: the settings that the hints must have; others are discarded.
    """
    made = _members(part) if part.exists() and _first_note(part) == note else {}
    with part.open("ab") as file:
        file.truncate(max(made.values(), default=0))
    return set(made)


def _members(path: Path) -> dict[str, int]:
    """Return the names of the complete members of a tar, and where each of them ends."""
    found: dict[str, int] = {}
    size = path.stat().st_size
    with contextlib.suppress(tarfile.TarError), tarfile.open(path) as archive:
        for member in archive:
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            # A kill can leave a header without all of its data.
            if end <= size:
                found[member.name] = end
    return found


def _hints(
    archive: tarfile.TarFile, source: Path, names: Sequence[str], settings: Settings, outcome: Outcome
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, PNG) of each hint. Pictures are unpacked to files, because their readers take files."""
    from tqdm import tqdm

    with tqdm(total=len(names), unit="picture", disable=None) as bar:
        for start in range(0, len(names), _GROUP):
            group = names[start : start + _GROUP]
            with TemporaryDirectory() as folder:
                jobs = [
                    Job(Path(folder, f"{index}{PurePosixPath(name).suffix}"), Path(folder, f"{index}_hint.png"))
                    for index, name in enumerate(group)
                ]
                bad = {}
                for name, job in zip(group, jobs, strict=True):
                    try:
                        with reading(source):
                            member = archive.getmember(name)
                            check_member(member, source)
                            data = archive.extractfile(member)
                            assert data is not None
                            job.source.write_bytes(data.read())
                    except LimitError as error:
                        bad[job.source] = error
                made = make_all([job for job in jobs if job.source not in bad], settings, quiet=True)
                made.failed |= bad
                for name, job in zip(group, jobs, strict=True):
                    if job.source in made.failed:
                        error = made.failed.pop(job.source)
                        made.failed[source / name] = _named(error, job.source, source / name)
                    else:
                        yield _hint_name(name), job.target.read_bytes()
            outcome.add(made)
            bar.update(len(group))


def _named(error: CoreError, unpacked: Path, member: Path) -> CoreError:
    """Return an error that names the member instead of the file that it was unpacked to."""
    error.args = (str(error).replace(str(unpacked), str(member)), *error.args[1:])
    return error
