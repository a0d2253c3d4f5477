"""Preparing a command line for cyclopts: comma-separated lists, `--config`, and messages for missing arguments."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin

from cyclopts import App, CycloptsError, MissingArgumentError, Token, UnknownOptionError, UnusedCliTokensError

from igpt_model.checked_json import parse_json, read_bytes
from probekit.runtime.errors import UserError, did_you_mean


def prepared(app: App, words: Sequence[str]) -> list[str]:
    """The command line with lists split at commas and the contents of --config inserted."""
    verb, *rest = words
    arguments = list(app[verb].assemble_argument_collection())
    rest, file = _without_config(rest)
    if file is not None:
        rest = [*_positional(rest), *_from_config(Path(file), verb, arguments, rest), *rest[len(_positional(rest)) :]]
    lists = {name: one for one in arguments for name in one.names if _is_list(one.hint)}
    several = any(one.field_info.kind is Parameter.VAR_POSITIONAL for one in arguments)
    return [verb, *_split(rest, lists, several)]


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is tuple or any(get_origin(part) is tuple for part in get_args(hint))


def _split(words: Sequence[str], lists: Mapping[str, Any], inside: bool) -> Iterator[str]:
    """Split the values of list flags at commas, and the arguments before the first flag if they are a list."""
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        flag, equals, value = word.partition("=")
        if not word.startswith("--"):
            yield from _parts(word) if inside else [word]
            continue
        inside = flag in lists and not equals
        if inside and following.startswith("--"):
            raise UserError(f"{flag} takes one or more values, but none was given; give some, or leave it out.")
        parts = _parts(value) if equals and flag in lists else []
        yield from [flag, *parts] if len(parts) > 1 and not re.match(r"-[^\d.]", parts[0]) else [word]


def _parts(word: str) -> list[str]:
    """The parts of a value between commas; paths, NAME=TEXT and data sets with options (#) may contain commas."""
    parts = [part for part in word.split(",") if part]
    one_text = "=" in word and not all("=" in part for part in parts)
    return [word] if not parts or one_text or "#" in word or Path(word).exists() else parts


def _positional(words: Sequence[str]) -> list[str]:
    first_flag = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    return list(words[:first_flag])


def _without_config(words: Sequence[str]) -> tuple[list[str], str | None]:
    if sum(word.partition("=")[0] == "--config" for word in words) > 1:
        raise UserError("--config was given twice; merge the files into one.")
    for at, word in enumerate(words):
        if word == "--config":
            if at + 1 == len(words):
                raise UserError("--config was given without a file; name a YAML or JSON file.")
            return [*words[:at], *words[at + 2 :]], words[at + 1]
        if word.startswith("--config="):
            return [*words[:at], *words[at + 1 :]], word.partition("=")[2]
    return list(words), None


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; raises `UserError` if the file does not exist or is not a mapping."""
    import yaml

    class Plain(yaml.SafeLoader):
        # numbers stay text, which the flag parses: YAML 1.1 reads 011 as 9, 1:30 as 90, `on` as true
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # a few lines of aliases can expand to millions of values
                raise yaml.YAMLError("it contains an alias (*NAME): write the value itself")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = Counter(key.value for key, _ in node.value if key.id == "scalar")
            if twice := [name for name, times in names.items() if times > 1]:
                raise yaml.YAMLError(f"the key {twice[0]!r} occurs twice")
            return super().construct_mapping(node, deep)

    Plain.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), [*"tTfF"]
    )
    Plain.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])

    if not path.is_file():
        raise UserError(f"--config {path} does not exist; give a YAML or JSON file.")
    try:
        # JSON is YAML, except for numbers such as 1e-3, which YAML 1.1 reads as text
        text = read_bytes(path, most=1 << 18)
        content = parse_json(text, path) if path.suffix == ".json" else yaml.load(text, Plain)
        str(content)  # fails for a number of thousands of digits
    except Exception as error:  # a tag such as !!timestamp can raise any type
        raise UserError(f"--config {path} cannot be read ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {path} is not a mapping of flags to values; write lines such as `seed: 1`.")
    return content


def _from_config(path: Path, verb: str, arguments: Sequence[Any], words: Sequence[str]) -> list[str]:
    """The arguments and flags in a file, arguments first, without flags that the command line has too."""
    content = read_config(path)
    if isinstance(content.get(verb), dict):  # a file written by a run or a study
        content = content[verb]
    by_name = {
        name.lstrip("-").replace("-", "_").lower(): one
        for one in arguments for name in one.names if name != "--config"
    }  # fmt: skip
    seen: dict[str, str] = {}
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    leading: list[str] = []
    flags: list[str] = []
    for key, value in content.items():
        one = by_name.get(str(key).replace("-", "_").lower())
        if one is None:
            hint = did_you_mean(str(key), by_name) or f" See `probekit {verb} --help`."
            raise UserError(f"--config {path}: `probekit {verb}` has no flag {key}.{hint}")
        if (other := seen.setdefault(one.name, str(key))) != str(key):
            raise UserError(f"--config {path}: {other!r} and {key!r} are the same flag; leave one of them out.")
        if value is None or given & set(one.names) or {f"--no-{name[2:]}" for name in one.names} & given:
            continue
        if isinstance(value, dict):
            value = [f"{name}={item}" for name, item in value.items()]
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) for item in items):
            raise UserError(
                f"--config {path}: {key} contains a nested list or mapping; write one value, or a flat list."
            )
        if any(isinstance(item, bool) != (one.hint is bool) for item in items):
            expected = "true or false" if one.hint is bool else "something other than true or false"
            raise UserError(f"--config {path}: {key} is {value!r}; expected {expected}.")
        values = [str(item) for item in items]
        if one.field_info.is_keyword:
            if isinstance(value, bool):
                flags += [name for name in one.names if name.startswith("--no-") != value][:1]
            elif values:
                flags += [one.name, *values] if not values[0].startswith("-") else [f"{one.name}={v}" for v in values]
        elif not _positional(words):
            leading += values
    return [*leading, *flags]


def usage_sentence(error: CycloptsError, app: App, words: Sequence[str]) -> str:
    """The error in a command line, in one sentence that names the command's help."""
    verb = words[0]
    one = error.argument if isinstance(error, MissingArgumentError) else None
    flags = [word.partition("=")[0] for word in words]
    names = [] if one is None or set(one.names) & set(flags) else _missing(app, words)
    if names:
        sentence = f"`probekit {verb}` needs {' and '.join([', '.join(names[:-1])] * bool(names[:-1]) + names[-1:])}."
    elif one is not None:
        n = max(one.token_count()[0], 1)
        sentence = f"{one.name} takes {f'{n} values, and fewer were' if n > 1 else 'a value, and none was'} given."
    elif isinstance(error, UnusedCliTokensError):
        sentence = f"`probekit {verb}` takes no further argument {' '.join(error.unused_tokens or ())!r}."
    elif isinstance(error, UnknownOptionError) and (name := _argument(app, verb, error.token)):
        sentence = f"`probekit {verb}` takes {name} without a flag."
    else:
        sentence = " ".join(str(error).split())
    return f"{sentence} See `probekit {verb} --help`."


def _argument(app: App, verb: str, token: Token) -> str | None:
    """The argument that an unknown flag is the name of."""
    flag = (token.keyword or token.value).partition("=")[0].lstrip("-").upper()
    names = (one.name for one in app[verb].assemble_argument_collection())
    return next((name for name in names if flag and name in (flag, f"{flag}S")), None)


def _missing(app: App, words: Sequence[str]) -> list[str]:
    """All required arguments and flags that a command line lacks, found by adding them one by one."""
    names: list[str] = []
    tried = list(words)
    while True:
        try:
            app.parse_args(tried, exit_on_error=False, print_error=False)
        except MissingArgumentError as error:
            one = error.argument
            if one is None or one.tokens or one.name in names:
                return names
            names.append(one.name)
            at = 1 + len(_positional(tried[1:]))
            tried[at:at] = [one.name, "1"] if one.field_info.is_keyword else ["1"]
        except CycloptsError:
            return names
        else:
            return names
