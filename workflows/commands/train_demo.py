"""`controlnet train-demo STAGE`: make the demo model again, stage by stage."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...controlnet_core.errors import MissingFileError

if TYPE_CHECKING:
    from ...controlnet_core.checkpoints.load import Checkpoint
    from ...controlnet_core.models.text_encoder import TextEncoder
    from ...controlnet_core.models.vae import AutoencoderKL
    from ...controlnet_core.training.data import SceneSet
    from ...controlnet_core.training.loop import Loop, Recipe
    from ...controlnet_core.training.recipes import Latents

NETS = ("canny", "segmentation", "openpose", "depth", "scribble")
STAGES = ("scenes", "autoencoder", "base", *NETS, "union")
SCENES, SEED = 24000, 0
VAE_FILE = "demo_vae.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train-demo`."""
    parser.add_argument(
        "stages", nargs="+", choices=(*STAGES, "all"), metavar="STAGE", help=", ".join((*STAGES, "all"))
    )
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="folder for scenes and states (5 GB)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="how many scenes to render and train on")
    parser.add_argument("--steps", type=int, help="steps of the stage, instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="stop after so long; the next call goes on from there")
    parser.add_argument("--start", choices=(*NETS, "fresh"), help="the net to go on from, instead of the recipe's")


def run(args: argparse.Namespace) -> int:
    """Run the stages in their order; each resumes where it was cut off and ends in a weights file."""
    stages = STAGES if "all" in args.stages else [stage for stage in STAGES if stage in args.stages]
    for stage in stages:
        maker: Callable[[argparse.Namespace], bool] = {
            "scenes": _scenes,
            "autoencoder": _autoencoder,
            "base": _base,
            "union": _union,
        }.get(stage, lambda a, kind=stage: _net(a, kind))
        if not maker(args):
            print(f"{stage}: stopped before its last step; the same command goes on from there")
            return 0
    return 0


def _open(args: argparse.Namespace) -> SceneSet:
    from ...controlnet_core.training.data import render_scenes
    from ...nodes.scenes import VIEWS

    hints = {kind: VIEWS[kind] for kind in NETS}
    with _bar("scenes", args.scenes) as bar:
        return render_scenes(
            args.work / "scenes",
            range(SEED, SEED + args.scenes),
            hints,
            progress=lambda done, total: bar.update(done - bar.n),
        )


def _scenes(args: argparse.Namespace) -> bool:
    _open(args)
    return True


def _autoencoder(args: argparse.Namespace) -> bool:
    from ...controlnet_core.checkpoints.load import load_vae
    from ...controlnet_core.checkpoints.save import save_vae
    from ...controlnet_core.config import DEMO
    from ...controlnet_core.training import recipes

    scenes = _open(args)
    rough, target = args.work / "autoencoder_rough.safetensors", args.work / VAE_FILE
    if not rough.exists():
        loop = recipes.autoencoder_stage(DEMO, scenes, _recipe(recipes.AUTOENCODER, args), args.work / "rough.state")
        if not _train("autoencoder, first pass", loop, args):
            return False
        save_vae(rough, loop.modules["vae"])  # type: ignore[arg-type]
    loop = recipes.autoencoder_stage(
        DEMO,
        scenes,
        _recipe(recipes.AUTOENCODER_FINE, args),
        args.work / "autoencoder.state",
        load_vae(rough),
        recipes.KL_WEIGHT_FINE,
    )
    if not _train("autoencoder, second pass", loop, args):
        return False
    vae = recipes.measure_scale(loop.modules["vae"], scenes)  # type: ignore[arg-type]
    save_vae(target, vae, dtype=_half(), metadata=_metadata("autoencoder", args, recipes.AUTOENCODER, loop.recipe))
    return _done(target)


def _base(args: argparse.Namespace) -> bool:
    import torch

    from ...controlnet_core.checkpoints.load import VAE_FILE_KEY, load_checkpoint, load_vae
    from ...controlnet_core.checkpoints.save import save_checkpoint
    from ...controlnet_core.config import DEMO
    from ...controlnet_core.diffusion.schedule import scaled_linear
    from ...controlnet_core.training import recipes
    from ...controlnet_core.training.demo_world import vocabulary

    scenes = _open(args)
    vae = load_vae(_made(args.work / VAE_FILE, "autoencoder")).float()
    text = recipes.demo_text_encoder(DEMO, vocabulary(), SEED)
    config = replace(DEMO, vae=vae.config, text=text.config)
    data = _latents(args, vae, text, scenes)

    def save(target: Path, loop: Loop, text: TextEncoder, *passes: Recipe) -> None:
        save_checkpoint(
            target,
            config,
            loop.modules["unet"],  # type: ignore[arg-type]
            None,
            text.model,
            extras={"vocab_map": text.vocab_map},  # type: ignore[dict-item]
            dtype=_half(),
            metadata={**_metadata("base", args, *passes), VAE_FILE_KEY: VAE_FILE},
        )

    rough, target = args.work / "base_rough.safetensors", args.work / "demo_base.safetensors"
    if not rough.exists():
        state = args.work / "base_rough.state"
        loop = recipes.base_stage(config, data, text, scaled_linear(), recipes.BASE, state)
        if not _train("base, first pass", loop, args):
            return False
        save(rough, loop, text, recipes.BASE)
    first = load_checkpoint(rough, dtype=torch.float32)
    text = first.text_encoder()
    recipe = _recipe(recipes.BASE_FINE, args)
    state = args.work / "base.state"
    loop = recipes.base_stage(config, data, text, scaled_linear(), recipe, state, first.unet)
    if not _train("base, second pass", loop, args):
        return False
    save(target, loop, text, recipes.BASE, recipe)
    return _done(target)


def _net(args: argparse.Namespace, kind: str) -> bool:
    from ...controlnet_core.checkpoints.load import load_controlnet
    from ...controlnet_core.checkpoints.save import save_controlnet
    from ...controlnet_core.diffusion.schedule import scaled_linear
    from ...controlnet_core.training import recipes

    scenes = _open(args)
    checkpoint, data = _base_and_latents(args, scenes)

    def train(name: str, start: Path | None, target: Path, *passes: Recipe) -> bool:
        net = None if start is None else load_controlnet(start)[0].float()
        state = args.work / f"{target.stem}.state"
        text = checkpoint.text_encoder()
        loop = recipes.control_stage(
            checkpoint.config, data, scenes, kind, checkpoint.unet, text, scaled_linear(), passes[-1], state, net
        )
        if not _train(name, loop, args):
            return False
        metadata = _metadata(f"{kind} --start {source or 'fresh'}", args, *passes)
        narrow = _narrow() if kind in recipes.NARROW and target.stem == f"demo_{kind}" else None
        save_controlnet(target, loop.modules["net"], family="demo", dtype=_half(), narrow=narrow, metadata=metadata)  # type: ignore[arg-type]
        return True

    recipe = recipes.NETS[kind]
    source = {None: recipe.start, "fresh": ""}.get(args.start, args.start)
    start = _made(args.work / f"demo_{source}.safetensors", source) if source and source != kind else None
    rough, target = args.work / f"{kind}_rough.safetensors", args.work / f"demo_{kind}.safetensors"
    if not rough.exists() and not train(f"{kind}, first pass", start, rough, recipe.first):
        return False
    if not train(f"{kind}, second pass", rough, target, recipe.first, _recipe(recipe.second, args)):
        return False
    return _done(target)


def _union(args: argparse.Namespace) -> bool:
    from ...controlnet_core.checkpoints.load import load_controlnet
    from ...controlnet_core.checkpoints.save import save_controlnet
    from ...controlnet_core.diffusion.schedule import scaled_linear
    from ...controlnet_core.training import recipes

    scenes = _open(args)
    checkpoint, data = _base_and_latents(args, scenes)
    source = recipes.UNION_START
    start = load_controlnet(_made(args.work / f"demo_{source}.safetensors", source))[0].float()
    recipe, target = _recipe(recipes.UNION, args), args.work / "demo_union.safetensors"
    text, state = checkpoint.text_encoder(), args.work / "demo_union.state"
    loop = recipes.union_stage(
        checkpoint.config, data, scenes, checkpoint.unet, text, scaled_linear(), recipe, state, start
    )
    if not _train("union", loop, args):
        return False
    metadata = _metadata(f"union --start {source}", args, recipe)
    narrow = _narrow() if "union" in recipes.NARROW else None
    save_controlnet(target, loop.modules["net"], family="demo", dtype=_half(), narrow=narrow, metadata=metadata)  # type: ignore[arg-type]
    return _done(target)


def _base_and_latents(args: argparse.Namespace, scenes: SceneSet) -> tuple[Checkpoint, Latents]:
    import torch

    from ...controlnet_core.checkpoints.load import load_checkpoint

    checkpoint = load_checkpoint(_made(args.work / "demo_base.safetensors", "base"), dtype=torch.float32)
    assert checkpoint.vae is not None
    return checkpoint, _latents(args, checkpoint.vae, checkpoint.text_encoder(), scenes)


def _latents(args: argparse.Namespace, vae: AutoencoderKL, text: TextEncoder, scenes: SceneSet) -> Latents:
    """Latents and token ids of the scenes; encoding takes minutes, so every stage after the first reads a file."""
    import hashlib

    from safetensors.torch import load_file, save_file

    from ...controlnet_core.training import recipes

    made_by = hashlib.sha256((args.work / VAE_FILE).read_bytes()).hexdigest()[:12]
    file = args.work / f"latents_{len(scenes)}_{made_by}.safetensors"
    if file.exists():
        return recipes.Latents(**load_file(file))
    data = recipes.encode_scenes(vae, text, scenes)
    partial = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in vars(data).items()}, partial)
    partial.replace(file)
    return data


def _train(name: str, loop: Loop, args: argparse.Namespace) -> bool:
    if loop.resume():
        print(f"{name}: going on from step {loop.step}")
    until = None if args.minutes is None else time.monotonic() + 60.0 * args.minutes
    with _bar(name, loop.recipe.steps, loop.step) as bar:

        def report(state: object) -> None:
            bar.set_postfix_str(f"loss {state.loss:.4f}")  # type: ignore[attr-defined]
            bar.update(state.step - bar.n)  # type: ignore[attr-defined]

        complete = loop.run(report, every=10, until=until)
    if complete:
        loop.use_average()
    return complete


def _recipe(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    return recipe if args.steps is None else replace(recipe, steps=args.steps)


def _metadata(stage: str, args: argparse.Namespace, *passes: Recipe) -> dict[str, str]:
    return {
        "controlnet_core.recipe": f"train-demo {stage}: {', then '.join(map(str, passes))}",
        "controlnet_core.data": f"demo world, {args.scenes} scenes from seed {SEED}, 128 pixels",
        "license": "Apache-2.0",
    }


def _made(path: Path, stage: str) -> Path:
    if not path.exists():
        raise MissingFileError(f"{path} is not there: run `controlnet train-demo {stage}` first", path)
    return path


def _done(path: Path) -> bool:
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return True


def _half():
    import torch

    return torch.float16


def _narrow():
    import torch

    return torch.float8_e4m3fn


def _bar(name: str, total: int, initial: int = 0):
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, desc=name, unit="step", dynamic_ncols=True)
