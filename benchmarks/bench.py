"""`make bench`: our side alone, phase by phase, on models of the true sizes with random weights.

    python benchmarks/bench.py [--threads 1] [--device cpu] [--repeats 3] [--only NAME] [--save]
                               [--profile]

Each phase alternates with a calibrating matmul in the same run. What is compared with the last
saved result (benchmarks/bench.json) is the median of phase time / matmul time: absolute times of
shared machines say little. Where a phase's work can be counted, its GFLOPS are shown as a share
of the matmul's (2 FLOPs per weight and token forward, 4 more backward; attention and embeddings are
left out). A phase's peak memory is what its first call adds to a process of its own (Linux only).
With --profile each phase is followed by torch's operations that take most of one further call.

With --device the models, and the matmul, are on an accelerator: its clock is read once all that was
begun has ended, peak memory is the device's own, and passes without gradients have the precision
that `auto` takes there. Nothing is compared or saved then: the saved figures are the CPU's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory import MIB, peak_mib
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from pgtg.config import AggregatorConfig, MethodConfig, MetricsConfig, TextJudgeConfig
from pgtg.judges.classifier import Classifier
from pgtg.judges.pool import JudgePool
from pgtg.judges.template import Prompt, Template
from pgtg.methods.objective import Improvement, PolicyGradient, Sampled, SupervisedBatch
from pgtg.methods.options import WeightedMLE
from pgtg.metrics import build_metrics, compute
from pgtg.models.adaptor import adapt, draw_prompts
from pgtg.models.backends.linear import linear
from pgtg.models.batch import token_batch
from pgtg.models.generate import Decoding, generate, streams
from pgtg.models.language import LanguageModel
from pgtg.models.reward import HeadSpec, RewardModel, build_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.objectives import uniform_weights
from pgtg.pipeline.stages.align import GroupBatch, PlackettLuce
from pgtg.runtime.device import pick_device, set_arithmetic
from pgtg.runtime.precision import as_read, judge_dtype, read_dtype
from pgtg.types import Labelled

START: dict[str, Any] = {"decoder_start_token_id": 0}
SAVED = Path(__file__).with_name("bench.json")
SOURCES, K, SOURCE, NEW = 8, 3, 512, 64  # summarize: texts, generations of each, tokens
EXAMPLES, WORDS = 32, 20  # prompt: sentences judged by, words of each
SIZE, TIMES = 1024, 10  # of the calibrating matmul, float32; how often it is done at once
SHOWN = 12  # operations of a phase, by --profile


@dataclass(frozen=True)
class Phase:
    """What is timed.

    Args:
        unit: What `count` counts.
        count: Work of one call.
        run: One call.
        gflop: Counted work of one call [GFLOP], 0 where it is not counted.
    """

    unit: str
    count: int
    run: Callable[[], object]
    gflop: float = 0.0


def rows(number: int, length: int, seed: int, vocabulary: int = 30000) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, vocabulary, (number, length), generator=generator).tolist()


def read_only(lm: LanguageModel) -> LanguageModel:
    """A model in the precision that `sample.precision=auto` takes on its device."""
    as_read(lm, read_dtype("auto", lm.device))
    return lm


def weights(module: nn.Module) -> int:
    """Weights that multiply a token's state: all but the embeddings."""
    tables = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Embedding))
    return sum(p.numel() for p in module.parameters()) - tables


def stepped(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One forward, backward and fused Adam step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-5, fused=True)

    def run() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def t5(device: torch.device) -> LanguageModel:
    """T5-small's size."""
    config = T5Config(**START, d_ff=2048, num_layers=6, num_decoder_layers=6)
    return LanguageModel(T5ForConditionalGeneration(config).eval()).to(device)


def sampling(device: torch.device) -> Phase:
    lm, sources = read_only(t5(device)), rows(SOURCES, SOURCE, 0)
    decoding = Decoding(False, NEW, top_k=50)

    def run() -> None:
        for _ in generate(
            lm,
            sources,
            [str(i) for i in range(SOURCES)],
            k=K,
            eos_ids=[],  # all of one length, so that times can be compared
            decoding=decoding,
            batch_tokens=10**6,
            seed_key=(0,),
        ):
            pass

    return Phase("tokens", SOURCES * K * NEW, run)


def judging(device: torch.device) -> Phase:
    words = [f"w{i}" for i in range(400)]
    texts = [" ".join(words[i % 400] for i in row) for row in rows(240, 50, 1)]
    references = [[" ".join(words[i % 400] for i in row)] for row in rows(240, 50, 2)]
    pool = JudgePool(TextJudgeConfig("meteor_stem", 0))
    return Phase("texts", len(texts), lambda: pool.score(texts, references))


def evaluation(device: torch.device) -> Phase:
    """Greedy text of each source, and its ROUGE and METEOR (exact + stem)."""
    lm, sources = read_only(t5(device)), rows(SOURCES, SOURCE, 0)
    names = [str(i) for i in range(SOURCES)]
    references = [[" ".join(f"w{i % 400}" for i in row)] for row in rows(SOURCES, NEW, 2)]
    metrics, _ = build_metrics(MetricsConfig(["rouge", "meteor_stem"], "regex", None, None))
    options = {"k": 1, "eos_ids": [], "batch_tokens": 10**6, "seed_key": ()}

    def run() -> None:
        found = dict(generate(lm, sources, names, decoding=Decoding(True, NEW), **options))
        texts = [" ".join(f"w{i % 400}" for i in found[row][0]) for row in range(SOURCES)]
        compute(metrics, texts, references)

    return Phase("texts", SOURCES, run)


def reward_forward(device: torch.device) -> Phase:
    """Token rewards of generations, without gradients."""
    lm = read_only(t5(device))
    model = build_reward_model(lm, HeadSpec("paper", "softplus", 2048), 0).eval()
    sources, tokens = rows(SOURCES, SOURCE, 0), rows(SOURCES * K, NEW, 1)
    batch = token_batch(sources, tokens, [i // K for i in range(len(tokens))]).to(device)
    return Phase("generations", SOURCES * K, torch.no_grad()(lambda: model(batch)), gflop(model, 2))


def gflop(model: RewardModel, per_weight: int) -> float:
    """Of the reward model's passes, with so many FLOPs for each weight and token."""
    encoder = weights(model.backbone.model.get_encoder())
    decoder = weights(model.backbone.model.get_decoder()) + weights(model.head)
    return 1e-9 * per_weight * (encoder * SOURCES * SOURCE + decoder * SOURCES * K * (NEW + 1))


def reward_step(device: torch.device) -> Phase:
    model = build_reward_model(t5(device), HeadSpec("paper", "softplus", 2048), 0)
    sources, tokens = rows(SOURCES, SOURCE, 0), rows(SOURCES * K, NEW, 1)
    batch = token_batch(sources, tokens, [i // K for i in range(len(tokens))]).to(device)
    groups = torch.arange(SOURCES * K, device=device).reshape(SOURCES, K)
    compared = GroupBatch(batch, groups, torch.rand(SOURCES, K))
    objective = PlackettLuce(model, Aggregator.of(AggregatorConfig("avg", 2.0, False)))
    run = stepped(model, lambda: objective(compared, objective.count(compared)).value)
    return Phase("generations", SOURCES * K, run, gflop(model, 6))


def policy_step(device: torch.device) -> Phase:
    lm = t5(device)
    batch = token_batch(rows(SOURCES, SOURCE, 0), rows(SOURCES, NEW, 1), range(SOURCES)).to(device)
    supervised = SupervisedBatch(batch, uniform_weights(batch.mask))
    options = WeightedMLE.of(MethodConfig("mle"))
    objective = Improvement(lm, options, Decoding(True, NEW))
    run = stepped(lm, lambda: objective(supervised, objective.count(supervised)).value)
    encoder, decoder = weights(lm.model.get_encoder()), weights(lm.model.get_decoder())
    head = lm.model.config.vocab_size * lm.width
    work = 6e-9 * (encoder * SOURCES * SOURCE + (decoder + head) * SOURCES * NEW)
    return Phase("targets", SOURCES, run, work)


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    table = {word: i for i, word in enumerate([*special, *words])}
    plain = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ("bos", "pad", "eos", "unk", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, special, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **tokens)


def prompt_judging(device: torch.device) -> Phase:
    """Distinct prompts, so that the memo has none of them."""
    words = [f"w{i}" for i in range(2000)]
    model = RobertaForMaskedLM(RobertaConfig(vocab_size=50265)).eval()  # roberta-base's size
    nn.Module.to(model, device, getattr(torch, judge_dtype("auto", device)))
    classifier = Classifier(
        model,
        tokenizer(words),
        Template.parse("{sentence} {prompt} {mask} ."),
        ["w0", "w1"],
        rendering="string",
        max_tokens=128,
    )
    texts = [" ".join(words[i % 2000] for i in row) for row in rows(EXAMPLES, WORDS, 3)]
    examples = [Labelled(str(i), text, i % 2) for i, text in enumerate(texts)]
    prompts = [Prompt(" ".join(words[i % 2000] for i in row)) for row in rows(4, 5, 4)]
    length = WORDS + 5 + 2
    work = 2e-9 * weights(model.roberta) * length * EXAMPLES * len(prompts)
    run = lambda: [classifier.log_probs(prompt, examples) for prompt in prompts]  # noqa: E731
    return Phase("sequences", EXAMPLES * len(prompts), run, work)


def prompt_policy_step(device: torch.device) -> Phase:
    """64 prompts of 5 tokens: sampled and learned from, rewards given. distilgpt2's size."""
    plain = LanguageModel(GPT2LMHeadModel(GPT2Config(n_layer=6)).eval())
    lm = adapt(plain, 2048, 0).to(device)
    decoding = Decoding(False, 5, top_k=256)
    objective = PolicyGradient(lm, 0.0, 0.125, decoding)

    def loss() -> torch.Tensor:
        noise = streams(5, 64, (0,), ["prompt"]).to(device)
        drawn = draw_prompts(lm, [50256], noise, decoding)
        batch = token_batch([[50256]], drawn.tokens.tolist(), [0] * 64).to(device)
        sampled = Sampled(batch, torch.ones(batch.mask.shape, device=device), None, drawn)
        return objective(sampled, objective.count(sampled)).value

    return Phase("prompts", 64, stepped(lm, loss))


def command(*arguments: str, code: int = 0) -> Phase:
    """The command line from its start to its end."""
    full = [sys.executable, "-m", "pgtg", *arguments]

    def run() -> None:
        done = subprocess.run(full, capture_output=True)
        assert done.returncode == code, done.stderr

    return Phase("calls", 1, run)


PHASES: dict[str, Callable[[torch.device], Phase]] = {
    "sampling": sampling,
    "judge, METEOR exact + stem": judging,
    "reward forward": reward_forward,
    "reward step": reward_step,
    "policy step": policy_step,
    "evaluation, greedy text": evaluation,
    "prompt judge, distinct prompts": prompt_judging,
    "prompt policy step": prompt_policy_step,
    "pgtg --help": lambda _: command("--help"),
    "pgtg ls": lambda _: command("ls"),
    "a refused config": lambda _: command("train", "summarize", "sample.k=1", code=2),
}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of a call, until the device has done all that it began."""
    wait(device)
    begin = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - begin


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def peak_on(device: torch.device, run: Callable[[], object]) -> float | None:
    """Peak of an accelerator's memory in a call, above what stood before it [MiB], if it counts."""
    module = torch.get_device_module(device)
    if not hasattr(module, "max_memory_allocated"):
        return None
    before = module.memory_allocated()
    module.reset_peak_memory_stats()
    run()
    return (module.max_memory_allocated() - before) / MIB


def peak_elsewhere(name: str, threads: int) -> float:
    """Peak memory of a phase's first call [MiB], in a process of its own."""
    full = [sys.executable, __file__, "--peak", name, "--threads", str(threads)]
    return float(subprocess.run(full, check=True, capture_output=True, text=True).stdout)


def measured(phase: Phase, repeats: int, device: torch.device) -> dict[str, float]:
    """Medians of alternating repeats, after one call that warms up."""
    square = torch.rand(SIZE, SIZE, device=device)
    multiply = torch.no_grad()(lambda: linear(square, square, None))  # as the models multiply
    phase.run()
    multiply()

    def calibration() -> float:
        return statistics.median(seconds(multiply, device) for _ in range(TIMES))

    pairs = [(calibration(), seconds(phase.run, device)) for _ in range(repeats)]
    matmul = statistics.median(one for one, _ in pairs)
    took = statistics.median(own for _, own in pairs)
    found = {
        "seconds": took,
        "per_second": phase.count / took,
        "over_matmul": statistics.median(own / one for one, own in pairs),
        "matmul_gflops": 2e-9 * SIZE**3 / matmul,
    }
    if phase.gflop:
        found["share_of_matmul_gflops"] = phase.gflop / took / found["matmul_gflops"]
    return found


def operations(run: Callable[[], object]) -> Iterator[str]:
    """A line for each of the operations that take most of a call on the CPU, with its inputs."""
    run()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        run()
    events = profiled.key_averages(group_by_input_shape=True)
    whole = sum(event.self_cpu_time_total for event in events)
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:SHOWN]:
        shapes = " ".join("x".join(map(str, shape)) for shape in event.input_shapes if shape)
        share, took = event.self_cpu_time_total / whole, event.self_cpu_time_total / 1e6
        yield f"{100 * share:5.1f} %  {took:7.3f} s  {event.count:6} x {event.key}  {shapes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cuda, cuda:1, ...; auto: a GPU if any")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=PHASES, help="one phase")
    parser.add_argument("--profile", action="store_true", help="what a phase spends its time on")
    parser.add_argument("--save", action="store_true", help="write benchmarks/bench.json")
    parser.add_argument("--peak", choices=PHASES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = pick_device(asked.device)
    on_cpu = device.type == "cpu"
    if asked.save and not on_cpu:
        parser.error("--save: benchmarks/bench.json holds the CPU's figures")
    if asked.peak:
        print(peak_mib(PHASES[asked.peak](device).run))
        return
    print(set_arithmetic(device, tf32=True, deterministic=False), end="" if on_cpu else "\n")
    before = json.loads(SAVED.read_text())["phases"] if on_cpu and SAVED.is_file() else {}
    found = {}
    for name in [asked.only] if asked.only else PHASES:
        phase = PHASES[name](device)
        row = measured(phase, asked.repeats, device)
        if phase.unit != "calls":
            threads = asked.threads
            peak = peak_elsewhere(name, threads) if on_cpu else peak_on(device, phase.run)
            row |= {} if peak is None else {"peak_mib": peak}
        found[name] = row
        share = row.get("share_of_matmul_gflops")
        was = before.get(name, {}).get("over_matmul")
        print(
            f"{name:<32} {row['seconds']:8.3f} s  {row['per_second']:9.1f} {phase.unit + '/s':<13}"
            + (f" {row['peak_mib']:6.0f} MiB" if "peak_mib" in row else "")
            + (f"  {100 * share:5.0f} % of matmul GFLOPS" if share else "")
            + (f"  {row['over_matmul'] / was:5.2f} x the saved time" if was else "")
        )
        for line in operations(phase.run) if asked.profile else ():
            print(f"    {line}")
    if asked.save:
        result = {"threads": asked.threads, "torch": torch.__version__}
        SAVED.write_text(json.dumps(result | {"phases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
