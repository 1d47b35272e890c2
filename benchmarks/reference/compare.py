"""pgtg against the reference implementation on the same work, in one process, alternating.

    git clone https://github.com/Shentao-YANG/Preference_Grounded_Guidance reference
    pip install evaluate==0.4.6          # its METEOR's wrapper: all it needs besides pgtg's own
    NLTK_DATA=nltk_data OMP_NUM_THREADS=1 python benchmarks/reference/compare.py \\
        --reference reference --examples sst-2/16-100 --texts scitldr/train.jsonl \\
        [--evaluate FOLDER] [--meteor metrics/meteor/meteor.py] [--only 1 4] [--repeats 3] \\
        [--threads 1] [--size paper|tiny] [--save rows.json] [--profile]

NLTK_DATA holds WordNet (`python -m nltk.downloader wordnet`). --evaluate is the folder of
`pip install --no-deps --target FOLDER evaluate==0.4.6`, where the environment is not to be touched.
--meteor is METEOR's script from the repository huggingface/evaluate (as of commit 00f2e233);
without it evaluate downloads it. --examples is a folder with SST-2's 16-shot train.tsv (sentence,
label; the reference's repository has one under data/16-shot), --texts a jsonl file with document
and summary. The reference's files are used as they lie there; what a CPU and today's libraries need
is replaced in memory (`shim.py`).

The same work: both sides get models of the same true sizes (T5-small, distilgpt2, RoBERTa-base)
with random weights in float32, the same numbers of tokens in sources, targets and generations, the
same texts to judge, and torch with the same number of threads.

What counts: of the reference, its own functions and the bodies of its training loops, without
their prints, checkpoints and validations; of pgtg, what its stages call for the same step. A row is
the median over the repeats of (reference's time / pgtg's time) of calls side by side: of CPU time,
with the least and the largest, and of wall time. CPU time is this process's alone, so row 9 with
its worker processes counts by wall time. Row 8 is added up from measured parts, row 10 is memory.

Dropout is as each side trains: reward models and the T5 policy have it on both sides; the prompt
writer's frozen LM has it on neither. In the prompt task's policy step the reference leaves its
reward model in training mode, pgtg does not.

    1  summarize: generations, METEOR and a reward update      6  prompt: the same with a classifier
    2  summarize: its forward and backward alone               7  prompt: a policy update
    3  summarize: its generations alone                        8  prompt: a round of the alternation
    4  summarize: a policy update                              9  METEOR alone
    5  summarize: the alternation                              10 peak memory of row 1
"""

import json
import os

from options import Options, parse


def main() -> None:
    assert __doc__ is not None
    options = parse(__doc__)
    # before torch and the libraries that read them are imported
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if options.meteor:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    compare(options)


def compare(options: Options) -> None:
    import torch
    import transformers

    torch.set_num_threads(options.threads)

    import shim

    shim.install(options.reference, options.evaluate, options.meteor)

    import rows

    if options.memory:
        print(json.dumps(rows.memory(options.memory, options)))
        return
    begin = os.getloadavg()[0]
    found = rows.run(options)
    print(
        f"load average {begin:.1f} at the start, {os.getloadavg()[0]:.1f} at the end; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    if options.save:
        result = {
            "size": options.size,
            "threads": options.threads,
            "repeats": options.repeats,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "rows": found,
        }
        options.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
