"""The port: all that nodes ask of the home they run in.

`standalone.host.StandaloneHost` answers with the engine's own models; the editor's side answers with the editor's
own folders, models and memory. A node class finds its host as the class attribute `host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ..controlnet_core.control.report import Recorder
from ..controlnet_core.engine.run import Shortcuts
from ..controlnet_core.models.controlnet import ControlNet
from ..controlnet_core.pipeline import SampleSettings
from ..preprocessors.learned.library import Library
from .values import Conditioning, Controlled, ControlSpec, Latent


class Host(Protocol):
    """What a home offers. `assets_dir` holds the models and pictures that come with the package."""

    @property
    def assets_dir(self) -> Path: ...

    @property
    def temp_dir(self) -> Path:
        """Where pictures go that are only to be looked at."""
        ...

    @property
    def output_dir(self) -> Path:
        """Where nodes write files that are to stay."""
        ...

    def files(self, kind: str) -> tuple[str, ...]:
        """Names of the files of a kind ("checkpoints", "controlnet", "vae", ...), subfolders with "/"."""
        ...

    def find(self, kind: str, name: str) -> Path:
        """The file of that name. Raises PathError, or MissingFileError naming the folders searched."""
        ...

    def load_checkpoint(self, path: Path) -> tuple[Any, Any, Any]:
        """MODEL, CLIP, VAE of a file."""
        ...

    def load_controlnet(self, path: Path, model: Any = None) -> Any:
        """CONTROL_NET of a file, completed with the base of a MODEL where it needs one and one is given."""
        ...

    def plain_net(self, control_net: Any) -> tuple[ControlNet, str]:
        """The ControlNet in a CONTROL_NET, and its family. Raises UnfitError for other kinds and foreign ones."""
        ...

    def training_device(self) -> torch.device:
        """Where a training runs, with as much memory free there as the home can give."""
        ...

    def library(self) -> Library:
        """Where learned preprocessors get their nets; one per home, so that a net is loaded once."""
        ...

    def encode_prompt(self, clip: Any, prompt: str) -> Conditioning:
        """CONDITIONING of a prompt."""
        ...

    def apply_control(
        self, positive: Conditioning, negative: Conditioning, specs: Sequence[ControlSpec]
    ) -> tuple[Conditioning, Conditioning]:
        """Both halves with these units added to what controls them already."""
        ...

    def controlled(self, model: Any, conditioning: Conditioning) -> Controlled:
        """The units on a conditioning, with the noise levels and shapes of the model."""
        ...

    def memory(self, model: Any, positive: Conditioning, latent: Latent, settings: SampleSettings) -> str:
        """How much memory sampling will take, in words; empty where the home does not tell."""
        ...

    def reweigh(self, model: Any, conditioning: Conditioning, unit: int, factors: Sequence[float]) -> Conditioning:
        """The same conditioning, one unit of it (by its number in `controlled`) with its block weights multiplied.

        factors: one for each block, the middle last.
        """
        ...

    def sample(
        self,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent: Latent,
        settings: SampleSettings,
        recorder: Recorder | None = None,
    ) -> Latent:
        """The sampled LATENT; steps go to `progress`, what ran to the recorder."""
        ...

    def accelerate(self, model: Any, weights: str, node: str | None) -> tuple[Any, str]:
        """A MODEL with our engine inside, and what to expect of it; `node` shows what a run did.

        weights: "shared" or "packed".
        """
        ...

    def shorten(self, model: Any, shortcuts: Shortcuts, node: str | None) -> tuple[Any, str]:
        """A MODEL whose sampling leaves out what the shortcuts say, in place of what it said before; and that in
        words. `node` shows what a run did."""
        ...

    def shortcuts_of(self, model: Any) -> Shortcuts:
        """What sampling of a MODEL may leave out."""
        ...

    def progress(self, done: int, total: int, preview: Any = None) -> None:
        """Tell the user how far the running node is; `preview` is a PIL picture or None."""
        ...

    def cancelled(self) -> bool:
        """Whether the user asked to stop."""
        ...


class Node:
    """Base of our node classes. `host` is set by `build_nodes`, on a subclass per home."""

    host: ClassVar[Any]
    FUNCTION: ClassVar[str] = "run"
    CATEGORY: ClassVar[str] = "ControlNet Core"
    DISPLAY_NAME: ClassVar[str] = ""
