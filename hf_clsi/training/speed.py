"""Device, decoder and what is installed become attention, number type, compilation and optimizer of a run.

What is chosen, and why, is printed once at the start of a run (`SpeedChoice.describe`). The choice is made
by facts alone (`Machine`, `Decoder`), never by trying, so that it can be known beforehand; what it promises
is tried on the very device before training begins (`check_isolation`).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from . import varlen

if TYPE_CHECKING:
    from .recipes import ModelSettings

ATTENTIONS = ("sdpa", "eager", varlen.NAME, "flex_attention", "flash_attention_2", "flash_attention_3")
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")

# Attention functions that keep documents apart by the borders between them, not by positions or a mask.
BY_BORDERS = (varlen.NAME, "flash_attention_2", "flash_attention_3")

_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch has AdamW as one kernel
_AMPERE, _VOLTA = (8, 0), (7, 0)
# Tokens of a row from which varlen is taken on a CPU. Shorter rows gain less, and the miniature, whose rows
# have 512 tokens, keeps its results to the bit.
_LONG_ROW = 1_024
_INSTALL = {
    "flash_attention_2": "the package flash-attn (pip install flash-attn --no-build-isolation)",
    "flash_attention_3": "the package flash-attn-3 (folder hopper of github.com/Dao-AILab/flash-attention)",
    "triton": "the package triton, which comes with torch for CUDA on Linux",
}
_ADVANTAGE = {
    "flash_attention_3": "flash-attn-3 is installed and made for this GPU; it does no work across documents",
    "flash_attention_2": "flash-attn is installed; it does no work across documents",
    varlen.NAME: (
        "torch's own flash kernel takes the borders of documents and does no work across them; sdpa would "
        "need a mask [R, 1, T, T], with which it cannot use that kernel"
    ),
    "flex_attention": "it skips the blocks between documents, while sdpa would need a mask [R, 1, T, T]",
}


@dataclass(frozen=True)
class Machine:
    """The facts of a machine that a choice depends on.

    Attributes:
        device: type of the device, "cpu", "cuda", ...
        name: of the device, for the printed line.
        capability: compute capability of a CUDA device, (9, 0) on Hopper.
        bf16: whether the device computes in bfloat16 in hardware.
        packages: which of "flash_attention_2", "flash_attention_3" and "triton" can be imported.
    """

    device: str
    name: str = ""
    capability: tuple[int, int] | None = None
    bf16: bool = False
    packages: frozenset[str] = frozenset()


def detect_machine(device: torch.device | str | None = None) -> Machine:
    """The machine of this process; without `device`, its GPU if there is one, else the CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type != "cuda":
        return Machine(device.type)
    if not torch.cuda.is_available():
        raise ValueError(
            f"device {str(device)!r} was asked for, but torch finds no CUDA device here; use 'cpu'."
        )
    packages = {"triton"} if importlib.util.find_spec("triton") else set()
    if is_flash_attn_2_available():
        packages.add("flash_attention_2")
    if is_flash_attn_3_available():
        packages.add("flash_attention_3")
    return Machine(
        "cuda",
        torch.cuda.get_device_name(device),
        torch.cuda.get_device_capability(device),
        torch.cuda.is_bf16_supported(including_emulation=False),
        frozenset(packages),
    )


@dataclass(frozen=True)
class Decoder:
    """The facts of a decoder that a choice depends on.

    Attributes:
        model_type: "llama", ...
        head_size: of its attention; None where unknown.
        dropout: of its attention.
        supports: families of attention functions that its class takes: "sdpa", "flex", "flash".
    """

    model_type: str = "llama"
    head_size: int | None = None
    dropout: float = 0.0
    supports: frozenset[str] = frozenset(("sdpa", "flex", "flash"))

    @classmethod
    def of(cls, text_config: dict[str, Any] | PreTrainedConfig) -> Decoder:
        """From a decoder's config, or the keyword arguments of one (without `model_type`: a Llama)."""
        if isinstance(text_config, dict):
            settings = dict(text_config)
            text_config = CONFIG_MAPPING[settings.pop("model_type", "llama")](**settings)
        head_size = getattr(text_config, "head_dim", None)
        if head_size is None and getattr(text_config, "num_attention_heads", None):
            head_size = text_config.hidden_size // text_config.num_attention_heads
        built = MODEL_MAPPING[type(text_config)]
        supports = {name for name in ("sdpa", "flex", "flash") if getattr(built, _FLAGS[name], False)}
        if getattr(text_config, "attn_logit_softcapping", None):
            supports.discard("sdpa")  # some versions of transformers leave the capping out without a word
        dropouts = (getattr(text_config, name, 0.0) or 0.0 for name in ("attention_dropout", "attn_pdrop"))
        return cls(text_config.model_type, head_size, max(dropouts), frozenset(supports))


_FLAGS = {"sdpa": "_supports_sdpa", "flex": "_supports_flex_attn", "flash": "_supports_flash_attn"}


@dataclass(frozen=True)
class SpeedChoice:
    """How a run computes.

    Attributes:
        attention: attention implementation of the model, one of `ATTENTIONS`.
        dtype: of forward and backward, "float32" or "bfloat16" (autocast; weights stay in float32).
        compile: whether the model is compiled (by `apply_speed`, not by the Trainer).
        fused: whether AdamW runs as one kernel.
        flash_kwargs: the collator must be asked for `return_flash_attn_kwargs`. With flash-attention this is
            no refinement: transformers looks for restarting positions only in batches of one row, and lets
            the documents of several rows leak into each other without a word.
        tf32: whether what is multiplied in float32 may be rounded to TF32.
        isolate: whether packed documents are kept apart.
        device: type of the device.
        device_name: as the driver gives it.
        reasons: one sentence for each decision.
    """

    attention: str
    dtype: str
    compile: bool
    fused: bool
    flash_kwargs: bool
    reasons: tuple[str, ...]
    tf32: bool = False
    isolate: bool = True
    device: str = "cpu"
    device_name: str = field(default="", compare=False)

    def describe(self) -> str:
        """A line of settings and a line for each reason."""
        settings = [
            f"attention {self.attention}" + (" (borders of documents from the collator)" * self.flash_kwargs),
            f"{self.dtype}{' with TF32' * self.tf32}",
            "torch.compile" if self.compile else "no torch.compile",
            f"{'fused ' * self.fused}AdamW",
        ]
        where = f"{self.device} ({self.device_name})" if self.device_name else self.device
        return "\n".join([f"speed on {where}: {', '.join(settings)}", *(f"  {why}" for why in self.reasons)])

    @property
    def optimizer(self) -> str:
        """Name of the optimizer among those of the Trainer."""
        return OPTIMIZERS[0] if self.fused else OPTIMIZERS[1]

    def training_arguments(self) -> dict[str, Any]:
        """What belongs into TrainingArguments.

        `torch_compile` and `tf32` are not among it: with them the Trainer sets environment variables and
        switches of torch for the rest of the process. `apply_speed` does both for the length of a run.
        """
        return {
            "use_cpu": self.device == "cpu",
            "bf16": self.dtype == "bfloat16",
            "optim": self.optimizer,
            "dataloader_pin_memory": self.device == "cuda",
        }

    def collator_arguments(self) -> dict[str, Any]:
        """What belongs into InterleavingDataCollator."""
        return {"isolate": self.isolate, "return_flash_attn_kwargs": self.flash_kwargs}

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The number type of a forward, for those who train without the Trainer."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            yield


def choose_speed(
    settings: ModelSettings | None = None,
    *,
    device: torch.device | str | None = None,
    isolate: bool = True,
    max_length: int | None = None,
    attention: str = "auto",
    compile: str | bool = "auto",
    dtype: str = "auto",
    optimizer: str = "auto",
    machine: Machine | None = None,
) -> SpeedChoice:
    """Chooses how a run computes.

    - CPU, and devices other than CUDA: sdpa, float32, not compiled. On a CPU, isolated documents in rows of
      at least 1,024 tokens: varlen, one call of sdpa a document, which does not compute the masked part.
    - CUDA in bfloat16: flash_attention_3 (Hopper only), else flash_attention_2, where they are installed;
      else varlen, torch's own flash kernel; else flex_attention. Compiled.
    - CUDA in float32, which a recipe asks for where exactness comes before speed: sdpa, not compiled.

    Where documents are not isolated, sdpa needs no mask and uses torch's flash kernel by itself. A decoder
    that cannot work with one of these gets the next; then sdpa, and eager at last. **Not measured** when this
    was written: any of it on a GPU; benchmarks/train.py compares the settings there.

    Args:
        settings: of the model; None asks for what suits a Llama, in bfloat16 where that is possible.
        device: None takes the GPU if there is one.
        isolate: whether packed documents are kept apart.
        max_length: tokens of a packed row, if known.
        attention, compile, dtype, optimizer: "auto", or what it must be: one of `ATTENTIONS`; True or False;
            one of `DTYPES`; one of `OPTIMIZERS`.
        machine: the facts to go by; those of this process when None.

    Raises:
        ValueError: what was asked for is impossible here (the message says what is missing), or unknown.

    Warns:
        UserWarning: bfloat16 on a CPU, which is possible but in most of them far slower than float32.

    Example:
        >>> choice = choose_speed(machine=Machine("cpu"))
        >>> choice.attention, choice.dtype, choice.compile, choice.fused
        ('sdpa', 'float32', False, True)
    """
    _check("attention", attention, ("auto", *ATTENTIONS))
    _check("dtype", dtype, ("auto", *DTYPES))
    _check("optimizer", optimizer, ("auto", *OPTIMIZERS))
    if compile not in ("auto", True, False):
        raise ValueError(f"compile must be 'auto', True or False, got {compile!r}.")
    if machine is None:
        machine = detect_machine(device)
    elif device is not None and torch.device(device).type != machine.device:
        raise ValueError(
            f"device {str(device)!r} does not go with a machine whose device is {machine.device!r}."
        )
    decoder = Decoder() if settings is None else Decoder.of(settings.text_config)

    reasons: list[str] = []
    dtype, why = _choose_dtype(dtype, None if settings is None else settings.dtype, machine)
    reasons.append(why)
    attention, why = _choose_attention(attention, machine, decoder, dtype, isolate, max_length or 0)
    reasons.append(why)
    compile, why = _choose_compile(compile, machine, dtype)
    reasons.append(why)
    fused = machine.device in _FUSED_DEVICES if optimizer == "auto" else optimizer == OPTIMIZERS[0]
    if fused and machine.device not in _FUSED_DEVICES:
        raise ValueError(
            f"optimizer '{OPTIMIZERS[0]}' does not exist on {machine.device!r} (only on "
            f"{', '.join(_FUSED_DEVICES)}); use '{OPTIMIZERS[1]}' or 'auto'."
        )
    tf32 = machine.device == "cuda" and dtype == "bfloat16" and _capability(machine) >= _AMPERE
    flash_kwargs = isolate and attention in BY_BORDERS
    if not isolate and attention == "sdpa" and machine.device == "cuda":
        reasons.append("documents are not isolated: leave position_ids out of the batch, or sdpa gets a mask")
    return SpeedChoice(
        attention, dtype, bool(compile), fused, flash_kwargs, tuple(reasons),
        tf32=tf32, isolate=isolate, device=machine.device, device_name=machine.name,
    )  # fmt: skip


def _check(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")


def _capability(machine: Machine) -> tuple[int, int]:
    return machine.capability or (0, 0)


def _choose_dtype(asked: str, of_settings: str | None, machine: Machine) -> tuple[str, str]:
    """(number type, reason)"""
    possible = machine.device == "cuda" and machine.bf16
    if asked == "auto":
        wanted = of_settings or "bfloat16"
        if wanted == "float32":
            return wanted, "float32: the recipe says so"
        if possible:
            return wanted, "bfloat16: the GPU computes in it; weights and optimizer state stay in float32"
        if machine.device == "cpu":
            return "float32", "float32: most CPUs are far slower in bfloat16"
        return "float32", f"float32: this {machine.device} device has no bfloat16 in hardware"
    if asked == "bfloat16" and not possible:
        if machine.device != "cpu":
            raise ValueError(
                f"dtype 'bfloat16' was asked for, but {machine.name or machine.device} does not compute in "
                "it in hardware (NVIDIA GPUs do from compute capability 8.0 on); use 'float32' or 'auto'."
            )
        warnings.warn(
            "bfloat16 on a CPU: without instructions for it (AMX, AVX512-BF16) this was seen to be hundreds "
            "of times slower than float32.",
            stacklevel=3,
        )
    return asked, f"{asked}: asked for"


def _choose_attention(
    asked: str, machine: Machine, decoder: Decoder, dtype: str, isolate: bool, max_length: int
) -> tuple[str, str]:
    """(attention implementation, reason)"""
    if asked != "auto":
        obstacle = _obstacle(asked, machine, decoder, dtype)
        if obstacle:
            raise ValueError(
                f"attention '{asked}' was asked for, but {obstacle}; 'auto' chooses what works here."
            )
        return asked, f"{asked}: asked for"
    if machine.device == "cuda" and dtype == "bfloat16" and isolate:
        order = ["flash_attention_3", "flash_attention_2", varlen.NAME, "flex_attention", "sdpa", "eager"]
    elif machine.device == "cuda" and dtype == "bfloat16":
        order = ["flash_attention_3", "flash_attention_2", "sdpa", "eager"]
    else:
        order = ["sdpa", "eager"]
        if machine.device == "cpu" and isolate and max_length >= _LONG_ROW:
            order.insert(0, varlen.NAME)
    passed = []
    for name in order:
        obstacle = _obstacle(name, machine, decoder, dtype)
        if obstacle is None:
            advantage = _ADVANTAGE.get(name) if isolate else None
            if name == varlen.NAME and machine.device == "cpu":
                advantage = "one call of sdpa a document; a mask over whole rows computes what it then hides"
            return name, (f"{name}: {advantage}" if advantage else name) + "".join(
                f"; not {other}: {reason}" for other, reason in passed
            )
        passed.append((name, obstacle))
    raise AssertionError("eager has no obstacle")


def _obstacle(attention: str, machine: Machine, decoder: Decoder, dtype: str) -> str | None:
    """Why an attention implementation cannot be used, and what would help; None if it can."""
    family = {"sdpa": "sdpa", "flex_attention": "flex"}.get(attention, "flash")
    kind, head = decoder.model_type, decoder.head_size
    if attention == "eager":
        return None
    if attention == varlen.NAME:
        if kind not in varlen.VARLEN_DECODERS:
            return f"decoders of type {kind!r} are not known to work with it"
    elif family not in decoder.supports:
        return f"transformers has no {attention} for decoders of type {kind!r}"
    if attention == "sdpa":
        return None
    if decoder.dropout and family == "flex":
        return f"it has no dropout, and the decoder asks for {decoder.dropout}; set attention_dropout to 0"
    if decoder.dropout and attention == varlen.NAME:
        return f"it has no dropout, and the decoder asks for {decoder.dropout}; set attention_dropout to 0"
    if attention == varlen.NAME and machine.device == "cpu":
        return None  # one call of sdpa a document
    if machine.device != "cuda":
        return f"it can be trained with on CUDA devices only, and this is {machine.device!r}"
    if attention == "flex_attention":
        if "triton" not in machine.packages:
            return f"it needs {_INSTALL['triton']}"
        return None if _capability(machine) >= _VOLTA else "it needs compute capability 7.0"
    if attention in _INSTALL and attention not in machine.packages:
        return f"it needs {_INSTALL[attention]}"
    if dtype != "bfloat16":
        return f"its kernel computes in half precision only, and the number type is {dtype}"
    if attention == "flash_attention_3" and _capability(machine)[0] != 9:
        return "it is made for compute capability 9 (Hopper)"
    if _capability(machine) < _AMPERE:
        return f"it needs compute capability 8.0, and this GPU has {'.'.join(map(str, _capability(machine)))}"
    if head is not None and head > 256:
        return f"its heads hold at most 256 numbers, and the decoder's {head}"
    return None


def _choose_compile(asked: str | bool, machine: Machine, dtype: str) -> tuple[bool, str]:
    """(whether, reason)"""
    obstacle = None
    if machine.device == "cuda":
        if "triton" not in machine.packages:
            obstacle = f"it needs {_INSTALL['triton']}"
        elif _capability(machine) < _VOLTA:
            obstacle = "it needs compute capability 7.0"
    if asked == "auto":
        if machine.device != "cuda":
            return False, f"no torch.compile: not by default on {machine.device!r}"
        if dtype == "float32":
            return False, "no torch.compile: float32 asks for exactness before speed"
        if obstacle:
            return False, f"no torch.compile: {obstacle}"
        return True, "torch.compile: the number of rows varies and becomes a symbol after the second step"
    if asked and obstacle:
        raise ValueError(f"compile=True was asked for, but {obstacle}; 'auto' chooses what works here.")
    return bool(asked), f"{'torch.compile' if asked else 'no torch.compile'}: asked for"


def apply_speed(model: PreTrainedModel, choice: SpeedChoice, *, check: bool = True) -> ExitStack:
    """Makes a model compute as chosen, from now on or inside a `with`.

        with apply_speed(model, choice):
            trainer.train()

    The weights stay as they are and where they are. Only the attention implementation, which is noted in
    `model.config` (never saved), the model's compiled call and torch's TF32 switch are set, and `close()`, or
    the end of the `with`, sets them back. The caller has moved the model to its device.

    Args:
        model: to be trained, not yet wrapped by the Trainer or DDP.
        choice: of `choose_speed`.
        check: try on the model's device that packed documents are isolated (`check_isolation`).

    Raises:
        RuntimeError: documents are not isolated with this attention; nothing is changed then.
    """
    with ExitStack() as stack:
        before = _attention_of(model)
        if choice.attention == varlen.NAME:
            varlen.register_varlen_attention()
        if set(before.values()) != {choice.attention}:
            stack.callback(model.set_attn_implementation, before)
            model.set_attn_implementation(choice.attention)
        if check and choice.isolate:
            check_isolation(model, choice)
        if choice.tf32:
            with suppress(RuntimeError):  # somebody has set it by torch's other interface: theirs
                stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                torch.set_float32_matmul_precision("high")
        if choice.compile:
            # In place: names of weights stay. Shapes that vary become symbols when they first do; with
            # dynamic=True the length of a row, which is always the same, would be one, too.
            stack.callback(setattr, model, "_compiled_call_impl", model._compiled_call_impl)
            model.compile()
        return stack.pop_all()


def _attention_of(model: PreTrainedModel) -> dict[str, str]:
    """The attention implementations of a model and its parts, as set_attn_implementation takes them."""
    config = model.config
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": config._attn_implementation} | {
        name: part._attn_implementation for name, part in parts.items() if part is not None
    }


def check_isolation(model: PreTrainedModel, choice: SpeedChoice) -> None:
    """Tries on the model's device that a token sees its own document up to itself, and nothing else.

    One forward of two short packed rows as the collator gives them, and the gradient of one token's logits
    with respect to all input embeddings: it must be exactly zero outside the token's document and after the
    token. Weights, their gradients, random state and train mode are left as they are.

    Raises:
        RuntimeError: another token is seen, or the token's own document is not.
    """
    device = model.device
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 512
    length = 128 if device.type == "cuda" and context >= 384 else 8  # a few blocks of a kernel; little work
    rows = [[length, 2 * length - 1, length + 1], [3 * length - 1, length + 1]]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        positions = [torch.cat([torch.arange(n) for n in row]) for row in rows]
        target = length + length  # in the middle of the second document
        inside = torch.zeros(len(rows), sum(rows[0]), dtype=torch.bool)
        inside[0, length : target + 1] = True
        batch: dict[str, Any] = {"position_ids": torch.stack(positions).to(device)}
        row, column = 0, target
        if choice.flash_kwargs:
            borders = torch.tensor([0, *(n for row in rows for n in row)]).cumsum(0).to(device, torch.int32)
            longest = max(n for row in rows for n in row)
            batch = {
                "position_ids": batch["position_ids"].view(1, -1),
                "cu_seq_lens_q": borders,
                "cu_seq_lens_k": borders,
                "max_length_q": longest,
                "max_length_k": longest,
            }
            inside = inside.view(1, -1)
        embeddings = model.get_input_embeddings()
        ids = torch.randint(
            embeddings.weight.shape[0], inside.shape, generator=torch.Generator().manual_seed(0)
        )
        with torch.enable_grad(), choice.autocast():
            inputs = embeddings(ids.to(device)).detach().requires_grad_()
            logits = model(inputs_embeds=inputs, **batch).logits[row, column].float()
            gradient = torch.autograd.grad(logits.square().sum(), inputs)[0]
    finally:
        for module, mode in modes.items():
            module.training = mode
    seen = gradient.float().abs().amax(-1).cpu() > 0
    if (seen & ~inside).any():
        raise RuntimeError(
            f"attention '{choice.attention}' does not isolate packed documents on {device}: a token sees "
            f"{int((seen & ~inside).sum())} tokens outside its document or after itself. Choose another one "
            "(attention='sdpa')."
        )
    if int((seen & inside).sum()) < 2:
        raise RuntimeError(
            f"attention '{choice.attention}' does not work on {device}: a token sees none of its own "
            "document. Choose another one (attention='sdpa')."
        )
