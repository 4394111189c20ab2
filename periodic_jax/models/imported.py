"""A network of the user's own, by the import path that the user gives. No path that is found in a file is imported."""

import functools
import importlib
import os
import re
import sys
from typing import Any

import jax

from periodic_jax.core.errors import ConfigError, PeriodicJaxError, first_line
from periodic_jax.models.adapters import input_dtype, makes_nnx
from periodic_jax.models.invariance import measure_labels
from periodic_jax.models.labels import LabelTree

PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
ARGUMENT = re.compile(r"([A-Za-z_]\w*)=([\w.+-]+)")
EXAMPLES = 16  # random images on which labels are measured


def is_import_path(name: str) -> bool:
    """Whether a network's name is an import path, as ``my_package.nets:Net``."""
    return ":" in name


@functools.cache
def import_model(name: str, arguments: tuple[str, ...] = ()) -> Any:
    """Import a network, from the current directory too, as with ``python -m``. Runs the user's code.

    Args:
        name: ``MODULE:NAME`` of a network, or of a class or function that makes one.
        arguments: for the class or function, each ``NAME=VALUE``; a value is a number, ``true``, ``false`` or a word.

    Returns:
        A network as `training.state.create_train_state` takes it.

    Raises:
        ConfigError: it cannot be imported, or not made with these arguments.
    """
    if not PATH.fullmatch(name):
        raise ConfigError("--model", name, "a built-in network, or an import path such as my_package.nets:Net")
    options = read_arguments(arguments)
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        accepted = f"a module of the current directory or of an installed package ({first_line(error)})"
        raise ConfigError("--model", name, accepted) from None
    if makes_nnx(found):
        return functools.partial(found, **options)
    if not isinstance(found, type) and not hasattr(found, "__code__"):  # made already
        if options:
            raise ConfigError("--model-args", " ".join(arguments), f"none: {name} is no class or function")
        return found
    try:
        return found(**options)
    except TypeError as error:
        accepted = f"what {name} takes ({first_line(error)})"
        raise ConfigError("--model-args", " ".join(arguments) or "nothing", accepted) from None


def read_arguments(arguments: tuple[str, ...]) -> dict[str, Any]:
    """The options that words such as ``width=8`` stand for.

    Raises:
        ConfigError: another form, or a name given twice.

    Example:
        >>> read_arguments(("width=8", "rate=1e-1", "bias=false", "norm=rms"))
        {'width': 8, 'rate': 0.1, 'bias': False, 'norm': 'rms'}
    """
    options: dict[str, Any] = {}
    for word in arguments:
        match = ARGUMENT.fullmatch(word)
        if match is None or match[1] in options:
            raise ConfigError("--model-args", word, "NAME=VALUE, each name once: a number, true, false or a word")
        options[match[1]] = _value(match[2])
    return options


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


@functools.cache
def imported_labels(name: str, arguments: tuple[str, ...], image_shape: tuple[int, ...], precision: str) -> LabelTree:
    """The labels of an imported network: its own ``labels()``, or measured on random images.

    Args:
        name, arguments: as for `import_model`.
        image_shape: (height, width, channels).
        precision: of the run, which is in force: labels are measured once in each.
    """
    model = import_model(name, arguments)
    if hasattr(model, "labels"):
        return model.labels()
    images = jax.random.normal(jax.random.key(0), (EXAMPLES, *image_shape), input_dtype(model))
    try:
        return measure_labels(model, images, jax.random.key(0)).labels
    except (TypeError, ValueError) as error:
        if isinstance(error, PeriodicJaxError):
            raise
        given = " ".join((name, *arguments))
        raise ConfigError("--model", given, f"a network of images {image_shape} ({first_line(error)})") from None
