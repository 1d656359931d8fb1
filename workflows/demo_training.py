"""Runs the stages in which the demo model is trained, and keeps their files in one folder."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..controlnet_core.checkpoints.derived import save_control_lora
from ..controlnet_core.checkpoints.io import read_header, read_tensors, write_safetensors
from ..controlnet_core.checkpoints.load import VAE_FILE_KEY, Checkpoint, load_checkpoint, load_controlnet, load_vae
from ..controlnet_core.checkpoints.save import save_checkpoint, save_controlnet, save_vae
from ..controlnet_core.config import DEMO, ModelConfig
from ..controlnet_core.errors import MissingFileError
from ..controlnet_core.models.text_encoder import DualTextEncoder, TextEncoder
from ..controlnet_core.models.vae import AutoencoderKL
from ..controlnet_core.training import demo_stages
from ..controlnet_core.training.control_lora import to_control_lora
from ..controlnet_core.training.demo_stages import DemoData
from ..controlnet_core.training.demo_world import vocabulary
from ..controlnet_core.training.loop import Loop, Recipe, Report
from ..controlnet_core.training.rendered_set import RenderedSet, render_scenes
from ..nodes.example_pictures import VIEWS

SEED = 0
VAE_FILE = "demo_vae.safetensors"


@dataclass(frozen=True)
class DemoTraining:
    """The stages with their options: see `controlnet train-demo --help`."""

    work: Path
    scene_count: int
    steps: int | None = None
    minutes: float | None = None
    start: str | None = None

    def run_stage(self, stage: str) -> bool:
        """Run one stage; False when it was stopped before its end."""
        if stage == "scenes":
            return bool(self.scenes)
        if stage in ("autoencoder", "base", "union"):
            return {"autoencoder": self._autoencoder, "base": self._base, "union": self._union}[stage]()
        return self._control_lora(stage) if stage in demo_stages.LORA_NETS else self._net(stage)

    @cached_property
    def scenes(self) -> RenderedSet:
        """The rendered scenes with a hint of each kind."""

        def show(done: int, total: int) -> None:
            bar.update(done - bar.n)

        hints = {kind: VIEWS[kind] for kind in (*demo_stages.NETS, *demo_stages.LORA_NETS)}
        seeds = range(SEED, SEED + self.scene_count)
        with tqdm(total=self.scene_count, desc="scenes", unit="scene", dynamic_ncols=True) as bar:
            return render_scenes(self.work / "scenes", seeds, hints, progress=show)

    def _autoencoder(self) -> bool:
        rough, target = self.work / "autoencoder_rough.safetensors", self.work / VAE_FILE
        if not rough.exists():
            recipe = self._shorten(demo_stages.AUTOENCODER)
            loop = demo_stages.autoencoder_stage(DEMO, self.scenes, recipe, self.work / "rough.state")
            if not self._train("autoencoder, first pass", loop):
                return False
            save_vae(rough, _module(loop, "vae"))
        recipe, state = self._shorten(demo_stages.AUTOENCODER_FINE), self.work / "autoencoder.state"
        fine = demo_stages.KL_WEIGHT_FINE
        loop = demo_stages.autoencoder_stage(DEMO, self.scenes, recipe, state, load_vae(rough), fine)
        if not self._train("autoencoder, second pass", loop):
            return False
        vae = demo_stages.measure_scale(_module(loop, "vae"), self.scenes)
        metadata = self._metadata("autoencoder", demo_stages.AUTOENCODER, recipe)
        save_vae(target, vae, dtype=torch.float16, metadata=metadata)
        return _report_file(target)

    def _base(self) -> bool:
        vae = load_vae(self._file(VAE_FILE, "autoencoder")).float()
        text = demo_stages.demo_text_encoder(DEMO, vocabulary(), SEED)
        config = replace(DEMO, vae=vae.config, text=text.config)
        data = self._encoded(config, vae, text)
        rough, target = self.work / "base_rough.safetensors", self.work / "demo_base.safetensors"
        if not rough.exists():
            loop = demo_stages.base_stage(data, demo_stages.BASE, self.work / "base_rough.state")
            if not self._train("base, first pass", loop):
                return False
            self._save_base(rough, loop, data, demo_stages.BASE)
        first = load_checkpoint(rough, dtype=torch.float32)
        # The first pass trained the text encoder too.
        data = replace(data, text=first.text_encoder())
        recipe = self._shorten(demo_stages.BASE_FINE)
        loop = demo_stages.base_stage(data, recipe, self.work / "base.state", first.unet)
        if not self._train("base, second pass", loop):
            return False
        self._save_base(target, loop, data, demo_stages.BASE, recipe)
        return _report_file(target)

    def _save_base(self, target: Path, loop: Loop, data: DemoData, *passes: Recipe) -> None:
        assert data.text.vocab_map is not None
        extras = {"vocab_map": data.text.vocab_map}
        metadata = {**self._metadata("base", *passes), VAE_FILE_KEY: VAE_FILE}
        save_checkpoint(
            target, data.config, _module(loop, "unet"), None, data.text.model,
            extras=extras, dtype=torch.float16, metadata=metadata,
        )  # fmt: skip

    def _net(self, kind: str) -> bool:
        recipe = demo_stages.NETS[kind]
        source = {None: recipe.start, "fresh": ""}.get(self.start, self.start)
        start = self._file(f"demo_{source}.safetensors", source) if source and source != kind else None
        rough, target = self.work / f"{kind}_rough.safetensors", self.work / f"demo_{kind}.safetensors"
        stage = f"{kind} --start {source or 'fresh'}"
        if not rough.exists() and not self._control_pass(f"{kind}, first pass", stage, start, rough, recipe.first):
            return False
        second = self._shorten(recipe.second)
        done = self._control_pass(f"{kind}, second pass", stage, rough, target, recipe.first, second)
        return done and _report_file(target)

    def _control_pass(self, name: str, stage: str, start: Path | None, target: Path, *passes: Recipe) -> bool:
        """Train a ControlNet with the last of the passes, and save it."""
        checkpoint, data = self._base_and_data()
        net = None if start is None else load_controlnet(start)[0].float()
        state = self.work / f"{target.stem}.state"
        kind = stage.split()[0]
        loop = demo_stages.control_stage(data, kind, checkpoint.unet, passes[-1], state, net)
        return self._train(name, loop) and self._save_net(target, loop, stage, *passes)

    def _control_lora(self, kind: str) -> bool:
        checkpoint, data = self._base_and_data()
        source = demo_stages.LORA_START
        start = load_controlnet(self._file(f"demo_{source}.safetensors", source))[0].float()
        recipe, target = self._shorten(demo_stages.LORA_NETS[kind]), self.work / f"demo_{kind}.safetensors"
        state = self.work / f"{target.stem}.state"
        loop = demo_stages.control_lora_stage(data, kind, checkpoint.unet, recipe, state, start)
        if not self._train(kind, loop):
            return False
        save_control_lora(
            target, to_control_lora(_module(loop, "net")), checkpoint.config.unet,
            family="demo", dtype=torch.float16, metadata=self._metadata(f"{kind} --start {source}", recipe),
        )  # fmt: skip
        return _report_file(target)

    def _union(self) -> bool:
        checkpoint, data = self._base_and_data()
        source = demo_stages.UNION_START
        start = load_controlnet(self._file(f"demo_{source}.safetensors", source))[0].float()
        recipe, target = self._shorten(demo_stages.UNION), self.work / "demo_union.safetensors"
        loop = demo_stages.union_stage(data, checkpoint.unet, recipe, self.work / "demo_union.state", start)
        done = self._train("union", loop) and self._save_net(target, loop, f"union --start {source}", recipe)
        return done and _report_file(target)

    def _save_net(self, target: Path, loop: Loop, stage: str, *passes: Recipe) -> bool:
        # Only final files are stored in float8: a rough one is the start of the next pass.
        narrow = torch.float8_e4m3fn if target.stem in {f"demo_{kind}" for kind in demo_stages.NARROW} else None
        metadata = self._metadata(stage, *passes)
        save_controlnet(
            target, _module(loop, "net"), family="demo", dtype=torch.float16, narrow=narrow, metadata=metadata
        )
        return True

    def _base_and_data(self) -> tuple[Checkpoint, DemoData]:
        checkpoint = load_checkpoint(self._file("demo_base.safetensors", "base"), dtype=torch.float32)
        assert checkpoint.vae is not None
        return checkpoint, self._encoded(checkpoint.config, checkpoint.vae, checkpoint.text_encoder())

    def _encoded(self, config: ModelConfig, vae: AutoencoderKL, text: TextEncoder | DualTextEncoder) -> DemoData:
        """The encoded scenes. Encoding takes minutes, so all stages after the first read the result from a file."""
        assert isinstance(text, TextEncoder)
        # Named after the autoencoder: latents of another one are worthless.
        made_by = hashlib.sha256((self.work / VAE_FILE).read_bytes()).hexdigest()[:12]
        file = self.work / f"latents_{len(self.scenes)}_{made_by}.safetensors"
        if file.exists():
            return DemoData(config, self.scenes, text, **read_tensors(read_header(file)))
        data = DemoData.encode(config, self.scenes, text, vae)
        write_safetensors(file, {"latents": data.latents, "ids": data.ids, "empty": data.empty})
        return data

    def _train(self, name: str, loop: Loop) -> bool:
        if loop.resume():
            print(f"{name}: continues from step {loop.step}")
        until = None if self.minutes is None else time.monotonic() + 60.0 * self.minutes
        with tqdm(total=loop.recipe.steps, initial=loop.step, desc=name, unit="step", dynamic_ncols=True) as bar:

            def show(report: Report) -> None:
                bar.set_postfix_str(f"loss {report.loss:.4f}")
                bar.update(report.step - bar.n)

            complete = loop.run(show, every=10, until=until)
        if complete:
            loop.use_average()
        return complete

    def _shorten(self, recipe: Recipe) -> Recipe:
        return recipe if self.steps is None else replace(recipe, steps=self.steps)

    def _metadata(self, stage: str, *passes: Recipe) -> dict[str, str]:
        return {
            "controlnet_core.recipe": f"train-demo {stage}: {', then '.join(map(str, passes))}",
            "controlnet_core.data": f"demo world, {self.scene_count} scenes from seed {SEED}, 128 pixels",
            "license": "Apache-2.0",
        }

    def _file(self, name: str, stage: str) -> Path:
        path = self.work / name
        if not path.exists():
            raise MissingFileError(f"there is no file {path}: run `controlnet train-demo {stage}` first", path)
        return path


def _module(loop: Loop, name: str) -> Any:
    return loop.modules[name]


def _report_file(path: Path) -> bool:
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return True
