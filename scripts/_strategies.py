"""The options of strategies on a command line: those of the ones named there, and what is wrong with another's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import tyro

from nas.errors import InputError, one_of
from nas.own_file import named_in_file
from nas.run.command_line import flat_hints
from nas.run.methods import search_named, with_option
from nas.strategies import StrategyConfig, StrategyRecord, combined_config


def strategy_options(
    base: type,
    argv: Sequence[str],
    option: str,
    default: Sequence[str],
    known: Mapping[str, StrategyRecord],
    hidden: Sequence[str] = (),
    about: str = "one of",
) -> type:
    """``base`` (a config with a field ``plan``, or with one ``options`` that has it) for the strategies named.

    ``option`` is the field that names them, ``default`` what it is where ``argv`` does not have it, ``about`` its
    help before the names of all that are ``known``. A name may have a suffix ``+SCORE``. ``hidden`` are options of
    strategies that cannot be given here. Raises InputError for an unknown strategy and for an option that only
    another strategy has.
    """
    names = tuple(name.partition("+")[0] for name in values_of(argv, option)) or tuple(default)
    for name in names:
        if name not in known and named_in_file(name) is None:
            raise one_of("strategy", name, known)
    plan = without(combined_config(search_named(name) for name in names), hidden)
    own = {field.name for field in dataclasses.fields(plan)}
    check_options(argv, names, own | set(flat_hints(base)))
    help_text = f"{about} {', '.join(known)}, or FILE.py:NAME"
    hint = get_type_hints(base)[option]
    named = (option, Annotated[hint, tyro.conf.arg(help=help_text)], field_of(base, option))
    return with_plan(base, plan, named)


def with_plan(base: type, plan: type, *more: tuple[str, Any, Any]) -> type:
    """``base`` with ``plan`` as the type of its field of this name, at whatever depth."""
    hints = get_type_hints(base)
    if "plan" in hints:
        changed = [("plan", plan, dataclasses.field(default_factory=plan))]
    else:
        options = with_plan(hints["options"], plan)
        changed = [("options", options, dataclasses.field(default_factory=options))]
    made = dataclasses.make_dataclass(base.__name__, [*more, *changed], bases=(base,), frozen=True)
    made.__doc__ = base.__doc__
    return made


def without(plan: type[StrategyConfig], hidden: Sequence[str]) -> type[StrategyConfig]:
    """``plan`` with these of its options not on the command line."""
    hints = get_type_hints(plan)
    kept = [(name, tyro.conf.Suppress[hints[name]], field_of(plan, name)) for name in hidden if name in hints]
    return dataclasses.make_dataclass(plan.__name__, kept, bases=(plan,), frozen=True) if kept else plan


def field_of(config: type, name: str) -> Any:
    """A new field with the default that ``config`` has for ``name``."""
    (found,) = (field for field in dataclasses.fields(config) if field.name == name)
    return dataclasses.field(default=found.default)


def values_of(argv: Sequence[str], option: str) -> list[str]:
    """What stands behind ``--option`` (or ``--option=``), up to the next option; the last one counts."""
    values: list[str] = []
    for k, word in enumerate(argv):
        given, equals, written = word.partition("=")
        if given.replace("_", "-") == "--" + option.replace("_", "-"):
            values = [written] if equals else []
            for following in argv[k + 1 :]:
                if following.startswith("--"):
                    break
                values.append(following)
    return values


def check_options(argv: Sequence[str], names: Sequence[str], known: set[str]) -> None:
    """Raises InputError for an option that none of the strategies ``names`` has, but another one."""
    for word in argv:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_")
        if word.startswith("--") and name not in known and (having := with_option(name)):
            raise InputError(
                f"{word.partition('=')[0]}: {', '.join(names)} has no such option, only {', '.join(having)}"
            )
