"""Loads this pack beside another one inside ComfyUI: `python comfyui_beside.py COMFYUI_DIR PACK PACKS OUT`.

PACKS is a folder with clones of packs. Each pair is loaded in both orders, each time in a fork of a process that has
loaded no pack. OUT gets a JSON object: for each pack and order what was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import comfyui_host

NOT_PACKS = {"__pycache__"}
ALONE = ""
"""In the place of another pack's name: this pack alone."""


def main(folder: str, pack: str, packs: str, out: str) -> None:
    torch.set_num_threads(1)
    session = comfyui_host.Session(Path(folder), Path(pack))
    with_server(Path(out).parent)
    asyncio.get_event_loop().run_until_complete(session.nodes.init_builtin_extra_nodes())  # as before other packs
    session.load(session.pack.with_name("another_pack"))  # ComfyUI imports its reader of packs with the first one
    names = [ALONE, *sorted(p.name for p in Path(packs).iterdir() if p.is_dir() and p.name not in NOT_PACKS)]
    found: dict[str, Any] = {}
    for name in names:
        other = Path(packs) / name if name else None
        orders = {"theirs first": (other, session.pack), "ours first": (session.pack, other)}
        found[name] = {order: in_a_fork(partial(pair, session, folders)) for order, folders in orders.items()}
        Path(out).write_text(json.dumps(found, indent=1))


def with_server(folder: Path) -> None:
    """Packs add routes to the server when they are loaded. It is made, and never started."""
    importlib.import_module("comfy.cli_args").args.front_end_root = str(folder)
    importlib.import_module("execution")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    importlib.import_module("server").PromptServer(loop)


def in_a_fork(run: Callable[[], Any]) -> Any:
    """What a function returns in a fork of this process; an error as text."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            answer: Any = run()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        with os.fdopen(send, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "the process ended"


def pair(session: Any, folders: tuple[Path | None, ...]) -> dict[str, Any]:
    """Load these packs in this order, then sample with our nodes.

    loaded: of each pack; reason: why another one is not. warnings: those that name ours. taken: our nodes that another
    pack replaced. theirs: nodes of the other pack that are no longer its own. latent: a digest of a sampled latent.
    """
    warnings = comfyui_host.Warnings()
    logging.getLogger().addHandler(warnings)
    loaded, classes = {}, {}
    mappings = session.nodes.NODE_CLASS_MAPPINGS
    for folder in filter(None, folders):
        before = dict(mappings)
        with contextlib.redirect_stdout(sys.stderr):
            loaded[folder.name] = bool(session.load(folder))
        classes[folder.name] = {n: cls for n, cls in mappings.items() if before.get(n) is not cls}
    lost = {name: [n for n, cls in own.items() if mappings[n] is not cls] for name, own in classes.items()}
    ours = lost.pop(session.pack.name)
    session.describe()
    with torch.inference_mode():
        session.prepare()
        latent = session.ksampler(session.controlled(), steps=2)
    return {
        "loaded": loaded.pop(session.pack.name),
        "others loaded": all(loaded.values()),
        "reason": next((m.splitlines()[-1] for m in warnings.messages if "Cannot import" in m), ""),
        "warnings": [m for m in warnings.messages if "CNCore" in m or "ControlNet Core" in m],
        "taken": ours,
        "theirs": [n for names in lost.values() for n in names],
        "nodes": len(classes[session.pack.name]),
        "latent": hashlib.sha256(latent.numpy().tobytes()).hexdigest(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
