"""`pgtg doctor --env`: what a bug report should say of the machine. Holds no keys and no names."""

import os
import sys
from pathlib import Path

from pgtg.doctor.machine import cpu_name, memory_bytes, size_or_unknown
from pgtg.runs.folder import provenance

VARIABLES = ("HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
VARIABLES += ("NLTK_DATA", "WANDB_MODE", "WANDB_DIR", "TOKENIZERS_PARALLELISM", "NO_COLOR")
VARIABLES += ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LANG")
VARIABLES += ("PGTG_CACHE", "PGTG_CACHE_SIZE", "PGTG_ONEDNN")


def block() -> str:
    """A block for a bug report, in Markdown."""
    import torch

    from pgtg.models.backends.linear import onednn_is_faster

    about = provenance([], 0)
    total, free = memory_bytes()
    git = about["git"]
    rows = {
        "pgtg": f"{about['packages']['pgtg']} {_commit(git)}".strip(),
        "python": about["python"],
        "platform": about["platform"],
        "cpu": f"{cpu_name()}, {about['cpus']} cores, {torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{size_or_unknown(total)}, {size_or_unknown(free)} free",
        "gpu": _gpu(),
        "torch threads": torch.get_num_threads(),
        "linear layers on the CPU": "oneDNN" if onednn_is_faster() else "torch",
    }
    rows |= {name: version for name, version in about["packages"].items() if name != "pgtg"}
    rows |= {name: _private(os.environ[name]) for name in VARIABLES if name in os.environ}
    lines = [f"{name}: {value}" for name, value in rows.items()]
    return "\n".join(["```", *lines, "```"])


def _commit(git: dict | None) -> str:
    if git is None:
        return ""
    return f"at {git['commit']}{', changed' if git['changed'] else ''}"


def _gpu() -> str:
    import torch

    from pgtg.runtime.device import device_name

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return "none"
    count = torch.accelerator.device_count()
    names = [device_name(torch.device(kind.type, i)) for i in range(count)]
    version = f"; CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return f"{', '.join(names)}{version}"


def _private(value: str) -> str:
    """A value without the name of the user's home."""
    return value.replace(str(Path.home()), "~").replace(sys.prefix, "<venv>")
