"""A causal LM that judges prompts after texts it has read once: by tokens of a batch of texts.

    python benchmarks/judged_prompts.py [--threads 1] [--repeats 5] [--texts 64] [--layers 30]

SmolLM2-135M's size, random weights, texts of 30 to 70 tokens, a prompt of 5. A line is the median
CPU time of judging one more prompt, of its gradient on 16 of the texts with the texts' part kept
and with whole rows, and the time of reading the texts, which is spent once.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pgtg.judges.readers import CausalReader, VocabularyReader
from pgtg.judges.rendering import Rendered

PROMPT, WORDS = 5, (10, 11, 12, 13)
BUDGETS = (256, 1024, 4096, 16384)  # tokens; 256 is what whole rows are read in on a CPU


def model(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--layers", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm, draws = model(args.layers), torch.Generator().manual_seed(0)
    lengths = torch.randint(30, 71, (args.texts,), generator=draws).tolist()
    leads = [torch.randint(20, 49152, (n,), generator=draws).tolist() for n in lengths]
    vectors = torch.zeros(PROMPT, 576, requires_grad=True)

    def rows() -> list[Rendered]:
        prompt = torch.randint(20, 49152, (PROMPT,), generator=draws).tolist()
        return [
            Rendered([*lead, *prompt], len(lead) + PROMPT - 1, False, 0, len(lead))
            for lead in leads
        ]

    some = [*range(0, args.texts, max(1, args.texts // 16))][:16]
    print("batch tokens   texts, once [s]   a prompt [s]   its gradient [s]   of whole rows [s]")
    for budget in BUDGETS:
        reader, whole = CausalReader(lm, torch.tensor(WORDS), 2**31), VocabularyReader(lm)

        def judge(reader: CausalReader = reader, budget: int = budget) -> None:
            with torch.no_grad():
                for tails in reader._after(leads, rows(), range(args.texts), 512, budget):
                    reader._answer(reader._extend(tails))

        def gradient(reader: CausalReader = reader, budget: int = budget) -> None:
            given = rows()
            with reader.offset.added(vectors, block=False):
                own = reader._after(leads, [given[i] for i in some], some, 512, budget)
                parts = [reader._all_words(reader._extend(tails)).sum() for tails in own]
            torch.autograd.grad(torch.stack(parts).sum(), vectors)

        def plain(whole: VocabularyReader = whole) -> None:
            given = rows()
            torch.autograd.grad(whole.read([given[i] for i in some], vectors).sum(), vectors)

        once = seconds(judge)
        ways = (judge, gradient, plain)
        times = [[seconds(way) for way in ways] for _ in range(args.repeats)]
        one, two, three = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{budget:12} {once - one:17.2f} {one:14.2f} {two:18.2f} {three:19.2f}", flush=True)


if __name__ == "__main__":
    main()
