"""One form of an operation is traced: that of the platform for which the program is lowered."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax import _forms, softmax_focal_loss_with_integer_labels

pytestmark = pytest.mark.versions

OPERATIONS = {"cpu": jnp.sin, "tpu": jnp.cos, "default": jnp.tanh}
NAMES = {"cpu": "sine", "tpu": "cosine", "cuda": "tanh"}  # in StableHLO, by platform


def chosen(x, scale=1.0, calls=None):
    """A tree of x moved by a form, and of its sum, times a scale."""

    def form(name, x, scale):
        if calls is not None:
            calls.append(name)
        y = scale * OPERATIONS[name](x)
        return {"each": y, "sum": jnp.sum(y)}

    def like(x, scale):
        return {"each": x * scale, "sum": jnp.sum(x) * scale}

    forms = {name: partial(form, name) for name in OPERATIONS}
    return _forms.of_platform(x, jnp.float32(scale), like=like, **forms)


@pytest.mark.parametrize("platform", NAMES)
def test_the_form_of_the_platform_is_traced_and_no_other(platform):
    calls = []
    traced = jax.jit(partial(chosen, calls=calls)).trace(jnp.ones(3))
    assert not calls
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert calls == [platform if platform in OPERATIONS else "default"]
    assert [name for name in NAMES.values() if f"stablehlo.{name}" in text] == [NAMES[platform]]


def test_a_program_may_be_lowered_where_64_bits_are_not_enabled():
    """As `jax.enable_x64` may end after the trace; then a form would make numbers of 32 bits."""
    logits, labels = np.random.default_rng(0).normal(size=(4, 9)), np.arange(4, dtype=np.int32)
    with jax.enable_x64(True):
        traced = jax.jit(softmax_focal_loss_with_integer_labels).trace(logits, labels)
    text = traced.lower().as_text()
    assert "4x9xf64" in text and "f32" not in text


def test_a_program_for_several_platforms_has_the_form_of_each():
    exported = jax.export.export(jax.jit(chosen), platforms=list(NAMES))(jnp.ones(3))
    text = exported.mlir_module()
    assert all(f"stablehlo.{name}" in text for name in NAMES.values())
    assert exported.call(jnp.ones(3))["sum"] == pytest.approx(3 * np.sin(1), rel=1e-6)


@pytest.mark.parametrize("without", ["jit", "nothing"])
def test_every_way_to_call_it_gives_the_same(without):
    x, scale = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32), np.float32([[1, 2, 3]] * 2)
    both = jax.vmap(jax.vmap(chosen))
    some = jax.vmap(jax.vmap(chosen, (1, None)), (None, 0))  # of the 4 columns, with each of two scales
    with jax.disable_jit(without == "jit"):
        found, others = both(x, scale), some(x[0], scale[0, :2])
    np.testing.assert_allclose(found["each"], scale[:, :, None] * np.sin(x), rtol=1e-6)
    np.testing.assert_allclose(found["sum"], (scale[:, :, None] * np.sin(x)).sum(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(others["each"], scale[0, :2, None, None] * np.sin(x[0].T), rtol=1e-6)


def test_a_printed_program_names_the_forms():
    assert "forms=cpu tpu default" in str(jax.make_jaxpr(chosen)(jnp.ones(3)))
