"""Chat templates: what is read, what is rewarded, and where an answer ends, token by token."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pgtg.data.pairs import canonical
from pgtg.errors import ConfigError, DataError
from pgtg.models.chat import ChatCodec

# as published, without what these conversations do not meet
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}"
    "{{ eos_token }}{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# template, end of an answer, end-of-text token, what stands before an answer beyond its request
FAMILIES = {
    "smollm2": (CHATML, "<|im_end|>", "<|im_end|>", ""),
    "llama3": (LLAMA3, "<|eot_id|>", "<|end_of_text|>", ""),
    "qwen3": (QWEN3, "<|im_end|>", "<|im_end|>", "<think>\n\n</think>\n\n"),
    "mistral": (MISTRAL, "</s>", "</s>", ""),
    "gemma": (GEMMA, "<end_of_turn>", "<eos>", ""),
}
SPECIAL = ["<bos>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "</s>", "<eos>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"]


def tokenizer(template: str | None, end: str, pad: str | None = None) -> PreTrainedTokenizerFast:
    """A letter a token, so that ids of parts are parts of the whole's ids."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token=end, pad_token=pad or end
    )
    made.chat_template = template
    return made


def codec(family: str, most: int = 10_000, answer: int = 10_000) -> ChatCodec:
    template, _, end, _ = FAMILIES[family]
    return ChatCodec(tokenizer(template, end), False, "", "", "", most, answer, cut_start=True)


def words(own: ChatCodec) -> Any:
    """Its tokenizer, of which only plain texts are asked."""
    return own.tokenizer


TALKS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Why?"}],
    "system": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}],
    "empty system": [{"role": "system", "content": ""}, {"role": "user", "content": "Why?"}],
    "several turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ],
    "tool": [
        {"role": "user", "content": "Add 1 and 2"},
        {"role": "assistant", "content": "add(1, 2)"},
        {"role": "tool", "content": "3"},
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("talk", TALKS)
def test_only_the_answer_and_its_end_are_rewarded(family: str, talk: str):
    """Source and target are the template's own text of the whole, cut before the answer."""
    own, turns = codec(family), TALKS[talk]
    _, end, _, opening = FAMILIES[family]
    if family == "gemma" and "system" in talk:
        with pytest.raises(DataError, match="refuses a conversation of system, user: System role"):
            own.encode_source(canonical(turns))
        return
    answer = "Since 7."
    (source, cut), (target, short) = own.encode_source(canonical(turns)), own.encode_target(answer)
    assert not cut and not short
    whole = [*turns, {"role": "assistant", "content": answer}]
    if family == "qwen3" and talk == "several turns":
        assert "<think>" not in words(own).decode(source).split("Hello")[0]
    text = words(own).apply_chat_template(whole, tokenize=False)
    ids = words(own)(text, add_special_tokens=False)["input_ids"]
    assert [*source, *target] == ids[: len(source) + len(target)]
    after = words(own).decode(ids[len(source) + len(target) :])
    assert after in ("", "\n")  # what is behind the end is nobody's
    assert words(own).decode(target).strip() == f"{answer}{end}"
    assert words(own).decode(source).endswith(opening)
    assert own.eos_ids[0] == target[-1] and own.decode(target) == answer


def test_tools_reach_the_template():
    template = "{% if tools %}T:{{ tools[0]['name'] }};{% endif %}" + CHATML
    own = ChatCodec(tokenizer(template, "<|im_end|>"), False, "", "", "", 999, 999)
    source, _ = own.encode_source(canonical(TALKS["one turn"], [{"name": "add"}]))
    assert words(own).decode(source).startswith("T:add;")


def test_a_long_conversation_loses_its_start_but_for_the_begin_token():
    own, whole = codec("llama3", most=30), codec("llama3")
    text = canonical([{"role": "user", "content": "abc " * 50}])
    (ids, cut), (full, _) = own.encode_source(text), whole.encode_source(text)
    assert cut and len(ids) == 30 and ids[0] == words(own).bos_token_id
    assert ids[1:] == full[-29:]
    plain = codec("qwen3", most=30).encode_source(text)[0]  # no begin token
    assert plain == codec("qwen3").encode_source(text)[0][-30:]


def test_a_long_answer_is_cut_and_has_no_end():
    ids, cut = codec("smollm2", answer=4).encode_target("abcdefgh")
    assert cut and len(ids) == 4 and ids[-1] not in codec("smollm2").eos_ids


def test_pad_and_end_may_be_one_token():
    own = codec("smollm2")
    assert words(own).pad_token_id == words(own).eos_token_id
    assert own.encode_target("Yes")[0][-1] == words(own).pad_token_id


def test_ends_do_not_depend_on_what_is_asked_first():
    first, second = codec("llama3"), codec("llama3")
    first.encode_source(canonical(TALKS["one turn"]))
    assert first.eos_ids == second.eos_ids
    names = words(first).convert_ids_to_tokens(first.eos_ids)
    assert names == ["<|eot_id|>", "<|end_of_text|>"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "otherwise"),
        (
            "{{ messages[0]['content'] }}{% if not add_generation_prompt %} x{% endif %}",
            "otherwise",
        ),
    ],
)
def test_templates_that_say_no_answer_are_one_line(template: str | None, said: str):
    own = ChatCodec(tokenizer(template, "</s>"), False, "", "", "", 99, 99)
    with pytest.raises(ConfigError, match=said):
        own.encode_source(canonical(TALKS["one turn"]))


def test_conversations_as_text_are_equal_where_they_are_the_same():
    one = canonical([{"role": "user", "content": "é"}])
    assert one == canonical([{"content": "é", "role": "user"}])
    assert json.loads(one) == {"messages": [{"role": "user", "content": "é"}]}
