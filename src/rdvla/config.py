"""Configuration files: YAML plus dotted overrides into frozen, validated models.

Every room declares one `Config` subclass. An unknown key is an error that suggests the nearest known one.
"""

import inspect
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import product
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from rdvla.errors import ConfigError, suggest


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, types checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    described_by: ClassVar[type[BaseModel] | None] = None
    """Whose docstring says what the fields mean, if not this class's."""

    @classmethod
    def build(cls, values: Mapping[str, Any], *, source: str = "configuration") -> Self:
        """Validate `values` (nested mappings) into this configuration.

        Raises:
            ConfigError: unknown keys (with the nearest known one) and wrong values, all of them at once.
        """
        lines = list(_truths_for_numbers(cls, values))
        try:
            built = cls.model_validate(dict(values))
        except ValidationError as error:
            lines += [_explain(cls, details) for details in error.errors()]
        except ConfigError as error:
            lines.append(str(error))
        if lines:
            raise ConfigError(f"{source}: " + "; ".join(lines)) from None
        return built


def require_distinct(name: str, values: Collection[object]) -> None:
    """Make sure that a list of settings names everything once.

    Raises:
        ConfigError: it does not.
    """
    if len(set(values)) != len(values):
        raise ConfigError(f"{name} repeats a value: {', '.join(map(str, values))}.")


def _truths_for_numbers(model: type[Any], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield what is wrong with every `true` and `false` that pydantic would read as a number."""
    known = _fields(model)
    for name, value in values.items():
        annotation = known[name][0] if name in known else Any
        given = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, bool) for each in given) and not _takes_truth(annotation):
            yield f"'{prefix}{name}' = {value!r}: true and false are no numbers"
        sections = [part for part in _parts(annotation) if _is_section(part)]
        for section, each in product(sections, given):
            if isinstance(each, Mapping):
                yield from _truths_for_numbers(section, each, f"{prefix}{name}.")


def _takes_truth(annotation: object) -> bool:
    parts = list(_parts(annotation))
    return any(each in parts for each in (Any, bool)) or not any(each in parts for each in (int, float))


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


@dataclass(frozen=True)
class Setting:
    """One key of a configuration.

    Attributes:
        key: dotted name.
        kind: type, as people would say it.
        default: as JSON; `required` without one.
        meaning: one sentence.
    """

    key: str
    kind: str
    default: str
    meaning: str


def describe(config: type[Any], prefix: str = "", required: str = "required") -> list[Setting]:
    """Return every key of a configuration, those of its sections included, from its fields and docstrings."""
    meanings = _attributes(config)
    settings = []
    for name, (annotation, default) in _fields(config).items():
        section = next((each for each in (annotation, *get_args(annotation)) if _is_section(each)), None)
        shown = required if default is _REQUIRED else json.dumps(to_jsonable_python(default))
        own = Setting(f"{prefix}{name}", _kind(annotation), shown, meanings.get(name, ""))
        if section is not None:
            if is_dataclass(default) and default != section():  # as a whole it is another than its keys' defaults
                settings.append(own)
            within = f"required where {prefix}{name} is given" if default is None else required
            settings += describe(section, f"{prefix}{name}.", within)
            continue
        settings.append(own)
    return settings


_REQUIRED = object()


def _fields(config: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Return name -> (annotation, default or `_REQUIRED`)."""
    if issubclass(config, BaseModel):
        return {
            name: (
                field.annotation,
                _REQUIRED if field.is_required() else field.get_default(call_default_factory=True),
            )
            for name, field in config.model_fields.items()
        }
    types = get_type_hints(config)
    defaults = {field.name: _REQUIRED if field.default is MISSING else field.default for field in fields(config)}
    return {name: (types[name], default) for name, default in defaults.items()}


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation))


def _kind(annotation: Any) -> str:
    """Return a type as people would say it, without what constrains it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(map(_kind, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if each is ... else _kind(each) for each in arguments)}]"
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def _attributes(config: type[Any]) -> dict[str, str]:
    """Return name -> sentence from the `Attributes:` of a class's docstring."""
    documented = getattr(config, "described_by", None) or config
    lines = (inspect.getdoc(documented) or "").partition("Attributes:\n")[2].splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        match = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if match:
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith("        "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at '{path}'.") from None
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' must hold a mapping of keys to values, found {type(values).__name__}.")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `values` with `--a.b=value` overrides applied; the value is read as YAML.

    Raises:
        ConfigError: an override without `=`, or one that goes below a plain value.
    """
    merged = dict(values)
    for override in overrides:
        key, separator, text = override.removeprefix("--").partition("=")
        if not separator or not key:
            raise ConfigError(f"override '{override}' must look like --section.key=value.")
        *sections, name = key.split(".")
        target = merged
        for section in sections:
            child = target.get(section)
            if child is not None and not isinstance(child, dict):
                raise ConfigError(f"override '{override}': '{section}' is a value ({child!r}), not a section.")
            target[section] = dict(child or {})
            target = target[section]
        try:
            target[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override '{override}' is not valid YAML: {error}") from None
    return merged


def _explain(root: type[BaseModel], details: Mapping[str, Any]) -> str:
    location = [part for part in details["loc"] if isinstance(part, str)]
    name = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"unknown key '{name}'.{suggest(location[-1], _fields_at(root, location[:-1]))}"
    message = details["msg"].removeprefix("Value error, ")  # pydantic's words for an error of ours
    return f"'{name}' = {details['input']!r}: {message}" if name else message


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
