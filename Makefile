# Everything runs in .venv, which `make setup` makes from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv where it is installed: the same pins, in a fraction of pip's time
UV := $(shell command -v uv 2>/dev/null)
PIP := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install)
# Where pip finds torch. Without a GPU the CPU build is taken, which is a tenth of the CUDA build's
# size; for another one: make setup TORCH_INDEX=https://download.pytorch.org/whl/cu130
GPU := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
TORCH_INDEX ?= $(if $(GPU),,$(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu))
ARGS ?=
# more of a sweep's options, e.g. RESULTS="hydra/launcher=joblib hydra.launcher.n_jobs=2"
RESULTS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train train-preferences test bench results-claim results-null \
	results-questions results-summarize results-prompt results-quickstart results-scitldr results-scitldr-flawed \
	results-qa-feedback results-prompt-smollm2 results-scitldr-rivals \
	docs torture check lint format types clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install pgtg with pinned versions

$(READY): pyproject.toml constraints.txt
	@echo "setup 1/3: a virtual environment in $(VENV)"
	test -x $(BIN)/python || $(if $(UV),uv venv --seed --python $(PYTHON),$(PYTHON) -m venv) $(VENV)
	@echo "setup 2/3: torch, $(if $(GPU),for $(GPU),$(if $(TORCH_INDEX),from $(TORCH_INDEX),the usual build))"
	@$(BIN)/python -c "import torch" 2>/dev/null || test -z "$(TORCH_INDEX)" || \
		$(PIP) $(if $(UV),,--retries 0 --timeout 15) --no-deps --constraint constraints.txt \
			--index-url $(TORCH_INDEX) torch || \
		echo "setup: $(TORCH_INDEX) cannot be reached: torch comes from where pip finds the rest"
	@echo "setup 3/3: pgtg and what it needs, as pinned in constraints.txt"
	$(PIP) --constraint constraints.txt --editable '.[dev,joblib,slurm]'
	touch $(READY)

train: $(READY) ## pgtg train summarize (ARGS="seed=1 ..." adds)
	$(BIN)/pgtg train summarize $(ARGS)

test: $(READY) ## the default tests (ARGS="-m slow": others)
	$(BIN)/python -m pytest $(ARGS)

bench: $(READY) ## time each phase (ARGS="--threads 2")
	$(BIN)/python benchmarks/bench.py $(ARGS)

train-preferences: $(READY) ## token rewards from 200 example pairs, a tiny LM
	$(BIN)/pgtg train preferences experiment=preferences_example $(ARGS)

results-claim: $(READY) ## token guidance against six opponents, 5 seeds
	$(BIN)/pgtg train summarize -m seed=11,12,13,14,15 $(RESULTS) \
		method.controls=[uniform,shuffled,untrained,shuffled_scores,sequence,filter,oracle] \
		sweep_dir=outputs/results/claim/quickstart
	$(BIN)/pgtg report outputs/results/claim/quickstart --baseline pgtg --metrics nll,meteor_stem \
		--out outputs/results/claim/report
	$(BIN)/python benchmarks/results.py claim outputs/results/claim/report "make results-claim"

results-null: $(READY) ## the same in a world without flaws, 5 seeds
	$(BIN)/pgtg train summarize -m seed=21,22,23,24,25 $(RESULTS) data.newswire.noise=0 \
		method.controls=[uniform,shuffled,untrained,sequence] sweep_dir=outputs/results/null/noise_0
	$(BIN)/pgtg report outputs/results/null/noise_0 --baseline pgtg --metrics nll,meteor_stem \
		--out outputs/results/null/report
	$(BIN)/python benchmarks/results.py null outputs/results/null/report "make results-null" --short

QUESTIONS = outputs/results/questions
ASK = $(BIN)/pgtg train summarize -m seed=51,52,53 $(RESULTS)
ALONE = method.controls=[]
# a question's report and its section of docs/results.md: its name, its sweeps, the row tested against
answer = $(BIN)/pgtg report $(addprefix $(QUESTIONS)/,$(2)) --baseline $(3) \
	--metrics nll,meteor_stem --out outputs/results/questions-reports/$(1) && \
	$(BIN)/python benchmarks/results.py question-$(1) outputs/results/questions-reports/$(1) \
		"make results-questions" --short
results-questions: $(READY) ## one thing changed at a time, 3 seeds
	$(ASK) method.controls=[uniform] sweep_dir=$(QUESTIONS)/default
	$(ASK) $(ALONE) reward.granularity=segment reward.segments=sentence,tokens reward.segment_tokens=4 \
		sweep_dir=$(QUESTIONS)/segment
	$(ASK) $(ALONE) reward.granularity=sequence sweep_dir=$(QUESTIONS)/sequence
	$(ASK) $(ALONE) reward.head=state_action,paper,linear,log_ratio sweep_dir=$(QUESTIONS)/head
	$(ASK) $(ALONE) aggregator=sum,min,max sweep_dir=$(QUESTIONS)/aggregator
	$(ASK) $(ALONE) sample.sources=60,125,250 sweep_dir=$(QUESTIONS)/judgements
	$(ASK) method.controls=[uniform] data.newswire.noise=0.3,0.6 sweep_dir=$(QUESTIONS)/noise
	$(ASK) $(ALONE) method=reinforce improve.lr=1.0e-4 method.token_share=0,1 sweep_dir=$(QUESTIONS)/gradient
	$(call answer,granularity,default segment sequence,reward.granularity=token)
	$(call answer,head,default head,reward.head=logprob)
	$(call answer,aggregator,default aggregator,aggregator=avg)
	$(call answer,judgements,default judgements,sample.sources=500)
	$(call answer,noise-3,noise/*=0.3?seed*,uniform)
	$(call answer,noise-6,noise/*=0.6?seed*,uniform)
	$(call answer,noise-9,default,uniform)
	$(call answer,gradient,default gradient,"method=reinforce method.token_share=0.0")
	$(BIN)/pgtg report $(QUESTIONS) --metrics nll,meteor_stem --out outputs/results/questions-report

ROWS = -m seed=41,42,43,44,45 $(RESULTS) experiment=newswire_rivals
SUMMARIES = outputs/results/summarize
ON_POLICY = schedule.total=176 improve.validate_every=44
results-summarize: $(READY) ## every summarization row, newswire, 5 seeds
	$(BIN)/pgtg train summarize $(ROWS) method=mle,pgtg,best_of_k,dpo,simpo,tdpo,grpo,rloo,lead3 \
		sweep_dir=$(SUMMARIES)/fixed
	$(BIN)/pgtg train summarize $(ROWS) method=ppo method.reward=judge,learned $(ON_POLICY) \
		sweep_dir=$(SUMMARIES)/ppo
	$(BIN)/pgtg train summarize $(ROWS) method=nlpo $(ON_POLICY) sweep_dir=$(SUMMARIES)/nlpo
	$(BIN)/pgtg train summarize $(ROWS) method=rto $(ON_POLICY) \
		'method.dpo="$(SUMMARIES)/fixed/method=dpo,seed=$${seed}"' sweep_dir=$(SUMMARIES)/rto
	$(BIN)/pgtg train summarize $(ROWS) method=ppo,nlpo policy=pretrained $(ON_POLICY) \
		'policy.path="$(SUMMARIES)/fixed/method=mle,seed=$${seed}"' sweep_dir=$(SUMMARIES)/supervised
	$(BIN)/pgtg report $(SUMMARIES)/fixed $(SUMMARIES)/ppo $(SUMMARIES)/nlpo $(SUMMARIES)/rto \
		--baseline method=pgtg --metrics nll,meteor_stem \
		--out outputs/results/summarize-report
	$(BIN)/pgtg report $(SUMMARIES)/supervised --baseline start --metrics nll,meteor_stem \
		--out outputs/results/supervised-report
	$(BIN)/python benchmarks/results.py supervised outputs/results/supervised-report \
		"make results-summarize" --short
	$(BIN)/python benchmarks/results.py summarize outputs/results/summarize-report \
		"make results-summarize"

PROMPTS = outputs/results/prompt
results-prompt: $(READY) ## every prompt row on generated reviews, 5 seeds
	$(BIN)/pgtg train prompt -m seed=41,42,43,44,45 $(RESULTS) experiment=reviews_searches \
		method=pgtg,sparse,random,rlprompt,autoprompt,bbt,grips,soft_prompt,finetune \
		sweep_dir=$(PROMPTS)
	$(BIN)/pgtg report $(PROMPTS) --baseline method=pgtg --out outputs/results/prompt-report
	$(BIN)/python benchmarks/results.py prompt outputs/results/prompt-report "make results-prompt" --short

results-quickstart: $(READY) ## the former default, 16 tails, 3 seeds
	$(BIN)/pgtg train summarize -m experiment=newswire_16_tails aggregator=avg,sum,min,max \
		seed=0,1,2 $(RESULTS) \
		sweep_dir=outputs/results/quickstart/pgtg
	$(BIN)/pgtg train summarize -m experiment=newswire_16_tails method=mle seed=0,1,2 $(RESULTS) \
		sweep_dir=outputs/results/quickstart/mle
	$(BIN)/pgtg report outputs/results/quickstart --baseline method=mle \
		--metrics rougeLsum,meteor_stem,fact_accuracy,well_formed \
		--out outputs/results/quickstart-report
	$(BIN)/python benchmarks/results.py quickstart outputs/results/quickstart-report \
		"make results-quickstart"

# where pretrained models and real data are, e.g. SMOLLM2=~/smollm2-135m MINILM=~/minilm DATA=~/scitldr
results-scitldr: $(READY) ## real text: SMOLLM2, MINILM, DATA, WordNet
	$(BIN)/pgtg train summarize -m experiment=scitldr_smollm2 seed=0 policy.path=$(SMOLLM2) \
		data.path=$(DATA) metrics.bertscore_model=$(MINILM) metrics.bertscore_layers=6 \
		$(RESULTS) sweep_dir=outputs/results/scitldr
	$(BIN)/pgtg report outputs/results/scitldr --baseline uniform --split validation \
		--out outputs/results/scitldr-report
	$(BIN)/python benchmarks/results.py scitldr outputs/results/scitldr-report \
		"make results-scitldr"

SMALL = -m seed=0,1 'data_seed=$${seed}' $(RESULTS) policy.path=$(SMOLLM2) \
	judge.classifier.path=$(SMOLLM2) prompt.first=160 sample.sources=32 method.controls=[] \
	keep_rounds=last
SEARCHES = method=pgtg,sparse,random,rlprompt,autoprompt,bbt,grips,soft_prompt,finetune
REAL_PROMPTS = outputs/results/prompt-smollm2
results-prompt-smollm2: $(READY) ## every prompt row on SST-2 and AG News: SMOLLM2, FEWSHOT
	$(BIN)/pgtg train prompt $(SMALL) experiment=sst2_smollm2 $(SEARCHES) data.path=$(FEWSHOT)/sst-2 \
		sweep_dir=$(REAL_PROMPTS)/sst2
	$(BIN)/pgtg train prompt $(SMALL) experiment=agnews_smollm2 $(SEARCHES) data.path=$(FEWSHOT)/agnews \
		sweep_dir=$(REAL_PROMPTS)/agnews
	$(BIN)/pgtg report $(REAL_PROMPTS)/sst2 --baseline method=pgtg --out $(REAL_PROMPTS)-report/sst2
	$(BIN)/pgtg report $(REAL_PROMPTS)/agnews --baseline method=pgtg --out $(REAL_PROMPTS)-report/agnews
	$(BIN)/python benchmarks/results.py prompt-sst2 $(REAL_PROMPTS)-report/sst2 \
		"make results-prompt-smollm2" --short
	$(BIN)/python benchmarks/results.py prompt-agnews $(REAL_PROMPTS)-report/agnews \
		"make results-prompt-smollm2" --short

RIVALS = outputs/results/scitldr-rivals
ONE = -m seed=0 $(RESULTS) experiment=scitldr_smollm2 metrics=text policy.path=$(SMOLLM2) \
	data.path=$(DATA) sample.k=3 sample.sources=88 sample.heldout_sources=8 \
	schedule.retrain_until=0 method.controls=[] evaluate.decodings=[sample] \
	'metrics.names=[rouge,meteor,meteor_stem]'
results-scitldr-rivals: $(READY) ## rows on SciTLDR, 288 judged generations each: SMOLLM2, DATA
	$(BIN)/pgtg train summarize $(ONE) method=pgtg,mle,best_of_k,dpo sweep_dir=$(RIVALS)/fixed
	$(BIN)/pgtg train summarize $(ONE) method=ppo method.rollouts=24 method.epochs=2 \
		schedule.total=72 sweep_dir=$(RIVALS)/ppo
	$(BIN)/pgtg report $(RIVALS)/fixed $(RIVALS)/ppo --baseline method=pgtg --split validation \
		--metrics nll,meteor_stem --out $(RIVALS)-report
	$(BIN)/python benchmarks/results.py scitldr-rivals $(RIVALS)-report \
		"make results-scitldr-rivals" --short

FLAWED = outputs/results/scitldr-flawed
REAL = experiment=scitldr_flawed_smollm2 seed=61,62,63 data.path=$(DATA) $(RESULTS)
results-scitldr-flawed: $(READY) ## real text, planted flaws: SMOLLM2, DATA, WordNet
	$(BIN)/pgtg train summarize -m $(REAL) policy.path=$(SMOLLM2) method=mle evaluate.splits=[] \
		sweep_dir=$(FLAWED)/start
	$(BIN)/pgtg train summarize -m $(REAL) 'policy.path="$(FLAWED)/start/seed=$${seed}"' \
		method.controls=[uniform,shuffled,untrained,shuffled_scores,sequence,filter,oracle] \
		sweep_dir=$(FLAWED)/arms
	$(BIN)/pgtg report $(FLAWED)/arms --baseline pgtg --split validation --metrics nll,rouge1 \
		--out $(FLAWED)-report
	$(BIN)/python benchmarks/results.py scitldr-flawed $(FLAWED)-report \
		"make results-scitldr-flawed" --short

QA = experiment=qa_feedback_weighting policy.path=$(SMOLLM2) data.path=$(QA_FEEDBACK) $(RESULTS)
results-qa-feedback: $(READY) ## human preferences, five folds: SMOLLM2, QA_FEEDBACK
	$(BIN)/pgtg train preferences -m $(QA) seed=0,1,2,3,4 sweep_dir=outputs/results/qa-feedback
	$(BIN)/pgtg report outputs/results/qa-feedback --baseline uniform --split validation \
		--metrics rest_over_errors,errors_log_prob,rest_log_prob \
		--out outputs/results/qa-feedback-report
	$(BIN)/python benchmarks/results.py qa-feedback outputs/results/qa-feedback-report \
		"make results-qa-feedback" --short

docs: $(READY) ## docs/configuration.md, and a site in docs/_build
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python -c "import sphinx, myst_parser, furo" 2>/dev/null || \
		$(BIN)/python -m pip install --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build

torture: $(READY) ## kill and resume runs (ARGS="--kills 20")
	$(BIN)/python -m tests.support.torture $(ARGS)

check: lint types test ## all that must hold before a commit

lint: $(READY) ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(READY) ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## pyright
	$(BIN)/pyright

clean: ## remove caches and builds (not .venv, not outputs)
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find pgtg tests -name __pycache__ -type d -prune -exec rm -rf {} +
