"""`pgtg export policy`: a run's policy as a plain Transformers folder with all that it needs."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from pgtg.config import RunConfig
from pgtg.errors import ArtifactError, ConfigError
from pgtg.export.card import made_by, policy_card
from pgtg.export.folder import POLICY_JSON, growing, require_free
from pgtg.methods.published import trained_policy
from pgtg.models.adaptor import ADAPTOR_JSON
from pgtg.models.batch import token_batch
from pgtg.models.codec import Codec
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model, save_folder
from pgtg.models.special_tokens import ordinary
from pgtg.models.token_classifier import codec_as_json
from pgtg.runs.folder import RunFolder, write_json
from pgtg.runs.log import RunLog
from pgtg.runs.saved import config_of
from pgtg.tasks import task_of

TOLERANCE = 1e-4  # of the logits, of their largest size or of 1; of 16-bit weights 0.05


def export_policy(path: Path, out: Path, *, force: bool, log: RunLog) -> None:
    """Write a run's published policy to a folder that plain `from_pretrained` loads.

    Args:
        path: Run folder.
        out: The folder to be.
        force: Replace an earlier export.

    Raises:
        ConfigError: The policy is an adaptor, the method trains none, or `out` is taken.
        ArtifactError: No run, or one without a policy yet; what was written reads otherwise.
    """
    require_free(out, force=force)
    folder = RunFolder(path).open()
    cfg = config_of(folder)
    artifact = trained_policy(cfg, folder)
    if (artifact.path / ADAPTOR_JSON).is_file():
        raise ConfigError(
            f"{path}: its policy is an MLP before the LM head of a frozen model, which cannot be "
            "merged into that model's weights; there is no Transformers class to export it as"
        )
    lm, tokenizer = load_language_model(str(artifact.path), dtype=cfg.policy.dtype)
    codec = task_of(cfg, folder.path).codec(tokenizer, lm.is_encoder_decoder, lm.end_ids)
    reading = codec_as_json(codec)
    lm.model.generation_config = _generation(cfg, lm, codec)
    with growing(out, force=force) as fresh:
        save_folder(lm.model, tokenizer, fresh)
        gap = _compared(fresh, lm, ordinary(tokenizer))
        about = {"task": cfg.task, "name": cfg.name, "seed": cfg.seed, "method": cfg.method.name}
        write_json(fresh / POLICY_JSON, {"run": about, "reading": reading, **made_by(folder)})
        card = policy_card(cfg, folder, out.name, reading)
        (fresh / "README.md").write_text(card, encoding="utf-8")
    log.say(f"reloaded by {type(lm.model).__name__}: largest gap {gap:.1e} in logits on a probe")
    log.say(f"written to {out}")


def _generation(cfg: RunConfig, lm: LanguageModel, codec: Codec) -> GenerationConfig:
    """Greedy decoding that ends where the run's does; no forced tokens, as in the run."""
    given: Any = lm.model.generation_config
    ends = list(codec.eos_ids)
    pad = codec.tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=cfg.sample.max_new_tokens,
        eos_token_id=ends or None,
        bos_token_id=getattr(given, "bos_token_id", None),
        pad_token_id=pad if pad is not None else (ends or [None])[0],
        decoder_start_token_id=lm.start_id if lm.is_encoder_decoder else None,
    )


@torch.no_grad()
def _compared(folder: Path, lm: LanguageModel, ids: list[int]) -> float:
    """Largest gap between the written folder's logits and the policy's own on a probe.

    Raises:
        ArtifactError: It is above the tolerance.
    """
    auto = AutoModelForSeq2SeqLM if lm.is_encoder_decoder else AutoModelForCausalLM
    dtype = next(lm.model.parameters()).dtype
    plain = LanguageModel(auto.from_pretrained(folder, dtype=dtype).eval())
    some = [ids[(7 * i) % len(ids)] for i in range(12)]
    probe = token_batch([some[:5], some[5:7]], [some[7:11], some[3:6]], [0, 1])
    expected, found = (one.logits(probe)[probe.mask].float() for one in (lm, plain))
    gap = (found - expected).abs().max().item()
    allowed = TOLERANCE if dtype in (torch.float32, torch.float64) else 0.05
    if not gap <= allowed * max(expected.abs().max().item(), 1.0):
        raise ArtifactError(
            f"the exported {type(lm.model).__name__} gives other logits than the run's policy "
            f"(largest gap {gap:.2e}), so nothing was written; please report this with its name"
        )
    return gap
