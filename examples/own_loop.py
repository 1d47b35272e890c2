"""Token rewards in a training loop of your own: REINFORCE on a tiny policy, in plain torch.

    pgtg export reward RUN --out reward
    python examples/own_loop.py reward policy-folder prompts.txt

What pgtg gives is `load_reward_model`: a module that maps a `TokenBatch` to rewards [N, T], of a
run or of an exported folder alike. The rest is the loop.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pgtg
from pgtg.models.batch import token_batch

UPDATES, SAMPLES, NEW_TOKENS, RATE = 4, 4, 12, 1e-3


def main(reward: str, policy: str, prompts: list[str]) -> list[float]:
    """Mean token reward of the policy's samples at each update."""
    torch.manual_seed(0)
    r_phi = pgtg.load_reward_model(reward)
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    sources = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    means = []
    for update in range(UPDATES):
        source = sources[update % len(sources)]
        texts = sampled(model, source, tokenizer.eos_token_id)

        # one source, of which all texts are continuations
        batch = token_batch([source], texts, [0] * len(texts))
        with torch.no_grad():
            rewards = r_phi(batch)  # [N, T]; padding has no meaning
        mask = batch.mask.float()
        mean = (rewards * mask).sum() / mask.sum()
        advantage = (rewards - mean) * mask

        # log pi(a_t | s_t) of the sampled tokens, by one pass over source and texts
        ids = torch.cat([batch.source.expand(len(texts), -1), batch.tokens], dim=1)
        logits = model(input_ids=ids).logits[:, len(source) - 1 : -1]
        log_prob = logits.log_softmax(-1).gather(-1, batch.tokens[..., None]).squeeze(-1)
        loss = -(advantage * log_prob * mask).sum() / mask.sum()

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means.append(mean.item())
        print(f"update {update}: mean token reward {mean:.4f}, loss {loss.item():+.4f}")
    return means


def sampled(model, source: list[int], end: int) -> list[list[int]]:
    """Samples that continue the source, each up to its end token."""
    ids = torch.tensor([source])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        num_return_sequences=SAMPLES,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=end,
    )[:, len(source) :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in out]


if __name__ == "__main__":
    reward_folder, policy_folder, file = sys.argv[1:]
    main(reward_folder, policy_folder, Path(file).read_text(encoding="utf-8").splitlines())
