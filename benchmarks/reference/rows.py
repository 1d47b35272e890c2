"""Rows 1 to 8 and 10: what each runs on either side, and what it prints."""

import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import judge
import prompt
import summarize
from measure import Meter, Row, gflops, timed
from options import K, Options
from sizes import t5_config

MAIN = Path(__file__).with_name("compare.py")


def floor_gflop(options: Options, copies: int) -> float:
    """Counted GFLOP of a reward forward + backward, with the sources read `copies` times."""
    c, length, new = t5_config(options.tiny), options.source_tokens, options.tokens + 1
    width, inner, wide, layers = c.d_model, c.num_heads * c.d_kv, c.d_ff, c.num_layers
    feed, keys = 2 * width * wide, 2 * width * inner  # an FFN; cross-attention's keys and values
    encoder = layers * (2 * keys + feed + 2 * length * inner) + layers * keys
    decoder = layers * (3 * keys + feed + 2 * new * inner + 2 * length * inner)
    decoder += 2048 * (width + 1)
    sources = options.sources
    return 6e-9 * (encoder * sources * copies * length + decoder * sources * K * new)


class Summarize:
    """Rows 1 to 5."""

    def __init__(self, options: Options, meter: Meter) -> None:
        self.options, self.meter = options, meter
        self.work = summarize.Work(options)
        self.ours = summarize.Ours(self.work)
        self.reference = summarize.Reference(self.work)

    def row1(self) -> Row:
        """A micro-batch of sources: K generations each, METEOR, a reward update."""
        return self.meter.compare(
            "1 summarize, reward-learning step",
            ">=3.0",
            self.reference.reward_step,
            self.ours.reward_step,
        )

    def row2(self) -> Row:
        """The reward model's part of it on given generations, without the update."""
        row = self.meter.compare(
            "2 summarize, reward forward + backward",
            ">=2.9",
            self.reference.forward_backward,
            self.ours.forward_backward,
        )
        if row:
            speed = gflops()
            own, other = floor_gflop(self.options, 1), floor_gflop(self.options, K)
            least = own / speed
            row["over_floor"], row["gflop_ratio"] = row["ours"]["cpu_s"] / least, other / own
            print(
                f"   FLOP floor: ours {own:.0f} GFLOP = {least:.2f} s at {speed:.0f} GFLOPS: "
                f"{row['over_floor']:.2f} x the floor; "
                f"FLOP ratio reference/ours {row['gflop_ratio']:.2f}"
            )
        return row

    def row3(self) -> Row:
        """The generations alone: of one length, then of lengths as summaries have them; of a
        micro-batch, which both sides decode at once, then of an update, which pgtg decodes in its
        stage's batches and the reference a micro-batch after another."""
        full, spread = self.work.full, self.work.spread
        rows = {}
        for name, title, lengths in (
            ("full", f"all {self.options.tokens} tokens", full),
            ("spread", "lengths N(60, 20)", spread),
        ):
            for whole in ("", "_update"):
                rows[name + whole] = self.meter.compare(
                    f"3 summarize, {'an update' if whole else 'generation'}, {title}",
                    ">=2.0",
                    partial(getattr(self.reference, f"sample{whole}"), lengths),
                    partial(getattr(self.ours, f"sample{whole}"), lengths),
                )
        print(f"   spread lengths: mean {statistics.mean(spread):.0f}, longest {max(spread)}")
        return rows

    def row4(self) -> Row:
        """A policy update. The reference scores the targets in every step; pgtg has them scored."""
        row = self.meter.compare(
            "4 summarize, policy step, token rewards given",
            ">=1.4",
            self.reference.policy_step,
            self.ours.policy_step,
        )
        if row:
            scoring = [timed(self.ours.target_rewards) for _ in range(2)][1][1]
            ratio = row["reference"]["cpu_s"] / (row["ours"]["cpu_s"] + 0.6 * scoring)
            row["scoring_cpu_s"], row["cpu_ratio_with_scoring"] = scoring, ratio
            print(
                f"   scoring a batch of targets once: {scoring:.2f} s CPU; at the paper's schedule "
                f"each scored target is used 5/3 times: ratio {ratio:.2f}"
            )
        return row

    def row5(self) -> Row:
        """One unit of the paper's alternation: a reward step to --policy-steps policy steps.

        CNN/DM has 5 x 898 updates of reward learning to 44,860 of the policy, both of 4
        micro-batches of 8. Validations are on neither side. pgtg scores each target once and uses
        it 5/3 times.
        """
        number = self.options.policy_steps

        def reference() -> None:
            self.reference.reward_step()
            for _ in range(number):
                self.reference.policy_step()

        def ours() -> None:
            self.ours.reward_step()
            for i in range(number):
                if i % 5 < 3:
                    self.ours.target_rewards()
                self.ours.policy_step()

        return self.meter.compare(
            f"5 summarize, alternation 1 : {number}", ">=1.8", reference, ours
        )


class Prompts:
    """Rows 6 to 8."""

    def __init__(self, options: Options, meter: Meter) -> None:
        self.options, self.meter = options, meter
        self.work = prompt.Work(options)
        self.ours = prompt.Ours(self.work)
        self.reference = prompt.Reference(self.work)

    def row6(self) -> Row:
        """New prompts drawn and judged on 26 examples, and a reward update."""
        return self.meter.compare(
            f"6 prompt, reward-learning step, {self.options.prompts} new prompts",
            ">=3.0",
            self.reference.reward_step,
            self.ours.reward_step,
        )

    def row7(self) -> Row:
        """64 prompts drawn, their token rewards, an update; the reference's logging left out."""
        return self.meter.compare(
            "7 prompt, policy step, no logging",
            ">=2.2",
            self.reference.policy_step,
            self.ours.policy_step,
        )

    def row8(self) -> Row:
        """A round of the paper's alternation (1000 policy steps, a reward training), from parts.

        Reference: in each policy step 16 prompts are judged to be logged; a reward training has E
        epochs of 100 steps and 25 validation steps, each with 16 new prompts on 26 examples (E is
        at most 100, and with its patience of 7 at least 8: --reward-epochs, by default the least).
        pgtg: 1600 + 400 prompts judged, 100 E updates on them, 1000 policy steps; a prompt is
        judged here on 26 examples, as in row 6 (a run judges it on all 32). The policy's validation
        (240 prompts every 500 steps) is judged on both sides. Judging is linear in prompts, so
        --prompts may be few.
        """
        number, epochs = self.options.prompts, self.options.reward_epochs
        generations = self.ours.judged(number)
        parts = {}
        for name, run in {
            "ref_policy": self.reference.policy_step,
            "ref_logging": self.reference.logging,
            "ref_reward": self.reference.reward_step,
            "our_policy": self.ours.policy_step,
            "our_judge": lambda: self.ours.judged(number),
            "our_align": lambda: self.ours.align(generations),
        }.items():
            timed(run)
            parts[name] = statistics.median(timed(run)[1] for _ in range(self.options.repeats))
        scale = 16 / number
        logging, judging = parts["ref_logging"] * scale, parts["our_judge"] / number
        learning = epochs * 125 * (parts["ref_reward"] * scale)
        reference = 1000 * (parts["ref_policy"] + logging) + learning + 2 * 240 / 16 * logging
        ours = 1000 * parts["our_policy"] + 2000 * judging + 2 * 240 * judging
        ours += epochs * 100 * parts["our_align"]
        ratio, without = reference / ours, (reference - 1000 * logging) / ours
        shown = ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items())
        print(
            f"8 prompt, a round of the alternation, {epochs} epochs of reward learning: "
            f"CPU {ratio:.1f}  target >=10  | "
            f"reference {reference:.0f} s CPU  ours {ours:.0f} s CPU"
            f"\n   parts [s CPU]: {shown}"
            f"\n   without the reference's logging: {without:.1f}; "
            f"logging is {100 * 1000 * logging / reference:.0f} % of the reference's time",
            flush=True,
        )
        return {"cpu_ratio": ratio, "cpu_ratio_without_logging": without, "parts": parts}


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def memory(side: str, options: Options) -> dict[str, float]:
    """What stood before a first reward step, and its peak [MiB], in this process."""
    from nltk.corpus import wordnet

    work = summarize.Work(options)
    step = {"ours": summarize.Ours, "reference": summarize.Reference}[side](work).reward_step
    wordnet.synsets("dog")  # loaded before the baseline on both sides
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    timed(step)
    return {"before": before, "peak": _status("VmHWM")}


def row10() -> Row:
    """Peak memory of row 1's step above what stood before it, a process a side (Linux only)."""
    found: dict[str, dict[str, float]] = {}
    for side in ("reference", "ours"):
        command = [sys.executable, str(MAIN), *sys.argv[1:], "--memory", side]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[side] = json.loads(done.stdout.strip().splitlines()[-1])
    above = {side: row["peak"] - row["before"] for side, row in found.items()}
    ratio = above["ours"] / above["reference"]
    print(
        f"10 peak memory of a reward step above the baseline: ours / reference {ratio:.2f}  "
        f"target <=0.5  | reference {above['reference']:.0f} MiB, ours {above['ours']:.0f} MiB "
        f"(baselines {found['reference']['before']:.0f}, {found['ours']['before']:.0f})",
        flush=True,
    )
    return {"ratio": ratio, "above_mib": above}


def run(options: Options) -> dict[int, Row]:
    """The rows asked for; one task's models at a time."""
    meter, found = Meter(options.repeats, options.profile), {}
    for task, numbers in ((Summarize, range(1, 6)), (Prompts, range(6, 9))):
        chosen = [number for number in numbers if number in options.only]
        if chosen:
            rows = task(options, meter)
            found |= {number: getattr(rows, f"row{number}")() for number in chosen}
            del rows
    if 9 in options.only:
        found[9] = judge.row9(options, meter)
    if 10 in options.only:
        found[10] = row10()
    return found
