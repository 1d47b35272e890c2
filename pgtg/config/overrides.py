"""Overrides as people type them, and as Hydra's grammar takes them; folder names of them.

Free texts (prefixes, suffixes, ...) are literal but for the escapes \\n and \\t: no character of
theirs is grammar. One pair of quotes around a text is taken off. Where a run has one value a comma
is part of the text; in a sweep it separates texts, unless it stands in quotes. Other values pass as
they are where Hydra reads them, and are quoted where it does not (umlauts, `#`, `(`, ...). Names
that look like numbers or truth values (1e3, 1_000, true) stay as they are typed.
Everything here gives the same again when it is applied to its own result.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from pgtg.config.schema import PLAIN, expected_type, is_open
from pgtg.errors import ConfigError

PATHS = (
    "data.path",
    "policy.path",
    "reward.path",
    "judge.classifier.path",
    "judge.path",
    "judge.template",
    "metrics.bertscore_model",
    "cache",
)
TEXTS = re.compile(
    r"policy\.(prefix|suffix|target_prefix|start_text)|judge\.(before|between|after|criteria)"
    r"|data\.fewshot\.(masked|causal)\.[^.]+\.(template|instruction)"
)
TEXT, TEXT_LIST = PLAIN[str], "a list"  # how the schema names a text, and lists (all of texts)
ESCAPES = {r"\n": "\n", r"\t": "\t"}
SWEEPS = re.compile(r"(choice|shuffle|sort|range|glob|tag|interval)\(.*\)", re.DOTALL)
PAIRS = {"[": "]", "{": "}", "(": ")"}
NAME_BYTES, HASH = 200, 12  # a folder name's length before it is cut [bytes]; digits of its hash


def as_hydra(text: str, *, sweep: bool = False) -> str:
    """An override of ours as Hydra's grammar takes it.

    Keys of open mappings may be new, so they get `++`; a path is quoted, with ~ expanded, unless it
    is a list or a sweep; `experiment=null` is the experiment "none".

    Args:
        text: `key=value`.
        sweep: Commas outside quotes separate values.

    Raises:
        ConfigError: Broken Unicode (bytes of another encoding), or a NUL character.
    """
    if "\0" in text or text != text.encode(errors="replace").decode():
        raise ConfigError(f"{text!r}: a parameter is UTF-8 text without the character NUL")
    typed, equals, value = text.partition("=")
    key = typed.lstrip("+~")
    if text == "experiment=null":
        return "experiment=none"
    if not equals or typed.startswith("~"):
        return text
    literal = TEXTS.fullmatch(key) is not None
    if SWEEPS.fullmatch(value) and (sweep or not literal):
        return text
    if key in PATHS and value and value != "null" and not set("'\"[,") & set(value):
        value = quoted(Path(value).expanduser() if value[0] == "~" else value)
    elif literal and value:
        parts = [part.strip() for part in _split(value)] if sweep else [value]
        value = ",".join(_literal(part) for part in parts)
    elif not _readable(f"{key}={value}"):
        plain = (expected_type(key) or "").startswith(TEXT) and not sweep
        value = quoted(_unquoted(value)) if plain else ",".join(map(_requoted, _split(value)))
    elif (expected_type(key) or "").startswith((TEXT, TEXT_LIST)):
        value = ",".join(map(_as_typed, _split(value)))
    opens = is_open(key) or is_open(f"{key}.x")  # a key of an open mapping, or such a mapping
    adds = "++" if opens and not typed.startswith("+") else ""
    return f"{adds}{typed}={value}"


def quoted(value: object) -> str:
    """A value as Hydra's override grammar reads it, whatever characters it holds."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    return QuotedString(text, Quote.double).with_quotes()


def folder_name(text: str) -> str:
    """A file name for the overrides of one sweep job, e.g. `aggregator=max,seed=1`.

    What is cut, or holds other characters, gets a hash, so that two jobs never share a folder.
    """
    name = re.sub(r"[^\w.,=+-]+", "_", text)
    size = len(name.encode())
    if name != text or size > NAME_BYTES:
        kept = name.encode()[: NAME_BYTES - HASH - 1].decode(errors="ignore")
        name = f"{kept}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:HASH]}"
    return name if text else "job"


def _literal(value: str) -> str:
    """A free text, quoted; null stays null."""
    if value == "null":
        return value
    text = _unquoted(value)
    for escape, char in ESCAPES.items():
        text = text.replace(escape, char)
    return quoted(text)


def _as_typed(value: str) -> str:
    """A text, or a list of texts, that Hydra would read as numbers or truth values and write
    otherwise, quoted: the name 1e3 is not 1000.0, the revision 7e10234 not infinity."""
    inner = value.strip()
    if inner[:1] == "[" and inner[-1:] == "]":
        return f"[{','.join(map(_as_typed, _split(inner[1:-1])))}]"
    if not _readable(f"x={inner}"):
        return value
    read = _parser().parse_override(f"x={inner}").value()
    return quoted(inner) if isinstance(read, int | float) and str(read) != inner else value


@lru_cache(maxsize=4096)  # the jobs of a sweep mostly have the same
def _readable(text: str) -> bool:
    """Whether Hydra's grammar knows what to make of an override."""
    try:
        _parser().parse_override(text)
    except HydraException:
        return False
    return True


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _requoted(value: str) -> str:
    """A value that Hydra cannot read, with all texts in it quoted; lists and mappings stay such."""
    value = value.strip()
    opening, inner = value[:1], value[1:-1]
    if opening in ("[", "{") and value[-1:] == PAIRS[opening]:
        parts = [_entry(part) if opening == "{" else _requoted(part) for part in _split(inner)]
        return opening + ",".join(parts if inner.strip() else []) + PAIRS[opening]
    return quoted(_unquoted(value))


def _entry(text: str) -> str:
    """`key: value` of a mapping."""
    key, colon, value = text.partition(":")
    return f"{key.strip()}{colon}{value if _readable(f'x={value}') else _requoted(value)}"


def _split(value: str) -> list[str]:
    """The parts between commas that stand in no quotes and no brackets."""
    parts, start = [], 0
    for place in _commas(value):
        parts.append(value[start:place])
        start = place + 1
    return [*parts, value[start:]]


def _commas(value: str) -> Iterator[int]:
    """Places of the commas; a quote opens only where a value may begin."""
    closing: list[str] = []
    quote, begins = "", True
    for place, char in enumerate(value):
        if quote:
            if char == quote and (len(value[:place]) - len(value[:place].rstrip("\\"))) % 2 == 0:
                quote = ""
        elif char in "'\"" and begins:
            quote = char
        elif char in PAIRS and begins:
            closing.append(PAIRS[char])
        elif closing and char == closing[-1]:
            closing.pop()
        elif char == "," and not closing:
            yield place
        begins = not quote and (char in ",:[{" or (begins and char.isspace()))


def _unquoted(value: str) -> str:
    """A value without the quotes around it, if it is one quoted text; as it is otherwise."""
    quote = value.strip()[:1]
    inside = value.strip()
    if quote not in ("'", '"') or len(inside) < 2 or not _is_one(inside, quote):
        return value
    text = _parser().parse_override(f"x={inside}").value()
    return re.sub(r"(\\+)\$\{", lambda found: found[1][1::2] + "${", str(text))


def _is_one(text: str, quote: str) -> bool:
    """Whether a text is one quoted one from its first to its last character."""
    return re.fullmatch(rf"{quote}(?:\\.|[^{quote}\\])*{quote}", text, re.DOTALL) is not None
