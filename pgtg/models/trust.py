"""Transformers folders as a stranger may have made them: checked before and after loading.

Transformers itself runs no code of a folder unless it is told to trust it. What is left, and
refused here: weights that are pickles or lie elsewhere, attention kernels and quantisers (code that
other packages fetch), adapters of another model (which would be fetched), a config that claims far
more weights than the files hold, and weights that are missing, which would be drawn at random. What
Transformers knows itself it builds with its own code, whatever `auto_map` says; what it does not
know is refused. Links are left alone: the hub's cache consists of them.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pgtg.config import DEPTHS
from pgtg.errors import ArtifactError, MissingResourceError, PgtgError
from pgtg.runs.files import load_tensors
from pgtg.runtime.signals import Interrupted

MAX_JSON_BYTES = 128 * 2**20  # the largest tokenizer.json at large has some 35 MB
SLACK = 2**20  # weights that a model may have beyond twice those in its files
KERNELS = ("attn_implementation", "experts_implementation")
_COUNTED: dict[tuple[str, str], int] = {}  # weights by Auto class and config
REFUSED = {
    "adapter_config.json": "an adapter names another model, which would be fetched: merge it first",
}


def load(path: str, auto: Any, config: Any, *, unread: tuple[str, ...] = (), **options: Any) -> Any:
    """The model of a folder or hub id by an Auto class, if the files hold all its weights.

    Args:
        path: Folder or hub id; `check_folder` has seen it.
        auto: E.g. AutoModelForCausalLM.
        config: Its config, perhaps shortened.
        unread: How names of weights begin that may be missing, since nobody reads them.
        options: For `from_pretrained`.

    Raises:
        ArtifactError: The config claims more than the files hold.
        MissingResourceError: Weights are missing, or of other sizes.
    """
    if Path(path).is_dir():
        _check_claims(Path(path), auto, config)
    options |= {"use_safetensors": True, "trust_remote_code": False}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refused below
    model, found = auto.from_pretrained(path, config=config, **options)
    _require_sizes(path, found["mismatched_keys"])
    parameters = dict(model.named_parameters())
    left_out = {name for name in found["missing_keys"] if not name.startswith(unread)}
    missing = [n for n in sorted(left_out & {*parameters}) if not _computed(model, n)]
    if missing:
        raise MissingResourceError(
            f"model {path!r} lacks {len(missing)} of the weights of a {type(model).__name__} "
            f"({missing[0]}, ...), which would be random: it is another kind of model, or damaged"
        )
    return model


def _require_sizes(path: str, differ: Collection[tuple[str, Any, Any]]) -> None:
    """Refuse weights that have another shape in the files than the config gives them.

    Raises:
        MissingResourceError: Names the first, with both shapes.
    """
    if differ:
        name, held, wanted = min(differ)
        raise MissingResourceError(
            f"model {path!r}: {len(differ)} of its weights have another size than its config.json "
            f"says (first: {name}, {list(held)} in the files, {list(wanted)} by the config): "
            "config and weights are not of one model; save both again with save_pretrained"
        )


def _computed(model: Any, name: str) -> bool:
    """Whether a weight that no file holds is a table that its module computes (Pegasus' places)."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if not hasattr(owner, "create_weight"):
        return False
    expected, found = owner.create_weight(), model.get_parameter(name)
    return torch.equal(expected.to(found.dtype), found.detach().cpu())


def unloadable(path: str, what: str, error: Exception) -> PgtgError:
    """What to say of anything that kept a model from loading.

    Raises:
        Interrupted: It was a signal, which a library turned into an error of its own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Interrupted):
            raise cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, PgtgError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else repr(error)
    return MissingResourceError(
        f"{what} {path!r} cannot be loaded: {reason} (name a local Transformers folder, or a "
        "hub id while online; HF_HUB_OFFLINE and HF_HOME are honoured)"
    )


def check_folder(path: str) -> None:
    """Refuse a folder that would make the libraries below run or fetch something.

    Raises:
        ArtifactError: What is wrong with which file. A hub id is not looked at.
        MissingResourceError: No weights in safetensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    for file in sorted(folder.glob("*.json")):
        if file.name in REFUSED:
            raise ArtifactError(f"{file}: {REFUSED[file.name]}")
        if not file.is_file() or file.stat().st_size > MAX_JSON_BYTES:
            raise ArtifactError(f"{file} is no file, or above {MAX_JSON_BYTES} bytes: refused")
    config = _object(folder / "config.json")
    for key, value in _pairs(config):
        if key == "quantization_config" and value is not None:
            raise ArtifactError(f"{folder}/config.json: quantised weights are not read: convert it")
        if any(name in key for name in KERNELS) and any(sign in str(value) for sign in "/:@"):
            raise ArtifactError(
                f"{folder}/config.json: {key}={str(value)[:80]!r} would fetch code: delete the key"
            )
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        _object(folder / name)
    for name in _shards(folder):
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise ArtifactError(f"{folder}: weights in {name[:80]!r}: only safetensors next to it")
        if not (folder / name).is_file():
            raise MissingResourceError(
                f"model {path!r} cannot be loaded: no {name} (pickles, *.bin, are not read): "
                "save the model as safetensors"
            )


def _object(path: Path) -> Mapping[str, Any]:
    """The json object in a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not readable json ({error})") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} holds no json object")
    return found


def _pairs(tree: Any) -> Iterator[tuple[str, Any]]:
    """All keys of all objects in a json document, with their values."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield key, value
        yield from _pairs(value)
    for value in tree if isinstance(tree, list) else ():
        yield from _pairs(value)


def _shards(folder: Path) -> list[str]:
    """Names of the files with weights."""
    index = _object(folder / "model.safetensors.index.json")
    if (folder / "model.safetensors").is_file() or not index:
        return ["model.safetensors"]
    names = index.get("weight_map")
    if not isinstance(names, dict):
        raise ArtifactError(f"{folder}/model.safetensors.index.json has no weight_map")
    return sorted({str(name) for name in names.values()})


def _check_claims(folder: Path, auto: Any, config: Any) -> None:
    """Compare the config's model, built without memory, with the headers of the files.

    Raises:
        ArtifactError: More layers than tensors, or more than twice the weights.
        OSError: A file is missing, or is no safetensors.
    """
    held, tensors = 0, 0
    for name in _shards(folder):
        try:
            with safe_open(folder / name, "pt") as file:
                shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise ArtifactError(f"{folder / name} is not readable safetensors ({error})") from error
        held, tensors = held + sum(map(_product, shapes)), tensors + len(shapes)
    for key in DEPTHS:
        depth = getattr(config, key, None)
        if isinstance(depth, int) and not 0 < depth <= tensors:
            raise ArtifactError(
                f"{folder}: config.json claims {key}={depth}, there are {tensors} tensors"
            )
    claimed = _claimed(auto, config)
    if claimed > 2 * held + SLACK:
        raise ArtifactError(
            f"{folder}: config.json claims {claimed} weights, the files hold {held}: refused"
        )


def _claimed(auto: Any, config: Any) -> int:
    """Weights of the model that a config describes, which is built without memory.

    Once for each config: a run loads models of the same few sizes again in every stage.
    """
    key = auto.__name__, config.to_json_string()
    if key not in _COUNTED:
        with torch.device("meta"):
            _COUNTED[key] = sum(p.numel() for p in auto.from_config(config).parameters())
    return _COUNTED[key]


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def load_module(module: nn.Module, path: Path) -> None:
    """Put saved weights into a small module, if the file holds just these.

    Raises:
        ArtifactError: The file is damaged, larger than the module, or of other shapes.
    """
    own = module.state_dict()
    room = sum(value.numel() * value.element_size() for value in own.values())
    tensors = load_tensors(path, max_bytes=2 * room + 2**16)
    expected = {name: tuple(value.shape) for name, value in own.items()}
    if {name: tuple(value.shape) for name, value in tensors.items()} != expected:
        raise ArtifactError(f"{path} holds other weights than its description says: make it again")
    module.load_state_dict(tensors)
