"""Checks a function's arguments and result against its annotations, for jaxtyping's import hook.

typeguard's own decorator rewrites a function's source and, on the way, parses every string in an
annotation as Python; jaxtyping's shapes are none. This one looks at the values alone.
"""

import functools
import inspect

import typeguard


def checked(function):
    """Wraps a function so that a value of another type or shape raises a TypeCheckError."""
    signature = inspect.signature(function)
    kinds = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if not isinstance(parameter.annotation, str)
        and parameter.annotation is not inspect.Parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    result = signature.return_annotation
    checks_result = not isinstance(result, str) and result is not inspect.Signature.empty

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        bound = signature.bind(*args, **kwargs).arguments
        for name, value in bound.items():
            if name in kinds:
                typeguard.check_type(value, kinds[name])
        value = function(*args, **kwargs)
        if checks_result:
            typeguard.check_type(value, result)
        return value

    return wrapper
