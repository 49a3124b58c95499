"""Generators of the Hugging Face hub: diffusers' pipelines behind the interface of ``generators.Generator``.

The class that ``model_index.json`` names decides: Stable Diffusion (1.x, 2.x, fine-tuned ones), latent consistency models,
Stable Diffusion XL, DDPM on pixels, unconditional latent diffusion, DiT. What the scheduler's config says (prediction type,
spacing, offset, final level) is read, never assumed; an x0 that its sampler would clip (``clip_sample``) is not clipped here,
since nothing brings back what was cut off.

UNE's setting is the empty prompt with guidance 3.5. The conditional and the unconditional embedding of an empty prompt are the
same vector, so that guidance changes nothing but rounding, and one network call a step is enough.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, VQModel

from une_utils.models.ddim import Inversion, Schedule, invert
from une_utils.models.generators import Generator, ddim_scheduler
from une_utils.models.memory import Halving, default_device
from une_utils.models.processing import resize

PIPELINES = (
    "StableDiffusionPipeline", "LatentConsistencyModelPipeline", "StableDiffusionXLPipeline", "DDPMPipeline", "LDMPipeline", "DiTPipeline",
)  # fmt: skip
GUIDANCE = 3.5  # UNE's
PIXEL_ROWS = 8  # pictures that a VAE sees at once: 512-pixel activations are large, and more are not faster
HALF = {"cuda": torch.float16}  # kinds of devices whose network runs in half precision unless told otherwise


class PipelineGenerator(Generator):
    """A pipeline of diffusers as a generator: pictures of any size on one side, states of DDIM on the other.

    Pictures are resized to the model's own size. States are VAE latents after the config's scaling, or pictures. They stay
    float32; those that ``encode`` and ``decode`` return are on the CPU, and ``__call__`` answers where its input is. The
    network and the VAE run on ``device``, the VAE in float32 where its config says that half overflows (``force_upcast``),
    text encoders on the CPU in float32, once a prompt. Batches are halved until they fit into memory.
    """

    def __init__(self, pipe: DiffusionPipeline, dtype: torch.dtype, device: torch.device, compiled: bool = False):
        network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
        vae = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
        super().__init__(vae, network, ddim_scheduler(pipe.scheduler.config), precise=dtype == torch.float32)
        self.pipe, self.dtype, self.device = pipe, dtype, device
        if vae:
            if vae.config.latent_channels != self.shape[0]:
                channels = f"{self.shape[0]} channels, the VAE has {vae.config.latent_channels}"
                raise ValueError(f"{type(pipe).__name__}: the network reads {channels}; inpainting and depth models have no inversion here")
            _move(vae, device, torch.float32 if vae.config.get("force_upcast", True) else dtype)
            self._mean, self._std = self._mean.to(device), self._std.to(device)
        _move(network, device, dtype)
        self._forward = torch.compile(network) if compiled else network
        self._network, self._encoded, self._decoded = Halving(self._predict), Halving(self._encode, PIXEL_ROWS), Halving(self._decode, PIXEL_ROWS)
        self.condition()

    @classmethod
    def load(
        cls, path: Path, precise: bool = False, untrained_seed: int | None = None, unet: str | Path = "unet", *,
        dtype: torch.dtype | None = None, device: torch.device | str | None = None, compiled: bool = False,
    ) -> PipelineGenerator:  # fmt: skip
        """Read a pipeline's folder; only safetensors, no code.

        Args:
            precise: float32 wherever it runs.
            untrained_seed: draw the network's weights anew: the control that has learned nothing.
            unet: folder of a U-Net that was fine-tuned from the pipeline's, in its place.
            dtype: of the network; when missing, float16 on CUDA and float32 elsewhere.
            device: where it runs; the first CUDA device, or the CPU, when missing.
            compiled: ``torch.compile`` the network: minutes at the first step, and again for another batch size.

        Raises:
            ValueError: ``model_index.json`` names a class that no adapter is for.
        """
        kind = json.loads((path / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
        if kind not in PIPELINES:
            raise ValueError(f"{path / 'model_index.json'}: no adapter for class '{kind}'; expected one of {', '.join(PIPELINES)}")
        device = torch.device(device) if device else default_device()
        dtype = torch.float32 if precise else dtype or HALF.get(device.type, torch.float32)
        unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False} if kind in PIPELINES[:2] else {}
        pipe = getattr(diffusers, kind).from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype={"unet": dtype, "transformer": dtype, "default": torch.float32}, **unchecked
        )
        if Path(unet) != Path("unet"):
            pipe.unet = type(pipe.unet).from_pretrained(path / unet, local_files_only=True, use_safetensors=True, torch_dtype=dtype)
        if untrained_seed is not None:
            name = "transformer" if hasattr(pipe, "transformer") else "unet"
            with torch.random.fork_rng():
                torch.manual_seed(untrained_seed)
                setattr(pipe, name, type(getattr(pipe, name)).from_config(getattr(pipe, name).config))
        return cls(pipe, dtype, device, compiled)

    @torch.no_grad()
    def condition(self, prompt: str = "", guidance: float = GUIDANCE) -> PipelineGenerator:
        """Let every further call be conditioned on ``prompt``; returns the generator itself.

        The empty prompt (for DiT: no class) costs one network call a step. A prompt costs two when ``guidance`` is not 1. A
        network that was distilled with guidance reads it from an embedding and always costs one.

        Args:
            prompt: text, or for DiT the name of a class.
            guidance: classifier-free guidance, 1 for none.

        Raises:
            ValueError: a prompt for a model that reads none, or a class that the model does not know.
        """
        read = {"StableDiffusionXLPipeline": self._read_xl, "DiTPipeline": self._read_class}.get(type(self.pipe).__name__, self._read_text)
        if prompt and not hasattr(self.pipe, "text_encoder") and not isinstance(self.pipe, diffusers.DiTPipeline):
            raise ValueError(f"{type(self.pipe).__name__} is unconditional, it reads no prompt (got '{prompt}')")
        embedded = self.unet.config.get("time_cond_proj_dim") is not None
        self.guidance = 1.0 if not prompt or embedded else guidance
        self._condition, self._opposite = read(prompt), read("", beside=True) if self.guidance != 1 else None
        if embedded:
            w = torch.tensor([guidance - 1.0])
            embedding = self.pipe.get_guidance_scale_embedding(w, embedding_dim=self.unet.config.time_cond_proj_dim)
            self._condition["timestep_cond"] = embedding.to(self.device)
        return self

    def _read_text(self, prompt: str, beside: bool = False) -> dict[str, Any]:
        if not hasattr(self.pipe, "text_encoder"):
            return {}
        states = self.pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]
        return {"encoder_hidden_states": states.to(self.device)}

    def _read_xl(self, prompt: str, beside: bool = False) -> dict[str, Any]:
        """Both text encoders' states, the second one's pooled text, and the picture's size, which SDXL is told.

        ``beside`` a prompt, SDXL's "nothing" is zeros where the config says so (``force_zeros_for_empty_prompt``); an empty
        prompt that stands alone is read as text, as UNE's code does.
        """
        states, _, pooled, _ = self.pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
        if beside and self.pipe.config.force_zeros_for_empty_prompt:
            states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
        size = torch.tensor([[self.pixels, self.pixels, 0.0, 0.0, self.pixels, self.pixels]], device=self.device)
        return {"encoder_hidden_states": states.to(self.device), "added_cond_kwargs": {"text_embeds": pooled.to(self.device), "time_ids": size}}

    def _read_class(self, prompt: str, beside: bool = False) -> dict[str, Any]:
        if prompt and prompt not in self.pipe.labels:
            raise ValueError(f"class '{prompt}' is not known; expected one of {', '.join(list(self.pipe.labels)[:10])} ... ({len(self.pipe.labels)})")
        number = self.pipe.labels[prompt] if prompt else self.unet.config.num_embeds_ada_norm  # the number after the last class: none
        return {"class_labels": torch.tensor([number], device=self.device)}

    @property
    def pixels(self) -> int:
        """Side of the model's pictures."""
        return self.shape[1] * (2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae else 1)

    def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """Network output (N, C, H, W) float32 for states ``x`` at timestep ``t``, on the device of ``x``; guided if conditioned so.
        A graph is kept only where a gradient is asked for, as in ``Generator``."""
        return self._network(x, t).to(x.device)

    def _predict(self, x: torch.Tensor, t: int) -> torch.Tensor:
        x = x.to(self.device, self.dtype)
        timesteps = torch.full((len(x),), t, device=self.device)
        output = self._output(x, timesteps, self._condition)
        if self._opposite is None:
            return output
        opposite = self._output(x, timesteps, self._opposite)
        return opposite + self.guidance * (output - opposite)

    def _output(self, x: torch.Tensor, timesteps: torch.Tensor, condition: dict[str, Any]) -> torch.Tensor:
        """One network call; a network that predicts variances too (DiT) has them in its last channels."""
        output = self._forward(x, timestep=timesteps, return_dict=False, **_repeated(condition, x))[0]
        return output[:, : x.shape[1]].float()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """x0 of pictures (N, 3, H, H) in [-1, 1], resized to the model's size: the mode of the VAE's posterior, scaled as its
        config says (N, C, h, w), or the pictures themselves."""
        images = torch.as_tensor(images)
        x0 = self._encoded(images)
        bad = _not_finite(x0)
        if bad.any() and self.vae and self.vae.dtype != torch.float32:
            with self._in_float32(self.vae, bad, "encoded"):
                x0[bad] = self._encoded(images[bad])
        return x0

    @torch.no_grad()
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        images = resize(images.to(self.device), self.pixels)
        if self.vae is None:
            return images.cpu()
        found = self.vae.encode(images.to(self.vae.dtype).contiguous(memory_format=torch.channels_last))
        x0 = found.latents if isinstance(self.vae, VQModel) else found.latent_dist.mode()
        return ((x0.float() - self._mean) / self._std).contiguous().cpu()

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, H), about [-1, 1] and not clipped, of x0."""
        return x0.cpu() if self.vae is None else self._decoded(x0)

    def _decode(self, x0: torch.Tensor) -> torch.Tensor:
        latents = (x0.to(self.device) * self._std + self._mean).to(self.vae.dtype)
        return self.vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample.float().contiguous().cpu()

    def invert(self, x0: torch.Tensor, schedule: Schedule, **options) -> Inversion:
        """``ddim.invert`` on the device, result on the CPU. Images whose latents are not finite are inverted again in
        float32 (the arithmetic; weights stay as they were rounded when they were loaded), with a warning.

        Raises:
            FloatingPointError: latents are not finite in float32 either.
        """
        found = _on_cpu(invert(self, x0.to(self.device), schedule, **options))
        bad = _not_finite(found.latents)
        if bad.any() and self.dtype != torch.float32:
            with self._in_float32(self.unet, bad, "inverted"):
                again = _on_cpu(invert(self, x0[bad].to(self.device), schedule, **options))
            found.latents[bad], found.residual[bad] = again.latents, again.residual
            if found.trajectory is not None:
                found.trajectory[:, bad] = again.trajectory
            bad = _not_finite(found.latents)
        if bad.any():
            rows = torch.nonzero(bad).flatten().tolist()
            raise FloatingPointError(f"images {rows} of the batch: the inverted noise is not finite in float32; look at these pictures and their x0")
        return found

    @contextlib.contextmanager
    def _in_float32(self, module: torch.nn.Module, bad: torch.Tensor, done: str):
        """The network or the VAE in float32 for a while; says which images it is for."""
        rows, before, network = torch.nonzero(bad).flatten().tolist(), module.dtype, self.dtype
        warnings.warn(f"{len(rows)} of {len(bad)} images were not finite in {before} and are {done} again in float32: rows {rows}", stacklevel=3)
        module.float()
        self.dtype = torch.float32 if module is self.unet else network
        try:
            yield
        finally:
            module.to(before)
            self.dtype = network


def _move(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """To a device and a type; diffusers warns about every call that names a type, so it is named only when it changes."""
    module.to(device) if module.dtype == dtype else module.to(device, dtype)


def _repeated(condition: dict[str, Any], x: torch.Tensor) -> dict[str, Any]:
    """A prompt's tensors (1, ...) as one row for each of x, numbers in its type; labels stay integers."""
    rows = {k: _repeated(v, x) if isinstance(v, dict) else v.expand(len(x), *v.shape[1:]) for k, v in condition.items()}
    return {k: v.to(x.dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in rows.items()}


def _not_finite(x: torch.Tensor) -> torch.Tensor:
    """(N,) bool: rows that hold NaN or an infinity."""
    return ~x.flatten(1).isfinite().all(1)


def _on_cpu(found: Inversion) -> Inversion:
    trajectory = None if found.trajectory is None else found.trajectory.cpu()
    return replace(found, latents=found.latents.cpu(), trajectory=trajectory, residual=found.residual.cpu())
