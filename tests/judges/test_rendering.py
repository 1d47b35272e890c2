"""Rendering against the tokeniser's own calls on the whole string, or on each piece alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from pgtg.errors import ConfigError
from pgtg.judges.rendering import Prompt, Renderer, Slot, Template
from tests.support.classifiers import MAX_TOKENS, labelled, tokenizer, words

TOKENIZERS = {family: tokenizer(family) for family in ("bert", "roberta", "gpt2", "llama")}
MASKED, CAUSAL = ("bert", "roberta"), ("gpt2", "llama")
PROMPT = Prompt("It was")


def renderer(
    family: str, template: str, mode: str = "string", max_tokens: int = MAX_TOKENS
) -> Renderer:
    return Renderer(
        TOKENIZERS[family],
        Template.parse(template),
        words(family),
        mode=mode,
        max_tokens=max_tokens,
    )


def ids(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tok(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


# --- templates


def test_a_template_is_its_pieces_in_their_order():
    template = Template.parse("{instruction} {sentence} It was{mask}. {{x}}", instruction="Say:")
    assert template.pieces == ("Say: ", Slot.SENTENCE, " It was", Slot.MASK, ". {x}")
    assert template.masked and not template.takes_prompt
    causal = Template.parse("{sentence}{prompt}", needs_prompt=True)
    assert causal.pieces == (Slot.SENTENCE, Slot.PROMPT) and not causal.masked
    assert causal.before(Slot.SENTENCE, Slot.PROMPT)
    assert not causal.before(Slot.PROMPT, Slot.SENTENCE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{sentense} {prompt}", "unknown field {sentense}; did you mean 'sentence'"),
        ("{sentence} {} {prompt}", "unknown field {}"),
        ("{sentence:>3} {prompt}", "unknown field {sentence}"),
        ("{sentence", "expected '}'"),
        ("{prompt} {mask}", "{sentence} stands in it 0 times, it must stand once"),
        ("{sentence} {mask}", "{prompt} stands in it 0 times, it must stand once"),
        ("{sentence} {prompt} {mask} {mask}", "{mask} stands in it 2 times, once at most"),
        ("{sentence} {prompt} {sentence}", "{sentence} stands in it 2 times"),
        ("{instruction} {sentence} {prompt}", "no instruction is given, and it has {instruction}"),
    ],
)
def test_a_wrong_template_is_one_line_that_says_what_is_wrong(text: str, message: str):
    with pytest.raises(ConfigError) as error:
        Template.parse(text, needs_prompt=True)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_instruction_that_no_place_takes_is_refused():
    with pytest.raises(ConfigError, match=r"has no \{instruction\}"):
        Template.parse("{sentence}", instruction="Say:")


# --- ids and places


@pytest.mark.parametrize("family", MASKED)
def test_string_rendering_is_the_whole_string_tokenised_once(family: str):
    tok = TOKENIZERS[family]
    (row,) = renderer(family, "{sentence} {prompt} {mask} .").render(PROMPT, ["the film"])
    assert row.ids == tok(f"the film It was {tok.mask_token} .")["input_ids"]
    assert [row.position] == [i for i, id in enumerate(row.ids) if id == tok.mask_token_id]
    assert not row.cut


@pytest.mark.parametrize("family", CAUSAL)
def test_a_causal_row_ends_with_its_template(family: str):
    tok = TOKENIZERS[family]
    (row,) = renderer(family, "{sentence} {prompt}").render(PROMPT, ["the film"])
    assert row.ids == tok("the film It was")["input_ids"]
    assert row.position == len(row.ids) - 1


@pytest.mark.parametrize("family", MASKED)
def test_piecewise_rendering_tokenises_each_piece_alone(family: str):
    tok = TOKENIZERS[family]
    template = "{mask} News: {prompt}{sentence}."
    (row,) = renderer(family, template, "piecewise").render(PROMPT, ["the film"])
    mask = tok.mask_token_id
    body = [mask, *ids(tok, " News: "), *ids(tok, "It was"), *ids(tok, "the film"), *ids(tok, ".")]
    assert row.ids == [*tok("a")["input_ids"][:1], *body, *tok("a")["input_ids"][-1:]]
    assert row.position == 1


def test_prompt_ids_are_used_as_they_are_in_pieces_and_not_in_strings():
    odd = Prompt("It was", ids=(7, 7, 9))
    (row,) = renderer("gpt2", "{sentence}{prompt}", "piecewise").render(odd, ["film"])
    assert row.ids == [*ids(TOKENIZERS["gpt2"], "film"), 7, 7, 9]
    whole = renderer("gpt2", "{sentence}{prompt}")
    assert whole.render(odd, ["film"]) == whole.render(Prompt("It was"), ["film"])


@pytest.mark.parametrize(
    ("family", "template"),
    [
        ("bert", "{sentence} {prompt} {mask} ."),
        ("roberta", "{sentence} {prompt} {mask} ."),
        ("roberta", "{mask} {prompt} {sentence}"),
        ("gpt2", "{sentence} {prompt}"),
        ("llama", "{sentence} {prompt}"),
    ],
)
def test_rows_tokenised_in_one_call_are_those_rendered_one_by_one(family: str, template: str):
    made = renderer(family, template)
    texts = ["the film", "", "a [MASK] <mask> b", "great " * 600, " x ", "[mask]"]
    for prompt in (PROMPT, Prompt(""), Prompt("<mask> [MASK]"), Prompt(" film")):
        expected = [made._row(prompt, text, []) for text in texts]
        assert made.render(prompt, texts) == expected
        assert sum(row is not None for row in made._plain_strings(PROMPT, texts)) >= 3


def test_identity_is_what_the_row_depends_on():
    one, other = Prompt("x", (1, 2)), Prompt("y", (1, 2))
    pieces, whole = (renderer("gpt2", "{sentence}{prompt}", m) for m in ("piecewise", "string"))
    assert pieces.identity(one) == pieces.identity(other) != pieces.identity(Prompt("x"))
    assert whole.identity(one) == whole.identity(Prompt("x")) != whole.identity(other)


@pytest.mark.parametrize("mode", ["string", "piecewise"])
@pytest.mark.parametrize("template", ["{sentence} {prompt} {mask} .", "{mask} {prompt} {sentence}"])
@pytest.mark.parametrize("family", MASKED)
def test_mask_tokens_in_text_and_prompt_are_never_the_answers_place(
    family: str, template: str, mode: str
):
    """By arithmetic on the ids: so many masks stand before ours."""
    tok = TOKENIZERS[family]
    mask = str(tok.mask_token)
    texts = [f"a {mask} b {mask}", mask, f"{mask}{mask}", "", f" {mask} "]
    rows = renderer(family, template, mode).render(Prompt(f"It {mask}"), texts)
    for text, row in zip(texts, rows, strict=True):
        places = [i for i, id in enumerate(row.ids) if id == tok.mask_token_id]
        assert len(places) == text.count(mask) + 2
        assert row.position == places[-1 if template.startswith("{sentence}") else 0]


def test_a_causal_row_of_nothing_is_the_start_token():
    (row,) = renderer("gpt2", "{sentence}{prompt}").render(Prompt(""), [""])
    assert row.ids == [TOKENIZERS["gpt2"].eos_token_id] and row.position == 0


# --- cutting


@pytest.mark.parametrize("mode", ["string", "piecewise"])
@pytest.mark.parametrize(
    ("family", "template", "side"),
    [
        ("bert", "{sentence} {prompt} {mask} .", "start"),
        ("roberta", "{sentence} {prompt} {mask} .", "start"),
        ("bert", "{mask} {prompt} {sentence}", "end"),
        ("roberta", "{mask} {prompt} {sentence}", "end"),
        ("roberta", "{prompt} {mask} {sentence} .", "end"),
        ("gpt2", "{sentence} {prompt}", "start"),
        ("llama", "{prompt} {sentence} News:", "start"),
    ],
)
def test_only_the_sentence_is_cut_away_from_the_mask(
    family: str, template: str, side: str, mode: str
):
    """600 words. In pieces: a slice of its ids. In a string: some end of the text, as it stands."""
    tok, text = TOKENIZERS[family], " ".join("xyzpqrab"[i * i % 8] for i in range(600))
    free, limited = (renderer(family, template, mode, n) for n in (10**6, MAX_TOKENS))
    whole, short = free.render(PROMPT, [text, ""])
    (row,) = limited.render(PROMPT, [text])
    assert row.cut and not whole.cut and len(row.ids) in (MAX_TOKENS, MAX_TOKENS - 1)
    if mode == "string":
        ends = [text[k:] if side == "start" else text[: len(text) - k] for k in range(len(text))]
        ends = [end for end in ends if 15 < len(end.split()) <= MAX_TOKENS]
        assert any(free.render(PROMPT, [end])[0] == row._replace(cut=False) for end in ends)
    else:
        own, room = ids(tok, text), MAX_TOKENS - len(short.ids)
        at = next(i for i in range(len(whole.ids)) if whole.ids[i : i + len(own)] == own)
        kept = own[-room:] if side == "start" else own[:room]
        assert row.ids == [*whole.ids[:at], *kept, *whole.ids[at + len(own) :]]
    if "{mask}" in template:
        assert row.ids[row.position] == tok.mask_token_id
    else:
        assert row.position == len(row.ids) - 1


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "great ", "é", "😀", " ", "[MASK]", "<mask>", "\n"]), max_size=60
    ),
    st.integers(12, 30),
    st.sampled_from(["string", "piecewise"]),
    st.sampled_from(
        [
            ("bert", "{sentence} {prompt} {mask} ."),
            ("roberta", "{sentence} {prompt} {mask} ."),
            ("roberta", "{mask} {prompt} {sentence}"),
            ("gpt2", "{sentence}{prompt}"),
            ("llama", "{prompt} {sentence} :"),
        ]
    ),
)
def test_any_text_fits_and_keeps_prompt_and_mask(
    parts: list[str], limit: int, mode: str, kind: tuple[str, str]
):
    (family, template), text = kind, "".join(parts)
    tok = TOKENIZERS[family]
    free = renderer(family, template, mode, 10**6).render(PROMPT, [text])[0]
    row = renderer(family, template, mode, limit).render(PROMPT, [text])[0]
    assert len(row.ids) <= limit and row.cut == (len(free.ids) > limit)
    if not row.cut:
        assert row == free
    elif template.startswith("{sentence}"):  # all from the prompt on is as it was
        assert row.ids[-4:] == free.ids[-4:]
    if "{mask}" in template:
        assert row.ids[row.position] == tok.mask_token_id
        assert len(free.ids) - free.position == len(row.ids) - row.position or "{mask} " in template


def test_a_prompt_without_room_is_an_error():
    with pytest.raises(ConfigError, match="more than max_tokens=6") as error:
        renderer("gpt2", "{sentence}{prompt}", max_tokens=6).render(Prompt("x " * 9), ["film"])
    assert "\n" not in str(error.value)


# --- demonstrations


def test_demonstrations_follow_the_text_of_a_masked_lm_with_their_words():
    tok = TOKENIZERS["roberta"]
    demos = labelled("bad film", "good film")
    row = renderer("roberta", "{sentence} It was {mask} .").render(Prompt(""), ["film"], [demos])[0]
    text = "film It was <mask> .</s>bad film It was terrible .</s>good film It was great ."
    assert row.ids == tok(text)["input_ids"]
    assert [row.position] == [i for i, id in enumerate(row.ids) if id == tok.mask_token_id]


def test_demonstrations_in_pieces_hold_the_very_token_of_their_word():
    tok = TOKENIZERS["roberta"]
    r = renderer("roberta", "{sentence} It was{mask}.", "piecewise")
    row = r.render(Prompt(""), ["film"], [labelled("bad film")])[0]
    middle = ids(tok, " It was")
    query = [*ids(tok, "film"), *middle, tok.mask_token_id, *ids(tok, ".")]
    demo = [*ids(tok, "bad film"), *middle, *ids(tok, " terrible"), *ids(tok, ".")]
    assert row.ids == [0, *query, 2, *demo, 2]


def test_demonstrations_stand_before_the_text_of_a_causal_lm():
    tok = TOKENIZERS["llama"]
    demos = labelled("bad film", "good film")
    row = renderer("llama", "{sentence} It was").render(Prompt(""), ["film"], [demos])[0]
    text = "bad film It was terrible\n\ngood film It was great\n\nfilm It was"
    assert row.ids == tok(text)["input_ids"] and row.position == len(row.ids) - 1


@pytest.mark.parametrize(
    ("family", "template"), [("llama", "{sentence} is"), ("roberta", "{sentence} is {mask}")]
)
def test_demonstrations_that_do_not_fit_go_first_whole_the_farthest_before(
    family: str, template: str
):
    demos = labelled("bad " * 5, "good " * 5)
    r = renderer(family, template, max_tokens=24)
    near = demos[-1:] if family == "llama" else demos[:1]
    one = renderer(family, template, max_tokens=10**6).render(Prompt(""), ["film"], [near])[0]
    row = renderer(family, template, max_tokens=len(one.ids)).render(Prompt(""), ["film"], [demos])
    assert row == [one._replace(dropped=1)]
    row = r.render(Prompt(""), ["film " * 40], [demos])[0]
    assert row.dropped == 2 and row.cut and len(row.ids) == 24


# --- what cannot be rendered


def test_what_the_tokeniser_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="has no mask"):
        renderer("gpt2", "{sentence} {prompt} {mask}")
    with pytest.raises(ConfigError, match="did you mean 'piecewise'"):
        renderer("gpt2", "{sentence} {prompt}", "piecwise")
