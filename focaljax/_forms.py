"""One operation in a form for each platform, of which only one is traced: that of the program's platform.

`lax.platform_dependent` traces all of them. Here a form is traced when the program is lowered: value and
gradient of class indices are traced and lowered in 0.6 of the time (JAX 0.10.2), of labels per class in 0.4.
There are no derivatives, as it is for the inside of functions that have rules of their own.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from focaljax import _sharding

_PLATFORMS = ("cpu", "tpu")  # all others have the form `default`
_operation = Primitive("focaljax_form")
_operation.multiple_results = True


class _Forms:
    """The forms of one operation, and one that its results are like, of and to flat lists of arrays."""

    def __init__(self, like: Callable[..., Any], by_platform: dict[str, Callable[..., Any]]):
        self.like, self.by_platform = like, by_platform
        self.x64 = jax.enable_x64.value  # a program may be lowered where that is not set

    def __repr__(self) -> str:
        return " ".join(self.by_platform)  # in a printed jaxpr

    def of(self, platform: str) -> Callable[..., Any]:
        return self.by_platform.get(platform, self.by_platform["default"])

    def changed(self, change: Callable[..., Any]) -> "_Forms":
        return _Forms(change(self.like), {name: change(form) for name, form in self.by_platform.items()})


def of_platform(
    *operands: Any, like: Callable[..., Any], known: str | None = None, **forms: Callable[..., Any]
) -> Any:
    """``forms[platform](*operands)`` of arrays or trees of them; `default` is the form of other platforms.

    The results have the structure, shapes, dtypes and places of those of `like`, which is never run. Inside
    the form of a platform, which is `known`, its form is taken at once.
    """
    if known is not None:
        return forms.get(known, forms["default"])(*operands)
    leaves, tree = jax.tree.flatten(operands)
    jaxpr, results = jax.make_jaxpr(like, return_shape=True)(*operands)

    def flat(form):
        return lambda *leaves: jax.tree.leaves(form(*tree.unflatten(leaves)))

    flat_forms = _Forms(like, forms).changed(flat)
    found = _operation.bind(*leaves, forms=flat_forms, types=tuple(jaxpr.out_avals))
    return jax.tree.structure(results).unflatten(found)


@_operation.def_impl
def _run(*operands, forms, types):
    """Without `jax.jit`, as under `jax.disable_jit`."""
    del types
    platforms = [device.platform for x in operands if isinstance(x, jax.Array) for device in x.devices()]
    return forms.of(platforms[0] if platforms else jax.default_backend())(*operands)


@_operation.def_abstract_eval
def _types(*_, forms, types):
    del forms
    return types


def _batched(operands, axes, *, forms, types):
    forms = forms.changed(lambda form: jax.vmap(form, axes))
    types = tuple(jax.make_jaxpr(forms.like)(*operands).out_avals)
    return _operation.bind(*operands, forms=forms, types=types), [0] * len(types)


def _lowered(platform):
    def form(*operands, forms, types):
        del types
        with jax.sharding.use_abstract_mesh(_sharding.mesh_of(operands)), jax.enable_x64(forms.x64):
            return forms.of(platform)(*operands)

    return mlir.lower_fun(form, multiple_results=True)


batching.primitive_batchers[_operation] = _batched
mlir.register_lowering(_operation, _lowered("default"))
for _name in _PLATFORMS:
    mlir.register_lowering(_operation, _lowered(_name), platform=_name)
