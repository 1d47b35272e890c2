"""How long the paper's runs would take on this machine: short runs of the true size, scaled up.

    python benchmarks/paper_runs.py [--device cuda] [--updates 300] [--save FILE]
        [--only cnn_dm_t5_base sst2_paper] [--size paper|tiny] [KEY=VALUE ...]

Models have the true sizes and random weights, texts are random words with CNN/DailyMail's and
SST-2's numbers and lengths, so nothing is downloaded and the work is that of the real run: the
stages of `experiment=cnn_dm_t5_base` and `experiment=sst2_paper` themselves, with `--updates`
updates of each training, timed in their steady state, times the units of the whole run
(`pgtg.pipeline.plan.probe`). A random policy seldom ends its texts, so generations have full
length: an upper bound. Further KEY=VALUE reach the config, e.g. sample.precision=bf16. --size tiny
is only to try the script.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from pgtg.config import RunConfig
from pgtg.config.compose import run_config
from pgtg.pipeline.plan.probe import Part, probe, show_time, text_of

TRAIN, VALIDATION, TEST = 287_113, 13_368, 11_490  # CNN/DailyMail 3.0.0
ARTICLE, SUMMARY = (780, 390), (56, 25)  # words: mean and standard deviation
KEPT = 4096  # articles that are written: the short run reads fewer, the count is the data set's
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def save(model: PreTrainedModel, words: Sequence[str], folder: Path, *, ends: bool) -> None:
    """A folder with random weights and a tokenizer of one word a token."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if ends:
        backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="$A </s>", special_tokens=[("</s>", 2)]
        )
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), SPECIAL, strict=True))
    tokens = {f"{name}_token": token for name, token in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    model.save_pretrained(folder)


def special_ids() -> dict[str, Any]:
    return {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def t5(base: bool, tiny: bool, folder: Path) -> Path:
    """T5-base's or T5-small's size."""
    sizes = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    if not base:
        sizes = {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
    if tiny:
        sizes = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    rows = 500 if tiny else 32128
    more = {"decoder_start_token_id": 1, **special_ids()}
    config = T5Config(vocab_size=rows, d_kv=64, **sizes, **more)
    words = [f"w{i}" for i in range(rows - len(SPECIAL) - 20)]
    save(T5ForConditionalGeneration(config), words, folder, ends=True)
    return folder


def text(rng: random.Random, mean: int, spread: int, vocabulary: int) -> str:
    length = max(int(rng.gauss(mean, spread)), 5)
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(length))


def summarization(folder: Path, tiny: bool, device: str, more: Sequence[str]) -> RunConfig:
    """experiment=cnn_dm_t5_base on random models and articles."""
    rng, vocabulary = random.Random(0), 400 if tiny else 30000
    article, summary = ((60, 20), (12, 4)) if tiny else (ARTICLE, SUMMARY)
    data = folder / "data"
    data.mkdir()
    for split, number in (("train", KEPT), ("validation", 600), ("test", 64)):
        with (data / f"{split}.jsonl").open("w") as file:
            for i in range(number):
                row = {"id": f"{split}{i}", "article": text(rng, *article, vocabulary)}
                row["highlights"] = text(rng, *summary, vocabulary)
                file.write(json.dumps(row) + "\n")
    policy, reward = t5(True, tiny, folder / "policy"), t5(False, tiny, folder / "reward")
    values = ["experiment=cnn_dm_t5_base", "data=files", f"data.path={data}", f"device={device}"]
    values += ["data.columns.source=article", "data.columns.references=[highlights]"]
    values += ["data.columns.id=id", f"policy.path={policy}", f"reward.path={reward}"]
    values += ["judge=meteor_stem", "metrics=basic", "metrics.sentence_splitter=regex"]
    if tiny:
        values += ["policy.max_source_tokens=96", "sample.max_new_tokens=16"]
    return run_config("summarize", [*values, *more])


def prompts(
    folder: Path, tiny: bool, device: str, more: Sequence[str], *, classifier: str = "large"
) -> RunConfig:
    """experiment=sst2_paper on random models and sentences, with a classifier of RoBERTa's size."""
    rng, vocabulary = random.Random(0), 400 if tiny else 50257 - len(SPECIAL) - 3
    data, shots = folder / "data", folder / "data" / "16-100"
    shots.mkdir(parents=True)
    for path, number in ((shots / "train", 32), (shots / "dev", 32), (data / "test", 1821)):
        rows = [f"{text(rng, 19, 9, vocabulary)}\t{i % 2}" for i in range(number)]
        path.with_suffix(".tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    words = ["terrible", "great", ".", *(f"w{i}" for i in range(vocabulary))]
    rows = len(SPECIAL) + len(words)
    sizes: dict[str, Any] = (
        {"n_layer": 6} if not tiny else {"n_layer": 1, "n_embd": 32, "n_head": 2}
    )
    writer = GPT2LMHeadModel(
        GPT2Config(vocab_size=max(rows, 0 if tiny else 50257), **sizes, **special_ids())
    )
    save(writer, words, folder / "writer", ends=False)
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    sizes |= {"intermediate_size": 4096}
    if classifier == "base":
        sizes = {}
    if tiny:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(
        vocab_size=max(rows, 0 if tiny else 50265),
        max_position_embeddings=514,
        **sizes,
        **special_ids(),
    )
    save(RobertaForMaskedLM(config), words, folder / "judge", ends=True)
    values = ["experiment=sst2_paper", f"data.path={data}", f"device={device}", "data_seed=0"]
    values += [f"policy.path={folder / 'writer'}", "policy.start_text=null"]
    values += [f"judge.classifier.path={folder / 'judge'}", "prompt.baselines=[]"]
    return run_config("prompt", [*values, *more])


RUNS = {"cnn_dm_t5_base": summarization, "sst2_paper": prompts}


def show(name: str, parts: Sequence[Part]) -> None:
    print(f"\n{name}: {text_of(parts)}")
    for part in parts:
        each = f"{part.units:>12,.0f} x {1000 * part.seconds:>10.1f} ms"
        print(f"  {part.name:<20} {each}  {show_time(part.total):>8}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--size", choices=["paper", "tiny"], default="paper")
    parser.add_argument("--save", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    found: dict[str, Any] = {"torch": torch.__version__, "updates": options.updates}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    for name in options.only:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            cfg = RUNS[name](folder, options.size == "tiny", options.device, options.overrides)
            whole = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
            sizes = whole if name.startswith("cnn_dm") else None
            parts = probe(cfg, updates=options.updates, sizes=sizes)
        show(name, parts)
        found[name] = {part.name: [part.units, part.seconds] for part in parts}
    if options.save:
        options.save.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
