"""Token rewards in TRL's GRPO: advantages [B, T] from an exported reward model.

    pip install trl
    pgtg export reward RUN --out reward
    python examples/trl_grpo.py reward policy-folder prompts.jsonl

TRL's reward functions give one number a completion. Its loss takes advantages of each token as they
are, so a subclass of a dozen lines adds what each token earned: r_phi's logits at the completion's
places, centred over the completion, in addition to the advantage of the whole text.
"""

import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForTokenClassification, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


class TokenCreditGRPO(GRPOTrainer):
    """GRPO whose advantages are those of whole texts plus `mix` times the centred token rewards.

    Args:
        r_phi: A token classifier of `pgtg export reward`, with the policy's tokenizer.
        mix: Weight of the token rewards; 0 is GRPO.
    """

    def __init__(self, *args, r_phi, mix: float = 1.0, **options):
        super().__init__(*args, **options)
        self.r_phi = r_phi.to(self.accelerator.device).eval()
        self.mix = mix

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        real = out["completion_mask"].float()
        ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
        mask = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
        z = self.r_phi(input_ids=ids, attention_mask=mask).logits[:, -real.size(1) :, 0].float()
        mean = (z * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        out["advantages"] = out["advantages"][:, None] * real + self.mix * (z - mean) * real
        return out


def shorter(completions, **_) -> list[float]:
    """A reward of whole texts, for the example: put your own here."""
    return [-float(len(text)) / 100 for text in completions]


def trainer(reward: str, policy: str, rows, **options) -> TokenCreditGRPO:
    """A trainer of a policy folder on rows with `prompt`, guided by an exported reward model."""
    return TokenCreditGRPO(
        model=policy,
        processing_class=AutoTokenizer.from_pretrained(policy, padding_side="left"),
        reward_funcs=shorter,
        args=GRPOConfig(**options),
        train_dataset=rows,
        r_phi=AutoModelForTokenClassification.from_pretrained(reward),
    )


if __name__ == "__main__":
    reward_folder, policy_folder, prompts = sys.argv[1:]
    data = load_dataset("json", data_files=prompts, split="train")
    trainer(reward_folder, policy_folder, data, output_dir="outputs/trl").train()
