"""Classes that lie on several devices: what each must ask the others, inside `jax.shard_map`.

`name` is the mesh axis, or the axes, that shard the classes, in the order in which the shards lie; None
where a device has all of them. What is exchanged is a few numbers per row, never an array of all classes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

AxisName = str | tuple[str, ...]


def is_whole(x: jax.Array) -> bool:
    """Whether nothing splits `x`: no mesh axis by its type, nor one that the compiler may choose."""
    kind = jax.typeof(x).sharding
    return not any(kind.spec) and all(kind.mesh.shape[name] == 1 for name in kind.mesh.auto_axes)


def parts(x: jax.Array) -> int:
    """Into how many parts an axis of `x` may be split by the compiler; 0 where its type splits one already.

    Without a mesh to be seen, as many as there are devices.
    """
    kind = jax.typeof(x).sharding
    if any(kind.spec):
        return 0
    names = kind.mesh.axis_names
    return math.prod(kind.mesh.shape[n] for n in kind.mesh.auto_axes) if names else jax.device_count()


def names(name: AxisName | None) -> tuple[str, ...]:
    """The single axes."""
    return name if isinstance(name, tuple) else () if name is None else (name,)


def mesh_of(operands: Any) -> Any:
    """The mesh that holds the operands, or the one that is set."""
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(operands))
    return next((mesh for mesh in meshes if not mesh.empty), jax.sharding.get_abstract_mesh())


def traced_once(**static: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of what a value and the rule of its gradient share: one trace, in no program of its own.

    JAX traces both, the rule with the mesh of the context set. It takes the first trace for another one
    where that was not set, so it is set here.
    """

    def decorate(function):
        shared = jax.jit(function, inline=True, **static)

        @functools.wraps(function)
        def run(*operands, **options):
            with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
                return shared(*operands, **options)

        return run

    return decorate


def automatic(function: Callable[[Any], Any], operands: Any, out: Any) -> Any:
    """``function(operands)``, its places on an Explicit mesh left to the compiler; the results lie at `out`.

    For what has no one place by its type: chunks of sharded axes, sums by group, rows that are flattened.
    """
    mesh = mesh_of(operands)
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    if not explicit:
        return function(operands)
    with jax.sharding.use_abstract_mesh(mesh):  # JAX 0.8 asks for it inside `jax.jit`
        return jax.sharding.auto_axes(function, axes=explicit, out_sharding=out)(operands)


def shards(name: AxisName | None) -> int:
    """How many devices share the classes."""
    return 1 if name is None else lax.axis_size(name)


def total(x: jax.Array, name: AxisName | None) -> jax.Array:
    """The sum over the shards, the same on each."""
    return x if name is None else lax.psum(x, name)


def is_tracked(name: AxisName | None) -> bool:
    """Whether JAX knows which arrays differ over the axis: in ``shard_map(check_vma=True)`` only."""
    return name is None or all(varying(index(one)) for one in names(name))


def index(name: AxisName) -> jax.Array:
    """Which shard this is, known to be one of those that `name` names."""
    try:
        return lax.axis_index(name)
    except NameError as error:  # the axis was there for the loss, but JAX batches its derivative without it
        raise ValueError(
            f"The gradient of a loss with axis_name={name!r} must be taken inside `jax.vmap`, not around it."
        ) from error


def cotangent(ct: jax.Array, name: AxisName | None) -> jax.Array:
    """The cotangent of a result that all shards have, for what entered it by a sum over the shards.

    Where JAX does not track the axis, a cotangent is that of one device's copy. They are added up, as the
    transpose of `lax.psum` does there.
    """
    return ct if is_tracked(name) else lax.psum(ct, name)


def of_shared(gradient: jax.Array, name: AxisName | None) -> jax.Array:
    """The gradient by an operand that all shards have, from the part of each.

    Where JAX does not track the axis, the part of one device is the gradient by its copy.
    """
    return total(gradient, name) if is_tracked(name) else gradient


def highest(x: jax.Array, name: AxisName | None) -> jax.Array:
    """The maximum over the shards, the same on each."""
    return x if name is None else lax.pmax(x, name)


def first(flags: jax.Array, name: AxisName | None) -> jax.Array:
    """On one of the shards where `flags` holds, and on no other."""
    if name is None:
        return flags
    here = index(name)
    return here == lax.pmin(jnp.where(flags, here, lax.axis_size(name)), name)


def local(labels: jax.Array, classes: int, name: AxisName | None) -> jax.Array:
    """Class indices counted from the first of this shard's `classes`; those of other shards fall outside."""
    if name is None:
        return labels
    signed = labels.astype(f"int{8 * labels.dtype.itemsize}")  # negative in the shards before its own
    return signed - (classes * index(name)).astype(signed.dtype)


def part(option: jax.Array, axis: int, classes: int, name: AxisName | None) -> jax.Array:
    """Of an option with an entry for every class, those of this shard's `classes`."""
    if name is None or option.shape[axis] in (1, classes):
        return option
    return lax.dynamic_slice_in_dim(option, index(name) * classes, classes, axis)


def varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes over which JAX knows that `x` differs: none outside ``shard_map(check_vma=True)``."""
    kind = jax.typeof(x)
    return frozenset(kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma)


def varies(x: jax.Array, name: AxisName) -> bool:
    """Whether JAX knows that `x` differs over the whole axis."""
    return set(names(name)) <= varying(x)


def vary(x: jax.Array, names: frozenset[str]) -> jax.Array:
    """The same numbers, as differing over `names` too; their cotangents are then summed over these."""
    missing = tuple(sorted(names - varying(x)))
    if not missing:
        return x
    if hasattr(lax, "pcast"):
        return lax.pcast(x, missing, to="varying")
    return getattr(lax, "pvary")(x, missing)  # noqa: B009  # its name before JAX 0.9
